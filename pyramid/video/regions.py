"""Where in a video the picture is: black borders around it, and the views of a 2x2 grid.

Scaling and encoding what was found is left to the caller, who must also see that what was taken for black stays black.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av.error
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import SkipItemError
from pyramid.video.filters import BORDER_LUMA
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits, open_video
from pyramid.video.scale import Box, full_luma

SplitGrid = Literal["none", "2x2", "auto"]
CropBorder = Literal["off", "auto"]

QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")
"""Names of a grid's views, in their order."""
_KEY_FRAMES = 16
"""Key frames that a video is judged by, spread over its length."""
_LIT_SHARE = 0.02
"""A row or column with less of it lit is black: compression leaves specks."""
_EDGE_SHARE = 0.5
"""Share of the first row inside a border that is lit: bars end in a straight edge, the dark of a scene does not."""
_TWIN_SHARE = 0.1
"""The same if the other end has a bar as high, of which this is certain."""
_EDGE_DEPTH = 4
"""Rows within which that edge must come."""
_SEAM_SHARE = 0.25
"""The same at the edges of a black quadrant."""
_LEAST_BAR, _LEAST_LEFT = 1 / 64, 1 / 3
"""Thinner bars are left alone; what would leave less of a side is no border."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A part of the picture that becomes a sample of its own."""

    name: str = ""
    """One of `QUADRANTS`, or empty for the whole picture."""
    box: Box | None = None
    """Where it lies; None is all of the picture."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a video's picture is made of."""

    views: tuple[View, ...] = (View(),)
    """What to pack, in the order of the samples."""
    black: tuple[Box, ...] = ()
    """What is left out because it is black, and must be in every frame for this to be true."""
    stored_px: tuple[int, int] | None = None
    """Height and width of the pictures that it was found in; None holds for any."""


def find_layout(
    path: str, *, border: CropBorder = "off", grid: SplitGrid = "none", limits: VideoLimits = DEFAULT_LIMITS
) -> Layout:
    """Finds borders and views from up to 16 key frames of a video; a pure function of its bytes.

    Videos that are stored turned are left whole, and so are those that cannot be read: whoever decodes them says why.

    Args:
        path: the video.
        border: ``auto`` leaves out black bars.
        grid: ``2x2`` makes views of the quadrants that are not black; ``auto`` does if exactly one is.
        limits: what the video may ask for.
    """
    if border == "off" and grid == "none":
        return Layout()
    brightest = _brightest(path, limits)
    return Layout() if brightest is None else layout_of(brightest, border=border, grid=grid)


def layout_of(brightest: NDArray[np.uint8], *, border: CropBorder = "off", grid: SplitGrid = "none") -> Layout:
    """Finds borders and views in the brightest luma of each pixel, uint8 [H, W] in 0..255; see `find_layout`."""
    lit = brightest >= BORDER_LUMA
    height, width = lit.shape
    views, black = _views(lit, grid)
    if border == "auto":
        cropped = [_cropped(lit, view) for view in views]
        views, black = [view for view, _ in cropped], black + [box for _, bars in cropped for box in bars]
    if views == [View()]:
        return Layout()
    return Layout(views=tuple(views), black=tuple(black), stored_px=(height, width))


def whole_layout(grid: SplitGrid, wrong: Layout) -> Layout:
    """Returns the layout for clips in which something lights up that was black in the key frames."""
    if grid != "2x2" or wrong.stored_px is None:
        return Layout()
    return layout_of(np.full(wrong.stored_px, 255, np.uint8), grid=grid)


def _views(lit: NDArray[np.bool_], grid: SplitGrid) -> tuple[list[View], list[Box]]:
    if grid == "none":
        return [View()], []
    boxes = dict(zip(QUADRANTS, _quadrants(*lit.shape), strict=True))
    dark = {name: box for name, box in boxes.items() if box.of(lit).mean() < _LIT_SHARE}
    if len(dark) == len(boxes) or (grid == "auto" and not (len(dark) == 1 and _has_seams(lit, *dark.values()))):
        return [View()], []
    return [View(name=name, box=box) for name, box in boxes.items() if name not in dark], list(dark.values())


