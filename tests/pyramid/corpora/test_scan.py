"""Scanning: every video once, cut without gaps, bad ones named, the same manifest on every machine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import drawing
import numpy as np
import pytest

from pyramid import files, parquet
from pyramid.corpora.folder import read_captions
from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import list_clips, scan
from pyramid.corpora.source import ScanConfig, fingerprint
from pyramid.corpora.splits import held_out
from pyramid.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three videos of 2, 1 and 3 s in two folders, and files that are none."""
    root = tmp_path / "videos"
    for number, (name, n) in enumerate({"b/two.mp4": 20, "a.mkv": 10, "b/three.mp4": 30}.items()):
        drawing.write_video(root / name, range(number * 100, number * 100 + n), rate=10)
    (root / "notes.txt").write_text("no video")
    (root / ".hidden.mp4").write_bytes(b"x")
    return root


def test_every_video_once_in_order(root: Path, tmp_path: Path) -> None:
    result = scan("folder", str(root), out=str(tmp_path / "clips.parquet"))
    clips = read_manifest(result.out)
    assert [c.clip_id for c in clips] == ["folder/a.mkv#0.000", "folder/b/three.mp4#0.000", "folder/b/two.mp4#0.000"]
    assert [round(c.duration_s, 2) for c in clips] == [1.0, 3.0, 2.0]
    assert [c.video for c in clips] == [str(root / n) for n in ("a.mkv", "b/three.mp4", "b/two.mp4")]
    assert result.clips == 3
    assert result.hours == pytest.approx(6 / 3600, abs=1e-5)
    assert result.skipped == {}


