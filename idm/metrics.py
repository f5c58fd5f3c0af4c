"""Measures of pseudo-actions against true ones as plain functions of arrays: fit, size, timing, honesty of the spread.

Which clips are measured is left to `idm.evaluate`. All arrays are float [P, D] over P steps, in one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "best_lag",
    "calibration_error",
    "coverage",
    "r2_per_dimension",
    "risk_coverage",
    "rmse_per_dimension",
    "running_mean",
    "std_ratio",
]

Array = NDArray[np.floating]
_LEVELS = tuple(level / 10 for level in range(1, 10))


def r2_per_dimension(truth: Array, predicted: Array) -> list[float | None]:
    """Returns ``1 - SSE / SST`` of each dimension; None where the truth is constant."""
    total, error = truth.var(0, dtype=np.float64), ((truth - predicted) ** 2).mean(0, dtype=np.float64)
    return [None if t <= 1e-12 else float(1 - e / t) for t, e in zip(total, error, strict=True)]


def std_ratio(predicted: Array, reference_std: Array) -> list[float | None]:
    """Returns each dimension's spread over that of the training actions, [D]; None where those are constant."""
    spread = predicted.std(0, dtype=np.float64)
    return [None if r <= 1e-6 else float(s / r) for s, r in zip(spread, reference_std, strict=True)]


def best_lag(truths: Sequence[Array], predictions: Sequence[Array], largest: int) -> int:
    """Returns by how many steps labels come late: where their correlation with the truth, over all clips, peaks.

    The peak of few smooth actions is flat and its top is chance: a lag counts only if its correlation r exceeds that of
    lag 0 by a standard error, (1 - r^2) / sqrt(n), with n the number of stretches of ``largest`` steps.

    Args:
        truths: one [P, D] per clip, rows at consecutive steps.
        predictions: the labels of the same steps.
        largest: lags from -largest to largest are tried.
    """
    scores = {lag: _correlation(truths, predictions, lag) for lag in sorted(range(-largest, largest + 1), key=abs)}
    peak = max(scores, key=lambda lag: round(scores[lag], 9))
    stretches = max(sum(map(len, truths)) / max(largest, 1), 1)
    error = (1 - scores[peak] ** 2) / np.sqrt(stretches)
    return peak if scores[peak] - scores[0] > error else 0


def _correlation(truths: Sequence[Array], predictions: Sequence[Array], lag: int) -> float:
    late, early = max(lag, 0), max(-lag, 0)
    pairs = [
        (t[early : len(t) - late], p[late : len(p) - early])
        for t, p in zip(truths, predictions, strict=True)
        if len(t) > abs(lag)
    ]
    if not pairs:
        return float("-inf")
    truth, label = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    truth, label = truth - truth.mean(0), label - label.mean(0)
    scale = np.sqrt((truth**2).sum(0) * (label**2).sum(0))
    return float(((truth * label).sum(0) / np.where(scale > 0, scale, 1)).mean())


def coverage(truth: Array, predicted: Array, std: Array, level: float) -> float:
    """Returns the share of true values inside the central ``level`` interval of a normal with the stated spread."""
    reach = NormalDist().inv_cdf((1 + level) / 2)
    return float((np.abs(truth - predicted) <= reach * std).mean())


def calibration_error(truth: Array, predicted: Array, std: Array) -> float:
    """Returns the mean |observed - nominal| coverage over the levels .1 to .9; 0 is a perfect spread, .5 the worst."""
    return float(np.mean([abs(coverage(truth, predicted, std, level) - level) for level in _LEVELS]))


def rmse_per_dimension(truth: Array, predicted: Array) -> list[float]:
    """Returns the root mean squared error of each dimension, [D], in the arrays' unit."""
    return [float(e) for e in np.sqrt(((truth - predicted) ** 2).mean(0, dtype=np.float64))]


def running_mean(values: Array, n: int) -> Array:
    """Returns means over ``n`` consecutive rows, [P - n + 1, D]; none where there are fewer rows."""
    if len(values) < n:
        return np.asarray(values[:0])
    sums = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), values.astype(np.float64)]), axis=0)
    return np.asarray((sums[n:] - sums[:-n]) / n)


def risk_coverage(error: Array, doubt: Array, shares: Sequence[float]) -> list[float]:
    """Returns the mean error of the least doubtful rows, one number per share kept.

    The risk-coverage curve of selective prediction (Geifman and El-Yaniv, arXiv 1705.08500): if the stated spread says
    where labels are wrong, the error falls as fewer are kept; if it says nothing, the curve is flat.

    Args:
        error: float [P].
        doubt: float [P], such as the stated spread.
        shares: shares of the rows that are kept, in (0, 1].
    """
    ordered = np.asarray(error, np.float64)[np.argsort(doubt, kind="stable")]
    return [float(ordered[: max(round(share * len(ordered)), 1)].mean()) for share in shares]
