"""Re-Mix: the rule against its formula, and what the reference model is for."""

from __future__ import annotations

import numpy as np
import planted_proxy
import pytest

from pyramid.mixture.tune.config import DROConfig
from pyramid.mixture.tune.dro import GroupDRO, average_weights
from pyramid.mixture.tune.proxy import ProxyRun, ReweightedProxy


def test_one_step_is_the_published_formula():
    rule = GroupDRO(["a", "b"], np.array([0.25, 0.75]), DROConfig(eta=0.5, smoothing=0.1, mean="nonzero"))
    found = rule({"a": np.array([2.0, -1.0, 0.0]), "b": np.array([-3.0, -1.0])})
    raised = np.array([0.25 * np.exp(0.5 * 2.0), 0.75])
    expected = 0.9 * raised / raised.sum() + 0.1 * np.array([0.25, 0.75])
    assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-12)


@pytest.mark.parametrize(("mean", "gain"), [("nonzero", 3.0), ("all", 2.0), ("source", 1.0)])
def test_kinds_of_mean(mean, gain):
    rule = GroupDRO(["a", "b"], np.array([0.5, 0.5]), DROConfig(eta=1.0, smoothing=0.0, mean=mean))
    weights = rule({"a": np.array([4.0, 2.0, -3.0]), "b": np.array([0.0])})
    assert np.log(weights["a"] / weights["b"]) == pytest.approx(gain)


def test_weight_goes_to_the_higher_reachable_excess_and_stays_a_mixture():
    rule = GroupDRO(["low", "high", "none"], np.ones(3), DROConfig(eta=0.3, smoothing=0.05))
    for _ in range(300):
        weights = rule({"low": np.array([0.2]), "high": np.array([0.6])})
        assert sum(weights.values()) == pytest.approx(1)
        assert min(weights.values()) >= 0.05 / 3 - 1e-12
    assert weights["high"] > 0.7 > weights["low"] > weights["none"]
    assert rule.average()[1] < weights["high"]
    assert rule.drift() < 1e-3


def test_names_may_be_permuted_and_extremes_survive():
    one, other = (GroupDRO(names, np.ones(2), DROConfig()) for names in (["a", "b"], ["b", "a"]))
    for excess in ({"a": np.array([1e5]), "b": np.array([np.nan])}, {"a": np.array([]), "b": np.array([3.0])}):
        assert one(excess) == pytest.approx(other(excess))
    assert GroupDRO(["a", "b"], np.ones(2), DROConfig()).drift() == 1.0


@pytest.fixture
def proxy(planted) -> ReweightedProxy:
    found = planted_proxy.load(planted, "learnable")
    assert isinstance(found, ReweightedProxy)
    return found


def averaged(proxy, mean: str, **options) -> dict[str, float]:
    run = ProxyRun(weights=dict.fromkeys(planted_proxy.SOURCES, 0.25), budget=300, seed=1)
    config = DROConfig(prior="uniform", mean=mean, eta=1.0, smoothing=0.02, **options)
    return average_weights(proxy, run, config, np.ones(4))["weights"]


def test_the_slow_learnable_source_gains_and_the_unlearnable_one_does_not(proxy):
    weights = averaged(proxy, "source")
    assert max(weights, key=lambda name: weights[name]) == "middle"
    assert weights["middle"] > 0.3
    assert weights["junk"] < 0.25


def test_clipping_every_sample_takes_noise_for_excess(proxy):
    """Why the default departs from the published code: half of pure noise lies above 0."""
    weights = averaged(proxy, "nonzero")
    assert max(weights, key=lambda name: weights[name]) == "junk"
    assert weights["junk"] > 0.4


def test_without_a_reference_noise_would_win(proxy, monkeypatch):
    """What excess is for: raw losses send the weight to labels that nobody can learn."""
    losses, calls = proxy.losses, []

    def no_reference(theta, samples):
        found = losses(theta, samples)
        calls.append(1)
        return found if theta.requires_grad else {name: loss * 0 for name, loss in found.items()}

    monkeypatch.setattr(proxy, "losses", no_reference)
    weights = averaged(proxy, "source")
    assert calls
    assert max(weights, key=lambda name: weights[name]) == "junk"
    assert weights["junk"] > 0.8
