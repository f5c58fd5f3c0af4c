"""Borders are cropped and grids split into samples of their own, frame by frame, and nothing lit is ever lost."""

from __future__ import annotations

from pathlib import Path

import av
import drawing
import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.corpora.scan import scan
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet
from pyramid.types import KEY_PATTERN

OPTIONS = {"size_px": 32, "crop_border": "auto", "split_grid": "auto"}
N = 30


def canvas(*pictures: tuple[int, int, int], height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    """A black picture with the picture of a number, 64 x 64, at each (number, top, left)."""
    out = np.zeros((height, width, 3), np.uint8)
    for number, top, left in pictures:
        out[top : top + 64, left : left + 64] = drawing.picture(number)
    return out


def write(path: Path, frames: list[NDArray[np.uint8]], gop: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"crf": "18"}
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def grid(first: int) -> list[NDArray[np.uint8]]:
    """Three views of N frames: the second shows 100 more than the first, the third 200 more."""
    return [canvas((first + t, 0, 0), (first + 100 + t, 0, 64), (first + 200 + t, 64, 0)) for t in range(N)]


def packed(folder: Path, **options: object) -> tuple[ShardSet, dict[str, int]]:
    manifest = scan("folder", str(folder / "v"), out=str(folder / "clips.parquet"), clip_s=2).out
    result = pack(manifest, out=str(folder / "out"), config={**OPTIONS, **options})
    return ShardSet.open(str(folder / "out")), result.quarantined


def test_each_view_of_a_grid_is_a_sample(tmp_path: Path) -> None:
    write(tmp_path / "v" / "grid.mp4", grid(1000))
    write(tmp_path / "v" / "plain.mp4", [canvas((t, 0, 0), height=64, width=64) for t in range(1, N)])
    shards, quarantined = packed(tmp_path)
    assert quarantined == {}
    assert [row["key"][-4:] for row in shards.rows] == ["0000", "0001", "0002"] * 2 + ["0000"] * 2
    assert all(KEY_PATTERN.fullmatch(row["key"]) for row in shards.rows)
    assert len({row["key"] for row in shards.rows}) == 8
    assert [row["clip_id"] for row in shards.rows][:6] == ["folder/grid.mp4#0.000"] * 3 + ["folder/grid.mp4#1.500"] * 3
    names = ["top_left", "top_right", "bottom_left"]
    for i in range(6):
        sample = shards.read(i)
        first = 1000 + 15 * (i // 3) + 100 * (i % 3)
        assert drawing.read_pictures(sample.frames()) == list(range(first, first + 15))
        assert sample.meta["view"] == names[i % 3]
        assert sample.meta["crop_px"] == [64 * (i % 3 // 2), 64 * (i % 3 % 2), 64, 64]
        assert shards.rows[i]["notes"][0].startswith(f"view {names[i % 3]} of a 2x2 grid: 64x64 pixels")
    plain = shards.read(6)
    assert (plain.meta["view"], plain.meta["crop_px"]) == ("", None)
    assert drawing.read_pictures(plain.frames()) == list(range(1, 16))


def test_a_border_is_left_out(tmp_path: Path) -> None:
    frames = [canvas((40_000 + t, 18, 32), height=96) for t in range(N)]
    write(tmp_path / "v" / "a.mp4", frames)
    shards, _ = packed(tmp_path)
    for i in (0, 1):
        sample = shards.read(i)
        assert drawing.read_pictures(sample.frames()) == list(range(40_000 + 15 * i, 40_000 + 15 * i + 15))
        assert sample.meta["crop_px"] == [18, 32, 64, 64]
        assert sample.meta["scores"]["border"] == [0, 0, 0, 0]
        assert shards.rows[i]["notes"][0] == "cropped: 64x64 pixels at column 32, row 18"


def test_unless_told_nothing_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "v" / "a.mp4", grid(1000))
    shards, _ = packed(tmp_path, crop_border="off", split_grid="none")
    assert len(shards) == 2
    assert shards.read(0).meta["crop_px"] is None
    assert shards.rows[0]["notes"] == ["one quadrant black"]
    assert shards.read(0).frames([0])[0, 18:, 18:].max() < 16


@pytest.mark.parametrize(
    ("mode", "views"),
    [("auto", [("top_left", "top_right", "bottom_left"), ("",)]), ("2x2", [("top_left", "top_right", "bottom_left")])],
)
def test_what_lights_up_between_key_frames_is_kept(tmp_path: Path, mode: str, views: list[tuple[str, ...]]) -> None:
    frames = grid(1000)
    for t in (20, 21, 22):
        frames[t][64:, 64:] = drawing.picture(1300 + t)
    write(tmp_path / "v" / "a.mp4", frames, gop=100)
    shards, _ = packed(tmp_path, split_grid=mode)
    found = [row["clip_id"][-5:] + " " + shards.read(i).meta["view"] for i, row in enumerate(shards.rows)]
    last = [""] if mode == "auto" else ["top_left", "top_right", "bottom_left", "bottom_right"]
    assert found == [f"0.000 {name}" for name in views[0]] + [f"1.500 {name}" for name in last]
    if mode == "auto":
        assert shards.read(3).meta["crop_px"] is None
        corner = shards.read(3).frames([5, 6, 7])[:, 16:, 16:]
    else:
        corner = shards.read(6).frames([5, 6, 7])
    assert drawing.read_pictures(corner) == [1320, 1321, 1322]


def test_a_border_that_is_not_there_in_every_frame_is_none(tmp_path: Path) -> None:
    frames = [canvas((40_000 + t, 16, 0), height=96, width=64) for t in range(N)]
    frames[25][:, :] = 120
    write(tmp_path / "v" / "a.mp4", frames, gop=100)
    shards, _ = packed(tmp_path)
    assert [shards.read(i).meta["crop_px"] for i in (0, 1)] == [[16, 0, 64, 64], None]
    assert shards.read(1).frames([10])[0].min() > 100


def test_views_do_not_depend_on_workers(tmp_path: Path) -> None:
    write(tmp_path / "v" / "a.mp4", grid(1000))
    write(tmp_path / "v" / "b.mp4", [canvas((40_000 + t, 16, 0), height=96, width=64) for t in range(N)])
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=2).out
    for workers in (1, 2):
        out = str(tmp_path / f"out{workers}")
        pack(manifest, out=out, config={**OPTIONS, "frames_per_shard": 40}, workers=workers)
    assert drawing.tree(tmp_path / "out1") == drawing.tree(tmp_path / "out2")


def test_a_clip_of_which_nothing_can_be_used_is_told_of_once(tmp_path: Path) -> None:
    write(tmp_path / "v" / "a.mp4", grid(1000))
    write(tmp_path / "v" / "b.mp4", [grid(2000)[0]] * N)
    _, quarantined = packed(tmp_path, drop=["static"])
    assert quarantined == {"static": 2}
