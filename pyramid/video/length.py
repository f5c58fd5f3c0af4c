"""How long a video truly is: the header's word, corrected by the packets where the two can differ.

What a header says is left to `pyramid.video.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyramid.errors import SkipItemError
from pyramid.video import guard
from pyramid.video.probe import VideoLimits, open_video, probe

_ALIVE_PACKETS = 10_000


def length_apart(path: str, source_hz: float | None, limits: VideoLimits) -> float:
    """Returns a video's length in seconds, found out in a process that can be killed.

    Args:
        path: the video.
        source_hz: true rate of a container that lies; None trusts its times.
        limits: what the video may ask for.

    Raises:
        SkipItemError: a reason of `open_video`, ``too_long``, ``no_frames``, ``decode_timeout``, ``decode_memory`` or
            ``decode_crashed``.
    """
    task = {"path": path, "source_hz": source_hz, "limits": vars(limits)}
    found = [facts["length_s"] for facts, _ in guard.run(length_there, task, limits, name=path) if "length_s" in facts]
    return float(found[-1])


def length_there(task: Mapping[str, Any], send: guard.Send) -> None:
    """Measures one video; runs in the guarded process."""
    limits = VideoLimits(**task["limits"])
    send({"length_s": _length_s(task["path"], task["source_hz"], limits, lambda: send({}))})


def _length_s(path: str, source_hz: float | None, limits: VideoLimits, alive: Callable[[], None]) -> float:
    info = probe(path, limits)
    if source_hz is not None and info.n_frames:
        return info.n_frames / source_hz
    if source_hz is None and info.duration_s is not None:
        return info.duration_s
    first, last, shown, count = float("inf"), float("-inf"), 1, 0
    with open_video(path, limits) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            first, count = min(first, packet.pts), count + 1
            if packet.pts > last:
                last, shown = packet.pts, packet.duration or 1
            if count % _ALIVE_PACKETS == 0:
                alive()
        if not count:
            raise SkipItemError("no_frames", f"{path}: the video stream is empty")
        return count / source_hz if source_hz is not None else float((last - first + shown) * stream.time_base)
