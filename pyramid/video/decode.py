"""Frames out of source videos by presentation time.

Which stretch and rate is wanted, and what to do with a bad one, is left to the caller; which decoder reads them to
`pyramid.video.backends`, packed clips, by index, to `pyramid.video.packed`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import SkipItemError
from pyramid.types import Frames
from pyramid.video.backends.choice import Decoder, choose
from pyramid.video.backends.protocol import Backend, Reading
from pyramid.video.backends.timeline import Timeline, read_timeline
from pyramid.video.backends.with_pyav import PyavBackend
from pyramid.video.packed import decode_mp4
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits, probe
from pyramid.video.scale import Picture, Scaler

__all__ = ["DecodeRequest", "Stretch", "decode_mp4", "decode_source", "open_source"]

_FEW = 1 / 5
"""Share of a video's rate up to which it is worth knowing beforehand which frames are wanted."""
_EARLY_S = 5e-4
"""A frame this much before a time counts as shown at it: containers store times in ticks of up to a millisecond."""


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
    decoder: Decoder = "auto"
    """Who reads the video; the rule is in `pyramid.video.backends.choice`."""


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
    with open_source(path, request, limits, plan_reading(path, [request], limits)) as pictures:
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


class _Grid:
    """Finds the frames nearest to a grid of times, each at most once, by the time of the frame behind each."""

    def __init__(self, request: DecodeRequest) -> None:
        self._start_s, self._rate_hz = request.start_s, request.rate_hz
        self._next = 0

    def takes(self, time_s: float, behind_s: float) -> bool:
        """Tells whether a frame is wanted; to be asked of each in order."""
        if self._rate_hz is None:
            return True
        # It is final for every grid time that is nearer to it than to the one behind.
        middle = (time_s + behind_s) / 2 - self._start_s + 1e-9
        if self._next / self._rate_hz > middle:
            return False
        self._next = int(middle * self._rate_hz) + 1
        return True

    def takes_last(self, time_s: float) -> bool:
        """Tells whether the last frame is wanted."""
        # A millisecond, to which containers round; a grid time past the last frame has no frame of its own.
        return self._rate_hz is None or self._next / self._rate_hz <= time_s - self._start_s + 1e-3


