"""One pass over a video for all the clips in it: each frame is decoded once, however many clips want it.

What is made of the pictures is left to the caller, who gets them one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from pyramid.errors import SkipItemError
from pyramid.video.decode import DecodeRequest, Plan, Stretch, open_source, plan_reading
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits
from pyramid.video.scale import Picture

_HOLE_S = 10.0
"""A longer stretch that no clip wants is jumped over."""

Event = tuple[int, Picture | list[float] | SkipItemError]
"""Number of a request, and its next picture; or at its end the times of all its pictures, or why it cannot be had."""

Watch = Callable[[float, list[int]], None]
"""Told of each frame: its time, seconds, and the numbers of the requests whose stretch it lies in."""


def decode_clips(
    path: str,
    requests: Sequence[DecodeRequest],
    limits: VideoLimits = DEFAULT_LIMITS,
    watch: Watch | None = None,
) -> Iterator[Event]:
    """Decodes stretches of one video, which may overlap, in one pass; memory depends on none of their lengths.

    Damage ends the stretches that it lies in; the others are decoded without them.

    Args:
        path: the video.
        requests: stretches; of one ``source_hz``, ``size_px``, ``crop`` and ``decoder``.
        limits: what the video may ask for.
        watch: told of each frame that is decoded, wanted or not.

    Yields:
        What happens, stretch by stretch interleaved; for each stretch its pictures in order, then its end.
    """
    waiting = deque(sorted(range(len(requests)), key=lambda i: (requests[i].start_s, i)))
    plan = plan_reading(path, requests, limits) if requests else None
    while waiting:
        active: dict[int, Stretch] = {}
        try:
            yield from _pass(path, requests, waiting, active, limits, plan=plan, watch=watch)
        except SkipItemError as error:
            for number in list(active) or [waiting.popleft()]:
                yield number, error


def _pass(
    path: str,
    requests: Sequence[DecodeRequest],
    waiting: deque[int],
    active: dict[int, Stretch],
    limits: VideoLimits,
    *,
    plan: Plan | None,
    watch: Watch | None,
) -> Iterator[Event]:
    """Decodes from the first waiting stretch on, to the last or to a hole; moves numbers from waiting to active."""
    first, begun = requests[waiting[0]], False
    with open_source(path, first, limits, plan) as pictures:
        for time_s, picture in pictures:
            yield from _end(active, time_s)
            while waiting and time_s >= (stretch := Stretch(requests[waiting[0]], path)).start_s:
                active[waiting.popleft()], begun = stretch, True
            if not active and (not waiting or (begun and pictures.seeks and _is_hole(requests[waiting[0]], time_s))):
                return
            if watch is not None:
                watch(time_s, list(active))
            yield from _push(active, time_s, picture)
    # The video ended: nothing is left for those that still wait.
    active.update((number, Stretch(requests[number], path)) for number in waiting)
    waiting.clear()
    yield from _end(active, float("inf"))


def _is_hole(coming: DecodeRequest, time_s: float) -> bool:
    return coming.source_hz is None and time_s < coming.start_s - _HOLE_S


def _push(active: dict[int, Stretch], time_s: float, picture: Picture | None) -> Iterator[Event]:
    for number, stretch in list(active.items()):
        try:
            kept = stretch.push(time_s, picture)
        except SkipItemError as error:
            del active[number]
            yield number, error
        else:
            if kept is not None:
                yield number, kept


def _end(active: dict[int, Stretch], time_s: float) -> Iterator[Event]:
    for number in [n for n, stretch in active.items() if time_s >= stretch.stop_s]:
        stretch = active.pop(number)
        try:
            last = stretch.close()
        except SkipItemError as error:
            yield number, error
        else:
            if last is not None:
                yield number, last
            yield number, stretch.times_s
