"""Predictions over a whole clip: all windows, joined by votes, with the uncertainty that was calibrated in training.

Where windows start and how votes join is in `idm.windows`; decoding is left to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.config import WindowConfig
from idm.joining import JoinRule
from idm.model import Confidence, InverseDynamicsModel
from idm.windows import Votes, vote, window_frames, window_starts
from pyramid.nn.transfer import on_device

__all__ = ["ClipActions", "ClipInput", "Spans", "predict_chunks", "predict_clip", "with_spread"]

_BATCH = 32
"""Every pass has exactly this many windows: kernels may round differently for another shape."""
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
    model: InverseDynamicsModel, clip: ClipInput, windows: WindowConfig, embodiment: str
) -> list[tuple[int, int, Chunks]]:
    """Predicts every window of a clip, in passes of one constant shape; each frame is looked at once.

    Args:
        model: in eval mode, on any device.
        clip: frames and shots.
        windows: the shape of a window.
        embodiment: whose actions.

    Returns:
        For each shot with a window: its first step, past its last, and its chunks by start within it.
    """
    device, out = next(model.parameters()).device, []
    spans = [(first, last) for first, last in clip.spans if last - first > windows.horizon]
    if not spans:
        return []
    looked = torch.cat(
        [_looked(model, clip.frames[i : i + _BATCH], device) for i in range(0, len(clip.frames), _BATCH)]
    )
    stride = -(-windows.stride // clip.every) * clip.every
    for first, last in spans:
        starts, chunks = window_starts(last - first, windows.horizon, stride), Chunks()
        for at in range(0, len(starts), _BATCH):
            part = starts[at : at + _BATCH]
            padded = part + part[:1] * (_BATCH - len(part))
            seen = [window_frames(first + start, first, last, windows) for start in padded]
            index = torch.tensor([steps for steps, _ in seen], device=looked.device)
            present = torch.tensor([there for _, there in seen], device=device)
            state = None
            if clip.state is not None:
                state = torch.from_numpy(clip.state[[first + start for start in padded]]).to(device)
            acted = model(looked[index], present, state, embodiment).float().cpu().numpy()
            chunks |= {start: acted[:, row] for row, start in enumerate(part)}
        out.append((first, last, chunks))
    return out


def _looked(model: InverseDynamicsModel, frames: Tensor, device: torch.device) -> Tensor:
    padded = torch.cat([frames, frames[:1].expand(_BATCH - len(frames), -1, -1, -1)])
    return model.look(on_device(padded, device))[: len(frames)]


def predict_clip(
    model: InverseDynamicsModel, clip: ClipInput, windows: WindowConfig, embodiment: str, rule: JoinRule | None = None
) -> ClipActions:
    """Labels the steps of one clip; spans too short for a window are left out.

    Args:
        model: in eval mode.
        clip: frames and shots.
        windows: the shape of a window.
        embodiment: whose actions.
        rule: which dimensions are rotations or switches.
    """
    known = model.confidence(embodiment)
    weights, none = known.weights.detach().cpu().numpy(), np.zeros(0, np.int64)
    no_rows = np.zeros((0, weights.shape[1]), np.float32)
    parts = [ClipActions(none, no_rows, no_rows, none)]
    for first, last, chunks in predict_chunks(model, clip, windows, embodiment):
        votes = vote(chunks, last - first, weights, rule)
        steps = first + np.arange(len(votes.n_votes))
        parts.append(ClipActions(steps, votes.mean, with_spread(votes, known), votes.n_votes))
    return ClipActions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def with_spread(votes: Votes, known: Confidence) -> NDArray[np.float32]:
    """Returns the standard deviation of joined votes, float32 [P, D]: their variance, and what calibration found."""
    spread, factor = known.spread.detach().cpu().numpy(), known.factor.detach().cpu().numpy()
    beyond = np.where(votes.n_votes[:, None] > 1, spread[1], spread[0])
    return np.asarray(np.sqrt(votes.variance + beyond**2) * factor, np.float32)
