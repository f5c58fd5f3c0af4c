"""Training windows: which stretches of which demonstrations a step sees, grouped by embodiment.

Only clips with measured actions are used. Decoding is left to `pyramid.shards.frames`, windows to `idm.windows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.config import WindowConfig
from idm.windows import segments, step_frames, window_frames, window_starts
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import Sample

__all__ = [
    "Demonstration",
    "WindowGroup",
    "WindowSampler",
    "fit_normalizers",
    "fit_states",
    "learned_action",
    "load_demonstrations",
    "standardised",
    "training_rate",
]


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
    state: NDArray[np.float32] | None
    """float32 [T, S], physical units, NaN rows where unknown; None without proprioception."""
    starts: list[tuple[int, int, int]]
    """Each window: its first step, and the shot around it, (first step, past the last)."""
    grid: bool = False
    """Whether a quarter of its picture is black: a grid of three views."""


class WindowGroup(NamedTuple):
    """The windows of one batch that share an embodiment."""

    embodiment: str
    """Its name."""
    frames: Tensor
    """uint8 [B, K, 3, P, P], RGB."""
    present: Tensor
    """float32 [B, K]: 1 for a frame that is there."""
    action: Tensor
    """float32 [B, H, D], normalised units."""
    state: Tensor | None
    """float32 [B, 2, S]: standardised state at the window's first step and at its end, NaN where unknown."""


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


