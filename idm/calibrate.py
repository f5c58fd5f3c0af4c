"""What a model is told about itself before it is saved: which votes to trust, and how far labels are off.

Everything is measured on clips that were kept out of training; making predictions is left to `idm.predict`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from idm.config import WindowConfig
from idm.joining import JoinRule
from idm.model import InverseDynamicsModel
from idm.predict import ClipInput, predict_chunks, with_spread
from idm.windows import Votes, vote, vote_weights

__all__ = ["calibrate"]

_LEAST_SPREAD = 1e-3
"""Smallest calibrated error, normalised units; a label is never certain."""
_POWERS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Votes may count like these powers of their inverse squared error; 0 is a plain mean."""
_LEVEL, _Z = 0.9, 1.6448536
"""The interval that is made honest, and half its width in standard deviations of a normal."""
_FEWEST = 20
"""Steps below which a quantile says nothing."""

Array = NDArray[np.float64]


class _Shot(NamedTuple):
    """A stretch without a cut: its chunks, and the true actions, float32 [T, D], normalised units."""

    chunks: dict[int, NDArray[np.float32]]
    truth: NDArray[np.float32]


@torch.no_grad()
def calibrate(
    model: InverseDynamicsModel,
    embodiment: str,
    clips: Iterable[tuple[ClipInput, NDArray[np.float32]]],
    windows: WindowConfig,
    rule: JoinRule | None = None,
) -> None:
    """Measures what `idm.model.Confidence` holds and stores it in the model.

    - Weights: of the plain mean, the bell and powers of the inverse squared error at each place of the window, those
      whose joined labels err least (``windows.votes`` may fix the choice).
    - Spread: votes that agree may agree on a wrong action, and a single vote has no variance. The mean squared error of
      single votes, and that of joined ones less their variance, make up for both.
    - Factor: errors have heavier tails than a normal. Per dimension, the 90 % quantile of error over standard deviation
      makes the 90 % interval honest (split conformal prediction; Angelopoulos and Bates, arXiv 2107.07511).

    Args:
        model: in eval mode; its `confidence` is overwritten.
        embodiment: whose.
        clips: each clip with its true actions, float32 [T, D], normalised units.
        windows: the shape of a window.
        rule: which dimensions are rotations or switches.
    """
    shots = [
        _Shot(chunks, truth[first:last])
        for clip, truth in clips
        for first, last, chunks in predict_chunks(model, [clip], windows, embodiment)[0]
    ]
    known = model.confidence(embodiment)
    single = np.concatenate([_errors(shot).reshape(-1, *known.weights.shape) for shot in shots]).astype(np.float64)
    weights = _best_weights(shots, single.mean(0), windows, rule)
    joined = [vote(shot.chunks, len(shot.truth), weights, rule) for shot in shots]
    known.weights.copy_(torch.from_numpy(weights))
    known.spread.copy_(torch.from_numpy(_spread(shots, joined, single)))
    known.factor.fill_(1.0)
    known.factor.copy_(torch.from_numpy(_factor(shots, joined, [with_spread(votes, known) for votes in joined])))


def _errors(shot: _Shot) -> NDArray[np.float32]:
    """Returns the squared errors of all windows, float32 [windows, draws, H, D]."""
    return np.stack([(chunk - shot.truth[at:][: chunk.shape[1]]) ** 2 for at, chunk in sorted(shot.chunks.items())])


def _best_weights(shots: list[_Shot], error: Array, windows: WindowConfig, rule: JoinRule | None) -> Array:
    shapes = {
        kind: np.repeat(vote_weights(windows.horizon, kind)[:, None], error.shape[1], 1) for kind in ("hann", "uniform")
    }
    if windows.votes != "learned":
        return shapes[windows.votes]
    relative = (error + _LEAST_SPREAD**2) / (error + _LEAST_SPREAD**2).mean(0)
    candidates = [relative**-power for power in _POWERS] + [shapes["hann"]]
    scores = [_joined_error(shots, weights, rule) for weights in candidates]
    return np.asarray(candidates[int(np.argmin(scores))])


def _joined_error(shots: list[_Shot], weights: Array, rule: JoinRule | None) -> float:
    squares = [(vote(s.chunks, len(s.truth), weights, rule).mean - s.truth[:-1]) ** 2 for s in shots]
    return float(np.concatenate(squares).mean())


def _spread(shots: list[_Shot], joined: list[Votes], single: Array) -> NDArray[np.float32]:
    excess = [(v.mean - s.truth[:-1]) ** 2 - v.variance for s, v in zip(shots, joined, strict=True)]
    several = np.concatenate([e[v.n_votes > 1] for e, v in zip(excess, joined, strict=True)])
    alone = single.reshape(-1, single.shape[-1]).mean(0)
    beyond = several.mean(0) if len(several) else alone
    return np.asarray(np.sqrt(np.maximum(np.stack([alone, beyond]), _LEAST_SPREAD**2)), np.float32)


def _factor(shots: list[_Shot], joined: list[Votes], stds: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    ratios = np.concatenate(
        [np.abs(v.mean - s.truth[:-1]) / std for s, v, std in zip(shots, joined, stds, strict=True)]
    )
    if len(ratios) < _FEWEST:
        return np.ones(ratios.shape[1], np.float32)
    rank = min(np.ceil((len(ratios) + 1) * _LEVEL) / len(ratios), 1.0)
    return np.asarray(np.maximum(np.quantile(ratios, rank, axis=0) / _Z, 0.1), np.float32)
