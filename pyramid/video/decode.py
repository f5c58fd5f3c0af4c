"""Frames out of source videos by presentation time.

Which stretch and rate is wanted, and what to do with a bad one, is left to the caller; packed clips, by index, to
`pyramid.video.packed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import SkipItemError
from pyramid.types import Frames
from pyramid.video.packed import decode_mp4
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits, open_video
from pyramid.video.scale import Picture, Scaler

__all__ = ["DecodeRequest", "Stretch", "decode_mp4", "decode_source", "open_source"]

_SEEK_MARGIN_S = 0.5
"""Decoding starts this much before the wanted time, for streams whose key frames carry rounded times."""
_INDEXED = ("mov", "matroska")
"""Containers that say where their key frames are, and when the first frame is shown. In others (transport streams,
program streams, AVI) a seek may end behind the frame that was asked for: those are decoded from their beginning."""


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
    stretch = Stretch(request, path)
    pixels = np.empty((0, 0, 0, 3), np.uint8)
    with open_source(path, request, limits) as pictures:
        for n, picture in enumerate(_taken(pictures, stretch)):
            if n == len(pixels):
                pixels = _grown(pixels, picture.rgb.shape)
            pixels[n] = picture.rgb
    pixels.resize((len(stretch.times_s), *pixels.shape[1:]), refcheck=False)  # Gives back the room that was not needed.
    return Frames(pixels, np.asarray(stretch.times_s, np.float64))


def _taken(pictures: Pictures, stretch: Stretch) -> Iterator[Picture]:
    for time_s, picture in pictures:
        if time_s >= stretch.stop_s:
            break
        if (kept := stretch.push(time_s, picture)) is not None:
            yield kept
    if (kept := stretch.close()) is not None:
        yield kept


def _grown(pixels: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns room for twice as many frames, with the frames that are there."""
    room = np.empty((max(2 * len(pixels), 64), *shape), np.uint8)
    if len(pixels):
        room[: len(pixels)] = pixels
    return room


class Stretch:
    """Takes out of a video's frames, pushed in order, the ones that a request wants.

    With a rate, these are the frames nearest to its grid, each at most once: a frame is known to be wanted when its
    successor is seen, so `push` gives it late, and `close` the last.
    """

    def __init__(self, request: DecodeRequest, path: str) -> None:
        self.request, self.path = request, path
        # Half a millisecond: containers store times in ticks of up to a millisecond.
        self.start_s, self.stop_s = request.start_s - 5e-4, request.end_s - 5e-4
        self.times_s: list[float] = []
        """Times of the frames taken so far, seconds from the video's first frame."""
        self._held: tuple[float, Picture] | None = None
        self._size: tuple[int, int] | None = None
        self._grid = 0

    def push(self, time_s: float, picture: Picture) -> Picture | None:
        """Takes note of the video's next frame; returns the frame that is now known to be wanted, if one is."""
        if time_s < self.start_s or time_s >= self.stop_s:
            return None
        if self.request.rate_hz is None:
            return self._take(time_s, picture)
        held, self._held = self._held, (time_s, picture)
        if held is None:
            return None
        # The held frame is final for every grid time that is nearer to it than to this one.
        middle = (held[0] + time_s) / 2 - self.request.start_s + 1e-9
        if self._grid / self.request.rate_hz > middle:
            return None
        self._grid = int(middle * self.request.rate_hz) + 1
        return self._take(*held)

    def close(self) -> Picture | None:
        """Ends the stretch; returns its last frame if that was held back."""
        last, held, self._held = None, self._held, None
        # A millisecond, to which containers round; a grid time past the last frame has no frame of its own.
        if held and self._grid / (self.request.rate_hz or 1) <= held[0] - self.request.start_s + 1e-3:
            last = self._take(*held)
        if not self.times_s:
            where = f"between {self.request.start_s:.3f} and {self.request.end_s:.3f} s"
            raise SkipItemError("no_frames", f"{self.path}: no frame {where}")
        return last

    def _take(self, time_s: float, picture: Picture) -> Picture:
        if len(self.times_s) >= self.request.max_frames:
            raise SkipItemError(
                "too_many_frames", f"{self.path}: more than {self.request.max_frames} frames in one clip"
            )
        self._size = self._size or picture.stored_px
        # Streams that were glued together show another size, or times that go back.
        if picture.stored_px != self._size:
            (height, width), (new_height, new_width) = self._size, picture.stored_px
            detail = f"from {width}x{height} to {new_width}x{new_height} pixels"
            raise SkipItemError("size_change", f"{self.path}: the picture changes its size {detail} at {time_s:.3f} s")
        if self.times_s and time_s <= self.times_s[-1]:
            detail = f"a frame at {time_s:.3f} s follows one at {self.times_s[-1]:.3f} s"
            raise SkipItemError("bad_times", f"{self.path}: {detail}")
        self.times_s.append(time_s)
        return picture


@dataclass(frozen=True)
class Pictures:
    """The frames of an opened video in one pass, with their times in seconds."""

    each: Iterator[tuple[float, Picture]]
    """Gives them one by one."""
    indexed: bool
    """Whether a later stretch can be reached without decoding all before it."""

    def __iter__(self) -> Iterator[tuple[float, Picture]]:
        return self.each


def _is_indexed(container: Any) -> bool:
    return any(name in container.format.name for name in _INDEXED)


@contextlib.contextmanager
def open_source(path: str, request: DecodeRequest, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[Pictures]:
    """Opens a video for one pass and yields its frames with their times in seconds.

    It begins at the request's start, or before it, and goes on to the end of the video; its rate and its end are for
    `Stretch`. Memory does not depend on the length.
    """
    with open_video(path, limits) as (container, stream):
        scaler = Scaler(request.size_px, crop=request.crop)
        rate = float(stream.average_rate) if stream.average_rate else None
        frames = _timed_frames(container, stream, request, path)
        pictures = ((time_s, Picture(frame, scaler, rate)) for time_s, frame in frames)
        yield Pictures(pictures, _is_indexed(container))


def _timed_frames(container: Any, stream: Any, request: DecodeRequest, path: str) -> Iterator[tuple[float, Any]]:
    """Yields frames with their times in seconds; a stretch far into the file is reached by seeking."""
    # One thread spends the least time of a processor for each frame; packing has its processes.
    stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
    # Elsewhere the first frame tells, since the stream's own word may be a frame early.
    indexed = _is_indexed(container) and stream.time_base
    origin = float((stream.start_time or 0) * stream.time_base) if indexed else None
    target = request.start_s - _SEEK_MARGIN_S
    try:
        if request.source_hz is None and target > 0 and origin is not None:
            container.seek(int((target + origin) / stream.time_base), stream=stream, backward=True)
        for index, frame in enumerate(container.decode(stream)):
            if request.source_hz is not None:
                yield index / request.source_hz, frame
            elif frame.time is None:
                raise SkipItemError("no_timestamps", f"{path}: frame {index} has no presentation time; set source_hz")
            else:
                origin = frame.time if origin is None else origin
                yield frame.time - origin, frame
    except MemoryError:
        raise  # Not the file's damage; FFmpeg's error for it is one of its own as well.
    except (av.error.FFmpegError, OSError) as error:
        detail = str(getattr(error, "strerror", None) or error)
        raise SkipItemError("decode_error", f"{path}: damaged or cut short ({detail})") from error
