"""The design: what stands in it, that it is keyed, exact, and inside its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid.errors import ConfigError
from pyramid.mixture.spec import read_mixture, with_weights
from pyramid.mixture.tune.config import DesignConfig, TuneConfig
from pyramid.mixture.tune.design import design, rounded

AMOUNTS = {"a": 100.0, "b": 300.0, "c": 600.0}
FILE = {"a": 0.5, "b": 0.25, "c": 0.25}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3))
def test_rounding_is_exact_and_close(weights):
    shares = np.array(weights) / sum(weights)
    found = rounded(np.array(weights))
    assert round(found.sum() * 10_000) == 10_000
    assert (np.round(found * 10_000) == found * 10_000).all() or np.allclose(found * 10_000, np.round(found * 10_000))
    assert np.abs(found - shares).max() <= 1.0001e-4


def test_fixed_mixtures_stand_first_and_draws_are_keyed():
    names, rows = design(AMOUNTS, FILE, DesignConfig(), 0)
    assert len(rows) == 24
    assert names[:6] == ["uniform", "size", "file", "corner a", "corner b", "corner c"]
    assert rows[1].tolist() == [0.1, 0.3, 0.6]
    assert rows[2].tolist() == [0.5, 0.25, 0.25]
    assert rows[3].tolist() == [0.7, 0.15, 0.15]
    longer = design(AMOUNTS, FILE, DesignConfig(runs=40), 0)
    assert longer[0][:24] == names
    assert np.array_equal(longer[1][:24], rows)
    assert not np.array_equal(design(AMOUNTS, FILE, DesignConfig(), 1)[1], rows)
    assert np.allclose(longer[1].sum(1), 1, atol=1e-12)


def test_draws_lean_to_the_prior():
    config = DesignConfig(runs=200, prior="size", temperature=1.0)
    _, rows = design(AMOUNTS, FILE, config, 0)
    assert np.abs(rows[6:].mean(0) - [0.1, 0.3, 0.6]).max() < 0.05


def test_bounds_are_kept():
    config = DesignConfig(runs=40, min_share=0.1, max_share=0.5)
    _, rows = design(AMOUNTS, FILE, config, 0)
    assert rows.min() >= 0.0999
    assert rows.max() <= 0.5001


@pytest.mark.parametrize(
    ("amounts", "options", "message"),
    [
        ({"a": 1.0}, {}, "one source has nothing to tune"),
        (AMOUNTS, {"min_share": 0.4}, "admit no mixture of 3"),
        (AMOUNTS, {"max_share": 0.3}, "admit no mixture of 3"),
        (AMOUNTS, {"runs": 4}, "no room for its 6 fixed mixtures"),
    ],
)
def test_designs_that_cannot_be_are_refused(amounts, options, message):
    with pytest.raises(ConfigError, match=message):
        design(amounts, {name: FILE.get(name, 1.0) for name in amounts}, DesignConfig(**options), 0)


def test_new_weights_keep_every_source_in_its_tier(planted):
    spec = read_mixture(planted)
    changed = with_weights(spec, {"steady": 0.2, "noisy": 0.1, "middle": 0.7})
    assert {name: float(share) for name, share in changed.shares().items()} == {
        "middle": 0.7,
        "steady": 0.2,
        "noisy": 0.1,
    }
    assert list(changed.tiers["base"].sources) == ["junk"]
    assert [name for _, name, _ in changed.sources()] == ["middle", "steady", "noisy"]
    # Weights need not sum to 1, and the way back is open.
    assert (
        with_weights(changed, {"junk": 2.0, "noisy": 6.0}).shares()
        == with_weights(spec, {"junk": 0.25, "noisy": 0.75}).shares()
    )


def test_new_weights_that_make_no_mixture_are_refused(planted):
    spec = read_mixture(planted)
    with pytest.raises(ConfigError, match=r"no source 'stedy'.*; did you mean 'steady'\?"):
        with_weights(spec, {"stedy": 1.0})
    for weights in ({}, {"steady": 0.0}, {"steady": -1.0}):
        with pytest.raises(ConfigError, match="weight"):
            with_weights(spec, weights)


@pytest.mark.parametrize(
    "options",
    [{"budget": 0}, {"confirm_seeds": 1}, {"targets": {"a": -1.0}}, {"targets": {"a": 0.0}}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"need|targets"):
        TuneConfig(**options)
