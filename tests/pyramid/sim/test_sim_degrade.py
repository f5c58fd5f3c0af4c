"""Rendered clips spoilt in the ways of a video model."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.rng import rng
from pyramid.sim.config import DegradeConfig
from pyramid.sim.degrade import box_blur, degrade

NOTHING = DegradeConfig(flicker=0, drift=0, blur_px=0, ghost=0, noise=0)


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    return rng(0, "frames").integers(40, 200, (12, 16, 20, 3), dtype=np.uint8)


def test_no_damage_is_the_clip_itself(frames: NDArray[np.uint8]) -> None:
    assert np.array_equal(degrade(frames, rng(0), NOTHING), frames)


def test_the_key_decides_everything(frames: NDArray[np.uint8]) -> None:
    config = DegradeConfig()
    once, again, other = (degrade(frames, rng(seed, "d"), config) for seed in (1, 1, 2))
    assert once.dtype == np.uint8
    assert once.shape == frames.shape
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_drift_begins_at_nothing_and_grows(frames: NDArray[np.uint8]) -> None:
    still = np.repeat(frames[:1], 12, axis=0)
    spoilt = degrade(still, rng(3), DegradeConfig(flicker=0, drift=0.2, blur_px=0, ghost=0, noise=0))
    change = np.abs(spoilt.astype(float).mean((1, 2)) - still.astype(float).mean((1, 2))).max(1)
    assert change[0] == 0
    assert (np.diff(change) >= 0).all()
    assert change[-1] > 1


def test_flicker_changes_brightness_only(frames: NDArray[np.uint8]) -> None:
    grey = np.full((50, 8, 8, 3), 100, np.uint8)
    spoilt = degrade(grey, rng(4), DegradeConfig(flicker=0.05, drift=0, blur_px=0, ghost=0, noise=0))
    assert all(len(np.unique(picture)) == 1 for picture in spoilt)
    assert 3 < spoilt.mean((1, 2, 3)).std() < 7  # 5 % of 100


def test_a_ghost_is_the_frame_before() -> None:
    clip = np.zeros((3, 4, 4, 3), np.uint8)
    clip[0] = 100
    spoilt = degrade(clip, rng(0), DegradeConfig(flicker=0, drift=0, blur_px=0, ghost=0.25, noise=0))
    assert [int(picture[0, 0, 0]) for picture in spoilt] == [100, 25, 6]


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_blur_is_the_mean_over_a_square(radius: int) -> None:
    picture = rng(5).uniform(0, 255, (9, 11, 3)).astype(np.float32)
    padded = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="edge").astype(np.float64)
    expected = np.empty(picture.shape)
    for y in range(9):
        for x in range(11):
            expected[y, x] = padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1].mean((0, 1))
    assert np.allclose(box_blur(picture, radius), expected, atol=1e-3)