def test_the_manifest_depends_on_the_files_alone(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "elsewhere")
    here, there = (list_clips("folder", str(place), ScanConfig())[0] for place in (root, tmp_path / "elsewhere"))
    assert [{**vars(c), "video": ""} for c in here] == [{**vars(c), "video": ""} for c in there]
    for name in ("one", "two"):
        scan("folder", str(root), out=str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("clip_s", [0.4, 0.7, 1.0, 2.9])
def test_clips_lie_side_by_side_and_are_no_longer_than_asked(root: Path, clip_s: float) -> None:
    clips, _ = list_clips("folder", str(root), ScanConfig(clip_s=clip_s))
    for video in {c.video for c in clips}:
        parts = [c for c in clips if c.video == video]
        assert parts[0].start_s == 0
        assert all(a.end_s == b.start_s for a, b in itertools.pairwise(parts))
        assert parts[-1].end_s == pytest.approx({"a.mkv": 1, "two.mp4": 2, "three.mp4": 3}[Path(video).name], abs=2e-3)
        assert max(c.duration_s for c in parts) <= clip_s + 2e-3
    assert len({c.clip_id for c in clips}) == len(clips)


def test_bad_files_are_named_and_the_others_kept(root: Path) -> None:
    good = (root / "b" / "two.mp4").read_bytes()
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video")
    (root / "cut.mp4").write_bytes(good[:200])
    (root / "copy.mp4").write_bytes(good)
    drawing.write_sound(root / "sound.mp4")
    drawing.write_video(root / "blink.mp4", [1], rate=100)
    clips, skipped = list_clips("folder", str(root), ScanConfig())
    assert {Path(q.item).name: q.reason for q in skipped} == {
        "empty.mp4": "empty_file",
        "text.mp4": "not_a_video",
        "cut.mp4": "not_a_video",
        "two.mp4": "duplicate",
        "sound.mp4": "no_video_stream",
        "blink.mp4": "too_short",
    }
    assert all(q.item in q.detail for q in skipped)
    assert len(clips) == 3


def test_a_true_rate_gives_the_true_length(root: Path) -> None:
    clips, _ = list_clips("folder", str(root), ScanConfig(source_hz=5.0))
    assert [round(c.duration_s, 3) for c in clips] == [2.0, 6.0, 4.0]
    assert {c.source_hz for c in clips} == {5.0}


def test_who_is_held_out_depends_on_the_name_and_the_seed_alone() -> None:
    names = [f"folder/v{v:03d}.mp4" for v in range(200)]
    held = held_out(names, ScanConfig(val_share=0.2))
    assert len(held) == pytest.approx(40, abs=16)  # Three standard deviations.
    assert held_out(names[50:100], ScanConfig(val_share=0.2)) == held & set(names[50:100])  # More videos move none.
    assert held_out(reversed(names), ScanConfig(val_share=0.2)) == held
    assert held_out(names, ScanConfig(val_share=0.2, seed=1)) != held


def test_a_video_is_held_out_whole(root: Path) -> None:
    clips, _ = list_clips("folder", str(root), ScanConfig(clip_s=0.3, val_share=0.5))
    assert {c.split for c in clips} == {"train", "val"}
    for video in {c.video for c in clips}:
        assert len({c.split for c in clips if c.video == video}) == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_videos_are_split_too(n: int) -> None:
    for share in (0.0, 0.1, 0.99):
        held = held_out([f"f/{i}" for i in range(n)], ScanConfig(val_share=share))
        assert len(held) < n
        assert bool(held) == (n > 1 and share > 0)


def test_captions_from_jsonl_and_csv(root: Path) -> None:
    (root / "captions.jsonl").write_text(
        '{"file": "b/two.mp4", "text": "pour \\"tea\\""}\n\n{"file": "x", "text": "y"}\n'
    )
    texts = {Path(c.video).name: (c.text, c.text_origin) for c in list_clips("folder", str(root), ScanConfig())[0]}
    assert texts == {"two.mp4": ('pour "tea"', "caption"), "a.mkv": ("", ""), "three.mp4": ("", "")}
    (root / "captions.jsonl").unlink()
    (root / "captions.csv").write_text('file,text\na.mkv,"cut, then stir"\n')
    texts = {Path(c.video).name: c.text for c in list_clips("folder", str(root), ScanConfig())[0]}
    assert texts["a.mkv"] == "cut, then stir"


@pytest.mark.parametrize(
    "text", ["file\na.mkv\n", "file,text\na.mkv\n", "a.mkv,cut\nb.mp4,stir\n", "file,text\na.mkv," + "x" * 200_000]
)
def test_broken_tables_of_captions_are_named(root: Path, text: str) -> None:
    (root / "captions.csv").write_text(text)
    with pytest.raises(DataError, match=r"captions\.csv"):
        list_clips("folder", str(root), ScanConfig())


@pytest.mark.parametrize(
    "line", ['{"file": "a.mkv", "text": null}', "{", "[]", '{"file": "a.mkv"}', '"x"', "[" * 100_000]
)
def test_broken_captions_are_named(root: Path, line: str) -> None:
    (root / "captions.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"captions\.jsonl"):
        list_clips("folder", str(root), ScanConfig())


def captions_of(root: Path, name: str, content: bytes) -> tuple[dict[str, str], list[tuple[str, str]]]:
    (root / name).write_bytes(content)
    clips, skipped = list_clips("folder", str(root), ScanConfig())
    assert len(clips) == 3  # A caption costs no video.
    places = [(q.item.removeprefix(f"{root / name}, "), q.reason) for q in skipped]
    assert all(q.item in q.detail for q in skipped)
    return {Path(c.video).name: c.text for c in clips if c.text}, places


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"b/two.mp4,caf\xe9", "not_utf8"),
        (b"b/two.mp4", "bad_row"),
        (b"b/two.mp4,pour,tea", "bad_row"),
        (b'b/two.mp4,"pour', "bad_row"),
        (b'b/two.mp4,"pour"tea', "bad_row"),
        (b"b/two.mp4," + b"x" * 200_000, "bad_row"),
    ],
)
def test_a_bad_row_of_captions_costs_itself_only(root: Path, bad: bytes, reason: str) -> None:
    content = b'file,text\n\na.mkv,"cut,\nthen stir"\n' + bad + b"\nb/three.mp4,wash\n"
    texts, skipped = captions_of(root, "captions.csv", content)
    assert texts == {"a.mkv": "cut,\nthen stir", "three.mp4": "wash"}
    assert skipped == [("line 5", reason)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"file": "b/two.mp4", "text": "caf\xe9"}', "not_utf8"),
        (b'{"file": "b/two.mp4", "text": "caf\\ud8e9"}', "not_utf8"),
        (b'{"file": "b/two.mp4", "text": null}', "bad_row"),
        (b'{"file": "b/two.mp4"', "bad_row"),
        (b"[" * 100_000, "bad_row"),
        (b"7", "bad_row"),
    ],
)
def test_a_bad_line_of_captions_costs_itself_only(root: Path, bad: bytes, reason: str) -> None:
    rows = [json.dumps({"file": n, "text": t}, ensure_ascii=False) for n, t in (("a.mkv", "é\u2028"), ("x", "y"))]
    texts, skipped = captions_of(root, "captions.jsonl", "\n".join(rows).encode() + b"\n\n" + bad + b"\n")
    assert texts == {"a.mkv": "é\u2028"}
    assert skipped == [("line 4", reason)]


