"""Predictions over a whole clip: all windows, joined by votes, with the uncertainty that was calibrated in training.

Where windows start and how votes join is in `idm.windows`; decoding is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.config import WindowConfig
from idm.joining import JoinRule
from idm.model import Confidence, Predictor
from idm.other_rates import FrameTimes
from idm.windows import Votes, vote, window_frames, window_starts
from pyramid.nn.transfer import on_device, pass_rows

__all__ = ["ClipActions", "ClipInput", "Spans", "predict_chunks", "predict_clip", "predict_clips", "with_spread"]

Spans = Sequence[tuple[int, int]]
"""Stretches of steps without a cut, (first step, past the last)."""
Chunks = dict[int, NDArray[np.float32]]
"""Start of a window -> float32 [draws, H, D], normalised units."""


class ClipInput(NamedTuple):
    """What a model is given of one clip."""

    frames: Tensor
    """uint8 [T, 3, P, P], one per step."""
    spans: Spans
    """Shots."""
    state: NDArray[np.float32] | None = None
    """float32 [T, S], standardised, NaN rows where unknown; None if there are none."""
    every: int = 1
    """Steps between frames, see `idm.windows.Steps`; windows start at such steps only."""


class ClipActions(NamedTuple):
    """Labels of the steps of one clip that a window covers; P rows in time order."""

    step: NDArray[np.int64]
    """int64 [P]: the step; the action leads to the next one."""
    mean: NDArray[np.float32]
    """float32 [P, D], normalised units."""
    std: NDArray[np.float32]
    """float32 [P, D], normalised units, > 0."""
    n_votes: NDArray[np.int64]
    """int64 [P]: windows that voted, >= 1."""


@torch.inference_mode()
def predict_chunks(
    model: Predictor, clips: Sequence[ClipInput], windows: WindowConfig, embodiment: str
) -> list[list[tuple[int, int, Chunks]]]:
    """Predicts every window of clips, in passes of one constant shape filled across them; looks once at each frame.

    Args:
        model: in eval mode, on any device.
        clips: frames and shots.
        windows: the shape of a window.
        embodiment: whose actions.

    Returns:
        For each clip and each of its shots with a window: its first step, past its last, and its chunks by start
        within it.
    """
    device = next(model.parameters()).device
    found: list[list[tuple[int, int, Chunks]]] = [
        [(first, last, {}) for first, last in clip.spans if last - first > windows.horizon] for clip in clips
    ]
    pixels = [clip.frames for clip, shots in zip(clips, found, strict=True) if shots]
    if not pixels:
        return found
    wanted = list(_wanted(clips, found, windows))
    looked, size = _looked(model, torch.cat(pixels), device), pass_rows(device)
    with_state = any(clip.state is not None for clip in clips)
    for at in range(0, len(wanted), size):
        part = wanted[at : at + size]
        padded = part + part[:1] * (size - len(part))
        index = torch.tensor([window.steps for window in padded], device=looked.device)
        present = torch.tensor([window.present for window in padded], device=device)
        state = _states(padded).to(device) if with_state else None
        acted = model(looked[index], present, state, embodiment).float().cpu().numpy()
        for row, window in enumerate(part):
            window.chunks[window.start] = acted[:, row]
    return found


class _Window(NamedTuple):
    """A window that is wanted."""

    steps: list[int]
    """Its frames, among those of all clips."""
    present: list[float]
    """Which of them lie in the shot: 1, or 0."""
    state: NDArray[np.float32] | None
    """float32 [S], where known."""
    chunks: Chunks
    """Where its chunk goes."""
    start: int
    """Its first step in the shot."""


def _wanted(
    clips: Sequence[ClipInput], found: Sequence[Sequence[tuple[int, int, Chunks]]], windows: WindowConfig
) -> Iterator[_Window]:
    begin = 0
    for clip, shots in zip(clips, found, strict=True):
        stride = -(-windows.stride // clip.every) * clip.every
        for first, last, chunks in shots:
            for start in window_starts(last - first, windows.horizon, stride):
                steps, there = window_frames(first + start, first, last, windows)
                state = None if clip.state is None else clip.state[first + start]
                yield _Window([begin + step for step in steps], there, state, chunks, start)
        begin += len(clip.frames) if shots else 0


def _states(windows: Sequence[_Window]) -> Tensor:
    width = next((len(window.state) for window in windows if window.state is not None), 1)
    unknown = np.full(width, np.nan, np.float32)
    return torch.from_numpy(np.stack([unknown if window.state is None else window.state for window in windows]))


def _looked(model: Predictor, frames: Tensor, device: torch.device) -> Tensor:
    parts, size = [], pass_rows(device)
    for at in range(0, len(frames), size):
        part = frames[at : at + size]
        padded = torch.cat([part, part[:1].expand(size - len(part), -1, -1, -1)])
        parts.append(model.look(on_device(padded, device))[: len(part)])
    return torch.cat(parts)


def predict_clip(
    model: Predictor, clip: ClipInput, windows: WindowConfig, embodiment: str, rule: JoinRule | None = None
) -> ClipActions:
    """Labels the steps of one clip; see `predict_clips`."""
    return predict_clips(model, [clip], windows, embodiment, rule)[0]


def predict_clips(
    model: Predictor,
    clips: Sequence[ClipInput],
    windows: WindowConfig,
    embodiment: str,
    rule: JoinRule | None = None,
    *,
    told: FrameTimes | None = None,
) -> list[ClipActions]:
    """Labels the steps of clips; spans too short for a window are left out.

    Args:
        model: in eval mode.
        clips: frames and shots of each.
        windows: the shape of a window.
        embodiment: whose actions.
        rule: which dimensions are rotations or switches.
        told: takes actions to the frames of clips at another rate than the model's; ``windows`` count their frames.
    """
    known = model.confidence(embodiment)
    weights, none = known.weights.detach().cpu().numpy(), np.zeros(0, np.int64)
    lengths = None if told is None else told.lengths(weights.shape[1])
    if told is not None:
        weights = told.weights(weights)
    no_rows = np.zeros((0, weights.shape[1]), np.float32)
    labelled = []
    for shots in predict_chunks(model, clips, windows, embodiment):
        parts = [ClipActions(none, no_rows, no_rows, none)]
        for first, last, chunks in shots:
            votes = vote(chunks if told is None else told.chunks(chunks), last - first, weights, rule)
            steps = first + np.arange(len(votes.n_votes))
            parts.append(ClipActions(steps, votes.mean, with_spread(votes, known, lengths), votes.n_votes))
        labelled.append(ClipActions(*(np.concatenate(column) for column in zip(*parts, strict=True))))
    return labelled


def with_spread(votes: Votes, known: Confidence, lengths: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Returns the standard deviation of joined votes, float32 [P, D]: their variance, and what calibration found.

    Args:
        votes: joined votes.
        known: what calibration found, for actions of one step of the model.
        lengths: float64 [D], how much larger actions are than those of one step; None: no larger.
    """
    spread, factor = known.spread.detach().cpu().numpy(), known.factor.detach().cpu().numpy()
    beyond = np.where(votes.n_votes[:, None] > 1, spread[1], spread[0])
    if lengths is not None:
        beyond = beyond * lengths
    return np.asarray(np.sqrt(votes.variance + beyond**2) * factor, np.float32)
