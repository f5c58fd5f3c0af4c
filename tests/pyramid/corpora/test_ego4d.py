"""Ego4D as its tool leaves it on disk: narrations become windows, actions keep their frames, redactions hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import drawing
import pytest

from pyramid.corpora.ego4d_actions import LONE_S, clean
from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import list_clips, scan
from pyramid.corpora.source import ScanConfig
from pyramid.errors import DataError
from pyramid.types import Clip

RATE = 10
_numbers = iter(range(0, 60_000, 400))


def uid(number: int) -> str:
    return f"{number:08x}-cad3-4ea6-b034-bea360d9507c"


def film(path: Path, seconds: float = 20.0) -> Path:
    """A video that no other test's video equals."""
    first = next(_numbers)
    return drawing.write_video(path, range(first, first + round(seconds * RATE)), rate=RATE, size=(32, 32))


def meta(number: int, **more: Any) -> dict[str, Any]:
    return {
        "video_uid": uid(number),
        "duration_sec": 20.0,
        "scenarios": ["Cooking"],
        "device": "GoPro",
        "fb_participant_id": number,
        "split_fho": None,
        "redacted_intervals": [],
        **more,
    }


def said(time_s: float, text: str, name: str) -> dict[str, Any]:
    return {
        "timestamp_sec": time_s,
        "timestamp_frame": round(time_s * 30) if math.isfinite(time_s) else 0,
        "narration_text": text,
        "annotation_uid": name,
    }


