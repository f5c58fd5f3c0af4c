"""Decoded frames made small: the picture as RGB, as what the encoder takes, and as the luma that scores are made of.

Reading files and choosing frames is left to `pyramid.video.decode`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

LUMA_PX = 64
"""Side of the luma pictures that clips are scored by."""
_BT601 = (2, 5, 6)
"""Colour matrices that are BT.601, or unspecified, which everybody reads as that."""
_FULL_RANGE = 2
_EIGHT_BITS = tuple(f"yuv{full}{kind}p" for full in ("", "j") for kind in (420, 422, 444))
_BLACK, _WHITE = 16, 235
"""Luma of black and white in limited range."""


class Box(NamedTuple):
    """A rectangle of a picture, stored pixels."""

    top: int
    """First row."""
    left: int
    """First column."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Returns the part of an array [H, W, ...]."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


class Scaler:
    """Scales frames by area means, with contexts that are made once and not for every frame.

    YUV is scaled as it is and becomes RGB when it is small. Area means alone do not alias when a picture shrinks by
    more than two: the fast bilinear scaler drops rows and columns.

    Args:
        size_px: (height, width) to resize to; None keeps the size.
        crop: keep the aspect and cut the centre out instead of squashing the picture.
        rgb_first: make frames RGB before anything else, as they come from decoders that give nothing else.
    """

    def __init__(self, size_px: tuple[int, int] | None = None, *, crop: bool = False, rgb_first: bool = False) -> None:
        self.size_px, self.crop, self.rgb_first = size_px, crop, rgb_first
        self._shrink, self._to_rgb, self._to_yuv, self._to_luma, self._whole = (VideoReformatter() for _ in range(5))
        self._cuts: dict[tuple[Any, ...], av.filter.Graph] = {}

    def settled(self, frame: Any) -> Any:
        """Returns a frame as it is to be worked on; turned ones as they are, or their turn would be lost."""
        if not self.rgb_first or frame.rotation or frame.format.name == "rgb24":
            return frame
        return self._whole.reformat(frame, format="rgb24", threads=1)

    def _cut(self, frame: Any, box: Box) -> Any:
        """Returns a part of a frame; its pixels are not copied."""
        kind = (box, frame.width, frame.height, frame.format.name)
        if kind not in self._cuts:
            self._cuts[kind] = _cut_graph(frame, box)
        self._cuts[kind].push(frame)
        return self._cuts[kind].pull()

    def _small_yuv(self, frame: Any) -> Any:
        """Returns the frame scaled in YUV with the colours it has; None where that would lose colour or need a turn."""
        if self.size_px is None or self.crop or frame.rotation or not frame.format.name.startswith(("yuv4", "yuvj4")):
            return None
        height, width = self.size_px
        if height % 2 or width % 2:
            return None
        return self._shrink.reformat(frame, width, height, "yuv420p", interpolation="AREA", threads=1)

    def _rgb_of_small(self, small: Any) -> NDArray[np.uint8]:
        return _pixels(self._to_rgb.reformat(small, format="rgb24", threads=1))

    def _rgb_direct(self, frame: Any) -> NDArray[np.uint8]:
        turns = round((frame.rotation or 0) / 90) % 4
        if self.size_px is None:
            return _upright(_pixels(self._to_rgb.reformat(frame, format="rgb24", threads=1)), turns)
        height, width = self.size_px if turns % 2 == 0 else self.size_px[::-1]
        full_height, full_width = height, width
        if self.crop:
            scale = max(height / frame.height, width / frame.width)
            full_height, full_width = max(round(frame.height * scale), height), max(round(frame.width * scale), width)
        scaled = self._to_rgb.reformat(frame, full_width, full_height, "rgb24", interpolation="AREA", threads=1)
        top, left = (full_height - height) // 2, (full_width - width) // 2
        return _upright(_pixels(scaled)[top : top + height, left : left + width], turns)

    def _yuv_of_rgb(self, rgb: NDArray[np.uint8]) -> Any:
        return self._to_yuv.reformat(av.VideoFrame.from_ndarray(rgb, format="rgb24"), format="yuv420p", threads=1)

    def _luma_of_yuv(self, yuv: Any) -> NDArray[np.uint8]:
        small = self._to_luma.reformat(yuv, LUMA_PX, LUMA_PX, "yuv420p", interpolation="AREA", threads=1)
        luma: NDArray[np.uint8] = _FULL_LUMA[_rows(small)[:LUMA_PX, :LUMA_PX]]
        return luma


