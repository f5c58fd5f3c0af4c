"""Measures and probes against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lam import metrics
from lam.probes import ProbeData, global_shift, mlp_probe, r2_score, ridge_probe
from pyramid.rng import rng


def test_perplexity_of_known_distributions():
    codes = np.stack([np.arange(64) % 8, np.zeros(64), np.arange(64) % 2], axis=1).astype(np.uint16)
    assert metrics.perplexity(codes, 8) == pytest.approx([8, 1, 2])
    assert metrics.sequence_bits(codes) == pytest.approx(3)
    assert metrics.sequence_ids(codes).max() == 7


def test_psnr_gap_is_a_ratio_of_errors():
    better, worse = np.array([0.001, 0.003]), np.array([0.01, 0.03])
    assert metrics.psnr(better) == pytest.approx(-10 * math.log10(0.002))
    assert metrics.psnr_gap(better, worse) == pytest.approx(10)


def test_partners_come_from_another_clip():
    clip = np.array([2, 0, 1, 0, 2, 1, 0, 2])
    partner = metrics.partners(clip)
    assert sorted(partner) == list(range(8))
    assert (clip[partner] != clip).all()


def test_leakage_tells_a_picture_code_from_an_action_code():
    copy, unrelated_copy = np.full(4, 0.1), np.full(4, 0.2)
    assert metrics.leakage(np.full(4, 0.01), copy, np.full(4, 0.02), unrelated_copy) == pytest.approx(1)
    assert metrics.leakage(np.full(4, 0.01), copy, unrelated_copy, unrelated_copy) == pytest.approx(0)
    assert metrics.leakage(copy, copy, unrelated_copy, unrelated_copy) is None
    assert metrics.leakage(copy, copy, np.zeros(0), np.zeros(0)) is None


def test_static_fraction_is_the_share_of_the_null_sequence():
    codes = np.array([[1, 2], [1, 2], [1, 2], [0, 2]], np.uint16)
    assert metrics.static_fraction(codes) == pytest.approx(0.75)
    assert metrics.static_fraction(codes[:0]) is None


def data(rule, count=600, seed=0):
    generator = rng(seed, "probe")
    x = generator.normal(size=(count, 5))
    return ProbeData(x, rule(x), np.arange(count) // 50)


def split(whole):
    side = whole.episode < 8
    return tuple(ProbeData(whole.x[m], whole.y[m], whole.episode[m]) for m in (side, ~side))


def test_ridge_finds_a_linear_map_and_nothing_in_noise():
    weights = np.arange(10).reshape(5, 2)
    assert ridge_probe(*split(data(lambda x: x @ weights + 3))) == pytest.approx([1, 1], abs=1e-3)
    noise = rng(1, "noise").normal(size=(600, 2))
    assert max(ridge_probe(*split(data(lambda x: noise)))) < 0.05


def test_mlp_finds_what_a_line_cannot():
    bent = split(data(lambda x: np.abs(x[:, :1]), count=1500))
    assert ridge_probe(*bent)[0] < 0.1
    assert mlp_probe(*bent)[0] > 0.8


def test_mlp_probe_leaves_global_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    mlp_probe(*split(data(lambda x: x[:, :1])))
    assert torch.equal(torch.rand(3), expected)


def test_constant_dimensions_have_no_score():
    truth = np.stack([np.arange(5.0), np.full(5, 2.0)], 1)
    assert r2_score(truth, truth) == [1.0, None]


def test_an_object_before_a_still_background_is_no_camera_motion():
    texture = torch.from_numpy(rng(0, "texture").integers(90, 120, (1, 3, 64, 64)).astype(np.uint8))
    first, second = texture.clone(), texture.clone()
    first[..., 20:36, 20:36] = 255
    second[..., 24:40, 26:42] = 255
    assert global_shift(first, second)[0].tolist() == [0, 0]


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-6, 1), (5, 5)])
def test_global_shift_of_a_textured_picture(shift):
    texture = torch.from_numpy(rng(0, "texture").integers(0, 255, (1, 3, 96, 96)).astype(np.uint8))
    x, y = shift
    first, second = texture[..., 16:80, 16:80], texture[..., 16 - y : 80 - y, 16 - x : 80 - x]
    assert global_shift(first, second)[0].tolist() == pytest.approx([x, y], abs=0.2)