def _quadrants(height: int, width: int) -> Iterator[Box]:
    tall, wide = height // 2 // 2 * 2, width // 2 // 2 * 2  # Even, for the colour is stored at half the size.
    for top in (0, height - tall):
        for left in (0, width - wide):
            yield Box(top // 2 * 2, left // 2 * 2, tall, wide)


def _has_seams(lit: NDArray[np.bool_], box: Box) -> bool:
    """Tells whether the picture begins where a black quadrant ends, along both of its inner edges."""
    rows = lit[box.top - _EDGE_DEPTH : box.top] if box.top else lit[box.height : box.height + _EDGE_DEPTH]
    columns = lit[:, box.left - _EDGE_DEPTH : box.left] if box.left else lit[:, box.width : box.width + _EDGE_DEPTH]
    above = rows[:, box.left : box.left + box.width].any(0).mean()
    beside = columns[box.top : box.top + box.height].any(1).mean()
    return bool(min(above, beside) >= _SEAM_SHARE)


def _cropped(lit: NDArray[np.bool_], view: View) -> tuple[View, list[Box]]:
    """Returns a view without its black bars, and the bars."""
    box = view.box or Box(0, 0, *lit.shape)
    inside = box.of(lit)
    top, bottom = _bars(inside)
    left, right = _bars(inside[top : box.height - bottom].T)
    if not any((top, bottom, left, right)):
        return view, []
    # Even numbers, and rather a row of the picture too few than a black one too many.
    first_row, first_column = box.top + top + (box.top + top) % 2, box.left + left + (box.left + left) % 2
    height = (box.top + box.height - bottom - first_row) // 2 * 2
    width = (box.left + box.width - right - first_column) // 2 * 2
    bars = [
        Box(box.top, box.left, top, box.width),
        Box(box.top + box.height - bottom, box.left, bottom, box.width),
        Box(box.top, box.left, box.height, left),
        Box(box.top, box.left + box.width - right, box.height, right),
    ]
    kept = View(name=view.name, box=Box(first_row, first_column, height, width))
    return kept, [bar for bar in bars if bar.height and bar.width]


def _bars(lit: NDArray[np.bool_]) -> tuple[int, int]:
    """Returns how many rows at both ends are bars; 0 and 0 if they are not, or if too little would be left."""
    shares = lit.mean(1)
    rows = np.flatnonzero(shares >= _LIT_SHARE)
    if not len(rows):
        return 0, 0
    first, last = int(rows[0]), len(shares) - 1 - int(rows[-1])
    edges = [shares[first : first + _EDGE_DEPTH].max(), shares[::-1][last : last + _EDGE_DEPTH].max()]
    # Bars are mostly as high at both ends: one that is sure vouches for the other.
    least = _TWIN_SHARE if abs(first - last) <= 2 and max(edges) >= _EDGE_SHARE else _EDGE_SHARE
    thin = max(2, _LEAST_BAR * len(shares))
    top, bottom = (
        depth if depth >= thin and edge >= least else 0 for depth, edge in zip((first, last), edges, strict=True)
    )
    return (top, bottom) if len(shares) - top - bottom >= _LEAST_LEFT * len(shares) else (0, 0)


def _brightest(path: str, limits: VideoLimits) -> NDArray[np.uint8] | None:
    """Returns the brightest luma that each pixel has in the key frames; None if there are none, or turned ones."""
    brightest: NDArray[np.uint8] | None = None
    try:
        for frame in _key_frames(path, limits):
            luma = full_luma(frame)
            if frame.rotation or (brightest is not None and luma.shape != brightest.shape):
                return None
            brightest = luma.copy() if brightest is None else np.maximum(brightest, luma)
    except (SkipItemError, av.error.FFmpegError, OSError):
        return None
    return brightest


def _key_frames(path: str, limits: VideoLimits) -> Iterator[Any]:
    with open_video(path, limits) as (container, stream):
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        stream.codec_context.skip_frame = "NONKEY"
        start, length = stream.start_time or 0, stream.duration or 0
        seen: set[int | None] = set()
        for place in range(_KEY_FRAMES if length else 1):
            if place:
                container.seek(start + length * place // _KEY_FRAMES, stream=stream, backward=True)
            frame = next(container.decode(stream), None)
            if frame is not None and frame.pts not in seen:
                seen.add(frame.pts)
                yield frame
