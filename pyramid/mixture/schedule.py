"""The exact schedule: which source the i-th sample comes from, and how many samples the source gave before.

Both are pure functions of the position. From each change of the weights on, and from the start, every source's count
lies at every prefix within one sample of its exact share. Which item of the source it is, `pyramid.mixture.order` says.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD = 2**17
"""Longest period. Shares whose common denominator is larger are rounded to multiples of 1 / MAX_PERIOD."""


@dataclass(frozen=True)
class Piece:
    """Shares that hold from a position on."""

    start: int
    """First position, samples."""
    shares: dict[str, Fraction]
    """Share of each source; they sum to 1."""
    ramp: bool = False
    """Whether it is a part of a change that goes over many steps."""


@dataclass(frozen=True)
class _Period:
    sequence: NDArray[np.int16]
    """[W]: number of the source at each place."""
    ranks: NDArray[np.int64]
    """[W]: how often that source came before in the period."""
    counts: NDArray[np.int64]
    """[k]: how often each source comes in the period."""


class Schedule:
    """An assignment of positions to sources.

    Shares are exact fractions, so within a piece the sequence repeats after their common denominator, at which every
    source has had exactly its share. A period is computed once; every position is then a look-up.

    Args:
        shares: exact share of each source, summing to 1; or pieces of such shares, the first at position 0.
    """

    def __init__(self, shares: Mapping[str, Fraction] | Sequence[Piece]) -> None:
        pieces = [Piece(0, dict(shares))] if isinstance(shares, Mapping) else list(shares)
        self.names = list(pieces[0].shares)
        self.ledger = [Piece(p.start, rounded({name: p.shares[name] for name in self.names}), p.ramp) for p in pieces]
        """What holds from where on, as it is drawn: a few exact fractions, closed under resuming."""
        self._starts = np.array([piece.start for piece in self.ledger], np.int64)
        self._weights = [_integers(piece.shares) for piece in self.ledger]
        self._before: list[NDArray[np.int64]] = [np.zeros(len(self.names), np.int64)]

    @property
    def shares(self) -> dict[str, Fraction]:
        """Shares at the start, as they are drawn."""
        return self.ledger[0].shares

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns, for positions [N], the number of the source and how many samples it gave before, [N] each."""
        number = np.searchsorted(self._starts, positions, side="right") - 1
        sources, ranks = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        for piece in np.unique(number).tolist():
            mine = number == piece
            period = _period(self._weights[piece])
            lap, within = np.divmod(positions[mine] - self._starts[piece], len(period.sequence))
            source = period.sequence[within].astype(np.int64)
            sources[mine] = source
            ranks[mine] = self._counts_before(piece)[source] + lap * period.counts[source] + period.ranks[within]
        return sources, ranks

    def _counts_before(self, piece: int) -> NDArray[np.int64]:
        while len(self._before) <= piece:
            last = len(self._before) - 1
            length = int(self._starts[last + 1] - self._starts[last])
            self._before.append(self._before[last] + _counts(self._weights[last], length))
        return self._before[piece]

    def counts(self, draws: int) -> dict[str, int]:
        """Returns how many of the first ``draws`` samples come from each source."""
        piece = max(int(np.searchsorted(self._starts, draws, side="right")) - 1, 0)
        counts = self._counts_before(piece) + _counts(self._weights[piece], draws - int(self._starts[piece]))
        return dict(zip(self.names, (int(c) for c in counts), strict=True))

    def target(self, draws: int) -> dict[str, Fraction]:
        """Returns the exact share of each source in the first ``draws`` samples, over all pieces."""
        ends = [*(piece.start for piece in self.ledger[1:]), draws]
        lengths = [max(min(end, draws) - piece.start, 0) for piece, end in zip(self.ledger, ends, strict=True)]
        parts = list(zip(self.ledger, lengths, strict=True))
        return {name: sum((p.shares[name] * n for p, n in parts), Fraction()) / draws for name in self.names}

    def max_deviation(self, draws: int) -> float:
        """Returns the largest distance of a source's count from its exact share, over all prefixes up to ``draws``.

        Counts and shares are taken from the last change of the weights on.
        """
        worst = 0.0
        ends = [*(piece.start for piece in self.ledger[1:]), draws]
        for weights, piece, end in zip(self._weights, self.ledger, ends, strict=True):
            if piece.start < draws:
                worst = max(worst, _deviation(weights, min(end, draws) - piece.start))
        return worst