class Stretch:
    """Takes out of a video's frames, pushed in order, the ones that a request wants.

    With a rate, these are the frames nearest to its grid, each at most once: a frame is known to be wanted when its
    successor is seen, so `push` gives it late, and `close` the last.
    """

    def __init__(self, request: DecodeRequest, path: str) -> None:
        self.request, self.path = request, path
        self.start_s, self.stop_s = request.start_s - _EARLY_S, request.end_s - _EARLY_S
        self.times_s: list[float] = []
        """Times of the frames taken so far, seconds from the video's first frame."""
        self._held: tuple[float, Picture | None] | None = None
        self._size: tuple[int, int] | None = None
        self._grid = _Grid(request)

    def push(self, time_s: float, picture: Picture | None) -> Picture | None:
        """Takes note of the video's next frame; returns the frame that is now known to be wanted, if one is.

        Args:
            time_s: when it is shown, seconds from the video's first frame.
            picture: the frame; None if it was not decoded.
        """
        if time_s < self.start_s or time_s >= self.stop_s:
            return None
        if self.request.rate_hz is None:
            return self._take(time_s, picture)
        held, self._held = self._held, (time_s, picture)
        return self._take(*held) if held and self._grid.takes(held[0], time_s) else None

    def close(self) -> Picture | None:
        """Ends the stretch; returns its last frame if that was held back."""
        last, held, self._held = None, self._held, None
        if held and self._grid.takes_last(held[0]):
            last = self._take(*held)
        if not self.times_s:
            where = f"between {self.request.start_s:.3f} and {self.request.end_s:.3f} s"
            raise SkipItemError("no_frames", f"{self.path}: no frame {where}")
        return last

    def _take(self, time_s: float, picture: Picture | None) -> Picture:
        if len(self.times_s) >= self.request.max_frames:
            raise SkipItemError(
                "too_many_frames", f"{self.path}: more than {self.request.max_frames} frames in one clip"
            )
        if picture is None:
            raise SkipItemError("decode_error", f"{self.path}: the frame at {time_s:.3f} s does not come out")
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

    each: Iterator[tuple[float, Picture | None]]
    """Gives them one by one; None for one that no request of the plan wants."""
    seeks: bool
    """Whether a later stretch can be reached by another pass without decoding all before it."""

    def __iter__(self) -> Iterator[tuple[float, Picture | None]]:
        return self.each


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a video is read."""

    backend: Backend
    """Who reads it."""
    timeline: Timeline | None = None
    """When its frames are shown, if somebody needs to know beforehand."""
    wanted: NDArray[np.bool_] | None = None
    """Which of its frames are wanted, in the order they are shown; None if that is not worth knowing."""


def plan_reading(path: str, requests: Sequence[DecodeRequest], limits: VideoLimits = DEFAULT_LIMITS) -> Plan:
    """Settles how a video is read for requests of one ``source_hz`` and ``decoder``; never refuses it."""
    decoder, source_hz = requests[0].decoder, requests[0].source_hz
    few = _wants_few(path, requests, limits)
    timeline = read_timeline(path, limits) if few or decoder == "decord" else None
    wanted = _wanted(timeline.times_s(source_hz), requests) if few and timeline is not None else None
    return Plan(backend=choose(path, decoder, timeline, limits), timeline=timeline, wanted=wanted)


def _wants_few(path: str, requests: Sequence[DecodeRequest], limits: VideoLimits) -> bool:
    """Tells whether all rates asked for are far below the video's."""
    rates = [request.rate_hz for request in requests if request.rate_hz is not None]
    if len(rates) < len(requests):
        return False
    try:
        source_hz = requests[0].source_hz or probe(path, limits).rate_hz
    except SkipItemError:
        return False
    return source_hz is not None and max(rates) <= _FEW * source_hz


def _wanted(times_s: NDArray[np.float64], requests: Sequence[DecodeRequest]) -> NDArray[np.bool_]:
    """Returns which frames `Stretch` will take for any of the requests, bool [n]."""
    wanted = np.zeros(len(times_s), bool)
    for request in requests:
        grid = _Grid(request)
        first, end = np.searchsorted(times_s, [request.start_s - _EARLY_S, request.end_s - _EARLY_S])
        inside = times_s[first:end].tolist()
        taken = [grid.takes(*pair) for pair in pairwise(inside)]
        taken += [grid.takes_last(time_s) for time_s in inside[-1:]]
        wanted[first:end] |= np.asarray(taken, bool)
    return wanted


@contextlib.contextmanager
def open_source(
    path: str, request: DecodeRequest, limits: VideoLimits = DEFAULT_LIMITS, plan: Plan | None = None
) -> Iterator[Pictures]:
    """Opens a video for one pass and yields its frames with their times in seconds.

    It begins at the request's start, or before it, and goes on to the end of the video; its rate and its end are for
    `Stretch`. Memory does not depend on the length, but for some 50 bytes a frame if the plan has a timeline.

    Args:
        path: the video.
        request: where to begin, and how to scale.
        limits: what the video may ask for.
        plan: how it is read; by default every frame, by PyAV.
    """
    plan = plan or Plan(backend=PyavBackend())
    reading = Reading(start_s=request.start_s, source_hz=request.source_hz, timeline=plan.timeline, wanted=plan.wanted)
    scaler = Scaler(request.size_px, crop=request.crop, rgb_first=request.decoder == "decord")
    with plan.backend.opened(path, reading, limits) as shown:
        pictures = (
            (time_s, None if frame is None else Picture(frame, scaler, shown.rate_hz)) for time_s, frame in shown.each
        )
        yield Pictures(pictures, shown.seeks)