def load_demonstrations(
    clips: ClipFrames, windows: WindowConfig, rate_hz: float, target: str = "action"
) -> list[Demonstration]:
    """Returns the clips whose actions come at ``rate_hz`` and that hold at least one window.

    Actions are never resampled: whether two of them add up or average depends on the robot's controller.

    Args:
        clips: where they are.
        windows: the shape of a window.
        rate_hz: steps per second.
        target: see `idm.config.ModelConfig.target`.

    Raises:
        DataError: none is left, or states that actions cannot be told from.
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
            (first + start, first, last)
            for first, last in segments(frames, row["cuts"] or ())
            for start in window_starts(last - first, windows.horizon)
        ]
        if sample.action is None or not starts:
            continue
        action = learned_action(sample, target)[frames]
        if np.isfinite(action).all():
            state = None if sample.state is None else sample.state[frames]
            grid = bool((sample.meta.get("scores") or {}).get("black_quadrant"))
            found.append(Demonstration(clip, row["embodiment"], frames, action, state, starts, grid))
    if not found:
        raise DataError(
            f"none of the {len(clips)} clips with actions has {windows.horizon + 1} frames at {rate_hz:g} Hz; "
            "set windows.rate_hz or a shorter windows.horizon"
        )
    return found


def learned_action(sample: Sample, target: str) -> NDArray[np.float32]:
    """Returns what a model learns of a sample's measured actions, float32 [T, D], NaN where a needed state is unknown.

    Raises:
        DataError: actions are to be told from states, and there are none of their width.
    """
    assert sample.action is not None  # noqa: S101  # only samples with actions come here
    if target == "action":
        return sample.action
    if sample.state is None or sample.state.shape[1] != sample.action.shape[1]:
        width = 0 if sample.state is None else sample.state.shape[1]
        raise DataError(
            f"{sample.key} has {width} dimensions of state for {sample.action.shape[1]} of action; model.target "
            "from_state needs states that are the same quantities"
        )
    return sample.action - sample.state


def fit_normalizers(demonstrations: Sequence[Demonstration]) -> dict[str, Normalizer]:
    """Fits the 1 % to 99 % range of the actions of each embodiment.

    Raises:
        DataError: an embodiment whose actions differ in dimension.
    """
    return {
        name: fit_normalizer(np.concatenate([d.action[:-1] for d in own]), "q01_q99")
        for name, own in _by_embodiment(demonstrations, "actions", lambda d: d.action.shape[1])
    }


def fit_states(demonstrations: Sequence[Demonstration]) -> dict[str, Normalizer]:
    """Fits mean and spread of the states of each embodiment whose demonstrations all have them.

    Raises:
        DataError: an embodiment whose states differ in dimension.
    """
    out = {}
    for name, own in _by_embodiment(demonstrations, "states", lambda d: 0 if d.state is None else d.state.shape[1]):
        states = [d.state for d in own if d.state is not None]
        rows = np.concatenate(states) if states else np.zeros((0, 0))
        rows = rows[np.isfinite(rows).all(1)]
        if rows.size:
            out[name] = fit_normalizer(rows, "mean_std")
    return out


def _by_embodiment(
    demonstrations: Sequence[Demonstration], what: str, width: Callable[[Demonstration], int]
) -> Iterator[tuple[str, list[Demonstration]]]:
    for name in sorted({d.embodiment for d in demonstrations}):
        own = [d for d in demonstrations if d.embodiment == name]
        widths = sorted({width(d) for d in own})
        if len(widths) > 1:
            raise DataError(f"embodiment '{name}' has {what} of {widths} dimensions; name its variants apart")
        yield name, own


class WindowSampler:
    """Training windows as a pure function of the step; every window is equally likely.

    Args:
        clips: where the frames are.
        demonstrations: windows to draw from.
        normalizers: of each embodiment's actions.
        states: of each embodiment's states, where it has any.
        windows: shape of a window.
        seed: seed of the whole order.
        batch_size: windows per step.
    """

    def __init__(
        self,
        clips: ClipFrames,
        demonstrations: Sequence[Demonstration],
        normalizers: Mapping[str, Normalizer],
        states: Mapping[str, Normalizer],
        windows: WindowConfig,
        *,
        seed: int,
        batch_size: int,
    ) -> None:
        self.clips, self.demonstrations = clips, list(demonstrations)
        self.normalizers, self.states = normalizers, states
        self.windows, self.seed, self.batch_size = windows, seed, batch_size
        self._ends = np.cumsum([len(d.starts) for d in self.demonstrations])

    def batch_at(self, step: int) -> list[WindowGroup]:
        """Returns the windows of training step ``step``, grouped by embodiment in the order of names."""
        drawn = rng(self.seed, "window", step).integers(self._ends[-1], size=self.batch_size)
        chosen = [self.window(int(number)) for number in drawn]
        return [
            _stacked(name, [one for owner, one in chosen if owner == name])
            for name in sorted({owner for owner, _ in chosen})
        ]

    def window(self, number: int) -> tuple[str, tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Returns window ``number`` of all: its embodiment, and what a `WindowGroup` has of each window."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        demonstration = self.demonstrations[place]
        start, first, last = demonstration.starts[number - int(self._ends[place])]
        steps, present = window_frames(start, first, last, self.windows)
        name, end = demonstration.embodiment, start + self.windows.horizon
        action = self.normalizers[name].normalize(demonstration.action[start:end])
        state = None
        if name in self.states and demonstration.state is not None:
            state = torch.from_numpy(standardised(self.states[name], demonstration.state[[start, end]]))
        frames = self.clips.frames(demonstration.clip, [demonstration.frames[step] for step in steps])
        return name, (frames, torch.tensor(present), torch.from_numpy(action), state)


def standardised(normalizer: Normalizer, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardises states, float32 [..., S]; a row with a number that is not finite becomes all NaN: unknown."""
    known = np.isfinite(states).all(-1, keepdims=True)
    return np.where(known, normalizer.normalize(np.nan_to_num(states)), np.nan).astype(np.float32)


def _stacked(name: str, windows: Sequence[tuple[Tensor, Tensor, Tensor, Tensor | None]]) -> WindowGroup:
    frames, present, action, states = zip(*windows, strict=True)
    known = [state for state in states if state is not None]
    return WindowGroup(
        name, torch.stack(frames), torch.stack(present), torch.stack(action), torch.stack(known) if known else None
    )
