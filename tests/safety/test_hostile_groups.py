"""More hostile shards and videos: pipes, strewn samples, masses of members, odd times and sizes, traps side by side."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid import pack, parquet, scan, verify
from pyramid.corpora.manifest import SCHEMA
from pyramid.errors import DataError, PyramidError, UnsafeInputError
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.shards.reader import ShardSet, parse_sample
from pyramid.video.decode import DecodeRequest, decode_source

KEY = drawing.key_of(0)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", [5, 3, 8])


@pytest.mark.parametrize(
    "name", ["pipe:touch {mark}", "pipe:touch {mark}; clips-000000.tar", "http://127.0.0.1/clips-000000.tar", "file:x"]
)
def test_a_shard_named_like_a_command_runs_nothing(folder: str, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    path = Path(folder, INDEX_FILE)
    rows = [{**row, "shard": name.format(mark=mark)} for row in parquet.read(path).to_pylist()]
    parquet.write(path, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    with pytest.raises(UnsafeInputError, match="no shard name"):
        ShardSet.open(folder)
    assert not mark.exists()


@pytest.mark.parametrize("verb", [ShardSet.open, verify, lambda path: scan("folder", path, dry_run=True)])
def test_a_folder_named_like_a_command_runs_nothing(tmp_path: Path, verb: object) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(PyramidError):
        verb(f"pipe:touch {mark}")  # type: ignore[operator]
    assert not mark.exists()


def test_rewriting_rules_of_webdataset_do_not_reach_our_reader(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset's opener follows GOPEN_REWRITE to any command; samples are read without it."""
    mark = tmp_path / "ran"
    monkeypatch.setenv("GOPEN_REWRITE", f"{folder}=pipe:touch {mark}; cat {folder}")
    shards = ShardSet.open(folder)
    assert [len(shards.read(i)) for i in range(3)] == [5, 3, 8]
    assert [len(s) for shard in shards.shards for s in shards.iter_shard(shard)] == [5, 3, 8]
    assert not mark.exists()


def tar_of(entries: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def test_samples_whose_members_are_strewn_are_refused(tmp_path: Path) -> None:
    """Members of two samples in turns: whatever stretch an index gives, it holds a stranger's or lacks its own."""
    members = [[(f"{drawing.key_of(n)}.{k}", d) for k, d in drawing.sample_members(n, 3).items()] for n in (0, 1)]
    strewn = tar_of([entry for pair in zip(*members, strict=True) for entry in pair])
    alone = tar_of(members[0])
    assert parse_sample(alone, KEY, "here").key == KEY
    for end in range(512, len(strewn) + 1, 512):
        with pytest.raises(PyramidError):
            parse_sample(strewn[:end], KEY, "here")


HEADERS = {
    "members": tarfile.REGTYPE,
    "long names": tarfile.GNUTYPE_LONGNAME,
    "long links": tarfile.GNUTYPE_LONGLINK,
    "extended": tarfile.XHDTYPE,
    "extended for all": tarfile.XGLTYPE,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hundred_thousand_tiny_members_take_bounded_time(kind: str) -> None:
    """Headers that announce another header are read by recursion in some readers."""
    entry = tarfile.TarInfo(f"{KEY}.json")
    entry.type = HEADERS[kind]
    data = entry.tobuf(tarfile.USTAR_FORMAT) * 100_000 + tar_of([(f"{KEY}.json", b"{}")])
    start = time.monotonic()
    with pytest.raises(PyramidError, match="here"):
        parse_sample(data, KEY, "here")
    assert time.monotonic() - start < 10


def test_a_video_without_a_frame_is_named(tmp_path: Path) -> None:
    """A track with a header and no picture, as a recorder leaves it that was switched off at once."""
    drawing.write_video(tmp_path / "v" / "good.mp4", range(12), rate=10)
    options = {"movflags": "frag_keyframe+empty_moov"}
    path = drawing.write_video(tmp_path / "v" / "none.mp4", range(3), rate=10, container=options)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    found = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"))
    assert found.clips == 1
    assert [Path(item.item).name for item in found.items] == ["none.mp4"]
    assert found.items[0].reason in ("no_frames", "not_a_video", "too_short")


@pytest.mark.parametrize("size", [(62, 46), (66, 130), (16, 258)])
def test_odd_sizes_are_packed(tmp_path: Path, size: tuple[int, int]) -> None:
    """4:4:4 video may have odd sides, 4:2:0 such that no macroblock fits."""
    height, width = size
    path = drawing.write_video(
        tmp_path / "v" / "odd.mp4", range(10), rate=10, size=(height + 1, width + 1), pix_fmt="yuv444p"
    )
    drawing.write_video(tmp_path / "v" / "even.mp4", range(20, 30), rate=10, size=size)
    assert decode_source(str(path), DecodeRequest()).pixels.shape == (10, height + 1, width + 1, 3)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet")).out
    pack(manifest, out=str(tmp_path / "out"), size_px=32)
    shards = ShardSet.open(str(tmp_path / "out"))
    shown = [drawing.read_pictures(shards.read(i).frames()) for i in range(2)]
    assert shown == [list(range(20, 30)), list(range(10))]


@pytest.mark.parametrize(
    ("name", "shown"), [("a.mp4", range(5, 20)), ("a.mov", range(5, 20)), ("a.mkv", range(20)), ("a.ts", range(20))]
)
def test_negative_times_and_edit_lists(tmp_path: Path, name: str, shown: range) -> None:
    """Five frames before zero: an edit list hides them in MP4, other containers begin with them."""
    options = {"bf": "0"}
    path = drawing.write_video(tmp_path / "v" / name, range(20), rate=10, ticks=range(-5, 15), options=options)
    frames = decode_source(str(path), DecodeRequest())
    assert drawing.read_pictures(frames.pixels) == list(shown)
    assert np.allclose(frames.times_s, np.arange(len(shown)) / 10, atol=1e-3)
    part = decode_source(str(path), DecodeRequest(start_s=0.9, end_s=1.3))
    assert drawing.read_pictures(part.pixels) == list(shown)[9:13]
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=0.8).out
    pack(manifest, out=str(tmp_path / "out"), size_px=32)
    shards = ShardSet.open(str(tmp_path / "out"))
    packed = [n for i in range(len(shards)) for n in drawing.read_pictures(shards.read(i).frames())]
    assert packed == list(shown)


@pytest.mark.parametrize("gop", [1, 12, 250])
def test_av1_is_exact(tmp_path: Path, gop: int) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(30), rate=25, codec="libsvtav1", gop=gop)
    assert drawing.read_pictures(decode_source(str(path), DecodeRequest()).pixels) == list(range(30))
    late = decode_source(str(path), DecodeRequest(start_s=0.8, end_s=1.0))
    assert drawing.read_pictures(late.pixels) == list(range(20, 25))