_FULL_LUMA = np.clip((np.arange(256) - _BLACK) * 255 / (_WHITE - _BLACK), 0, 255).round().astype(np.uint8)


def full_luma(frame: Any) -> NDArray[np.uint8]:
    """Returns the luma of a frame as it is stored, uint8 [H, W] in 0..255 whatever its range and depth."""
    plane, full = _luma_plane(frame)
    return plane if full else _FULL_LUMA[plane]


def _luma_plane(frame: Any) -> tuple[NDArray[np.uint8], bool]:
    """Returns a frame's luma without a copy, and whether it is in full range."""
    if frame.format.name not in _EIGHT_BITS:
        frame = frame.reformat(format="yuv420p")
    full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
    return _rows(frame)[: frame.height, : frame.width], full


def _rows(frame: Any) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)


def _cut_graph(frame: Any, box: Box) -> av.filter.Graph:
    graph = av.filter.Graph()
    base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    # Exact: colour is stored at half the size, and other places would be rounded to where it lies.
    cut = graph.add("crop", f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1")
    source.link_to(cut)
    cut.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


class Picture:
    """One frame in the forms that are asked for, each made once; overlapping clips share it."""

    def __init__(self, frame: Any, scaler: Scaler, source_hz: float | None = None) -> None:
        self._frame, self._scaler = scaler.settled(frame), scaler
        self.source_hz = source_hz
        """Mean rate that the container declares; None if it declares none."""
        self.stored_px: tuple[int, int] = (frame.height, frame.width)
        """Height and width before scaling and turning."""
        self._small: Any = None
        self._rgb: NDArray[np.uint8] | None = None
        self._yuv: Any = None
        self._luma: NDArray[np.uint8] | None = None
        self._views: dict[Box, Picture] = {}
        self._lit: dict[Box, float] = {}

    def view(self, box: Box) -> Picture:
        """Returns a part of the stored picture, made once; to be asked for before any pixels of the whole."""
        if box not in self._views:
            self._views[box] = Picture(self._scaler._cut(self._frame, box), self._scaler, self.source_hz)
        return self._views[box]

    def lit_share(self, box: Box, luma: int) -> float:
        """Returns the share of a part's pixels with at least this luma (0..255), from one in four of them.

        To be asked for before any pixels.
        """
        if box not in self._lit:
            plane, full = _luma_plane(self._frame)
            least = luma if full else int(np.searchsorted(_FULL_LUMA, luma))
            self._lit[box] = float((box.of(plane)[::2, ::2] >= least).mean())
        return self._lit[box]

    def _scale(self) -> None:
        """Makes the small picture, and lets the decoder have its frame back."""
        if self._frame is not None:
            self._small = self._scaler._small_yuv(self._frame)
            if self._small is None:
                self._rgb = self._scaler._rgb_direct(self._frame)
            self._frame = None

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB, upright."""
        self._scale()
        if self._rgb is None:
            self._rgb = self._scaler._rgb_of_small(self._small)
        return self._rgb

    @property
    def yuv(self) -> Any:
        """The same as a PyAV frame, yuv420p in BT.601 and limited range; needs an even height and width."""
        self._scale()
        if self._yuv is None:
            small = self._small
            plain = small is not None and small.colorspace in _BT601 and small.color_range != _FULL_RANGE
            self._yuv = small if plain else self._scaler._yuv_of_rgb(self.rgb)
        return self._yuv

    @property
    def luma(self) -> NDArray[np.uint8]:
        """uint8 [64, 64], luma in 0..255."""
        if self._luma is None:
            self._luma = self._scaler._luma_of_yuv(self.yuv)
        return self._luma


def _pixels(frame: Any) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] = frame.to_ndarray()
    return out


def _upright(pixels: NDArray[np.uint8], turns: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(pixels, turns))
