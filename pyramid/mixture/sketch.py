"""Statistics of rows in one pass, mergeable in any order: exact counts, moments and bounds, quantiles by a sketch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError

ACCURACY = 1e-3
"""Largest error of a value that a quantile lies at, relative to the value."""
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_SMALLEST = 1e-12
_OFFSET = math.ceil(-math.log(_SMALLEST) / math.log(_GAMMA)) + 1

Counts = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass
class Summary:
    """What is known of rows of D numbers.

    Moments are merged by the rule of Chan, Golub and LeVeque (1979); quantiles are those of a DDSketch (Masson, Rim and
    Lee 2019, arXiv 1908.10693), whose buckets grow by a constant factor: merged counts are those of one pass.
    """

    count: float
    """Rows, or their weight."""
    bad: int
    """Rows left out: with a value that is not finite."""
    mean: NDArray[np.float64]
    """[D]."""
    spread: NDArray[np.float64]
    """[D]: sum of squared distances from the mean."""
    low: NDArray[np.float64]
    """[D]: smallest values."""
    high: NDArray[np.float64]
    """[D]: largest values."""
    buckets: list[Counts]
    """Per dimension: ascending bucket numbers, and how many values lie in each."""

    @classmethod
    def empty(cls, width: int) -> Summary:
        """Returns the summary of no rows."""
        none = np.zeros(width)
        counts: list[Counts] = [(np.zeros(0, np.int64), np.zeros(0)) for _ in range(width)]
        return cls(0.0, 0, none, none, none + math.inf, none - math.inf, counts)

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Summary:
        """Returns the summary of rows [N, D]."""
        x = np.asarray(rows, np.float64)
        finite = np.isfinite(x).all(1)
        x = x[finite]
        if not len(x):
            return Summary(**{**vars(cls.empty(rows.shape[1])), "bad": int((~finite).sum())})
        numbers = _bucket(x)
        counted = [np.unique(numbers[:, d], return_counts=True) for d in range(x.shape[1])]
        mean = x.mean(0)
        return cls(
            float(len(x)),
            int((~finite).sum()),
            mean,
            ((x - mean) ** 2).sum(0),
            x.min(0),
            x.max(0),
            [(values.astype(np.int64), counts.astype(np.float64)) for values, counts in counted],
        )

    def scaled(self, weight: float) -> Summary:
        """Returns the same with every row counted ``weight`` times."""
        buckets = [(values, counts * weight) for values, counts in self.buckets]
        return Summary(self.count * weight, self.bad, self.mean, self.spread * weight, self.low, self.high, buckets)

    def merged(self, other: Summary) -> Summary:
        """Returns the summary of both."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        apart = other.mean - self.mean
        return Summary(
            count,
            self.bad + other.bad,
            self.mean + apart * share,
            self.spread + other.spread + apart**2 * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            [_sum(a, b) for a, b in zip(self.buckets, other.buckets, strict=True)],
        )

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviations of the rows themselves, [D]."""
        std: NDArray[np.float64] = np.sqrt(self.spread / max(self.count, 1e-300))
        return std

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Returns the ``q``-quantiles, [D], interpolated between neighbours (type 7 of Hyndman and Fan 1996)."""
        if not self.count:
            raise DataError("no rows to take a quantile of")
        place = q * (self.count - 1) if self.count > 1 else 0.0
        part = place - math.floor(place)
        found = [
            (1 - part) * _at(counts, math.floor(place)) + part * _at(counts, math.floor(place) + 1)
            for counts in self.buckets
        ]
        return np.asarray(np.clip(np.array(found), self.low, self.high))

    def share_beyond(self, dimension: int, low: float, high: float) -> float:
        """Returns the share of a dimension's values below ``low`` or above ``high``, up to the accuracy of both."""
        numbers, counts = self.buckets[dimension]
        edges = _bucket(np.array([low, high]))
        return float(counts[(numbers < edges[0]) | (numbers > edges[1])].sum() / max(counts.sum(), 1e-300))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "spread", "low", "high")}
        buckets = [[values.tolist(), counts.tolist()] for values, counts in self.buckets]
        return {"count": self.count, "bad": self.bad, **arrays, "buckets": buckets}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """Reads what `to_dict` wrote."""
        arrays = {name: np.array(data[name], np.float64) for name in ("mean", "spread", "low", "high")}
        buckets = [(np.array(v, np.int64), np.array(c, np.float64)) for v, c in data["buckets"]]
        return cls(count=float(data["count"]), bad=int(data["bad"]), **arrays, buckets=buckets)


def _bucket(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the number of each value's bucket, ascending with the value; 0 holds what is next to 0."""
    size = np.abs(x)
    tiny = size < _SMALLEST
    number = np.ceil(np.log(np.where(tiny, 1.0, size)) / math.log(_GAMMA)) + _OFFSET
    return np.where(tiny, 0, np.sign(x) * number).astype(np.int64)


def _value(bucket: int) -> float:
    """Returns the value that stands for a bucket."""
    if bucket == 0:
        return 0.0
    return math.copysign(2 * math.exp((abs(bucket) - _OFFSET) * math.log(_GAMMA)) / (_GAMMA + 1), bucket)


def _at(counts: Counts, rank: int) -> float:
    """Returns the value of a rank, counted from 0."""
    values, numbers = counts
    # Weights are rounded sums: a rank that is reached up to rounding is reached.
    place = int(np.searchsorted(np.cumsum(numbers), rank + 1e-9 * max(rank, 1), side="right"))
    return _value(int(values[min(place, len(values) - 1)]))


def _sum(one: Counts, other: Counts) -> Counts:
    values, inverse = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    counts = np.bincount(inverse, weights=np.concatenate([one[1], other[1]]), minlength=len(values))
    return values.astype(np.int64), counts.astype(np.float64)
