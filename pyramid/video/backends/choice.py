"""Which decoder reads a video.

The rule, by the measurements in ``benchmarks/README.md``:

- ``auto`` and ``pyav``: PyAV, whatever the access pattern. Frames that are few are not read by seeking to each, but by
  decoding what they refer to (`with_pyav`); with that, decord is faster at none of the patterns measured. Frames are
  scaled as YUV and become RGB when they are small, which decord, giving whole RGB pictures only, cannot do.
- ``decord``: pictures become RGB before they are scaled, in every video. decord reads those in which its frames and
  times are surely PyAV's; PyAV all others. Pixels do not depend on who read, or on what is installed.
"""

from __future__ import annotations

from typing import Literal

from pyramid.video.backends.protocol import Backend
from pyramid.video.backends.timeline import Timeline
from pyramid.video.backends.with_decord import DecordBackend, reason_against
from pyramid.video.backends.with_pyav import PyavBackend
from pyramid.video.probe import VideoLimits

Decoder = Literal["auto", "pyav", "decord"]


def choose(path: str, decoder: Decoder, timeline: Timeline | None, limits: VideoLimits) -> Backend:
    """Returns the decoder for a video; see above."""
    if decoder == "decord" and not reason_against(path, timeline, limits):
        return DecordBackend()
    return PyavBackend()
