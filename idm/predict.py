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
from pyramid.nn.transfer import on_device, pass_rows

__all__ = ["ClipActions", "ClipFrames", "calibrate", "predict_chunks", "predict_clip", "predict_clips"]

_LEAST_SPREAD = 1e-3
"""Smallest calibrated error, normalised units; a label is never certain."""


class ClipFrames(NamedTuple):
    """What is predicted of one clip."""

    frames: Tensor
    """uint8 [T, 3, S, S], one per step."""
    spans: Sequence[tuple[int, int]]
    """Stretches without a cut, (first step, past the last)."""
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
    """int64 [P]: votes, >= 1."""


@torch.inference_mode()
def predict_chunks(
    model: InverseDynamicsModel, frames: Tensor, starts: Sequence[int], windows: WindowConfig, embodiment: str
) -> dict[int, NDArray[np.float32]]:
    """Predicts every window of a clip, or of clips one after the other, in passes of one constant shape.

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
    size, out = pass_rows(device), dict[int, NDArray[np.float32]]()
    for first in range(0, len(starts), size):
        part = list(starts[first : first + size])
        padded = part + part[:1] * (size - len(part))
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
    """Labels the steps of one clip; see `predict_clips` and `ClipFrames`."""
    return predict_clips(model, [ClipFrames(frames, list(spans), every)], windows, embodiment)[0]


def predict_clips(
    model: InverseDynamicsModel, clips: Sequence[ClipFrames], windows: WindowConfig, embodiment: str
) -> list[ClipActions]:
    """Labels the steps of clips, passes filled across them; spans too short for a window are left out.

    Args:
        model: in eval mode.
        clips: frames and spans of each.
        windows: the shape of a window.
        embodiment: whose actions.
    """
    spread = model.error_spread(embodiment).detach().cpu().numpy()
    begins = np.cumsum([0, *(len(clip.frames) for clip in clips)]).tolist()
    starts = [
        [[begin + first + at for at in _starts(clip, last - first, windows)] for first, last in clip.spans]
        for clip, begin in zip(clips, begins, strict=False)
    ]
    wanted = [start for of_clip in starts for of_span in of_clip for start in of_span]
    chunks = predict_chunks(model, torch.cat([clip.frames for clip in clips]), wanted, windows, embodiment)
    found = []
    for clip, begin, of_clip in zip(clips, begins, starts, strict=False):
        parts = [_no_rows(spread)]
        for (first, last), of_span in zip(clip.spans, of_clip, strict=True):
            if of_span:
                own = {start - begin - first: chunks[start] for start in of_span}
                parts.append(_with_spread(vote(own, last - first), spread, first))
        found.append(ClipActions(*(np.concatenate(column) for column in zip(*parts, strict=True))))
    return found


def _starts(clip: ClipFrames, length: int, windows: WindowConfig) -> list[int]:
    return window_starts(length, windows.horizon, -(-windows.stride // clip.every) * clip.every)


def _no_rows(spread: NDArray[np.float32]) -> ClipActions:
    none, no_rows = np.zeros(0, np.int64), np.zeros((0, spread.shape[1]), np.float32)
    return ClipActions(none, no_rows, no_rows, none)


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
