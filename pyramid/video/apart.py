"""A stretch of a stranger's video, decoded in the guarded process: what the decoder does to itself costs this one only.

When the process is stopped is left to `pyramid.video.guard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.types import Frames
from pyramid.video import guard
from pyramid.video.decode import DecodeRequest, Stretch, open_source
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits


def decode_apart(path: str, request: DecodeRequest, limits: VideoLimits = DEFAULT_LIMITS) -> Frames:
    """Does what `decode_source` does, in a process that can be killed.

    Raises:
        SkipItemError: a reason of `decode_source`, ``decode_timeout``, ``decode_memory`` or ``decode_crashed``.
    """
    task = {"path": path, "request": asdict(request), "limits": asdict(limits)}
    pictures: list[NDArray[np.uint8]] = []
    times_s: list[float] = []
    for facts, blobs in guard.run(decode_there, task, limits, name=path):
        if "shape" in facts:
            pictures.append(np.frombuffer(blobs["rgb"], np.uint8).reshape(facts["shape"]))
        times_s = facts.get("times_s", times_s)
    return Frames(np.stack(pictures), np.asarray(times_s, np.float64))


def decode_there(task: Mapping[str, Any], send: guard.Send) -> None:
    """Decodes one stretch; runs in the guarded process. Sends a message for each frame, then their times."""
    wanted, limits = task["request"], VideoLimits(**task["limits"])
    request = DecodeRequest(**{**wanted, "size_px": tuple(wanted["size_px"]) if wanted["size_px"] else None})
    stretch = Stretch(request, task["path"])
    with open_source(task["path"], request, limits) as pictures:
        for time_s, picture in pictures:
            if time_s >= stretch.stop_s:
                break
            if (kept := stretch.push(time_s, picture)) is not None:
                send({"shape": kept.rgb.shape}, {"rgb": kept.rgb.tobytes()})
        if (kept := stretch.close()) is not None:
            send({"shape": kept.rgb.shape}, {"rgb": kept.rgb.tobytes()})
    send({"times_s": stretch.times_s})
