"""What a video file says of itself, read under limits: container, size, duration, rate.

Whether what it says is true is found out by decoding (`pyramid.video.decode`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error

from pyramid import files
from pyramid.errors import DataError, SkipItemError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"
"""The demuxers that may open a file: no playlists, no concatenations, nothing that opens other files."""


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What a video may ask for: before a single frame of it is decoded, and while it is."""

    max_pixels: int = 4096 * 2304
    """Largest width x height, pixels."""
    max_duration_s: float = 24 * 3600
    """Longest duration, seconds."""
    max_bytes: int = 256 * 2**30
    """Largest file."""
    max_decode_s: float = 600.0
    """Longest that decoding a minute of it, or a clip that is shorter, may take, seconds; a decoder that hangs is
    killed."""
    max_decode_mb: int = 2048
    """Most memory that the process which decodes it may hold, MiB; about 150 are the process's own."""

    def __post_init__(self) -> None:
        """Refuses limits that nothing keeps."""
        if not self.max_decode_s > 0 or self.max_decode_mb < 1:
            raise ValueError(f"max_decode_s {self.max_decode_s} and max_decode_mb {self.max_decode_mb} must be above 0")


DEFAULT_LIMITS = VideoLimits()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video's own description."""

    path: str
    """Where it is."""
    codec: str
    """Such as ``h264``."""
    width_px: int
    """Stored width, before rotation."""
    height_px: int
    """Stored height, before rotation."""
    duration_s: float | None
    """From the header; None when the header has none (streamed Matroska)."""
    rate_hz: float | None
    """Average frame rate of the header; None when unknown."""
    n_frames: int | None
    """From the header; None when unknown."""


@contextlib.contextmanager
def open_video(path: str, limits: VideoLimits = DEFAULT_LIMITS) -> Iterator[tuple[Any, Any]]:
    """Opens a video and yields ``(container, stream)``; its best video stream, single-threaded, size checked.

    Raises:
        SkipItemError: ``empty_file``, ``not_a_video``, ``no_video_stream`` or ``too_large``.
    """
    try:
        size = files.size_bytes(path)
    except DataError as error:
        raise SkipItemError("missing_file", str(error)) from error
    if size == 0:
        raise SkipItemError("empty_file", f"{path}: the file is empty")
    if size > limits.max_bytes:
        raise SkipItemError("too_large", f"{path}: {size} bytes, more than the {limits.max_bytes} allowed")
    with files.open_read(path) as source:
        try:
            container = av.open(source, options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SkipItemError("not_a_video", f"{path}: no readable video ({_first_line(error)})") from error
        with container:
            yield container, _video_stream(container, path, limits)


def _video_stream(container: Any, path: str, limits: VideoLimits) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise SkipItemError("no_video_stream", f"{path}: there is no picture in this file, only {_kinds(container)}")
    context = stream.codec_context
    if context is None:
        raise SkipItemError("unknown_codec", f"{path}: no decoder for its video stream")
    if context.width * context.height > limits.max_pixels:
        raise SkipItemError(
            "too_large", f"{path}: {context.width}x{context.height} pixels, more than the {limits.max_pixels} allowed"
        )
    return stream


def _kinds(container: Any) -> str:
    return ", ".join(sorted({s.type for s in container.streams})) or "nothing"


def _first_line(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n", maxsplit=1)[0]


def probe(path: str, limits: VideoLimits = DEFAULT_LIMITS) -> VideoInfo:
    """Reads a video's header.

    Raises:
        SkipItemError: the file is no video, or asks for more than ``limits`` allow; with the reason.
    """
    with open_video(path, limits) as (container, stream):
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6
        if duration is not None and duration > limits.max_duration_s:
            raise SkipItemError(
                "too_long", f"{path}: {duration:.0f} s, more than the {limits.max_duration_s:.0f} allowed"
            )
        rate = float(stream.average_rate) if stream.average_rate else None
        return VideoInfo(
            path=path,
            codec=str(stream.codec_context.name),
            width_px=stream.codec_context.width,
            height_px=stream.codec_context.height,
            duration_s=duration if duration and duration > 0 else None,
            rate_hz=rate,
            n_frames=stream.frames or None,
        )
