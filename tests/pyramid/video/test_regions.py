"""Borders and grids are found where they are, and the dark of a scene is not taken for one."""

from __future__ import annotations

from pathlib import Path

import av
import drawing
import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.rng import rng
from pyramid.video.regions import Layout, View, find_layout, layout_of
from pyramid.video.scale import Box, Picture, Scaler

H, W = 96, 128


def bright(seed: int = 0) -> NDArray[np.uint8]:
    return rng(seed, "bright").integers(60, 220, (H, W)).astype(np.uint8)


@pytest.mark.parametrize(
    ("top", "bottom", "left", "right", "box"),
    [
        (16, 20, 0, 0, Box(16, 0, 60, 128)),
        (0, 0, 10, 12, Box(0, 10, 96, 106)),
        (8, 0, 0, 30, Box(8, 0, 88, 98)),
        (17, 19, 5, 3, Box(18, 6, 58, 118)),  # Even, and without a black row.
        (2, 2, 0, 0, Box(2, 0, 92, 128)),
    ],
)
def test_bars_are_left_out(top: int, bottom: int, left: int, right: int, box: Box) -> None:
    luma = np.zeros((H, W), np.uint8)
    luma[top : H - bottom, left : W - right] = bright()[top : H - bottom, left : W - right]
    luma[0, 0] = 200  # A speck.
    layout = layout_of(luma, border="auto")
    assert layout.views == (View(box=box),)
    assert layout.stored_px == (H, W)
    covered = np.zeros((H, W), bool)
    for bar in layout.black:
        bar.of(covered)[:] = True
    assert not box.of(covered).any()
    assert covered.sum() == H * W - (H - top - bottom) * (W - left - right)
    assert layout_of(luma) == Layout()


