"""Copies the compressed pictures of videos into another MP4, one after the other, without decoding them.

Which stretches belong together is left to the caller; they must have been encoded alike.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, Any

import av
import av.error

from pyramid import files
from pyramid.errors import DataError, SkipItemError
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits, open_video

_TICKS_PER_S = 10_000
"""Least resolution of the written times; each frame still takes a whole number of ticks."""
_TOLERANCE_S = 1e-3
"""Containers round times to as much."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of a video whose frames are wanted, all at one rate."""

    rate_hz: float
    """True rate: frame i of the stretch is shown at ``i / rate_hz``, whatever the container says."""
    path: str = ""
    """The video file; for messages only, when ``data`` holds the video."""
    data: bytes | None = field(default=None, repr=False)
    """The whole video as an MP4; None reads ``path``."""
    start_s: float | None = None
    """Time of the first frame wanted; None takes the whole video."""
    end_s: float | None = None
    """Time of the first frame after it."""


@dataclass(frozen=True, kw_only=True)
class SegmentFacts:
    """What must be known of a segment before it is written."""

    n_frames: int
    """Frames in it."""
    delay: int
    """Frames by which decoding order runs ahead of presentation order; 0 without B-frames."""
    n_bytes: int
    """Size of its compressed pictures."""
    coding: str
    """Digest of codec, size and decoder set-up; segments with the same one can share a file."""
    codec: str
    """Such as ``h264``."""
    pix_fmt: str
    """Such as ``yuv420p``."""
    height_px: int
    """Stored height."""
    width_px: int
    """Stored width."""


def examine(segment: Segment, limits: VideoLimits = DEFAULT_LIMITS) -> SegmentFacts:
    """Counts a segment's frames from its packets; nothing is decoded.

    Raises:
        SkipItemError: no such frames, frames without times, or a stretch that cannot be cut out without re-encoding.
    """
    with _opened(segment, limits) as (container, stream):
        packets = [(p.pts, p.size) for p in _packets(container, stream, segment)]
        _check_start(segment, float((min(packets)[0] - (stream.start_time or 0)) * stream.time_base))
        ranks = {pts: rank for rank, (pts, _) in enumerate(sorted(packets))}
        if len(ranks) != len(packets):
            raise SkipItemError("bad_times", f"{segment.path}: two frames are shown at the same time")
        context = stream.codec_context
        setup = files.sha256_bytes(bytes(context.extradata or b""))
        kind = (context.name, context.width, context.height, str(context.pix_fmt))
        return SegmentFacts(
            n_frames=len(packets),
            delay=max(place - ranks[pts] for place, (pts, _) in enumerate(packets)),
            n_bytes=sum(size for _, size in packets),
            coding=files.digest([*kind, setup]),
            codec=str(context.codec.canonical_name),
            pix_fmt=str(context.pix_fmt),
            height_px=context.height,
            width_px=context.width,
        )


def _check_start(segment: Segment, first_s: float) -> None:
    """Refuses a stretch that begins between frames: which one it means cannot be told."""
    if segment.start_s is not None and abs(first_s - segment.start_s) > _TOLERANCE_S:
        detail = f"a stretch begins at {segment.start_s:.4f} s, the frame nearest to it is shown at {first_s:.4f} s"
        raise SkipItemError("bad_times", f"{segment.path}: {detail}")


