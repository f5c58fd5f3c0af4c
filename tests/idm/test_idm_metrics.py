"""Measures against known answers, including the defects that they must catch."""

from __future__ import annotations

import numpy as np
import pytest

from idm import metrics
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
