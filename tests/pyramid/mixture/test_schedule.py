"""The schedule is exact at every prefix and from every change on; each item comes once an epoch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid.mixture.order import ItemOrder
from pyramid.mixture.schedule import MAX_PERIOD, Piece, Schedule, chairman_sequence, rounded
from pyramid.rng import rng

WEIGHTS = st.lists(st.integers(1, 60), min_size=2, max_size=7)


def shares_of(weights: list[int]) -> dict[str, Fraction]:
    return {f"s{i}": Fraction(w, sum(weights)) for i, w in enumerate(weights)}


@given(WEIGHTS)
def test_no_prefix_is_off_by_more_than_the_bound(weights: list[int]) -> None:
    """Tijdeman's bound, 1 - 1/(2k - 2), in exact fractions."""
    total, bound = sum(weights), 1 - Fraction(1, 2 * len(weights) - 2)
    given_so_far = [0] * len(weights)
    for n, source in enumerate(chairman_sequence(weights).tolist(), start=1):
        given_so_far[source] += 1
        for w, count in zip(weights, given_so_far, strict=True):
            assert abs(count - Fraction(n * w, total)) <= bound
    assert given_so_far == weights


@given(WEIGHTS, st.integers(0, 500))
def test_looking_up_equals_counting(weights: list[int], n: int) -> None:
    plan = Schedule(shares_of(weights))
    sources, ranks = plan.at(np.arange(n))
    seen = [0] * len(weights)
    for source, rank in zip(sources.tolist(), ranks.tolist(), strict=True):
        assert rank == seen[source]
        seen[source] += 1
    assert list(plan.counts(n).values()) == seen
    if n:
        far = n * 7919
        source, rank = (int(a[0]) for a in plan.at(np.array([far])))
        assert plan.counts(far)[f"s{source}"] == rank
        assert plan.counts(far + 1)[f"s{source}"] == rank + 1


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 900))
def test_the_deviation_that_is_reported_is_the_true_one(weights: list[int], draws: int) -> None:
    plan = Schedule(shares_of(weights))
    sources, _ = plan.at(np.arange(draws))
    worst = max(
        abs(int((sources[:n] == i).sum()) - n * share)
        for n in range(1, draws + 1)
        for i, share in enumerate(plan.shares.values())
    )
    assert plan.max_deviation(draws) == pytest.approx(float(worst))


def test_the_order_is_spread_out() -> None:
    assert chairman_sequence([1, 1]).tolist() in ([0, 1], [1, 0])
    assert sorted(chairman_sequence([3, 1]).tolist()) == [0, 0, 0, 1]
    runs = "".join(map(str, chairman_sequence([50, 50]).tolist()))
    assert max(len(run) for run in runs.split("1")) <= 2
    assert chairman_sequence([4]).tolist() == [0, 0, 0, 0]


def test_one_source_gets_all() -> None:
    plan = Schedule({"only": Fraction(1)})
    sources, ranks = plan.at(np.arange(5))
    assert sources.tolist() == [0] * 5
    assert ranks.tolist() == list(range(5))
    assert plan.max_deviation(100) == 0


def test_shares_without_a_short_period_are_rounded_to_the_grid() -> None:
    shares = {"a": Fraction(1, 1_000_003), "b": Fraction(1_000_001, 1_000_003), "c": Fraction(1, 1_000_003)}
    found = Schedule(shares).shares
    assert sum(found.values()) == 1
    assert found["a"] == found["c"] == Fraction(1, MAX_PERIOD)
    exact = {"a": Fraction(1, 3), "b": Fraction(2, 3)}
    assert rounded(exact) == exact


@given(st.lists(st.floats(1e-9, 1), min_size=2, max_size=6))
def test_rounding_moves_no_share_by_more_than_a_part_of_the_grid(weights: list[float]) -> None:
    total = sum(map(Fraction, weights))
    shares = {f"s{i}": Fraction(w) / total for i, w in enumerate(weights)}
    found = rounded(shares)
    assert sum(found.values()) == 1
    assert all(found[name] > 0 for name in shares)
    moved = [abs(found[n] - shares[n]) * MAX_PERIOD for n in shares]
    # What is lifted to one part is taken from the largest share.
    assert max(moved) < len(weights)


CHANGES = st.lists(
    st.tuples(st.integers(1, 300), st.lists(st.integers(0, 9), min_size=3, max_size=3)), min_size=1, max_size=4
)


def changing(changes: list[tuple[int, list[int]]]) -> Schedule:
    pieces, start = [], 0
    for length, weights in [(0, [1, 2, 3]), *changes]:
        start += length
        pieces.append(Piece(start, shares_of(weights if any(weights) else [1, 0, 0])))
    return Schedule(pieces)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.integers(0, 1300))
