"""Scores of clips that were drawn to have them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.rng import rng
from pyramid.types import Frames
from pyramid.video.filters import (
    black_border,
    find_cuts,
    find_damage,
    has_black_quadrant,
    pairs_at_gap,
    score_clip,
    to_luma,
)

SIDE = 128


def scene(seed: int) -> NDArray[np.float64]:
    """A smooth picture, twice as large as a frame, float [2 * SIDE, 2 * SIDE]."""
    noise = rng(seed, "scene").normal(size=(2 * SIDE, 2 * SIDE))
    frequency = np.hypot(np.fft.fftfreq(2 * SIDE)[:, None], np.fft.rfftfreq(2 * SIDE)[None])
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * np.exp(-((frequency * 6) ** 2)))
    return np.clip(130 + 50 * smooth / smooth.std(), 40, 240)


def clip(n: int = 40, *, pan: float = 0.0, disc: float | None = 3.0, seed: int = 0, rate: float = 20.0) -> Frames:
    """A disc that moves ``disc`` pixels a frame (or none) over a scene that moves ``pan`` pixels a frame."""
    picture = scene(seed)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1)
    frames = []
    for t in range(n):
        left = round(pan * t)
        frame = picture[:SIDE, left : left + SIDE].copy()
        if disc is not None:
            centre = (20 + 90 - abs(90 - (disc * t) % 180), 64)  # There and back.
            frame[((grid - centre) ** 2).sum(-1) < 18**2] = 255
        frames.append(np.repeat(frame.astype(np.uint8)[..., None], 3, -1))
    return Frames(np.stack(frames), np.arange(n) / rate)


def changed(frames: Frames, start: int, stop: int, value: NDArray[np.uint8] | int) -> Frames:
    pixels = frames.pixels.copy()
    pixels[start:stop] = value
    return Frames(pixels, frames.times_s)


def test_a_clip_without_oddities_has_no_notes() -> None:
    scores = score_clip(clip())
    assert scores.notes() == []
    assert scores.static_share < 0.05
    assert scores.mad_median > 1


def test_a_still_clip_is_static() -> None:
    scores = score_clip(clip(disc=0.0))
    assert scores.static_share == 1.0
    assert "100% of it static" in scores.notes()
    assert score_clip(clip(n=1)).static_share == 1.0


def test_a_cut_is_found_at_its_frame_and_motion_is_none() -> None:
    one, other = clip(seed=0), clip(seed=1)
    joined = Frames(np.concatenate([one.pixels[:15], other.pixels[15:]]), one.times_s)
    assert score_clip(joined).cuts == (15,)
    assert score_clip(clip(disc=12.0)).cuts == ()
    assert score_clip(clip(pan=3.0)).cuts == ()


def test_cuts_by_the_numbers() -> None:
    quiet = np.full(20, 1.0, np.float32)
    spike = quiet.copy()
    spike[7] = 30
    assert find_cuts(spike) == (8,)
    spike[8] = 20  # Fast motion raises its neighbours.
    assert find_cuts(spike) == ()
    assert find_cuts(quiet) == ()
    assert find_cuts(np.zeros(0, np.float32)) == ()
    assert find_cuts(np.array([30.0], np.float32)) == (1,)


def test_a_frozen_decoder_is_damage_and_a_pause_is_not() -> None:
    good = clip()
    noise = rng(0, "noise").integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8)
    noise = np.where(noise[:, ::16, ::16].repeat(16, 1).repeat(16, 2) > 127, 255, 0).astype(np.uint8)
    broken = changed(changed(good, 10, 22, noise[0]), 9, 10, good.pixels[8])
    assert score_clip(broken).damaged == (10, 21)
    pause = changed(good, 10, 22, good.pixels[10])
    assert score_clip(pause).damaged is None


def test_damage_by_the_numbers() -> None:
    mad = np.full(30, 2.0, np.float32)
    mad[10:16] = 0
    assert find_damage(mad) is None
    mad[8], mad[17] = 50, 50
    assert find_damage(mad) == (10, 16)
    mad[14:16] = 2  # Four still steps are too few.
    assert find_damage(mad) is None
    assert find_damage(np.zeros(20, np.float32)) is None


def test_repeated_frames_are_counted() -> None:
    frames = clip(disc=7.0)
    pixels = frames.pixels[np.arange(40) * 3 // 4]
    assert score_clip(Frames(pixels, frames.times_s)).repeat_share == pytest.approx(10 / 39, abs=1e-3)


def test_a_black_border_is_measured() -> None:
    frames = clip()
    pixels = frames.pixels.copy()
    pixels[:, :16] = 0
    pixels[:, :, -8:] = 0
    assert black_border(to_luma(pixels)) == (8, 0, 0, 4)
    assert black_border(to_luma(frames.pixels)) == (0, 0, 0, 0)
    assert black_border(to_luma(np.zeros_like(pixels))) == (0, 0, 0, 0)


def test_a_grid_with_three_views() -> None:
    frames = clip()
    pixels = frames.pixels.copy()
    pixels[:, SIDE // 2 :, SIDE // 2 :] = 0
    assert has_black_quadrant(to_luma(pixels))
    assert not has_black_quadrant(to_luma(frames.pixels))
    assert not has_black_quadrant(to_luma(np.zeros_like(pixels)))


@pytest.mark.parametrize("pan", [0.0, 0.5, 1.0, 2.0])
def test_a_panning_camera_is_measured(pan: float) -> None:
    # 0.6 s are 12 frames at 20 Hz; one of 64 columns is 2 pixels.
    assert score_clip(clip(pan=pan, disc=None)).camera_px == pytest.approx(pan * 12 / 2, abs=1.0)


def test_variable_rates_are_noticed() -> None:
    frames = clip(n=10)
    times = frames.times_s.copy()
    times[6:] += 0.3
    scores = score_clip(Frames(frames.pixels, times))
    assert scores.variable_rate
    assert scores.longest_gap_s == pytest.approx(0.35)
    assert "longest gap 350 ms" in scores.notes()[0]
    assert not score_clip(frames).variable_rate


def test_pairs_lie_nearest_to_the_gap() -> None:
    times = np.cumsum(rng(0, "steps").uniform(0.01, 0.3, 50))
    first, second = pairs_at_gap(times, 0.6)
    for a, b in zip(first, second, strict=True):
        assert abs(times[b] - times[a] - 0.6) == pytest.approx(np.abs(times - times[a] - 0.6).min())
    assert pairs_at_gap(np.array([0.0, 0.1, 0.2]), 0.6) == (np.array([0]), np.array([2]))
