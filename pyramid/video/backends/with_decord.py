"""Frames by decord or decord2, for the few videos in which they are known to be the same as PyAV's.

It gives whole pictures in RGB and nothing else, decodes ahead without bound, can hang, and opens whatever a file names;
so it is used only in the guarded process, and only for what PyAV has looked at first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from pyramid.errors import SkipItemError
from pyramid.video import guard
from pyramid.video.backends.protocol import Reading, Shown
from pyramid.video.backends.timeline import Timeline
from pyramid.video.backends.with_pyav import PyavBackend
from pyramid.video.probe import VideoLimits, probe

_CODECS = ("h264", "hevc")
_ALL_FRAMES_SHARE = 0.5
"""Share of max_decode_mb that all frames of the video may take at once, as it may decode them all ahead."""
_SAME_S = 1e-3
"""How far its times, which are rounded, may be from the container's."""


def reason_against(path: str, timeline: Timeline | None, limits: VideoLimits) -> str:
    """Returns why a video is not for decord; nothing if its frames and times are surely PyAV's.

    Args:
        path: the video, which PyAV has opened under all limits.
        timeline: what its packets say; None if they say nothing certain.
        limits: what it may take.
    """
    if importlib.util.find_spec("decord") is None:
        return "decord is not installed"
    if not guard.inside:
        return "this is not the guarded process"
    if timeline is None:
        return "its packets do not tell its frames"
    return _unlike(timeline, limits) or _disagreement(path, timeline, limits)


def _unlike(timeline: Timeline, limits: VideoLimits) -> str:
    """Returns in what a video differs from those that decord reads right."""
    height, width = timeline.size_px
    steps = np.diff(timeline.pts[timeline.shown])
    if timeline.codec not in _CODECS or timeline.pix_fmt != "yuv420p":
        return f"{timeline.codec} in {timeline.pix_fmt}"
    if not timeline.plain:
        return "turned, of another range or other colours, or not the only one in its file"
    if not timeline.closed:
        return "frames behind a key frame are shown before it, of which decord gives wrong ones after a seek"
    if len(steps) and steps.max() - steps.min() > 1:
        return "its rate varies"
    if len(timeline.pts) * height * width * 3 > limits.max_decode_mb * 2**20 * _ALL_FRAMES_SHARE:
        return "all of its frames at once would not fit the max_decode_mb"
    return ""


def _disagreement(path: str, timeline: Timeline, limits: VideoLimits) -> str:
    """Returns in what decord and PyAV disagree: the number of frames, their times, or the first picture."""
    try:
        reader = _reader(path)
        if len(reader) != len(timeline.pts):
            return f"decord counts {len(reader)} frames of {len(timeline.pts)}"
        begins, first = reader.get_frame_timestamp(range(len(reader)))[:, 0], reader.next().asnumpy()
    except Exception as error:  # Its errors share no other class.
        return f"decord does not open it ({str(error)[:100]})"
    # It keeps the container's time of the first frame.
    apart = np.abs(begins - begins[0] - timeline.times_s()).max()
    if apart > _SAME_S:
        return f"times of decord are up to {apart:.4f} s apart"
    # Widths of 16, 24, 48 or 72 pixels come out with more than three colours.
    return "" if np.array_equal(first, _first(path, limits)) else "the first picture is another"


def _first(path: str, limits: VideoLimits) -> Any:
    with PyavBackend().opened(path, Reading(), limits) as shown:
        return next(frame for _, frame in shown.each).to_ndarray(format="rgb24", threads=1)


def _reader(path: str) -> Any:
    return importlib.import_module("decord").VideoReader(path, num_threads=1)


class DecordBackend:
    """The decoder for videos that `reason_against` has nothing against."""

    name = "decord"

    @contextlib.contextmanager
    def opened(self, path: str, reading: Reading, limits: VideoLimits) -> Iterator[Shown]:
        """Opens a video for one pass; see `Backend`.

        Raises:
            ValueError: the timeline is not given.
        """
        if reading.timeline is None:
            raise ValueError("decord is for videos whose timeline is known")
        yield Shown(each=_each(path, reading.timeline, reading), seeks=True, rate_hz=probe(path, limits).rate_hz)


def _each(path: str, timeline: Timeline, reading: Reading) -> Iterator[tuple[float, Any]]:
    times = timeline.times_s(reading.source_hz)
    wanted = np.ones(len(times), bool) if reading.wanted is None else reading.wanted
    first = int(np.searchsorted(times, reading.start_s - _SAME_S)) if reading.source_hz is None else 0
    reader, at = _reader(path), 0
    for place in range(first, len(times)):
        if not wanted[place]:
            yield float(times[place]), None
            continue
        try:
            if place != at:
                reader.seek_accurate(place)
            pixels, at = reader.next().asnumpy(), place + 1
        except Exception as error:  # Its errors share no other class.
            detail = f"damaged or cut short (decord: {str(error)[:100]})"
            raise SkipItemError("decode_error", f"{path}: {detail}") from error
        yield float(times[place]), av.VideoFrame.from_ndarray(pixels, format="rgb24")
