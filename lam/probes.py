"""Probes: how much of the true action, and of the camera's motion, can be read from a latent.

They are fitted on some episodes and scored on others; which, is left to `lam.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lam.camera import global_motion
from pyramid.rng import rng, seed_of

__all__ = ["ProbeData", "global_shift", "knn_accuracy", "mean_score", "mlp_probe", "r2_score", "ridge_probe"]

_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties per row, for inputs of unit spread."""
_MLP_STEPS = 400
_MLP_HIDDEN = 128


class ProbeData(NamedTuple):
    """Inputs, targets and the episode of each row."""

    x: NDArray[np.floating]
    """float [P, F]: what is probed."""
    y: NDArray[np.floating]
    """float [P, D]: what should be in it."""
    episode: NDArray[np.int64]
    """int64 [P]: rows of one episode never stand on both sides of a split."""


def r2_score(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> list[float | None]:
    """Returns ``1 - SSE / SST`` of each dimension; None where the truth is constant. Both float [P, D]."""
    total = ((truth - truth.mean(0)) ** 2).mean(0)
    error = ((truth - predicted) ** 2).mean(0)
    constant = total <= 1e-10 * np.maximum(1, (truth**2).mean(0))
    return [None if flat else float(1 - e / t) for e, t, flat in zip(error, total, constant, strict=True)]


def ridge_probe(train: ProbeData, test: ProbeData) -> list[float | None]:
    """Returns R² per dimension on ``test`` of a ridge regression in closed form on ``train``.

    The penalty is the one that does best on a fifth of the training episodes.
    """
    fit, held = _inner_split(train)
    scores = [mean_score(r2_score(held.y, _ridge(fit, held.x, penalty))) or 0.0 for penalty in _PENALTIES]
    return r2_score(test.y, _ridge(train, test.x, _PENALTIES[int(np.argmax(scores))]))


def _ridge(train: ProbeData, x: NDArray[np.floating], penalty: float) -> NDArray[np.float64]:
    inputs, new = _standardised(train.x, train.x), _standardised(train.x, x)
    mean = train.y.mean(0, dtype=np.float64)
    gram = inputs.T @ inputs + penalty * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (train.y - mean))
    return np.asarray(new @ weights + mean, np.float64)


def mlp_probe(train: ProbeData, test: ProbeData, *, seed: int = 0) -> list[float | None]:
    """Returns R² per dimension on ``test`` of a 2 x 128 MLP, stopped where a fifth of the training episodes is best.

    Linear probes under-report codes; this one shows what is there but not laid out linearly.
    """
    fit, held = _inner_split(train)
    center, scale = train.y.mean(0), np.where(train.y.std(0) > 1e-8, train.y.std(0), 1)
    inputs = [_tensor(_standardised(train.x, x)) for x in (fit.x, held.x, test.x)]
    targets = [_tensor((y - center) / scale) for y in (fit.y, held.y)]
    best = _train_mlp(inputs, targets, seed)
    return r2_score(test.y, best.double().numpy() * scale + center)


def _train_mlp(inputs: list[Tensor], targets: list[Tensor], seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "mlp-probe"))
        net = nn.Sequential(
            nn.Linear(inputs[0].shape[1], _MLP_HIDDEN), nn.GELU(),
            nn.Linear(_MLP_HIDDEN, _MLP_HIDDEN), nn.GELU(),
            nn.Linear(_MLP_HIDDEN, targets[0].shape[1]),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    lowest, best = float("inf"), torch.zeros(len(inputs[2]), targets[0].shape[1])
    for step in range(_MLP_STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs[0]), targets[0]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                loss = float(nn.functional.mse_loss(net(inputs[1]), targets[1]))
                if loss < lowest:
                    lowest, best = loss, net(inputs[2])
    return best


def _inner_split(data: ProbeData) -> tuple[ProbeData, ProbeData]:
    episodes = rng(0, "probe-split").permutation(np.unique(data.episode))
    inside = np.isin(data.episode, episodes[: max(1, len(episodes) // 5)])
    if inside.all():  # one episode: its end stands in for another
        inside = np.arange(len(inside)) >= 4 * len(inside) // 5
    return _pick(data, ~inside), _pick(data, inside)


def _pick(data: ProbeData, mask: NDArray[np.bool_]) -> ProbeData:
    return ProbeData(data.x[mask], data.y[mask], data.episode[mask])


def _standardised(reference: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.float64]:
    spread = reference.std(0, dtype=np.float64)
    return np.asarray((x - reference.mean(0, dtype=np.float64)) / np.where(spread > 1e-8, spread, 1), np.float64)


def _tensor(x: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def mean_score(scores: Sequence[float | None]) -> float | None:
    """Returns the mean over the dimensions that vary; None if none does."""
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None


def knn_accuracy(
    x: NDArray[np.floating], labels: Sequence[str], new: NDArray[np.floating], truth: Sequence[str], *, neighbours: int
) -> float:
    """Returns how often the commonest label among the nearest rows is the true one; in a tie the nearest row decides.

    Args:
        x: float [P, F], rows with known labels; each column is brought to unit spread.
        labels: P labels.
        new: float [Q, F], rows to be named.
        truth: their Q labels.
        neighbours: rows that vote, >= 1; fewer if there are fewer.
    """
    known, asked = _standardised(x, x), _standardised(x, new)
    hits = 0
    for row, true in zip(asked, truth, strict=True):
        near = [labels[i] for i in np.argsort(((known - row) ** 2).sum(1), kind="stable")[:neighbours]]
        hits += max(near, key=near.count) == true
    return hits / len(truth)


def global_shift(first: Tensor, second: Tensor) -> NDArray[np.float32]:
    """Returns `lam.camera.global_motion` of frames uint8 [B, 3, S, S] as float32 [B, 2], pixels (x, y)."""
    return global_motion(first, second).numpy().astype(np.float32)
