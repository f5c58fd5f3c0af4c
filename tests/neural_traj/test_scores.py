"""Cheap measures of generated clips, against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from neural_traj.scores import black_quadrant, colour_drift, flicker, pace, score
from pyramid.types import Frames

MakeClip = Callable[..., NDArray[np.uint8]]


def luma_of(brightness: list[float]) -> NDArray[np.float32]:
    return np.broadcast_to(np.asarray(brightness, np.float32)[:, None, None], (len(brightness), 64, 64))


def frames_of(pixels: NDArray[np.uint8]) -> Frames:
    return Frames(pixels, np.arange(len(pixels)) / 8)


def test_a_steady_change_is_no_flicker() -> None:
    assert flicker(luma_of([float(i) for i in range(20)])) == 0
    assert flicker(luma_of([100.0] * 20)) == 0


def test_flicker_is_the_distance_from_the_neighbours() -> None:
    assert flicker(luma_of([100, 110] * 10)) == pytest.approx(10)
    assert flicker(luma_of([100, 100, 106, 100, 100])) == pytest.approx((3 + 6 + 3) / 3)


@pytest.mark.parametrize("n", [1, 2])
def test_too_short_to_flicker(n: int) -> None:
    assert flicker(luma_of([0.0, 255.0][:n])) == 0


def test_drift_is_of_the_worst_channel() -> None:
    clip = np.full((20, 8, 8, 3), 100, np.uint8)
    clip[-2:, ..., 1] = 130
    clip[-2:, ..., 2] = 90
    assert colour_drift(clip) == pytest.approx(30)
    assert colour_drift(clip[::-1]) == pytest.approx(30)
    assert colour_drift(clip[:10]) == 0


@pytest.mark.parametrize("quadrant", range(4))
def test_a_black_quadrant_is_found_wherever_it_is(quadrant: int) -> None:
    luma = np.full((5, 64, 64), 90, np.float32)
    row, column = 32 * (quadrant // 2), 32 * (quadrant % 2)
    luma[:, row : row + 32, column : column + 32] = 3
    assert black_quadrant(luma) == 1
    luma[:, row : row + 16, column : column + 32] = 90
    assert black_quadrant(luma) == 0.5


def test_a_good_clip_has_nothing_against_it(moving: MakeClip) -> None:
    scores = score(frames_of(moving()))
    assert scores.cuts == 0
    assert not scores.damaged
    assert scores.frozen_share == 0
    assert scores.flicker < 1
    assert scores.motion > 0.5
    assert scores.black_quadrant == 0


@pytest.mark.parametrize("rate_hz", [4.0, 8.0, 16.0])
def test_pace_is_the_same_at_any_rate(rate_hz: float) -> None:
    """Brightness rises by 20 levels a second."""
    times = np.arange(round(2 * rate_hz)) / rate_hz
    pixels = np.broadcast_to((100 + 20 * times)[:, None, None, None], (len(times), 64, 64, 3))
    assert pace(Frames(pixels.astype(np.uint8), times)) == pytest.approx(5, abs=1)
    assert pace(Frames(pixels[:1].astype(np.uint8), times[:1])) == 0


def test_frozen_frames_are_counted(moving: MakeClip) -> None:
    clip = moving()
    clip[13:19] = clip[12]
    assert score(frames_of(clip)).frozen_share == pytest.approx(6 / 23, abs=1e-4)


def test_a_join_is_a_cut(moving: MakeClip) -> None:
    joined = np.concatenate([moving(seed=0), moving(seed=5)])
    assert score(frames_of(joined)).cuts == 1


def test_a_frozen_run_between_broken_pictures_is_damage(moving: MakeClip) -> None:
    clip = moving()
    clip[8] = 255 - clip[8]
    clip[9:17] = clip[8]
    assert score(frames_of(clip)).damaged


def test_one_frame_is_enough(moving: MakeClip) -> None:
    scores = score(frames_of(moving(n=1)))
    assert (scores.flicker, scores.frozen_share, scores.cuts, scores.motion) == (0, 0, 0, 0)
    assert scores.pace == 0
