"""Measures against known answers, including the defects that they must catch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from idm import metrics
from idm.cycle import Told, cycle_score, pairs_of
from pyramid.errors import ConfigError
from pyramid.rng import rng


def smooth(seed, count=400):
    noise = rng(seed, "series").normal(size=(count + 8, 2))
    return np.stack([noise[i : i + count] for i in range(8)]).mean(0)


def test_r2_of_truth_mean_and_constant():
    truth = np.stack([np.arange(10.0), np.arange(10.0), np.full(10, 3.0)], 1)
    label = truth.copy()
    label[:, 1] = truth[:, 1].mean()
    assert metrics.r2_per_dimension(truth, label) == [1.0, pytest.approx(0), None]


def test_std_ratio_catches_labels_that_are_too_small():
    actions = smooth(0)
    reference = np.append(actions.std(0), 0)
    small = np.hstack([0.3 * actions, np.zeros((len(actions), 1))])
    assert metrics.std_ratio(small, reference) == [pytest.approx(0.3), pytest.approx(0.3), None]


@pytest.mark.parametrize("late", [-3, 0, 2, 5])
def test_lag_finds_labels_that_come_late(late):
    series = [smooth(seed) for seed in range(3)]
    truths, labels = [s[10:-10] for s in series], [s[10 - late : len(s) - 10 - late] for s in series]
    assert metrics.best_lag(truths, labels, 8) == late


def test_lag_of_a_short_noisy_clip_is_not_made_up():
    for seed in range(10):
        truth = smooth(seed, 60)
        assert metrics.best_lag([truth], [truth + rng(seed, "n").normal(size=truth.shape)], 8) == 0
    assert metrics.best_lag([np.ones((30, 2))], [np.ones((30, 2))], 8) == 0


def test_scrambled_labels_do_not_pass():
    truth = smooth(0)
    label = truth[rng(0, "scramble").permutation(len(truth))]
    assert max(metrics.r2_per_dimension(truth, label)) < 0


def test_coverage_and_calibration_of_an_honest_and_a_boastful_spread():
    truth = np.zeros((20000, 1))
    label = rng(0, "error").normal(size=truth.shape)
    honest, boastful = np.ones_like(truth), np.full_like(truth, 0.1)
    assert metrics.coverage(truth, label, honest, 0.9) == pytest.approx(0.9, abs=0.01)
    assert metrics.calibration_error(truth, label, honest) < 0.01
    assert metrics.coverage(truth, label, boastful, 0.9) < 0.2
    assert metrics.calibration_error(truth, label, boastful) > 0.35


def test_risk_falls_if_the_spread_knows_where_errors_are_and_is_flat_if_not():
    error = np.arange(100.0)
    assert metrics.risk_coverage(error, error, [0.1, 0.5, 1.0]) == pytest.approx([4.5, 24.5, 49.5])
    assert metrics.risk_coverage(error, -error, [0.1]) == pytest.approx([94.5])
    assert metrics.risk_coverage(error, np.zeros(100), [0.001]) == [0.0]


def test_running_means_and_errors_are_those_of_a_loop():
    x = rng(0, "x").normal(size=(9, 2))
    expected = np.array([x[i : i + 4].mean(0) for i in range(6)])
    np.testing.assert_allclose(metrics.running_mean(x, 4), expected)
    assert metrics.running_mean(x[:3], 4).shape == (0, 2)
    assert metrics.rmse_per_dimension(x, x + np.array([3.0, -1.0])) == pytest.approx([3.0, 1.0])


def told(seed: int, n: int, noise: float) -> Told:
    generator = rng(seed, "told")
    truth = generator.normal(size=(n, 2))
    mixing = rng(0, "mixing").normal(size=(2, 5))
    return Told(truth + noise * generator.normal(size=(n, 2)), truth, truth @ mixing)


def test_the_cycle_is_near_the_truth_for_good_labels_and_near_chance_for_bad_ones():
    good = cycle_score([told(seed, 60, 0.05) for seed in range(4)])
    bad = cycle_score([told(seed, 60, 100.0) for seed in range(4)])
    assert good["truth"] == pytest.approx(bad["truth"])
    assert good["truth"] > 0.9
    assert good["label"] > 0.9
    assert abs(bad["label"]) < 0.2
    assert cycle_score([told(0, 60, 0.0)]) is None


class Looks:
    """A labeler whose latent is the time itself, every second step."""

    name = "looks"

    def __init__(self, column: str = "latent") -> None:
        self.column = column

    def label(self, clips):
        columns = {"t_s": [0.0, 0.1, 0.2], "gap_s": [0.1, 0.1, 0.1], self.column: [[0.0], [0.1], [0.2]]}
        return [pa.table(columns)]


def test_actions_between_two_frames_are_averaged():
    starts = np.array([0.0, 0.05, 0.1, 0.15])
    actions = np.array([[1.0], [3.0], [10.0], [20.0]])
    found = pairs_of(Looks(), None, starts, actions, 2 * actions)
    assert found.label[:, 0].tolist() == [2.0, 15.0]  # the third pair has no labels
    assert found.truth[:, 0].tolist() == [4.0, 30.0]
    assert found.latent[:, 0].tolist() == [0.0, 0.1]
    with pytest.raises(ConfigError, match="'looks' writes no latent"):
        pairs_of(Looks("other"), None, starts, actions, actions)
