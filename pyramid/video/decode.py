"""Frames out of videos: source files by presentation time (PyAV), packed clips by index (decord).

Which stretch and rate is wanted, and what to do with a bad one, is left to the caller.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError, SkipItemError
from pyramid.types import Frames
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits, open_video

_SEEK_MARGIN_S = 0.5
"""Decoding starts this much before the wanted time, for streams whose key frames carry rounded times."""


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """Which frames of a video are wanted, and how."""

    start_s: float = 0.0
    """First presentation time wanted, seconds from the first frame of the video."""
    end_s: float = float("inf")
    """Presentation time to stop before."""
    source_hz: float | None = None
    """True rate of a container that lies: frame i is shown at ``i / source_hz``; None trusts the container."""
    rate_hz: float | None = None
    """Keep the frames nearest to a grid of this rate; None keeps every frame."""
    size_px: tuple[int, int] | None = None
    """(height, width) to resize to; None keeps the size."""
    crop: bool = False
    """Whether to keep the aspect and cut the centre out instead of squashing the picture."""
    max_frames: int = 100_000
    """More than this is refused."""


def decode_source(path: str, request: DecodeRequest, limits: VideoLimits = DEFAULT_LIMITS) -> Frames:
    """Decodes a stretch of a source video.

    Times are presentation times, so variable rates, B-frames and edit lists come out right; the display matrix
    (rotation) is applied.

    Returns:
        uint8 [T, H, W, 3] RGB with float64 times [T] in seconds from the video's first frame.

    Raises:
        SkipItemError: ``decode_error`` (damaged), ``no_frames``, ``too_many_frames``, ``size_change``, ``bad_times``,
            ``no_timestamps``, or a reason of `open_video`.
    """
    pixels: list[NDArray[np.uint8]] = []
    times: list[float] = []
    size: tuple[int, int] | None = None
    with open_video(path, limits) as (container, stream):
        for time_s, frame in _wanted(_timed_frames(container, stream, request, path), request):
            if len(pixels) >= request.max_frames:
                raise SkipItemError("too_many_frames", f"{path}: more than {request.max_frames} frames in one clip")
            size = size or (frame.height, frame.width)
            _check_next(frame, size, time_s, times, path)
            pixels.append(to_rgb(frame, request.size_px, crop=request.crop))
            times.append(time_s)
    if not pixels:
        raise SkipItemError("no_frames", f"{path}: no frame between {request.start_s:.3f} and {request.end_s:.3f} s")
    return Frames(np.stack(pixels), np.asarray(times, np.float64))


def _check_next(frame: Any, size: tuple[int, int], time_s: float, before: Sequence[float], path: str) -> None:
    """Refuses what streams that were glued together show: another size, or times that go back."""
    if (frame.height, frame.width) != size:
        detail = f"from {size[1]}x{size[0]} to {frame.width}x{frame.height} pixels"
        raise SkipItemError("size_change", f"{path}: the picture changes its size {detail} at {time_s:.3f} s")
    if before and time_s <= before[-1]:
        raise SkipItemError("bad_times", f"{path}: a frame at {time_s:.3f} s follows one at {before[-1]:.3f} s")


def _timed_frames(container: Any, stream: Any, request: DecodeRequest, path: str) -> Iterator[tuple[float, Any]]:
    """Yields frames with their times in seconds; a stretch far into the file is reached by seeking."""
    stream.thread_type = "AUTO"
    origin = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    target = request.start_s - _SEEK_MARGIN_S
    if request.source_hz is None and target > 0 and stream.time_base:
        container.seek(int((target + origin) / stream.time_base), stream=stream, backward=True)
    try:
        for index, frame in enumerate(container.decode(stream)):
            if request.source_hz is not None:
                yield index / request.source_hz, frame
            elif frame.time is None:
                raise SkipItemError("no_timestamps", f"{path}: frame {index} has no presentation time; set source_hz")
            else:
                yield frame.time - origin, frame
    except (av.error.FFmpegError, OSError) as error:
        detail = str(getattr(error, "strerror", None) or error)
        raise SkipItemError("decode_error", f"{path}: damaged or cut short ({detail})") from error


def _wanted(frames: Iterator[tuple[float, Any]], request: DecodeRequest) -> Iterator[tuple[float, Any]]:
    """Keeps the frames inside the stretch, and of those the ones nearest to the rate's grid, each at most once."""
    # Half a millisecond: containers store times in ticks of up to a millisecond.
    inside = (f for f in _until(frames, request.end_s - 5e-4) if f[0] >= request.start_s - 5e-4)
    if request.rate_hz is None:
        yield from inside
        return
    step, held, i = 1 / request.rate_hz, None, 0
    for time_s, frame in inside:
        if held is not None:
            # The held frame is final for every grid time that is nearer to it than to this one.
            middle = (held[0] + time_s) / 2 - request.start_s + 1e-9
            if i * step <= middle:
                yield held
                i = int(middle / step) + 1
        held = (time_s, frame)
    # A millisecond, to which containers round; a grid time past the last frame has no frame of its own.
    if held is not None and i * step <= held[0] - request.start_s + 1e-3:
        yield held


def _until(frames: Iterator[tuple[float, Any]], end_s: float) -> Iterator[tuple[float, Any]]:
    for time_s, frame in frames:
        if time_s >= end_s:
            return
        yield time_s, frame


def to_rgb(frame: Any, size_px: tuple[int, int] | None = None, *, crop: bool = False) -> NDArray[np.uint8]:
    """Converts a PyAV frame to uint8 [H, W, 3] RGB, upright, resized by area averaging to ``size_px`` (H, W)."""
    turns = round((frame.rotation or 0) / 90) % 4
    if size_px is None:
        return _upright(frame.to_ndarray(format="rgb24"), turns)
    height, width = size_px if turns % 2 == 0 else size_px[::-1]
    full_height, full_width = height, width
    if crop:
        scale = max(height / frame.height, width / frame.width)
        full_height, full_width = max(round(frame.height * scale), height), max(round(frame.width * scale), width)
    resized = frame.reformat(full_width, full_height, "rgb24", interpolation="AREA").to_ndarray()
    top, left = (full_height - height) // 2, (full_width - width) // 2
    return _upright(resized[top : top + height, left : left + width], turns)


def _upright(pixels: NDArray[np.uint8], turns: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.rot90(pixels, turns))


def decode_mp4(data: bytes, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Decodes frames of a packed clip by index; uint8 [n, H, W, 3] RGB, in the order of ``indices`` (all if None).

    Meant for clips that this toolkit encoded: constant rate, short GOP, frames in index order.
    """
    import decord

    try:
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1)
        wanted = list(range(len(reader))) if indices is None else [int(i) for i in indices]
        out: NDArray[np.uint8] = reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DataError(f"a packed clip of {len(data)} bytes does not decode: {str(error).splitlines()[0]}") from error
    return out
