"""Clips at a rate that is no multiple or fraction of the model's: windows that begin at each of their frames.

A window looks at frames a few tenths of a second apart. A clip that has frames at those moments can be labelled at any
rate: each window then tells the actions of its time at the model's steps, which are resampled to the clip's frames
(`idm.resampling`) before the votes are joined. A clip that has no such frames is refused by `idm.windows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from idm.config import WindowConfig
from idm.groups import ActionGroup
from idm.resampling import at_frames
from pyramid.normalize import Normalizer

__all__ = ["FrameTimes", "declares_all", "windows_at_frames"]

_SLACK_S = 1e-3
"""Rounding of presentation times, seconds."""
_PER_STEP = ("linear", "axis_angle", "euler_angles_rpy")


def declares_all(groups: Sequence[ActionGroup], width: int) -> bool:
    """Tells whether groups say of each of ``width`` dimensions what it is at another rate."""
    covered = {place for group in groups for place in range(group.start, group.end)}
    odd = any(not group.meaning or (group.kind == "quaternion" and group.meaning != "value") for group in groups)
    return covered == set(range(width)) and not odd


def windows_at_frames(windows: WindowConfig, rate_hz: float, times_s: NDArray[np.float64]) -> WindowConfig | None:
    """Returns the windows counted in frames of a clip, or None if its frames do not show what a window looks at.

    Args:
        windows: those of the model.
        rate_hz: the model's steps per second.
        times_s: float64 [T], presentation times of the clip's frames, seconds.
    """
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return None
    clip_hz = (len(times_s) - 1) / float(times_s[-1] - times_s[0])
    most = windows.rate_tolerance / rate_hz + _SLACK_S
    uneven = np.abs(times_s - times_s[0] - np.arange(len(times_s)) / clip_hz).max()
    offsets = np.asarray(windows.frames) / rate_hz
    frames = np.round(offsets * clip_hz).astype(int)
    horizon = int(np.floor(windows.horizon / rate_hz * clip_hz + 1e-6))
    if uneven > most or np.abs(frames / clip_hz - offsets).max() > most or (np.diff(frames) < 1).any() or horizon < 1:
        return None
    places = tuple(frames.tolist())
    stride = min(windows.stride, horizon)
    try:
        own = replace(windows, horizon=horizon, frames=places, rate_hz=clip_hz, stride=stride, gap_s=None, frames_s=())
    except ValueError:
        return None
    # The network compares all frames with this one.
    return own if own.anchor == windows.anchor else None


@dataclass(frozen=True)
class FrameTimes:
    """Takes what windows tell at the model's steps to the frames of a clip; H steps, h frames of a window."""

    windows: WindowConfig
    """Counted in frames, as `windows_at_frames` gave them."""
    rate_hz: float
    """The model's steps per second."""
    groups: Sequence[ActionGroup]
    """What the dimensions mean."""
    normalizer: Normalizer
    """Between normalised and physical units, in which rotations are rotations."""

    @property
    def frames_s(self) -> NDArray[np.float64]:
        """float64 [h + 1]: time of each frame in a window, and of the one after it, seconds."""
        return np.arange(self.windows.horizon + 1) / float(self.windows.rate_hz or self.rate_hz)

    def chunks(self, chunks: Mapping[int, NDArray[np.float32]]) -> dict[int, NDArray[np.float32]]:
        """Resamples predictions: start -> float32 [draws, H, D] to [draws, h, D], normalised units."""
        return {start: np.stack([self._resampled(draw) for draw in chunk]) for start, chunk in chunks.items()}

    def _resampled(self, told: NDArray[np.float32]) -> NDArray[np.float32]:
        scale, center = (np.asarray(v, np.float64) for v in (self.normalizer.scale, self.normalizer.center))
        edges = np.arange(len(told) + 1) / self.rate_hz
        physical = told.astype(np.float64) * scale + center
        found, _ = at_frames(edges, physical, np.zeros_like(physical), self.frames_s, self.groups)
        return np.where(scale == 0, 0, (found - center) / np.where(scale == 0, 1, scale)).astype(np.float32)

    def weights(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns what votes for frames count, float64 [h, D]: what the steps next to them count, [H, D]."""
        steps = np.arange(len(weights)) / self.rate_hz
        columns = [np.interp(self.frames_s[:-1], steps, column) for column in np.asarray(weights, np.float64).T]
        return np.stack(columns, axis=1)

    def lengths(self, width: int) -> NDArray[np.float64]:
        """Returns by how much an action of each of ``width`` dimensions is larger than a model's step of it.

        A change grows with the time that it takes, a value or a velocity does not.
        """
        found = np.ones(width)
        for group in self.groups:
            if group.meaning == "delta" and group.kind in _PER_STEP:
                found[group.span] = self.rate_hz / float(self.windows.rate_hz or self.rate_hz)
        return found