PEAK = """
import sys
from pyramid import pack, scan
from pyramid.errors import DataError
try: pack(scan("folder", sys.argv[1], out=sys.argv[2] + ".parquet").out, out=sys.argv[2], size_px=32)
except DataError as error: sys.exit(str(error))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_folder_of_traps_costs_no_more_memory_than_its_good_video(tmp_path: Path) -> None:
    """All kinds of bad files side by side, from the folder to the shards; one good video comes out."""
    peaks = {}
    for kind in ("good", "traps"):
        root = tmp_path / kind
        drawing.write_video(root / "good.mp4", range(20), rate=10)
        if kind == "traps":
            plant_traps(root)
        call = [sys.executable, "-c", PEAK, str(root), str(tmp_path / f"{kind}_out")]
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ))
        peaks[kind] = int(done.stdout.split()[-1]) / 1024
        shards = ShardSet.open(str(tmp_path / f"{kind}_out"))
        assert [drawing.read_pictures(shards.read(i).frames()) for i in range(len(shards))] == [list(range(20))]
    # FFmpeg looks at one picture to learn what a stream is: 100 MB here. Both in RGB would be 400 MB.
    assert peaks["traps"] - peaks["good"] < 150
    skipped = {Path(i["item"]).name: i["reason"] for i in parquet.metadata(tmp_path / "traps_out.parquet")["skipped"]}
    assert skipped == {
        "ffconcat.mp4": "not_a_video",
        "playlist.mp4": "not_a_video",
        "bomb.mp4": "too_large",
        "sound.mp4": "no_video_stream",
        "empty.mp4": "empty_file",
        "cut.mp4": "not_a_video",
        "twin.mp4": "duplicate",
    }


def plant_traps(root: Path) -> None:
    good = (root / "good.mp4").read_bytes()
    (root / "ffconcat.mp4").write_text("ffconcat version 1.0\nfile 'good.mp4'\n")
    (root / "playlist.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n")
    drawing.write_video(
        root / "bomb.mp4", range(2), rate=10, size=(8160, 8160), options={"preset": "ultrafast", "crf": "51"}
    )
    drawing.write_sound(root / "sound.mp4")
    (root / "empty.mp4").write_bytes(b"")
    (root / "cut.mp4").write_bytes(good[: len(good) // 2])
    (root / "twin.mp4").write_bytes(good)


def test_two_clips_with_one_id_and_other_columns_are_refused_by_pack(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "v" / "a.mp4", range(20), rate=10)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=1.0).out
    rows = pq.read_table(manifest).to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0], rows[0]], schema=SCHEMA), manifest)
    with pytest.raises(DataError, match=r"row 1: the clip id '.*' stands twice"):
        pack(manifest, out=str(tmp_path / "out"), size_px=32)
    pq.write_table(pa.table({"path": ["a.mp4"], "caption": ["x"]}), manifest)
    with pytest.raises(DataError, match="has no column clip_id"):
        pack(manifest, out=str(tmp_path / "out"), size_px=32)
    pq.write_table(pa.Table.from_pylist([{**rows[0], "start_s": float("nan")}], schema=SCHEMA), manifest)
    with pytest.raises(DataError, match="row 0"):
        pack(manifest, out=str(tmp_path / "out"), size_px=32)
    assert not list(tmp_path.glob("out/*.tar"))


def test_eight_workers_and_one_write_the_same_bytes(tmp_path: Path) -> None:
    for i in range(9):
        drawing.write_video(tmp_path / "v" / f"{i}.mp4", range(100 * i, 100 * i + 10), rate=10)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet")).out
    for workers in (1, 8):
        pack(manifest, out=str(tmp_path / str(workers)), size_px=32, frames_per_shard=10, workers=workers)
    assert len(ShardSet.open(str(tmp_path / "1")).shards) == 9
    assert drawing.tree(tmp_path / "1") == drawing.tree(tmp_path / "8")
