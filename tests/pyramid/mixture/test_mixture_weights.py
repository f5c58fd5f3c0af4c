"""From weights to shares of samples: units, temperature, caps, and changes over steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid.errors import ConfigError
from pyramid.mixture.schedule import MAX_PERIOD, Schedule
from pyramid.mixture.spec import ChangeSpec, MixtureSpec, SourceSpec, TierSpec
from pyramid.mixture.weights import Size, ledger

SIZES = {"a": Size(100, 8.0, 0.8), "b": Size(400, 4.0, 0.4), "c": Size(10_000, 24.0, 0.8)}


def mixture(a: float = 1, b: float = 1, c: float = 1, top: float = 1, base: float = 1, **options: Any) -> MixtureSpec:
    sources = {n: SourceSpec(shards=n, use="action", weight=w) for n, w in (("a", a), ("b", b))}
    tiers = {
        "top": TierSpec(weight=top, sources=sources),
        "base": TierSpec(weight=base, sources={"c": SourceSpec(shards="c", use="action", weight=c)}),
    }
    return MixtureSpec(tiers=tiers, **options)


@pytest.mark.parametrize(
    ("unit", "per"),
    [("samples", {"a": 1, "b": 1, "c": 1}), ("frames", {"a": 8, "b": 4, "c": 24}), ("hours", {"a": 2, "b": 1, "c": 2})],
)
def test_weights_hold_in_their_unit(unit: Any, per: dict[str, int]) -> None:
    [piece] = ledger(mixture(a=3, b=1, unit=unit), SIZES)
    amount = {name: share * per[name] for name, share in piece.shares.items()}
    total = sum(amount.values())
    assert {name: v / total for name, v in amount.items()} == {
        "c": Fraction(1, 2),
        "a": Fraction(3, 8),
        "b": Fraction(1, 8),
    }


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_temperature_weighs_sources_of_a_tier_by_their_size(alpha: float) -> None:
    [piece] = ledger(mixture(alpha=alpha), SIZES)
    assert piece.shares["c"] == Fraction(1, 2)
    assert float(piece.shares["b"] / piece.shares["a"]) == pytest.approx(4**alpha)
    [frames] = ledger(mixture(alpha=alpha, unit="frames"), SIZES)
    assert float(frames.shares["b"] / frames.shares["a"]) == pytest.approx(2**alpha * 2)


def test_caps_are_those_of_unimax() -> None:
    """By hand after algorithm 1: 3,000 samples, at most two epochs; a is cut to 200, b to 800, c takes the rest."""
    weights = {"a": 0.5, "b": 0.5, "top": 2}
    plan = Schedule(ledger(mixture(**weights, max_epochs=2, budget_samples=3000), SIZES))
    counts = plan.counts(3000)
    assert counts["a"] == pytest.approx(200, abs=1)
    assert counts["b"] == pytest.approx(800, abs=1)
    assert counts["a"] <= 201
    assert counts["b"] <= 801
    [free] = ledger(mixture(**weights, max_epochs=50, budget_samples=3000), SIZES)
    assert free.shares == {"c": Fraction(1, 3), "a": Fraction(1, 3), "b": Fraction(1, 3)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.05, 5), min_size=3, max_size=3), st.integers(1, 5), st.integers(300, 9000), st.booleans())
def test_no_source_is_repeated_more_often_than_it_may(w: list[float], most: int, budget: int, changes: bool) -> None:
    change = ChangeSpec(step=5, over=20, tiers={"top": 3.0})
    options: dict[str, Any] = {"schedule": [change], "schedule_batch": 10} if changes else {}
    spec = mixture(*w, max_epochs=most, budget_samples=budget, **options)
    plan = Schedule(ledger(spec, SIZES))
    for name, count in plan.counts(budget).items():
        # Each constant piece may leave a sample of deviation; the pieces of a ramp leave none.
        assert count <= most * SIZES[name].items + (3 if changes else 1)
    assert sum(plan.counts(budget).values()) == budget


def test_caps_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(ConfigError, match="allows 10,500 samples of all sources together"):
        ledger(mixture(max_epochs=1, budget_samples=20_000), SIZES)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_goes_from_the_old_weights_to_the_new(shape: Any) -> None:
    change = ChangeSpec(step=10, over=50, tiers={"top": 4.0}, shape=shape, pieces=10)
    spec = mixture(schedule=[change], schedule_batch=8)
    plan = Schedule(ledger(spec))
    assert [p.start for p in plan.ledger] == [0, *(80 + 40 * i for i in range(10)), 480]
    top = [p.shares["a"] + p.shares["b"] for p in plan.ledger]
    assert (top[0], top[-1]) == (Fraction(1, 2), Fraction(4, 5))
    assert top == sorted(top)
    way = [(i + 0.5) / 10 for i in range(10)]
    if shape == "cosine":
        way = [(1 - np.cos(np.pi * t)) / 2 for t in way]
    assert [float(t) for t in top[1:-1]] == pytest.approx([1 - 1 / (2 + 3 * t) for t in way], abs=1.5 / 40)
    # What is rounded off in one piece is made up for in the next.
    ideal = sum(40 * (1 - 1 / (2 + 3 * t)) for t in way)
    counts, before = plan.counts(480), plan.counts(80)
    assert counts["a"] + counts["b"] - before["a"] - before["b"] == pytest.approx(ideal, abs=2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 60), st.floats(0.1, 9), st.integers(1, 9))
def test_every_prefix_of_a_ramp_is_exact_from_its_beginning_on(step: int, over: int, top: float, pieces: int) -> None:
    change = ChangeSpec(step=step, over=over, tiers={"top": round(top, 3)}, pieces=pieces)
    plan = Schedule(ledger(mixture(schedule=[change], schedule_batch=4)))
    start, end = step * 4, (step + over) * 4
    sources, _ = plan.at(np.arange(start, end))
    seen, due = dict.fromkeys(plan.names, 0), dict.fromkeys(plan.names, Fraction())
    for place, number in zip(range(start, end), sources.tolist(), strict=True):
        piece = [p for p in plan.ledger if p.start <= place][-1]
        seen[plan.names[number]] += 1
        for name in plan.names:
            due[name] += piece.shares[name]
            assert abs(seen[name] - due[name]) <= 1
    assert seen == due


def test_a_long_ramp_has_pieces_that_can_be_looked_up() -> None:
    change = ChangeSpec(step=1000, over=1_000_000, tiers={"top": 9.0}, pieces=2)
    plan = Schedule(ledger(mixture(schedule=[change], schedule_batch=4)))
    lengths = np.diff([p.start for p in plan.ledger])
    assert max(lengths[1:]) <= MAX_PERIOD
    assert sum(plan.counts(10**12).values()) == 10**12


def test_a_source_may_begin_later_or_end() -> None:
    changes = [ChangeSpec(step=2, sources={"b": 1.0}), ChangeSpec(step=4, sources={"a": 0.0})]
    spec = mixture(b=0, schedule=changes, schedule_batch=10)
    assert {name for _, name, _ in spec.sources()} == {"a", "b", "c"}
    plan = Schedule(ledger(spec))
    assert plan.counts(20)["b"] == 0
    assert plan.counts(40)["b"] == pytest.approx(5, abs=1)
    assert plan.counts(100)["a"] == plan.counts(40)["a"]
