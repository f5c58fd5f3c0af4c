"""What a decoder is asked, and what it answers: the frames of one video in one pass.

How it does that is left to `with_pyav` and `with_decord`, which of them is asked to `choice`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyramid.video.backends.timeline import Timeline
from pyramid.video.probe import VideoLimits


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is to be read of a video."""

    start_s: float = 0.0
    """Nothing before this time is wanted, seconds from the first frame; where to begin is the decoder's choice."""
    source_hz: float | None = None
    """True rate of a container that lies; None trusts its times."""
    timeline: Timeline | None = None
    """When each frame is shown, if that is known before decoding."""
    wanted: NDArray[np.bool_] | None = None
    """Which of the timeline's frames are wanted, in the order they are shown; None wants all."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The frames of an opened video."""

    each: Iterator[tuple[float, Any]]
    """Times in seconds from the video's first frame, ascending, each with its PyAV frame; with None if it is not
    wanted."""
    seeks: bool
    """Whether another pass that starts later reaches its start without decoding all before it."""
    rate_hz: float | None
    """Mean rate that the container declares."""


class Backend(Protocol):
    """A decoder."""

    name: str
    """As it is asked for."""

    def opened(self, path: str, reading: Reading, limits: VideoLimits) -> AbstractContextManager[Shown]:
        """Opens a video for one pass; reading it raises SkipItemError for what is damaged, or no video."""
        ...