def _counts(weights: tuple[int, ...], n: int) -> NDArray[np.int64]:
    """Returns how often each source comes among the first ``n`` of a piece."""
    laps, rest = divmod(n, sum(weights))
    whole = laps * np.asarray(weights, np.int64)
    return whole + np.bincount(_period(weights).sequence[:rest], minlength=len(weights)) if rest else whole


def _deviation(weights: tuple[int, ...], n: int) -> float:
    period, total = _period(weights), sum(weights)
    steps = np.arange(1, min(n, total) + 1)
    worst = 0
    for number, weight in enumerate(weights):
        given = np.cumsum(period.sequence[: len(steps)] == number)
        # Scaled to integers, so that the bound is checked without rounding.
        worst = max(worst, int(np.abs(given * total - steps * weight).max(initial=0)))
    return worst / total


def _integers(shares: Mapping[str, Fraction]) -> tuple[int, ...]:
    total = math.lcm(*(share.denominator for share in shares.values()))
    return tuple(int(share * total) for share in shares.values())


def rounded(shares: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Returns shares whose common denominator is at most `MAX_PERIOD`: themselves, or the nearest on that grid.

    A source with a share keeps at least one part.
    """
    if math.lcm(*(share.denominator for share in shares.values())) <= MAX_PERIOD:
        return dict(shares)
    parts = apportion({name: share * MAX_PERIOD for name, share in shares.items()}, MAX_PERIOD)
    for name in (name for name, share in shares.items() if share and not parts[name]):
        parts[name] += 1
        parts[max(parts, key=lambda n: parts[n])] -= 1
    return {name: Fraction(part, MAX_PERIOD) for name, part in parts.items()}


def apportion(ideal: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Rounds numbers that sum to ``total`` to integers >= 0 that do: by their largest remainders (Hamilton)."""
    parts = {name: max(math.floor(value), 0) for name, value in ideal.items()}
    by_rest = sorted(ideal, key=lambda name: parts[name] - ideal[name])
    missing = total - sum(parts.values())
    for name in by_rest[:missing] if missing > 0 else [n for n in by_rest[::-1] if parts[n]][:-missing]:
        parts[name] += 1 if missing > 0 else -1
    return parts


@lru_cache(maxsize=32)
def _period(weights: tuple[int, ...]) -> _Period:
    sequence = chairman_sequence(list(weights))
    ranks = np.empty(len(sequence), np.int64)
    for source in range(len(weights)):
        at = np.flatnonzero(sequence == source)
        ranks[at] = np.arange(len(at))
    return _Period(sequence.astype(np.int16), ranks, np.asarray(weights, np.int64))


def chairman_sequence(weights: list[int]) -> NDArray[np.int64]:
    """Assigns each of sum(weights) positions to a source such that all prefix counts deviate by less than 1.

    The chairman assignment of Tijdeman (1980, "The chairman assignment problem", Discrete Mathematics 32): among the
    sources that may be served without getting too far ahead, the one whose deadline comes first is served. The
    deviation stays at or below 1 - 1/(2k - 2) for k sources.

    Args:
        weights: integers >= 0; the share of source i is weights[i] / sum(weights).

    Returns:
        int64 [sum(weights)].
    """
    total = sum(weights)
    drawn = [i for i, weight in enumerate(weights) if weight]
    if len(drawn) == 1:
        return np.full(total, drawn[0], np.int64)
    slack = 2 * len(drawn) - 2
    sequence = np.empty(total, np.int64)
    given = [0] * len(weights)
    # First position n at which n * share - given >= 1 / slack: sources wait for it, then for their deadline.
    waiting = [(-(-total // (weights[i] * slack)), i) for i in drawn]
    heapq.heapify(waiting)
    ready: list[tuple[int, int]] = []
    for n in range(1, total + 1):
        while waiting and waiting[0][0] <= n:
            i = heapq.heappop(waiting)[1]
            # Last position at which it is still served in time: given + 1 - 1 / slack reached by its share.
            heapq.heappush(ready, (((given[i] + 1) * slack - 1) * total // (weights[i] * slack), i))
        i = heapq.heappop(ready)[1]
        sequence[n - 1] = i
        given[i] += 1
        heapq.heappush(waiting, (-(-(given[i] * slack + 1) * total // (weights[i] * slack)), i))
    return sequence
