"""Normalisers: exact where they can be, invertible, the same after a round trip through JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyramid.errors import ConfigError, DataError
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.rng import rng

VALUES = rng(0, "values").normal([0, 100, -5], [1, 20, 0.01], (4000, 3)).astype(np.float32)
KINDS = ("q01_q99", "min_max", "mean_std", "identity")


def test_min_max_maps_the_range_to_one() -> None:
    out = fit_normalizer(VALUES, "min_max").normalize(VALUES)
    assert np.allclose(out.min(0), -1, atol=1e-4)
    assert np.allclose(out.max(0), 1, atol=1e-4)


def test_quantiles_map_to_one_and_clip() -> None:
    normalizer = fit_normalizer(VALUES, "q01_q99")
    ordered = np.sort(VALUES.astype(np.float64), axis=0)
    low, high = ordered[40], ordered[3959]  # The 1 % and 99 % of 4000 lie within one rank of these.
    assert np.allclose(normalizer.normalize(low), -1, atol=2e-2)
    assert np.allclose(normalizer.normalize(high), 1, atol=2e-2)
    out = normalizer.normalize(VALUES)
    assert out.min() == -1
    assert out.max() == 1
    assert (np.abs(out) == 1).mean(0) == pytest.approx([0.02] * 3, abs=2e-3)


def test_mean_std_gives_zero_mean_and_unit_spread() -> None:
    out = fit_normalizer(VALUES, "mean_std").normalize(VALUES).astype(np.float64)
    assert np.allclose(out.mean(0), 0, atol=1e-3)
    assert np.allclose(out.std(0), 1, atol=1e-3)


def test_identity_changes_nothing() -> None:
    assert (fit_normalizer(VALUES, "identity").normalize(VALUES) == VALUES).all()


@pytest.mark.parametrize("kind", KINDS)
@given(values=arrays(np.float32, (7, 2), elements=st.floats(-1e4, 1e4, width=32)))
def test_what_is_not_clipped_comes_back(kind: str, values: np.ndarray) -> None:
    normalizer = fit_normalizer(values, kind)
    out = normalizer.normalize(values)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    inside = np.abs(out) < 1 if normalizer.clip else np.ones_like(out, bool)
    inside &= normalizer.scale > 0
    size = np.abs(values).max() + 1
    assert np.allclose(normalizer.denormalize(out)[inside], values[inside], atol=1e-5 * size)


@pytest.mark.parametrize("kind", ["q01_q99", "min_max", "mean_std"])
@pytest.mark.parametrize("constant", [0.0, 5.0, -1e6])
def test_a_constant_dimension_is_zero_and_comes_back(kind: str, constant: float) -> None:
    values = np.stack([np.full(50, constant), np.arange(50.0)], 1)
    normalizer = fit_normalizer(values, kind)
    assert normalizer.scale[0] == 0
    assert (normalizer.normalize(values + np.array([1, 0]))[:, 0] == 0).all()
    assert (normalizer.denormalize(np.ones((3, 2)))[:, 0] == np.float32(constant)).all()


def test_any_leading_shape() -> None:
    normalizer = fit_normalizer(VALUES, "min_max")
    block = VALUES[:24].reshape(2, 3, 4, 3)
    assert (normalizer.normalize(block).reshape(24, 3) == normalizer.normalize(VALUES[:24])).all()
    with pytest.raises(DataError, match="3 dimensions"):
        normalizer.normalize(VALUES[:, :2])
    with pytest.raises(DataError, match="3 dimensions"):
        normalizer.denormalize(np.zeros((3, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_json_keeps_it_exactly(kind: str) -> None:
    normalizer = fit_normalizer(VALUES, kind)
    found = Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    assert (found.center == normalizer.center).all()
    assert (found.scale == normalizer.scale).all()
    assert (found.kind, found.clip) == (normalizer.kind, normalizer.clip)


@pytest.mark.parametrize(
    "change", [{"kind": "magic"}, {"center": [1.0]}, {"scale": [float("nan")] * 3}, {"center": [[1.0, 2.0, 3.0]]}]
)
def test_a_broken_normalizer_is_refused(change: dict) -> None:
    with pytest.raises(DataError):
        Normalizer.from_dict({**fit_normalizer(VALUES, "min_max").to_dict(), **change})


def test_statistics_of_nothing_or_of_nan_are_refused() -> None:
    with pytest.raises(DataError, match="N > 0"):
        fit_normalizer(np.zeros((0, 3)), "min_max")
    with pytest.raises(DataError, match=r"dimensions \[1\]"):
        fit_normalizer(np.array([[0, 1], [0, np.nan]]), "min_max")
    with pytest.raises(ConfigError, match="unknown normaliser kind"):
        fit_normalizer(VALUES, "magic")


MIXED = Normalizer(
    "mixed",
    np.float32([[0, 5, 0.5], [1, 5, 0.5]]),
    np.float32([[1, 2, 0.5], [4, 0, 0.5]]),
    clip=(True, False, False),
    switches=(2,),
)


def test_a_mixed_one_has_numbers_for_each_step_and_rules_for_each_dimension() -> None:
    x = np.float32([[[3, 9, 1], [5, 5, 0]], [[-0.5, 1, 0.2], [0, 77, 0.6]]])
    out = MIXED.normalize(x)
    assert out.tolist() == [[[1, 2, 1], [1, 0, -1]], [[-0.5, -2, -1], [-0.25, 0, 1]]]
    assert MIXED.denormalize(out).tolist() == [[[1, 9, 1], [5, 5, 0]], [[-0.5, 1, 0], [0, 5, 1]]]
    assert MIXED.denormalize(np.float32([[0, 0, 0.1], [0, 0, -0.1]]))[:, 2].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"3 dimensions for each of 2 steps, the values have shape \(3, 3\)"):
        MIXED.normalize(np.zeros((3, 3)))


def test_a_mixed_one_comes_back_from_json_and_a_broken_one_does_not() -> None:
    data = json.loads(json.dumps(MIXED.to_dict()))
    back = Normalizer.from_dict(data)
    assert (back.clip, back.switches, back.steps, back.width) == (MIXED.clip, MIXED.switches, 2, 3)
    assert (back.center == MIXED.center).all()
    assert (back.scale == MIXED.scale).all()
    for wrong in ({"clip": [True]}, {"switches": [3]}):
        with pytest.raises(DataError, match="a normaliser of 3 dimensions cannot have"):
            Normalizer.from_dict({**data, **wrong})


def test_a_binary_one_knows_two_values() -> None:
    normalizer = fit_normalizer(np.float32([[0.02], [0.98], [0.02], [0.4]]), "binary")
    assert normalizer.normalize(np.float32([[0.02], [0.98], [0.4], [0.6]])).ravel().tolist() == [-1, 1, -1, 1]
    assert np.allclose(normalizer.denormalize(np.float32([[-0.3], [0.2]])).ravel(), [0.02, 0.98])
    constant = fit_normalizer(np.ones((4, 1)), "binary")
    assert constant.denormalize(constant.normalize(np.ones((1, 1)))).tolist() == [[1.0]]
