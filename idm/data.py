"""Training windows: which stretches of which demonstrations a step sees, grouped by embodiment.

Only clips with measured actions are used. Decoding is left to `pyramid.shards.frames`, windows to `idm.windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.config import WindowConfig
from idm.windows import segments, step_frames, window_starts
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames

__all__ = ["Demonstration", "WindowGroup", "WindowSampler", "fit_normalizers", "load_demonstrations", "training_rate"]


@dataclass(frozen=True)
class Demonstration:
    """One clip with its measured actions at the model's rate."""

    clip: int
    """Number of the clip."""
    embodiment: str
    """Whose actions these are."""
    frames: list[int]
    """Frame of each step."""
    action: NDArray[np.float32]
    """float32 [T, D], physical units; row t acts from step t to step t + 1."""
    starts: list[int]
    """Steps at which a whole window begins."""


class WindowGroup(NamedTuple):
    """The windows of one batch that share an embodiment."""

    embodiment: str
    """Its name."""
    frames: Tensor
    """uint8 [B, K, 3, S, S], RGB."""
    action: Tensor
    """float32 [B, H, D], normalised units."""


def training_rate(rows: Sequence[dict[str, Any]], wanted_hz: float | None) -> float:
    """Returns the steps per second that a model is trained at: the wanted ones, or those that all clips share.

    Raises:
        ConfigError: clips of several rates and no wish.
    """
    if wanted_hz is not None:
        return wanted_hz
    rates = sorted({round(float(row["rate_hz"]), 3) for row in rows})
    if len(rates) > 1:
        raise ConfigError(f"the clips come at {', '.join(f'{r:g}' for r in rates)} Hz; choose one with windows.rate_hz")
    return rates[0]


def load_demonstrations(clips: ClipFrames, windows: WindowConfig, rate_hz: float) -> list[Demonstration]:
    """Returns the clips whose actions come at ``rate_hz`` and that hold at least one window.

    Actions are never resampled: whether two of them add up or average depends on the robot's controller.

    Raises:
        DataError: none is left.
    """
    found = []
    for clip, row in enumerate(clips.rows):
        if abs(row["rate_hz"] / rate_hz - 1) > windows.rate_tolerance / 10:
            continue
        sample = clips.sample(clip)
        try:
            frames = step_frames(sample.times_s, rate_hz, windows.rate_tolerance)
        except SkipItemError:
            continue
        starts = [
            first + start
            for first, last in segments(frames, row["cuts"] or ())
            for start in window_starts(last - first, windows.horizon)
        ]
        if sample.action is not None and starts and np.isfinite(sample.action[frames]).all():
            found.append(Demonstration(clip, row["embodiment"], frames, sample.action[frames], starts))
    if not found:
        raise DataError(
            f"none of the {len(clips)} clips with actions has {windows.horizon + 1} frames at {rate_hz:g} Hz; "
            "set windows.rate_hz or a shorter windows.horizon"
        )
    return found


def fit_normalizers(demonstrations: Sequence[Demonstration]) -> dict[str, Normalizer]:
    """Fits the 1 % to 99 % range of the actions of each embodiment.

    Raises:
        DataError: an embodiment whose actions differ in dimension.
    """
    out = {}
    for name in sorted({d.embodiment for d in demonstrations}):
        actions = [d.action[:-1] for d in demonstrations if d.embodiment == name]
        widths = sorted({a.shape[1] for a in actions})
        if len(widths) > 1:
            raise DataError(f"embodiment '{name}' has actions of {widths} dimensions; name its variants apart")
        out[name] = fit_normalizer(np.concatenate(actions), "q01_q99")
    return out


class WindowSampler:
    """Training windows as a pure function of the step; every window is equally likely.

    Args:
        clips: where the frames are.
        demonstrations: windows to draw from.
        normalizers: of each embodiment.
        windows: shape of a window.
        seed: seed of the whole order.
        batch_size: windows per step.
    """

    def __init__(
        self,
        clips: ClipFrames,
        demonstrations: Sequence[Demonstration],
        normalizers: dict[str, Normalizer],
        windows: WindowConfig,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.clips, self.demonstrations, self.normalizers = clips, list(demonstrations), normalizers
        self.windows, self.seed, self.batch_size = windows, seed, batch_size
        self._ends = np.cumsum([len(d.starts) for d in self.demonstrations])

    def batch_at(self, step: int) -> list[WindowGroup]:
        """Returns the windows of training step ``step``, grouped by embodiment in the order of names."""
        drawn = rng(self.seed, "window", step).integers(self._ends[-1], size=self.batch_size)
        chosen = [self.window(int(number)) for number in drawn]
        return [
            WindowGroup(
                name,
                torch.stack([frames for owner, frames, _ in chosen if owner == name]),
                torch.stack([action for owner, _, action in chosen if owner == name]),
            )
            for name in sorted({owner for owner, _, _ in chosen})
        ]

    def window(self, number: int) -> tuple[str, Tensor, Tensor]:
        """Returns window ``number`` of all: embodiment, frames uint8 [K, 3, S, S], normalised actions [H, D]."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        demonstration = self.demonstrations[place]
        start = demonstration.starts[number - int(self._ends[place])]
        seen = [demonstration.frames[start + step] for step in self.windows.frames]
        action = demonstration.action[start : start + self.windows.horizon]
        normalised = self.normalizers[demonstration.embodiment].normalize(action)
        return demonstration.embodiment, self.clips.frames(demonstration.clip, seen), torch.from_numpy(normalised)
