"""The exact schedule: which source the i-th sample comes from, and which of the source's items it is.

Both are pure functions of the position. At every prefix each source's count lies within one sample of its exact share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError
from pyramid.rng import rng

MAX_PERIOD = 1_000_000
"""Longest period that is computed; weights with a few digits stay far below."""


class Schedule:
    """A periodic assignment of positions to sources.

    Shares are exact fractions, so the sequence repeats after their common denominator W, at which every source has had
    exactly its share. One period is computed once; every position is then a look-up.

    Args:
        shares: exact share of each source; they sum to 1.

    Raises:
        ConfigError: the period would be longer than `MAX_PERIOD`.
    """

    def __init__(self, shares: Mapping[str, Fraction]) -> None:
        self.names = list(shares)
        self.shares = dict(shares)
        self.period = math.lcm(*(share.denominator for share in shares.values()))
        if self.period > MAX_PERIOD:
            raise ConfigError(f"these weights repeat only after {self.period} samples; write them with fewer digits")
        weights = [int(shares[name] * self.period) for name in self.names]
        self._sequence = chairman_sequence(weights)
        self._counts = np.bincount(self._sequence, minlength=len(weights)).astype(np.int64)
        self._ranks = np.empty(self.period, np.int64)
        for source in range(len(weights)):
            at = np.flatnonzero(self._sequence == source)
            self._ranks[at] = np.arange(len(at))

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for positions [N], the number of the source and how many samples it gave before, [N] each."""
        lap, within = np.divmod(positions, self.period)
        source = self._sequence[within]
        return source, lap * self._counts[source] + self._ranks[within]

    def counts(self, draws: int) -> dict[str, int]:
        """Returns how many of the first ``draws`` samples come from each source."""
        laps, rest = divmod(draws, self.period)
        counts = laps * self._counts + np.bincount(self._sequence[:rest], minlength=len(self.names))
        return dict(zip(self.names, (int(c) for c in counts), strict=True))

    def max_deviation(self, draws: int) -> float:
        """Returns the largest distance of a source's count from its exact share, over all prefixes up to ``draws``."""
        steps = np.arange(1, min(draws, self.period) + 1)
        worst = 0.0
        for number, name in enumerate(self.names):
            given = np.cumsum(self._sequence[: len(steps)] == number)
            # Scaled to integers, so that the bound is checked without rounding.
            distance = np.abs(given * self.period - steps * int(self.shares[name] * self.period))
            worst = max(worst, float(distance.max()) / self.period if len(steps) else 0.0)
        return worst


def chairman_sequence(weights: list[int]) -> NDArray[np.int64]:
    """Assigns each of sum(weights) positions to a source such that all prefix counts deviate by less than 1.

    The chairman assignment of Tijdeman (1980, "The chairman assignment problem", Discrete Mathematics 32): among the
    sources that may be served without getting too far ahead, the one whose deadline comes first is served. The
    deviation stays at or below 1 - 1/(2k - 2) for k sources.

    Args:
        weights: positive integers; the share of source i is weights[i] / sum(weights).

    Returns:
        int64 [sum(weights)].
    """
    total, k = sum(weights), len(weights)
    sequence = np.zeros(total, np.int64)
    if k == 1:
        return sequence
    slack = 2 * k - 2
    given = [0] * k
    for n in range(1, total + 1):
        best, best_deadline = -1, None
        for i, weight in enumerate(weights):
            # Ahead of its share by too much if served now: n * share - given < 1 / (2k - 2).
            if (n * weight - given[i] * total) * slack < total:
                continue
            # Last position at which it is still served in time: given + 1 - 1/(2k - 2) reached by its share.
            deadline = ((given[i] + 1) * slack - 1) * total // (weight * slack)
            if best_deadline is None or deadline < best_deadline:
                best, best_deadline = i, deadline
        sequence[n - 1] = best
        given[best] += 1
    return sequence


@lru_cache(maxsize=256)
def epoch_order(seed: int, source: str, epoch: int, n_items: int) -> NDArray[np.int64]:
    """Returns the order in which a source's items come in an epoch: a keyed permutation, each item once."""
    order = rng(seed, "mixture", source, epoch).permutation(n_items)
    order.setflags(write=False)
    return order


def item_at(seed: int, source: str, rank: int, n_items: int) -> int:
    """Returns the item that is a source's ``rank``-th sample, counted over all epochs."""
    epoch, place = divmod(rank, n_items)
    return int(epoch_order(seed, source, epoch, n_items)[place])
