"""Frames by PyAV: all of them in order, or a few without decoding what they do not need.

What counts as a frame's time is settled here for all decoders.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import SkipItemError
from pyramid.video.backends.protocol import Reading, Shown
from pyramid.video.backends.timeline import Timeline, is_indexed
from pyramid.video.probe import VideoLimits, open_video

_SEEK_MARGIN_S = 0.5
"""Decoding starts this much before the wanted time, for streams whose key frames carry rounded times."""
_SKIPS_UNREFERENCED = "h264"
"""The codec of which a frame marked as not referred to can be left out; in H.265 a higher layer may refer to it."""


class PyavBackend:
    """The decoder for everything."""

    name = "pyav"

    @contextlib.contextmanager
    def opened(self, path: str, reading: Reading, limits: VideoLimits) -> Iterator[Shown]:
        """Opens a video for one pass; see `Backend`."""
        with open_video(path, limits) as (container, stream):
            # One thread spends the least time of a processor for each frame; packing has its processes.
            stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
            rate = float(stream.average_rate) if stream.average_rate else None
            if reading.timeline is not None and reading.wanted is not None:
                each = _some(container, stream, reading.timeline, reading)
            else:
                each = _in_order(container, stream, reading, path)
            seeks = is_indexed(container) and reading.wanted is None
            yield Shown(each=_said(each, path), seeks=seeks, rate_hz=rate)


def _said(each: Iterator[tuple[float, Any]], path: str) -> Iterator[tuple[float, Any]]:
    try:
        yield from each
    except MemoryError:
        raise  # Not the file's damage; FFmpeg's error for it is one of its own as well.
    except (av.error.FFmpegError, OSError) as error:
        detail = str(getattr(error, "strerror", None) or error)
        raise SkipItemError("decode_error", f"{path}: damaged or cut short ({detail})") from error


def _in_order(container: Any, stream: Any, reading: Reading, path: str) -> Iterator[tuple[float, Any]]:
    """Yields all frames; a stretch far into the file is reached by seeking."""
    # Elsewhere the first frame tells, since the stream's own word may be a frame early.
    indexed = is_indexed(container) and stream.time_base
    origin = float((stream.start_time or 0) * stream.time_base) if indexed else None
    target = reading.start_s - _SEEK_MARGIN_S
    if reading.source_hz is None and target > 0 and origin is not None:
        container.seek(int((target + origin) / stream.time_base), stream=stream, backward=True)
    for index, frame in enumerate(container.decode(stream)):
        if reading.source_hz is not None:
            yield index / reading.source_hz, frame
        elif frame.time is None:
            raise SkipItemError("no_timestamps", f"{path}: frame {index} has no presentation time; set source_hz")
        else:
            origin = frame.time if origin is None else origin
            yield frame.time - origin, frame


def _some(container: Any, stream: Any, timeline: Timeline, reading: Reading) -> Iterator[tuple[float, Any]]:
    """Yields all times, with the frames that are wanted and come."""
    times, pts = timeline.times_s(reading.source_hz), timeline.pts[timeline.shown]
    at = 0
    for frame in _decoded(container, stream, timeline, reading.wanted):
        place = int(np.searchsorted(pts, frame.pts))
        yield from ((float(time_s), None) for time_s in times[at:place])
        yield float(times[place]), frame
        at = place + 1
    yield from ((float(time_s), None) for time_s in times[at:])


def _decoded(container: Any, stream: Any, timeline: Timeline, wanted: Any) -> Iterator[Any]:
    """Yields the wanted frames, decoding what they refer to."""
    asked = np.zeros(len(timeline.pts), bool)
    asked[timeline.shown] = wanted
    sent, anew = _route(timeline, asked)
    context, ticks = stream.codec_context, set(timeline.pts[asked].tolist())
    packets = (packet for packet in container.demux(stream) if packet.pts is not None)
    places = np.flatnonzero(sent)
    for place, packet in zip(range(places[-1] + 1 if len(places) else 0), packets, strict=False):
        if not sent[place]:
            continue
        if anew[place]:
            yield from _those(context.decode(None), ticks)
            context.flush_buffers()
        if timeline.codec == _SKIPS_UNREFERENCED:
            context.skip_frame = "DEFAULT" if asked[place] else "NONREF"
        yield from _those(context.decode(packet), ticks)
    yield from _those(context.decode(None), ticks)


def _those(frames: list[Any], ticks: set[int]) -> Iterator[Any]:
    return (frame for frame in frames if frame.pts in ticks)


def _route(timeline: Timeline, asked: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which packets must be decoded, and before which of them the decoder forgets the former ones.

    From each key frame to the last wanted packet before the next. A key frame counts if all that is wanted behind it is
    shown behind it, and all before it before: the leading frames of an open GOP refer to what is before its key frame.
    """
    pts, n = timeline.pts, len(timeline.pts)
    later = np.minimum.accumulate(np.where(asked, pts, np.iinfo(np.int64).max)[::-1])[::-1]
    earlier = np.maximum.accumulate(np.where(asked, pts, np.iinfo(np.int64).min))
    begins = timeline.keys & (later >= pts)
    begins[1:] &= earlier[:-1] < pts[1:]
    bounds = [0, *np.flatnonzero(begins[1:]) + 1, n]
    sent, anew = np.zeros(n, bool), np.zeros(n, bool)
    for first, end in pairwise(bounds):
        places = np.flatnonzero(asked[first:end])
        if len(places):
            sent[first : first + places[-1] + 1] = True
            anew[first] = first > 0 and not sent[first - 1]
    return sent, anew