def test_a_quote_that_is_never_closed_does_not_swallow_what_follows(root: Path) -> None:
    rows = [f"{i}.mp4,word" for i in range(5000)]
    rows[10] = '10.mp4,"word'
    rows[20] = '20.mp4,"a ""word"""'
    (root / "captions.csv").write_text("\n".join(["file,text", *rows]))
    captions, aside = read_captions(str(root))
    assert (len(captions), captions["20.mp4"]) == (4999, 'a "word"')
    assert [q.item for q in aside] == [f"{root / 'captions.csv'}, line 12"]


def test_captions_of_which_none_can_be_read_are_refused_whole(root: Path) -> None:
    (root / "captions.csv").write_bytes("file,text\na.mkv,café\nb/two.mp4,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not one row can be used.*line 2: the text is not UTF-8"):
        list_clips("folder", str(root), ScanConfig())


def test_what_is_refused_is_counted_whole_and_listed_in_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyramid.corpora.scan.MAX_LISTED", 3)
    (root / "captions.jsonl").write_text('{"file": "a.mkv", "text": "cut"}\n' + "5\n" * 20)
    result = scan("folder", str(root), out=str(root.parent / "c"))
    assert (result.clips, result.skipped, len(result.items)) == (3, {"bad_row": 20}, 3)
    told = parquet.metadata(result.out)
    assert (told["skipped_counts"], len(told["skipped"])) == ({"bad_row": 20}, 3)
    assert "20 refused" in repr(result)
    assert len(list_clips("folder", str(root), ScanConfig())[1]) == 20


def test_generated_clips_carry_their_instruction(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "3_push_the_cup.mp4", range(10), rate=10)
    drawing.write_video(tmp_path / "noname.mp4", range(10, 20), rate=10)
    clips, _ = list_clips("generated", str(tmp_path), ScanConfig())
    assert [(c.text, c.text_origin) for c in clips] == [("push the cup", "file_name"), ("", "")]
    assert {(c.tier, c.embodiment, c.corpus) for c in clips} == {("middle", "generated", "generated")}


def test_generated_clips_that_were_split_have_label_files(tmp_path: Path) -> None:
    labels = {
        "0": "pick up\n the  cup \n",
        "1": "",
        "2": None,
        "3": "x" * 501,
        "4": b"caf\xe9",
        "10_open_it": "close it",
    }
    for number, (name, label) in enumerate(labels.items()):
        drawing.write_video(tmp_path / "a" / "videos" / f"{name}.mp4", range(number * 10, number * 10 + 10), rate=10)
        (tmp_path / "a" / "labels").mkdir(exist_ok=True)
        if label is not None:
            data = label if isinstance(label, bytes) else label.encode()
            (tmp_path / "a" / "labels" / f"{name}.txt").write_bytes(data)
    drawing.write_video(tmp_path / "other" / "5_push_it.mp4", range(900, 910), rate=10)
    clips, skipped = list_clips("generated", str(tmp_path), ScanConfig())
    assert {c.clip_id.partition("/")[2]: (c.text, c.text_origin) for c in clips} == {
        "a/videos/0.mp4#0.000": ("pick up the cup", "label"),
        "a/videos/1.mp4#0.000": ("", ""),
        "a/videos/2.mp4#0.000": ("", ""),
        "a/videos/10_open_it.mp4#0.000": ("close it", "label"),
        "other/5_push_it.mp4#0.000": ("push it", "file_name"),
    }
    assert {(Path(q.item).name, q.reason) for q in skipped} == {("3.mp4", "bad_label"), ("4.mp4", "bad_label")}


def test_the_digest_of_the_inputs_is_that_of_the_list_of_contents(root: Path, tmp_path: Path) -> None:
    """It is summed up while clips pass by; nobody who reads it sees a difference."""
    out = scan("folder", str(root), out=str(tmp_path / "c"), clip_s=0.5).out
    contents = [clip.content for clip in read_manifest(out)]
    assert parquet.metadata(out)["inputs"] == {"clips": files.digest(contents)}


def test_names_that_are_no_text_are_set_aside(root: Path) -> None:
    (root / "a.mkv").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9.mkv"))
    clips, skipped = list_clips("folder", str(root), ScanConfig())
    assert len(clips) == 2
    assert [(q.reason, Path(q.item).name) for q in skipped] == [("not_utf8", "caf\\udce9.mkv")]