def dark_scenes() -> dict[str, NDArray[np.uint8]]:
    grid = np.stack(np.meshgrid(np.arange(W), np.arange(H)), -1)
    distance = np.hypot(*np.moveaxis(grid - (W // 2, H // 2), -1, 0))
    lamp = np.clip(255 - 6 * distance, 0, 255).astype(np.uint8)
    spot = np.where(distance < 35, 200, 0).astype(np.uint8)
    corner = np.zeros((H, W), np.uint8)
    corner[:40, :50] = np.clip(255 - 4 * distance[H // 2 : H // 2 + 40, W // 2 : W // 2 + 50], 0, 255)
    sliver = np.zeros((H, W), np.uint8)
    sliver[:20] = 200  # What is left is less than a third.
    thin = bright()
    thin[:1] = 0
    return {
        "lamp": lamp,
        "spot": spot,
        "corner": corner,
        "sliver": sliver,
        "thin": thin,
        "night": np.zeros((H, W), np.uint8),
        "noise": rng(0, "night").integers(0, 15, (H, W)).astype(np.uint8),
        "day": bright(),
    }


@pytest.mark.parametrize("name", dark_scenes())
def test_the_dark_of_a_scene_is_no_border_and_no_grid(name: str) -> None:
    assert layout_of(dark_scenes()[name], border="auto", grid="auto") == Layout()


def quadrants(*lit: int, height: int = H, width: int = W) -> NDArray[np.uint8]:
    luma = np.zeros((height, width), np.uint8)
    noise = rng(1, "grid").integers(60, 220, (height, width))
    for place in lit:
        rows = slice(height // 2) if place < 2 else slice(height // 2, None)
        columns = slice(width // 2) if place % 2 == 0 else slice(width // 2, None)
        luma[rows, columns] = noise[rows, columns]
    return luma


def test_a_grid_has_a_view_for_each_quadrant_that_is_not_black() -> None:
    names = ["top_left", "top_right", "bottom_left", "bottom_right"]
    boxes = [Box(0, 0, 48, 64), Box(0, 64, 48, 64), Box(48, 0, 48, 64), Box(48, 64, 48, 64)]
    for black in range(4):
        for grid in ("auto", "2x2"):
            layout = layout_of(quadrants(*(set(range(4)) - {black})), grid=grid)
            assert [view.name for view in layout.views] == names[:black] + names[black + 1 :]
            assert [view.box for view in layout.views] == boxes[:black] + boxes[black + 1 :]
            assert layout.black == (boxes[black],)
    assert layout_of(quadrants(0, 1, 2, 3), grid="auto") == Layout()
    assert [v.name for v in layout_of(quadrants(0, 1, 2, 3), grid="2x2").views] == names
    assert layout_of(quadrants(0, 3), grid="auto") == Layout()
    assert [v.name for v in layout_of(quadrants(0, 3), grid="2x2").views] == ["top_left", "bottom_right"]


@pytest.mark.parametrize("grid", ["auto", "2x2"])
def test_views_of_odd_pictures_are_even_and_lie_inside(grid: str) -> None:
    luma = quadrants(0, 1, 2, height=91, width=107)
    for view in layout_of(luma, grid=grid).views:
        top, left, height, width = view.box
        assert top % 2 == left % 2 == height % 2 == width % 2 == 0
        assert top + height <= 91
        assert left + width <= 107
        assert view.box.of(luma).min() >= 60


def test_views_have_borders_of_their_own() -> None:
    luma = quadrants(0, 1, 2)
    luma[:8, :64] = 0
    layout = layout_of(luma, border="auto", grid="auto")
    assert [view.box for view in layout.views] == [Box(8, 0, 40, 64), Box(0, 64, 48, 64), Box(48, 0, 48, 64)]
    assert set(layout.black) == {Box(48, 64, 48, 64), Box(0, 0, 8, 64)}


@pytest.mark.parametrize("matrix", [1, 5])  # BT.709, BT.601
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv422p", "yuv420p10le"])
def test_the_parts_of_a_frame_are_what_they_are_of_the_whole(pix_fmt: str, matrix: int) -> None:
    pixels = rng(0, "parts").integers(0, 255, (H, W, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
    frame.colorspace = matrix
    box = Box(18, 6, 40, 64)
    part = Picture(frame, Scaler()).view(box)
    whole = Picture(frame, Scaler()).rgb.astype(int)
    assert part.stored_px == (40, 64)
    # Colour next to the cut is interpolated without its neighbour.
    assert np.abs(part.rgb.astype(int) - box.of(whole))[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le"])
def test_what_is_lit_does_not_depend_on_the_range(pix_fmt: str) -> None:
    for value, lit in ((13, 0.0), (19, 1.0)):
        pixels = np.full((32, 32, 3), value, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
        assert Picture(frame, Scaler()).lit_share(Box(0, 0, 32, 32), 16) == lit


def test_videos_that_do_not_say_are_left_whole(tmp_path: Path) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(20))
    assert find_layout(str(path), border="auto", grid="auto") == Layout()
    assert find_layout(str(tmp_path / "none.mp4"), border="auto") == Layout()
    path.write_bytes(path.read_bytes()[:500])
    assert find_layout(str(path), border="auto") == Layout()


DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="no real clips in ../shared/data")
def test_real_clips() -> None:
    def found(name: str) -> Layout:
        return find_layout(str(DATA / name), border="auto", grid="auto")

    grid = found("generated/14_0_robocasa_multiview.mp4")
    assert [view.box for view in grid.views] == [Box(0, 0, 240, 416), Box(0, 416, 240, 416), Box(240, 0, 240, 416)]
    episodes = sorted((DATA / "robot/gr1_pick_and_place").rglob("*.mp4"))
    assert len(episodes) == 5
    for path in episodes:
        assert find_layout(str(path), border="auto", grid="auto").views == (View(box=Box(48, 0, 160, 256)),)
    for path in sorted((DATA / "human").iterdir()) + sorted((DATA / "robot/rt1_clips").glob("*.mp4")):
        assert find_layout(str(path), border="auto", grid="auto") == Layout(), path.name
