"""Predictions over a whole clip: all windows, joined by votes, with the uncertainty that was calibrated in training.

Where windows start and how votes join is in `idm.windows`; decoding is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.config import WindowConfig
from idm.model import InverseDynamicsModel, as_input
from idm.windows import Votes, vote, window_starts
from pyramid.nn.transfer import on_device

__all__ = ["ClipActions", "calibrate", "predict_chunks", "predict_clip"]

_BATCH = 32
"""Every pass has exactly this many windows: kernels may round differently for another shape."""
_LEAST_SPREAD = 1e-3
"""Smallest calibrated error, normalised units; a label is never certain."""


class ClipActions(NamedTuple):
    """Labels of the steps of one clip that a window covers; P rows in time order."""

    step: NDArray[np.int64]
    """int64 [P]: the step; the action leads to the next one."""
    mean: NDArray[np.float32]
    """float32 [P, D], normalised units."""
    std: NDArray[np.float32]
    """float32 [P, D], normalised units, > 0."""
    n_votes: NDArray[np.int64]
    """int64 [P]: votes, >= 1."""


@torch.inference_mode()
def predict_chunks(
    model: InverseDynamicsModel, frames: Tensor, starts: Sequence[int], windows: WindowConfig, embodiment: str
) -> dict[int, NDArray[np.float32]]:
    """Predicts every window of a clip, in passes of one constant shape.

    Args:
        model: in eval mode, on any device.
        frames: uint8 [T, 3, S, S], one per step.
        starts: steps at which windows begin.
        windows: the shape of a window.
        embodiment: whose actions.

    Returns:
        start -> float32 [H, D], normalised units.
    """
    device = next(model.parameters()).device
    out: dict[int, NDArray[np.float32]] = {}
    for first in range(0, len(starts), _BATCH):
        part = list(starts[first : first + _BATCH])
        padded = part + part[:1] * (_BATCH - len(part))
        index = torch.tensor([[start + step for step in windows.frames] for start in padded])
        chunks = model(as_input(on_device(frames[index], device)), embodiment).float().cpu().numpy()
        out |= dict(zip(part, chunks, strict=False))
    return out


def predict_clip(
    model: InverseDynamicsModel,
    frames: Tensor,
    spans: Iterable[tuple[int, int]],
    windows: WindowConfig,
    embodiment: str,
    *,
    every: int = 1,
) -> ClipActions:
    """Labels the steps of one clip; spans too short for a window are left out.

    Args:
        model: in eval mode.
        frames: uint8 [T, 3, S, S], one per step.
        spans: stretches without a cut, (first step, past the last).
        windows: the shape of a window.
        embodiment: whose actions.
        every: steps between frames, see `idm.windows.Steps`; windows start at such steps only.
    """
    stride = -(-windows.stride // every) * every
    spread = model.error_spread(embodiment).detach().cpu().numpy()
    none, no_rows = np.zeros(0, np.int64), np.zeros((0, spread.shape[1]), np.float32)
    parts = [ClipActions(none, no_rows, no_rows, none)]
    for first, last in spans:
        starts = window_starts(last - first, windows.horizon, stride)
        if starts:
            chunks = predict_chunks(model, frames[first:last], starts, windows, embodiment)
            parts.append(_with_spread(vote(chunks, last - first), spread, first))
    return ClipActions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _with_spread(votes: Votes, spread: NDArray[np.float32], first: int) -> ClipActions:
    beyond = np.where(votes.n_votes[:, None] > 1, spread[1], spread[0])
    std = np.sqrt(votes.variance + beyond**2)
    return ClipActions(first + np.arange(len(votes.n_votes)), votes.mean, std, votes.n_votes)


@torch.no_grad()
def calibrate(
    model: InverseDynamicsModel,
    embodiment: str,
    clips: Iterable[tuple[Tensor, NDArray[np.float32], Sequence[tuple[int, int]]]],
    windows: WindowConfig,
) -> None:
    """Measures the error of single and of joined votes, and stores both in the model.

    Votes that agree may agree on a wrong action, and a single vote has no variance; what is stored makes up for both:
    the mean squared error of single votes, and that of joined ones less their variance.

    Args:
        model: in eval mode; its `error_spread` is overwritten.
        embodiment: whose error.
        clips: frames uint8 [T, 3, S, S], true actions float32 [T, D] in normalised units, and spans, of each clip.
        windows: the shape of a window.
    """
    single, joined = [], []
    for frames, truth, spans in clips:
        for first, last in spans:
            starts = window_starts(last - first, windows.horizon, windows.stride)
            if not starts:
                continue
            chunks = predict_chunks(model, frames[first:last], starts, windows, embodiment)
            single += [(chunk - truth[first + at :][: windows.horizon]) ** 2 for at, chunk in chunks.items()]
            votes = vote(chunks, last - first)
            excess = (votes.mean - truth[first : last - 1]) ** 2 - votes.variance
            joined.append(excess[votes.n_votes > 1])
    alone = np.concatenate(single).mean(0)
    beyond = np.concatenate(joined).mean(0) if sum(map(len, joined)) else alone
    spread = np.sqrt(np.maximum(np.stack([alone, beyond]), _LEAST_SPREAD**2))
    model.error_spread(embodiment).copy_(torch.from_numpy(spread.astype(np.float32)))