def test_robot_episodes_come_with_their_numbers(tmp_path: Path) -> None:
    from pyramid.lerobot import EpisodeData, Layout, write_v21

    layout = Layout(
        fps=10.0,
        robot_type="Test-Arm",
        state_names=("x",),
        action_names=("dx",),
        cameras=("front", "wrist"),
        height_px=32,
        width_px=32,
    )
    column = np.arange(12, dtype=np.float32)[:, None]
    data = (
        EpisodeData(
            state=column + e,
            action=column - e,
            frames={
                c: drawing.pictures(range(e * 50 + k, e * 50 + k + 12), 32, 32) for k, c in enumerate(layout.cameras)
            },
            task="lift",
        )
        for e in range(2)
    )
    write_v21(str(tmp_path / "arm"), data, layout=layout, tasks=("lift",))
    clips, skipped = list_clips("lerobot", str(tmp_path / "arm"), ScanConfig())
    assert skipped == []
    assert [(c.text, c.tier, c.embodiment, c.source_hz) for c in clips] == [("lift", "top", "test_arm", 10.0)] * 2
    assert all(parquet.read(c.episode).num_rows == 12 for c in clips)
    assert [round(c.duration_s, 6) for c in clips] == [1.2, 1.2]
    wrist, _ = list_clips("lerobot", str(tmp_path / "arm"), ScanConfig(camera="observation.images.wrist"))
    assert {c.video for c in wrist}.isdisjoint({c.video for c in clips})
    with pytest.raises(ConfigError, match="no camera 'writs'"):
        list_clips("lerobot", str(tmp_path / "arm"), ScanConfig(camera="writs"))


def test_wrong_calls_are_refused(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "c.parquet")
    (tmp_path / "nothing").mkdir()
    for error, message, call in (
        (
            ConfigError,
            "unknown kind of corpus 'foldr'; did you mean 'folder'",
            lambda: scan("foldr", str(root), out=out),
        ),
        (ConfigError, "--out", lambda: scan("folder", str(root))),
        (DataError, "is not there", lambda: scan("folder", str(root / "none"), out=out)),
        (DataError, "is a file", lambda: scan("folder", str(root / "a.mkv"), out=out)),
        (DataError, "no video file at all", lambda: scan("folder", str(tmp_path / "nothing"), out=out)),
        (ConfigError, "min_clip_s", lambda: scan("folder", str(root), out=out, min_clip_s=30)),
        (ConfigError, "val_share", lambda: scan("folder", str(root), out=out, val_share=1.0)),
        (DataError, "Bad Name", lambda: scan("folder", str(root), out=out, corpus="Bad Name")),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not Path(out).exists()
    assert scan("folder", str(root), dry_run=True).clips == 3
    assert scan("folder", str(root), out=out, limit=1).clips == 1


def test_fingerprints_see_size_head_and_tail(tmp_path: Path) -> None:
    data = bytearray(3 * 2**20)
    seen = set()
    for change in (None, 0, 2**20 - 1, 2 * 2**20, 3 * 2**20 - 1):
        if change is not None:
            data[change] ^= 1
        (tmp_path / "f").write_bytes(data)
        seen.add(fingerprint(str(tmp_path / "f")))
    (tmp_path / "f").write_bytes(data + b"\0")
    seen.add(fingerprint(str(tmp_path / "f")))
    for small in (b"", b"a", b"ab"):
        (tmp_path / "f").write_bytes(small)
        seen.add(fingerprint(str(tmp_path / "f")))
    assert len(seen) == 9


def test_videos_with_equal_ends_are_told_apart_by_their_middles(tmp_path: Path) -> None:
    """The fingerprint skips the middle of a long file; only the whole content makes a duplicate."""
    path = drawing.write_video(tmp_path / "v" / "a.mp4", range(10), rate=10)
    filler = b"\0\0\0\x08free"
    ends = path.read_bytes() + filler * 150_000
    for name, middle in (("a", b"AAAAAAAA"), ("b", b"BBBBBBBB")):
        box = (len(middle) * 2 + 8).to_bytes(4, "big") + b"free" + middle * 2
        (tmp_path / "v" / f"{name}.mp4").write_bytes(ends + box + filler * 150_000)
    clips, skipped = list_clips("folder", str(tmp_path / "v"), ScanConfig())
    assert (len(clips), skipped) == (2, [])


def test_results_are_plain_data(root: Path, tmp_path: Path) -> None:
    result = scan("folder", str(root), out=str(tmp_path / "c"))
    json.dumps(vars(result))
    assert "3 clips" in repr(result)
