"""When each frame of a video is shown and where decoding can begin, from its packets alone: next to nothing is decoded.

Which frames are wanted is left to the caller, reading them to the decoders.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av.error
import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import SkipItemError
from pyramid.video.probe import VideoLimits, open_video

_INDEXED = ("mov", "matroska")
"""Containers that say where their key frames are, and when the first frame is shown. In others (transport streams,
program streams, AVI) a seek may end behind the frame that was asked for: those are decoded from their beginning."""
_CODECS = ("h264", "hevc", "av1")
"""Codecs of which each packet shows one frame; VP8 and VP9 have packets that show none."""
_MAX_BYTES = 16 * 2**30
"""Larger files would be read twice for too long."""


def is_indexed(container: Any) -> bool:
    """Tells whether a container is one of those in which a seek ends where it should."""
    return any(name in container.format.name for name in _INDEXED)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The packets of a video in the order they are decoded, one for each frame."""

    pts: NDArray[np.int64]
    """When each is shown, in ticks of ``time_base``; all different."""
    keys: NDArray[np.bool_]
    """Which are key frames; the first is."""
    time_base: Fraction
    """Seconds of a tick."""
    origin_s: float
    """Time of the video's first frame by its container, seconds."""
    codec: str
    """Such as ``h264``."""
    pix_fmt: str
    """Of the first frame, such as ``yuv420p``."""
    size_px: tuple[int, int]
    """Height and width of the first frame."""
    plain: bool
    """Whether the picture is upright, in limited range, in the colours that everybody takes for granted, and alone in
    its file."""

    @cached_property
    def shown(self) -> NDArray[np.int64]:
        """The places of the packets in the order they are shown."""
        return np.argsort(self.pts, kind="stable")

    @property
    def closed(self) -> bool:
        """Whether no frame that is decoded after a key frame is shown before it."""
        later = np.minimum.accumulate(self.pts[::-1])[::-1]
        return bool((later[self.keys] == self.pts[self.keys]).all())

    def times_s(self, source_hz: float | None = None) -> NDArray[np.float64]:
        """Returns when the frames are shown, in that order, float64 [n]; by their count if the rate is given."""
        if source_hz is not None:
            return np.arange(len(self.pts)) / source_hz
        # The same operations as of a decoded frame's time: equal to the last bit.
        ticks = self.pts[self.shown].astype(np.float64)
        return ticks * self.time_base.numerator / self.time_base.denominator - self.origin_s


def read_timeline(path: str, limits: VideoLimits) -> Timeline | None:
    """Reads the packets of a video; None if they do not tell surely which frames a decoder will give.

    Nothing is raised: whoever decodes the video tells what is wrong with it.
    """
    try:
        if files.is_remote(path) or files.size_bytes(path) > _MAX_BYTES:
            return None
        return _read(path, limits)
    except (SkipItemError, av.error.FFmpegError, OSError):
        return None


def _read(path: str, limits: VideoLimits) -> Timeline | None:
    with open_video(path, limits) as (container, stream):
        if not is_indexed(container) or stream.codec_context.name not in _NAMES:
            return None
        pts, keys = array("q"), array("b")
        for packet in container.demux(stream):
            if packet.pts is None and not packet.size:
                continue  # The end.
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            pts.append(packet.pts)
            keys.append(packet.is_keyframe)
    ticks, is_key = np.asarray(pts, np.int64), np.asarray(keys, bool)
    if not len(ticks) or not is_key[0] or ticks.min() < ticks[0] or len(np.unique(ticks)) < len(ticks):
        return None
    return _with_first(path, limits, ticks, is_key)


def _with_first(path: str, limits: VideoLimits, pts: NDArray[np.int64], keys: NDArray[np.bool_]) -> Timeline | None:
    """Decodes the first frame, which must be the one that the packets promise."""
    with open_video(path, limits) as (container, stream):
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        frame = next(container.decode(stream), None)
        if frame is None or frame.pts != pts[0] or frame.interlaced_frame or stream.time_base is None:
            return None
        alone = len(container.streams.video) == 1
        return Timeline(
            pts=pts,
            keys=keys,
            time_base=stream.time_base,
            origin_s=float((stream.start_time or 0) * stream.time_base),
            codec=_NAMES[stream.codec_context.name],
            pix_fmt=frame.format.name,
            size_px=(frame.height, frame.width),
            plain=alone and not frame.rotation and frame.color_range != _FULL and frame.colorspace in _BT601,
        )


_NAMES = {name: name for name in _CODECS} | {"libdav1d": "av1"}
"""Codecs by the names of their decoders."""
_FULL, _BT601 = 2, (2, 5, 6)
"""Full range; colour matrices that are BT.601, or unspecified, which everybody reads as that."""