def test_from_each_change_on_no_prefix_is_off_by_more_than_one(changes: list[tuple[int, list[int]]], n: int) -> None:
    plan = changing(changes)
    sources, ranks = plan.at(np.arange(n))
    seen, since, at = [0, 0, 0], [0, 0, 0], -1
    starts = [piece.start for piece in plan.ledger]
    for place, (source, rank) in enumerate(zip(sources.tolist(), ranks.tolist(), strict=True)):
        now = max(i for i, start in enumerate(starts) if start <= place)
        if now != at:
            since, at = [0, 0, 0], now
        assert rank == seen[source]
        seen[source] += 1
        since[source] += 1
        length = place + 1 - starts[now]
        for count, share in zip(since, plan.ledger[now].shares.values(), strict=True):
            assert abs(count - length * share) <= 1
    assert list(plan.counts(n).values()) == seen
    if n:
        total = sum(plan.target(n).values())
        assert total == 1


@settings(max_examples=40, deadline=None)
@given(CHANGES, st.integers(1, 400), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_a_change_leaves_everything_before_it_alone(
    changes: list[tuple[int, list[int]]], gap: int, new: list[int]
) -> None:
    before, after = changing(changes), changing([*changes, (gap, new)])
    start = after.ledger[-1].start
    for one, other in zip(before.at(np.arange(start)), after.at(np.arange(start)), strict=True):
        assert one.tolist() == other.tolist()


SHARDS = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=10).filter(
    lambda shards: any(any(shard) for shard in shards)
)
"""Items of every clip of every shard; clips without any are there, too."""


def order_of(shards: list[list[int]], *, seed: int = 1, name: str = "arm", window: int, spread: int = 9) -> ItemOrder:
    items = np.array([n for shard in shards for n in shard])
    numbers = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    # A clip has a frame more than labelled steps.
    return ItemOrder(seed, name, items, items + 1, numbers, window=window, spread=spread)


@settings(deadline=None)
@given(st.integers(0, 5), SHARDS, st.integers(1, 5), st.integers(1, 40), st.integers(0, 3))
def test_each_item_once_an_epoch(seed: int, shards: list[list[int]], window: int, spread: int, epoch: int) -> None:
    n = sum(map(sum, shards))
    order, again = (order_of(shards, seed=seed, window=window, spread=spread) for _ in range(2))
    found = [order.at(epoch * n + i) for i in range(n)]
    assert sorted(found) == list(range(n))
    for place in reversed(range(n)):
        assert again.at(epoch * n + place) == found[place]
    # Many at once, over the end of the epoch, in any order.
    ranks = rng(seed, "ranks").permutation(np.arange(epoch * n, epoch * n + 2 * n))
    assert again.at_many(ranks).tolist() == [order.at(rank) for rank in ranks.tolist()]


@settings(deadline=None)
@given(SHARDS, st.integers(1, 5))
def test_a_window_holds_whole_shards_and_no_more_than_it_may(shards: list[list[int]], window: int) -> None:
    order, sizes = order_of(shards, window=window), [sum(shard) for shard in shards]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen: dict[int, set[int]] = {}
    for rank in range(sum(sizes)):
        _, number, _ = order.locate(rank)
        seen.setdefault(number, set()).add(int(shard_of[order.at(rank)]))
    for number, found in seen.items():
        assert found == {s for s in order.shards_of(0, number).tolist() if sizes[s]}
        assert len(found) <= window
    assert sum(len(found) for found in seen.values()) == sum(size > 0 for size in sizes)


def test_the_items_of_a_clip_lie_near_each_other_and_among_those_of_others() -> None:
    """So that few clips need to be held at a time, and no stretch is of one clip alone."""
    shards, spread = [[10] * 20] * 10, 110
    order = order_of(shards, window=10, spread=spread)
    clips = np.array([order.at(rank) // 10 for rank in range(2000)])
    places = [np.flatnonzero(clips == clip) for clip in range(200)]
    # A clip's ten items are spread over 110 frames, which are about 100 items; on a ring, so some lie at both ends.
    spans = np.array([min(np.ptp(p), np.ptp((p + 1000) % 2000)) for p in places])
    assert spans.max() <= 1.5 * 100
    assert np.median(spans) > 50
    for start in range(0, 2000, 20):
        assert len(set(clips[start : start + 20].tolist())) >= 6
    # Neighbours in time come from all over the window, not from one shard.
    assert min(len(set((clips[start : start + 20] // 20).tolist())) for start in range(0, 2000, 20)) >= 3


def test_epochs_sources_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        tuple(order_of([[10]] * 5, seed=seed, name=name, window=2).at(epoch * 50 + i) for i in range(50))
        for seed in (0, 1)
        for name in ("a", "b")
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 8
