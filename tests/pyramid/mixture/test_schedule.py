"""The schedule is exact at every prefix, the same by look-up as by counting, and each item comes once an epoch."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid.errors import ConfigError
from pyramid.mixture.schedule import Schedule, chairman_sequence, epoch_order, item_at

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


@settings(max_examples=30)
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


def test_a_period_without_end_is_refused() -> None:
    shares = {"a": Fraction(1, 1_000_003), "b": Fraction(1_000_002, 1_000_003)}
    with pytest.raises(ConfigError, match="fewer digits"):
        Schedule(shares)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 3))
def test_each_item_once_an_epoch(seed: int, n_items: int, epoch: int) -> None:
    order = [item_at(seed, "arm", epoch * n_items + i, n_items) for i in range(n_items)]
    assert sorted(order) == list(range(n_items))
    assert order == epoch_order(seed, "arm", epoch, n_items).tolist()


def test_epochs_sources_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(seed, name, epoch, 50)) for seed in (0, 1) for name in ("a", "b") for epoch in (0, 1)]
    assert len(set(orders)) == 8
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, "a", 0, 50)[0] = 1