@contextlib.contextmanager
def opened_packets(segment: Segment, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[Iterator[Any]]:
    """Opens a segment and yields its packets in decoding order, the first of them a key frame."""
    with _opened(segment, limits) as (container, stream):
        yield _packets(container, stream, segment)


@contextlib.contextmanager
def _opened(segment: Segment, limits: VideoLimits) -> Iterator[tuple[Any, Any]]:
    if segment.data is None:
        with open_video(segment.path, limits) as opened:
            yield opened
        return
    try:
        container = av.open(io.BytesIO(segment.data), format="mp4", metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SkipItemError("not_a_video", f"{segment.path}: no readable MP4 ({error})") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise SkipItemError("no_video_stream", f"{segment.path}: there is no picture in this MP4")
        yield container, stream


def _packets(container: Any, stream: Any, segment: Segment) -> Iterator[Any]:
    """Yields the packets of a segment in decoding order; the first is a key frame."""
    first = True
    try:
        for packet in _inside(container, stream, segment):
            if packet.is_discard or packet.is_corrupt:
                raise SkipItemError(
                    "hidden_frames", f"{segment.path}: an edit list hides frames, or they are damaged; encode it anew"
                )
            if first and not packet.is_keyframe:
                where = f"at {segment.start_s:.3f} s" if segment.start_s is not None else "at its start"
                raise SkipItemError(
                    "no_key_frame", f"{segment.path}: there is no key frame {where}, so it is not cut without decoding"
                )
            first = False
            yield packet
    except (av.error.FFmpegError, OSError) as error:
        raise SkipItemError("read_error", f"{segment.path}: damaged or cut short ({error})") from error
    if first:
        raise SkipItemError("no_frames", f"{segment.path}: no frame between {segment.start_s} and {segment.end_s} s")


def _inside(container: Any, stream: Any, segment: Segment) -> Iterator[Any]:
    base = stream.time_base
    origin = stream.start_time or 0
    start, end = _edges(segment, base, origin)
    if start is not None and start > origin:
        container.seek(int(start), stream=stream, backward=True)
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # The end's flush.
        if packet.pts is None:
            raise SkipItemError("no_timestamps", f"{segment.path}: a frame has no presentation time")
        if end is not None and packet.dts is not None and packet.dts >= end:
            return
        if (start is None or packet.pts >= start) and (end is None or packet.pts < end):
            yield packet


def _edges(segment: Segment, base: Any, origin: int) -> tuple[Fraction | None, Fraction | None]:
    """Returns the first tick wanted and the first one not wanted: half a frame early, for times that were rounded."""
    if segment.start_s is None or segment.end_s is None:
        return None, None
    half = 0.5 / segment.rate_hz
    return Fraction(segment.start_s - half) / base + origin, Fraction(segment.end_s - half) / base + origin


def write_segments(out: IO[bytes], segments: Sequence[Segment], facts: Sequence[SegmentFacts]) -> list[float]:
    """Writes segments one after the other into one MP4.

    Args:
        out: an open file, seekable.
        segments: stretches of one rate and one coding.
        facts: what `examine` said of each.

    Returns:
        The time at which each begins, seconds; frame i of it is shown ``i / rate_hz`` later.

    Raises:
        DataError: segments that cannot share a file, or that changed since they were examined.
    """
    rate = Fraction(segments[0].rate_hz).limit_denominator(100_000)
    if len({fact.coding for fact in facts}) != 1 or len({segment.rate_hz for segment in segments}) != 1:
        raise DataError(f"{segments[0].path} and what is to follow it in one file were not encoded alike")
    scale = -(-_TICKS_PER_S // rate.numerator)
    base, ticks = Fraction(1, rate.numerator * scale), rate.denominator * scale
    delay, begun, starts = max(fact.delay for fact in facts), 0, []
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = None
        for segment, fact in zip(segments, facts, strict=True):
            starts.append(float(begun / rate))
            with _opened(segment, DEFAULT_LIMITS) as (source, video):
                if stream is None:
                    stream = container.add_stream_from_template(video, opaque=True)
                    stream.time_base = base
                packets = list(_packets(source, video, segment))
                if len(packets) != fact.n_frames:
                    raise DataError(f"{segment.path} has changed: {len(packets)} frames, there were {fact.n_frames}")
                ranks = {pts: rank for rank, pts in enumerate(sorted(p.pts for p in packets))}
                for place, packet in enumerate(packets):
                    packet.pts = (begun + ranks[packet.pts]) * ticks
                    packet.dts = (begun + place - delay) * ticks
                    packet.duration, packet.time_base, packet.stream = ticks, base, stream
                    container.mux(packet)
            begun += fact.n_frames
    return starts


def write_video(path: str, segments: Sequence[Segment], facts: Sequence[SegmentFacts]) -> list[float]:
    """Writes segments into a file, local or remote, atomically; see `write_segments`."""
    with files.atomic_write(path) as stream:
        if not files.is_remote(path):
            return write_segments(stream, segments, facts)
        whole = io.BytesIO()  # Uploads cannot go back to fill in the header.
        starts = write_segments(whole, segments, facts)
        stream.write(whole.getbuffer())
        return starts