def passes(first: list[dict[str, Any]], second: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    out = {"narration_pass_1": {"narrations": first, "summaries": []}}
    return out | ({"narration_pass_2": {"narrations": second, "summaries": []}} if second is not None else {})


def action(name: str, start: int, end: int, **more: Any) -> dict[str, Any]:
    return {
        "uid": name,
        "is_valid_action": True,
        "is_rejected": False,
        "is_invalid_annotation": False,
        "start_frame": start,
        "end_frame": end,
        "narration_text": "#C C cuts dough",
        "narration_annotation_uid": None,
        "structured_verb": "cut_(trim,_slice,_chop)",
        "freeform_verb": None,
        "critical_frames": {"pre_frame": start + 15, "contact_frame": None, "pnr_frame": start + 30},
        "frames": [
            {"frame_type": "pnr_frame", "boxes": [
                {"object_type": "left_hand", "structured_noun": None, "freeform_noun": None},
                {"object_type": "object_of_change", "structured_noun": "dough", "freeform_noun": None},
            ]}
        ],
        **more,
    }  # fmt: skip


def fho(number: int, actions: list[dict[str, Any]], **interval: Any) -> dict[str, Any]:
    row = {"clip_uid": uid(900 + number), "start_sec": 0.0, "end_sec": 20.0, "narrated_actions": actions, **interval}
    return {"video_uid": uid(number), "annotated_intervals": [row]}


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One video of 20 s with its metadata; tests add annotations."""
    film(tmp_path / "v2" / "video_540ss" / f"{uid(1)}.mp4")
    put(tmp_path / "v2" / "ego4d.json", {"version": "2", "videos": [meta(1)], "clips": []})
    return tmp_path


def narrate(root: Path, data: dict[str, Any]) -> None:
    put(root / "v2" / "annotations" / "narration.json", data)


def look(root: Path, **options: Any) -> tuple[dict[str, Clip], dict[str, str]]:
    clips, skipped = list_clips("ego4d", str(root), ScanConfig(**options))
    assert len({c.clip_id for c in clips}) == len(clips)
    return {c.clip_id.partition("#")[2]: c for c in clips}, {q.item: q.reason for q in skipped}


def test_narrations_become_windows_of_the_mean_gap(root: Path) -> None:
    """Gaps of 2 and 4 s (first annotator) and 6 s (second): a mean of 4 s, so 2 s on each side."""
    narrate(root, {
        uid(1): passes(
            [said(1.0, "#C C takes a cup", "a"), said(3, "#C drops #unsure", "b"), said(7, "#unsure moves", "c")],
            [said(12, "#C Cuts onion\n", "d"), said(18.5, "A light goes on", "e"), said(18.0, "#O A man nods", "f")],
        )
    })  # fmt: skip
    gap = (6 + 6.5) / 4
    clips, skipped = look(root)
    assert skipped == {}
    assert {name: c.text for name, c in clips.items()} == {
        "a": "takes a cup", "b": "drops something", "c": "moves", "d": "Cuts onion", "e": "A light goes on",
    }  # fmt: skip
    for name, at in {"a": 1.0, "b": 3, "c": 7, "d": 12, "e": 18.5}.items():
        assert clips[name].start_s == pytest.approx(max(at - gap / 2, 0))
        assert clips[name].end_s == pytest.approx(min(at + gap / 2, 20.0))
        facts = clips[name].facts()
        assert (facts["narration_s"], facts["narrator"]) == (at, "pass_1" if name in "abc" else "pass_2")
        assert (facts["scenarios"], facts["device"]) == (["Cooking"], "GoPro")
    assert {c.person for c in clips.values()} == {"1"}
    assert {c.text_origin for c in clips.values()} == {"narration"}
    assert clips["b"].start_s < clips["a"].end_s  # Clips of one video may overlap.
    assert clips["c"].facts()["who"] == "unsure"
    both, _ = look(root, other_people=True)
    assert (both["f"].text, both["f"].facts()["who"]) == ("A man nods", "other")


def test_what_is_left_out_on_purpose_is_counted_and_no_failure(root: Path, tmp_path: Path) -> None:
    narrate(root, {uid(1): passes([said(3, "#C C a", "a"), said(9, "#O b", "b")]), uid(2): passes([])})
    result = scan("ego4d", str(root), out=str(tmp_path / "clips.parquet"))
    assert (result.clips, result.skipped) == (1, {})
    assert result.dropped == {"missing_video": 1, "other_person": 1}
    assert "1 left out (other_person)" in repr(result)
    assert [c.text for c in read_manifest(result.out)] == ["a"]


def test_narrations_that_cannot_be_placed_are_set_aside_by_name(root: Path) -> None:
    (root / "v2" / "annotations").mkdir()
    rows = [
        said(5, "#C C good", "good"), said(-1, "#C C early", "early"), said(20.5, "#C C late", "late"),
        said(float("nan"), "#C C never", "never"), {**said(6, "#C C x", "word"), "timestamp_sec": "six"},
        said(7, "#C C bad \ud800", "letters"), said(9, "#C C also good", "fine"),
    ]  # fmt: skip
    narrate(root, {uid(1): passes(rows)})
    clips, skipped = look(root)
    assert set(clips) == {"good", "fine"}
    name = f"ego4d/{uid(1)}"
    assert skipped == {
        "early": "outside_video", "late": "outside_video", f"{name}#never": "bad_time", f"{name}#word": "bad_time",
        f"{name}#letters": "not_utf8",
    }  # fmt: skip


def test_bytes_that_are_no_text_cost_one_narration_only(root: Path) -> None:
    narrate(root, {uid(1): passes([said(5, "#C C good", "good"), said(9, "#C C caf@", "bad")])})
    path = root / "v2" / "annotations" / "narration.json"
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe9"))
    clips, skipped = look(root)
    assert (set(clips), list(skipped.values())) == ({"good"}, ["not_utf8"])


def test_uids_that_many_narrations_share_are_told_apart_by_time(root: Path) -> None:
    """The publisher's uid names the annotator's work, not the sentence."""
    rows = [said(2, "#C C a", "u"), said(4.5, "#C C b", "u"), said(4.5, "#C C again", "u")]
    narrate(root, {uid(1): passes(rows)})
    acts = [
        action("x", 120, 150, narration_annotation_uid="u", narration_timestamp_sec=4.5),
        action("y", 45, 75, narration_annotation_uid="u", narration_text="#C C a"),
    ]
    put(root / "v2" / "annotations" / "fho_main.json", {"videos": [fho(1, acts)]})
    clips, skipped = look(root)
    assert {name: c.facts()["fho"]["action_uid"] for name, c in clips.items()} == {"u@2.000": "y", "u@4.500": "x"}
    assert skipped == {f"ego4d/{uid(1)}#u@4.500": "duplicate_id"}


def test_the_redacted_file_of_all_narrations_is_read_too(root: Path) -> None:
    row = {"time": 4.0, "text": "#C C a", "annotator": "77", "_annotation_uid": "u", "is_summary": False}
    rows = [row, {**row, "time": 6.0, "text": "#C C b"}, {**row, "is_summary": True, "text": "#C C all"}]
    put(root / "v2" / "annotations" / "all_narrations_redacted.json",
        {"date": "220101", "videos": {uid(1): {"narrations": rows, "summaries": []}}})  # fmt: skip
    clips, skipped = look(root)
    assert skipped == {}
    assert {n: (c.text, c.start_s, c.end_s, c.facts()["narrator"]) for n, c in clips.items()} == {
        "u@4.000": ("a", 3.0, 5.0, "77"),
        "u@6.000": ("b", 5.0, 7.0, "77"),
    }


def test_a_narration_without_neighbours_gets_a_window_too(root: Path) -> None:
    narrate(root, {uid(1): passes([said(9.0, "#C C waits", "a")])})
    clips, _ = look(root)
    assert (clips["a"].start_s, clips["a"].end_s) == (9 - LONE_S / 2, 9 + LONE_S / 2)


def test_rare_narrations_make_no_longer_clips_than_asked(root: Path) -> None:
    narrate(root, {uid(1): passes([said(2, "#C C a", "a"), said(18, "#C C b", "b")])})
    clips, _ = look(root, clip_s=3.0)
    assert {n: (c.start_s, c.end_s) for n, c in clips.items()} == {"a": (0.5, 3.5), "b": (16.5, 19.5)}


def test_actions_keep_their_critical_frames_in_seconds(root: Path) -> None:
    narrate(root, {uid(1): passes([said(5, "#C C cuts", "n"), said(7, "#C C waits", "m")])})
    acts = [
        action("joined", 120, 240, narration_annotation_uid="n"),
        action("alone", 300, 420, narration_text="#C C peels", structured_verb="[other]", freeform_verb="peel"),
        action("no", 10, 20, is_rejected=True),
        action("never", 10, 20, is_valid_action=False),
    ]
    put(root / "v2" / "annotations" / "fho_main.json", {"version": "2", "videos": [fho(1, acts)]})
    clips, skipped = look(root)
    assert (set(clips), skipped) == ({"n", "m", "alone"}, {})
    assert (clips["n"].start_s, clips["n"].end_s) == (4.0, 6.0)
    assert clips["n"].facts()["fho"] == {
        "action_uid": "joined", "start_s": 4.0, "end_s": 8.0, "critical_s": {"pre_frame": 4.5, "pnr_frame": 5.0},
    }  # fmt: skip
    assert [(clips[n].verb, clips[n].noun) for n in ("n", "alone", "m")] == [
        ("cut_(trim,_slice,_chop)", "dough"),
        ("peel", "dough"),
        ("", ""),
    ]
    assert (clips["alone"].text, clips["alone"].start_s, clips["alone"].end_s) == ("peels", 10.0, 14.0)


def test_nothing_that_touches_a_redaction_becomes_a_clip(root: Path) -> None:
    """Frames 90..149 of 30 Hz, so 3 s up to and with the frame at 5 s."""
    closed = [{"start_frame": 90, "end_frame": 149}]
    put(root / "v2" / "ego4d.json", {"videos": [meta(1, redacted_intervals=closed)]})
    names = {"a": 1.9, "b": 2.1, "c": 4, "d": 5.9, "e": 6.1}
    narrate(root, {uid(1): passes([said(t, f"#C C {n}", n) for n, t in names.items()] + [said(9.9, "#C C f", "f")])})
    clips, skipped = look(root, clip_s=2.0)
    half = (9.9 - 1.9) / 5 / 2
    assert half == pytest.approx(0.8)
    assert set(clips) == {"a", "b", "d", "e", "f"}
    assert skipped == {f"ego4d/{uid(1)}#c": "redacted"}
    clips, skipped = look(root, clip_s=1.0)
    assert all(c.end_s <= 3 or c.start_s >= 5 for c in clips.values())
    (root / "v2" / "annotations" / "narration.json").unlink()
    whole, skipped = look(root)
    assert [(c.start_s, round(c.end_s, 6)) for c in whole.values()] == [(0, 3.0), (5.0, 20.0)]
    put(root / "v2" / "annotations" / "fho_main.json", {"videos": [fho(1, [action("x", 300, 330)], redacted=True)]})
    with pytest.raises(DataError, match="blanked out"):
        scan("ego4d", str(root), dry_run=True)


def test_a_video_that_is_blanked_out_altogether_is_named(root: Path) -> None:
    film(root / "v2" / "video_540ss" / f"{uid(2)}.mp4", 3)
    closed = [{"start_frame": 40, "end_frame": 9000}, {"start_frame": 0, "end_frame": 50}]
    put(root / "v2" / "ego4d.json", {"videos": [meta(1, redacted_intervals=closed), meta(2)]})
    clips, skipped = look(root)
    assert [c.clip_id for c in clips.values()] == [f"ego4d/{uid(2)}#0.000"]
    assert skipped == {str(root / "v2" / "video_540ss" / f"{uid(1)}.mp4"): "redacted"}


@pytest.mark.parametrize("interval", [{"start_frame": None, "end_frame": 5}, {"start_frame": 9, "end_frame": 3}, {}, 5])
def test_a_redaction_that_makes_no_sense_closes_the_video(root: Path, interval: Any) -> None:
    film(root / "v2" / "video_540ss" / f"{uid(2)}.mp4", 3)
    put(root / "v2" / "ego4d.json", {"videos": [meta(1, redacted_intervals=[interval]), meta(2)]})
    clips, skipped = look(root)
    assert [c.clip_id for c in clips.values()] == [f"ego4d/{uid(2)}#0.000"]
    assert list(skipped.values()) == ["unknown_video"]


def test_without_annotations_whole_videos_are_cut(tmp_path: Path) -> None:
    film(tmp_path / "v1" / "full_scale" / f"{uid(1)}.mp4", 6)
    clips, skipped = look(tmp_path, clip_s=2.0)
    assert ([(c.start_s, c.end_s, c.text) for c in clips.values()], skipped) == (
        [(0, 2, ""), (2, 4, ""), (4, 6, "")],
        {},
    )


def test_each_video_comes_from_the_first_folder_and_newest_version_that_has_it(tmp_path: Path) -> None:
    for place in ("v1/full_scale", "v2/full_scale", "v1/video_540ss"):
        film(tmp_path / place / f"{uid(1)}.mp4", 2)
    for place in ("v1/full_scale", "v2/full_scale"):
        film(tmp_path / place / f"{uid(2)}.mp4", 2)
    film(tmp_path / "v2" / "full_scale" / "holiday.mp4", 2)
    put(tmp_path / "v1" / "ego4d.json", {"videos": []})
    put(tmp_path / "v2" / "ego4d.json", {"videos": [meta(1), meta(2)]})
    put(tmp_path / "ego4d.json", {"videos": []})
    clips, skipped = list_clips("ego4d", str(tmp_path), ScanConfig())
    taken = {str(Path(c.video).relative_to(tmp_path)) for c in clips}
    assert taken == {f"v1/video_540ss/{uid(1)}.mp4", f"v2/full_scale/{uid(2)}.mp4"}
    assert [q.reason for q in skipped] == ["unknown_name"]
    clips, _ = list_clips("ego4d", str(tmp_path), ScanConfig(rendition="full_scale"))
    assert {str(Path(c.video).relative_to(tmp_path)) for c in clips} == {f"v2/full_scale/{uid(i)}.mp4" for i in (1, 2)}


def test_clip_files_are_pieces_of_their_videos(tmp_path: Path) -> None:
    """A clip of 10 s that starts 30 s into the video; times in the manifest are those of the file."""
    for number in (901, 902, 903):
        film(tmp_path / "v2" / "clips" / f"{uid(number)}.mp4", 10)
    film(tmp_path / "v2" / "clips" / f"{uid(904)}.mp4", 3)
    acts = [action("x", 960, 1020, narration_annotation_uid="n"), action("other", 30, 60)]
    closed = [{"start_frame": 1140, "end_frame": 1169}]
    put(tmp_path / "v2" / "ego4d.json", {
        "videos": [meta(1, redacted_intervals=closed)],
        "clips": [{"clip_uid": uid(902), "video_uid": uid(1), "video_start_sec": 50.0, "video_end_sec": 60.0}, {}],
    })  # fmt: skip
    put(tmp_path / "v2" / "annotations" / "fho_main.json", {"videos": [fho(1, acts, start_sec=30.0, end_sec=40.0)]})
    (tmp_path / "v2" / "clips" / "manifest.csv").write_text(
        "exported_clip_uid,parent_video_uid,parent_start_sec,parent_end_sec\n" + f"{uid(903)},{uid(1)},70,80\n"
    )
    times = {"n": 32.5, "gone": 38.5, "later": 51.0, "last": 79.0, "nowhere": 65.0}
    narrate(tmp_path, {uid(1): passes([said(t, f"#C C {n}", n) for n, t in times.items()])})
    clips, skipped = look(tmp_path, clip_s=2.0)
    assert {n: (c.start_s, c.end_s) for n, c in clips.items()} == {
        "n": (1.5, 3.5), "later": (0.0, 2.0), "last": (8.0, 10.0),
    }  # fmt: skip
    assert clips["n"].facts()["fho"]["critical_s"] == {"pre_frame": 2.5, "pnr_frame": 3.0}
    assert clips["n"].facts()["video_uid"] == uid(1)
    assert sorted(skipped.values()) == ["redacted", "unknown_clip"]
    film(tmp_path / "v2" / "full_scale" / f"{uid(1)}.mp4", 90)
    clips, _ = look(tmp_path, clip_s=2.0)
    assert {Path(c.video).parent.name for c in clips.values()} == {"full_scale"}
    assert set(clips) == {"n", "later", "last", "nowhere", "other"}


def test_pieces_of_one_video_are_held_out_together(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        film(tmp_path / "clips" / f"{uid(900 + number)}.mp4", 1)
        rows.append(f"{uid(900 + number)},{uid(number % 3)},{number},{number + 1}")
    header = "exported_clip_uid,parent_video_uid,parent_start_sec,parent_end_sec\n"
    (tmp_path / "clips" / "manifest.csv").write_text(header + "\n".join(rows))
    for seed in range(5):
        found = list_clips("ego4d", str(tmp_path), ScanConfig(val_share=0.5, seed=seed))[0]
        splits = [{c.split for c in found if c.facts()["video_uid"] == uid(n)} for n in range(3)]
        assert [len(s) for s in splits] == [1, 1, 1]
        assert set.union(*splits) == {"train", "val"}


def test_a_person_is_never_in_two_splits_unless_the_publisher_says_so(tmp_path: Path) -> None:
    videos = []
    for number in range(12):
        film(tmp_path / "v2" / "full_scale" / f"{uid(number)}.mp4", 1)
        split = {"split_fho": ["train", "val", "test"][number % 3] if number < 9 else None}
        videos.append(meta(number, fb_participant_id=[0, 1, 2, None][number % 4], **split))
    put(tmp_path / "v2" / "ego4d.json", {"videos": videos})
    for seed in range(5):
        clips, _ = list_clips("ego4d", str(tmp_path), ScanConfig(val_share=0.4, seed=seed))
        assert {c.split for c in clips} == {"train", "val"}
        for person in ("0", "1", "2"):
            assert len({c.split for c in clips if c.person == person}) == 1
    clips, _ = list_clips("ego4d", str(tmp_path), ScanConfig(publisher_split=True))
    told = ["train", "val", "val"]
    assert [c.split for c in clips][:9] == [told[n % 3] for n in range(9)]


def test_a_table_beside_the_videos_helps_where_there_is_no_json(tmp_path: Path) -> None:
    for number in (1, 2):
        film(tmp_path / "v2" / "full_scale" / f"{uid(number)}.mp4", 1)
    (tmp_path / "v2" / "full_scale" / "manifest.csv").write_text(
        f"type,split_fho,file_uid,scenarios\nx,val,{uid(1)},[Cooking|Eating]\n{uid(2)}\n"
    )
    clips, skipped = list_clips("ego4d", str(tmp_path), ScanConfig(publisher_split=True))
    assert [(c.split, c.facts()) for c in clips] == [("val", {"scenarios": ["Cooking", "Eating"]}), ("train", {})]
    assert [(q.reason, q.item.rpartition("/")[2]) for q in skipped] == [("bad_row", "manifest.csv, line 3")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ego4d.json", "[]", "'{' expected"),
        ("ego4d.json", '{"videos": [{"video_uid"', "damaged or cut short"),
        ("annotations/narration.json", '{"a": {', "damaged or cut short"),
        ("annotations/fho_main.json", "", "'{' expected"),
    ],
)
def test_damaged_annotation_files_are_named(root: Path, name: str, text: str, message: str) -> None:
    path = root / "v2" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        list_clips("ego4d", str(root), ScanConfig())
    assert path.name in str(caught.value)


def test_entries_that_cannot_be_used_cost_themselves_only(root: Path) -> None:
    """Of a video that is told of twice nobody knows what is blanked out; of its neighbours everybody does."""
    film(root / "v2" / "video_540ss" / f"{uid(2)}.mp4")
    put(root / "v2" / "ego4d.json", {"videos": [meta(2), {"x": 1}, 5, meta(1), meta(2)], "clips": []})
    told = json.dumps(passes([said(3, "#C C stirs", "a")]))
    (root / "v2" / "annotations").mkdir()
    # The same name twice, which no dictionary holds.
    texts = ", ".join(f'"{uid(number)}": {told}' for number in (3, 1, 3))
    (root / "v2" / "annotations" / "narration.json").write_text(f"{{{texts}}}")
    act = fho(1, [action("x", 300, 450)])
    put(root / "v2" / "annotations" / "fho_main.json", {"videos": [[], {"video_uid": 4}, act]})
    clips, skipped = look(root)
    assert {name: c.text for name, c in clips.items()} == {"a": "stirs", "x": "cuts dough"}
    reasons = sorted((Path(item.partition(",")[0]).name, reason) for item, reason in skipped.items())
    assert reasons == [
        (f"{uid(2)}.mp4", "unknown_video"), ("ego4d.json", "bad_row"), ("ego4d.json", "bad_row"),
        ("fho_main.json", "bad_row"), ("fho_main.json", "bad_row"), ("narration.json", "duplicate_id"),
    ]  # fmt: skip


@pytest.mark.parametrize("data", [[], 5, {"narration_pass_1": None}, {"narration_pass_1": {"narrations": [3, None]}}])
def test_a_video_without_narrations_is_taken_whole(root: Path, data: Any) -> None:
    narrate(root, {uid(1): data})
    clips, skipped = look(root)
    assert ([c.text for c in clips.values()], skipped) == ([""], {})


@pytest.mark.parametrize(
    ("text", "who", "rest"),
    [
        ("#C C picks a cup", "wearer", "picks a cup"),
        ("#C Cuts", "wearer", "Cuts"),
        ("#c c looks", "wearer", "looks"),
        ("#O man X nods", "other", "man X nods"),
        ("#Opens", "", "#Opens"),
        ("#unsure", "unsure", ""),
        ("  #C  C puts #Unsure down. ", "wearer", "C puts something down."),
        ("picks", "", "picks"),
    ],
)
def test_prefixes_say_who(text: str, who: str, rest: str) -> None:
    assert clean(text) == (who, rest)
