"""Actions at other rates, against closed forms and scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest

from idm.groups import ActionGroup
from idm.resampling import at_frames, stretches

transform = pytest.importorskip("scipy.spatial.transform", reason="scipy is not installed")
Rotation, Slerp = transform.Rotation, transform.Slerp


def group(kind: str, meaning: str, width: int) -> list[ActionGroup]:
    return [ActionGroup(name="a", start=0, end=width, kind=kind, meaning=meaning)]


def resampled(values: np.ndarray, model_hz: float, clip_hz: float, n: int, *says: str) -> np.ndarray:
    edges, groups = np.arange(len(values) + 1) / model_hz, group(*says, values.shape[1])
    return at_frames(edges, values, np.abs(values), np.arange(n + 1) / clip_hz, groups)[0]


RATES = [(10.0, 10.0), (10.0, 20.0), (20.0, 10.0), (16.0, 60.0), (10.0, 16.0), (20.0, 8.0)]


@pytest.mark.parametrize(("model_hz", "clip_hz"), RATES)
def test_a_straight_line_stays_one_whatever_it_means(model_hz: float, clip_hz: float) -> None:
    """A joint moves at 0.3 a second: its value, its change over a step and its velocity are known at any rate."""
    steps = int(4 * model_hz)
    n = int(3.5 * clip_hz)
    position = (0.3 * np.arange(steps) / model_hz)[:, None]
    assert resampled(position, model_hz, clip_hz, n, "linear", "value")[:, 0] == pytest.approx(
        0.3 * np.arange(n) / clip_hz
    )
    change = np.full((steps, 1), 0.3 / model_hz)
    assert resampled(change, model_hz, clip_hz, n, "linear", "delta")[:, 0] == pytest.approx(0.3 / clip_hz)
    speed = np.full((steps, 1), 0.3)
    assert resampled(speed, model_hz, clip_hz, n, "linear", "velocity")[:, 0] == pytest.approx(0.3)


@pytest.mark.parametrize(("model_hz", "clip_hz"), RATES)
def test_changes_add_up_to_the_same_way(model_hz: float, clip_hz: float) -> None:
    change = np.random.default_rng(0).normal(size=(int(2 * model_hz), 3))
    n = int(2 * clip_hz)
    found = resampled(change, model_hz, clip_hz, n, "linear", "delta")
    assert found.sum(0) == pytest.approx(change.sum(0))


@pytest.mark.parametrize(("kind", "meaning"), [("linear", "value"), ("linear", "delta"), ("binary", "value")])
def test_at_the_models_own_rate_nothing_changes(kind: str, meaning: str) -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    assert np.abs(resampled(values, 30.0, 30.0, 30, kind, meaning) - values).max() < 1e-12


def test_a_switch_never_takes_a_value_between() -> None:
    switch = np.array([0.0, 0, 1, 1, 0, 0])[:, None]
    found = resampled(switch, 10.0, 25.0, 15, "binary", "value")[:, 0]
    assert set(found) == {0.0, 1.0}
    assert found.tolist() == [0] * 5 + [1] * 5 + [0] * 5


@pytest.mark.parametrize("kind", ["axis_angle", "rotation_6d", "quaternion", "euler_angles_rpy", "matrix"])
def test_rotations_follow_the_shortest_arc(kind: str) -> None:
    """Poses at 10 Hz read at 16 Hz are those of scipy's Slerp, whatever way they are written."""
    known = Rotation.from_rotvec(np.random.default_rng(2).normal(size=(12, 3)))
    found = resampled(written(known, kind), 10.0, 16.0, 16, kind, "value")
    expected = Slerp(np.arange(12) / 10, known)(np.arange(16) / 16)
    assert (read(found, kind).inv() * expected).magnitude().max() < 1e-6


@pytest.mark.parametrize("kind", ["axis_angle", "rotation_6d", "euler_angles_rpy"])
@pytest.mark.parametrize("clip_hz", [5.0, 16.0, 20.0])
def test_turns_about_one_axis_go_as_far(kind: str, clip_hz: float) -> None:
    turn = Rotation.from_rotvec([[0.0, 0.0, 0.2]] * 20)
    found = resampled(written(turn, kind), 10.0, clip_hz, int(2 * clip_hz), kind, "delta")
    assert read(found, kind).as_rotvec() == pytest.approx(np.tile([0, 0, 2.0 / clip_hz], (len(found), 1)), abs=1e-6)


def test_turns_are_composed_in_order() -> None:
    turns = Rotation.from_rotvec(np.random.default_rng(3).normal(size=(4, 3)))
    found = resampled(turns.as_rotvec(), 20.0, 10.0, 2, "axis_angle", "delta")
    expected = [turns[0] * turns[1], turns[2] * turns[3]]
    for row, whole in zip(found, expected, strict=True):
        assert (Rotation.from_rotvec(row).inv() * whole).magnitude() < 1e-6


def test_what_is_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="values or changes"):
        resampled(np.zeros((4, 1)), 10.0, 20.0, 4, "linear", "")
    with pytest.raises(ValueError, match="order"):
        resampled(np.zeros((4, 4)), 10.0, 20.0, 4, "quaternion", "delta")


def test_a_cut_splits_a_stretch() -> None:
    t_s = np.array([0.0, 0.1, 0.2, 0.5, 0.6])
    found = stretches(t_s, np.full(5, 0.1))
    assert [(s.rows.start, s.rows.stop) for s in found] == [(0, 3), (3, 5)]
    assert found[1].edges_s == pytest.approx([0.5, 0.6, 0.7])


def written(rotations: Rotation, kind: str) -> np.ndarray:
    if kind == "axis_angle":
        return rotations.as_rotvec()
    if kind == "quaternion":
        return rotations.as_quat(scalar_first=True)
    if kind == "euler_angles_rpy":
        return rotations.as_euler("xyz")
    matrix = rotations.as_matrix()
    return matrix.reshape(-1, 9) if kind == "matrix" else matrix[:, :2].reshape(-1, 6)


def read(values: np.ndarray, kind: str) -> Rotation:
    if kind == "axis_angle":
        return Rotation.from_rotvec(values)
    if kind == "quaternion":
        return Rotation.from_quat(values, scalar_first=True)
    if kind == "euler_angles_rpy":
        return Rotation.from_euler("xyz", values)
    if kind == "matrix":
        return Rotation.from_matrix(values.reshape(-1, 3, 3))
    first, second = values[:, :3], values[:, 3:]
    return Rotation.from_matrix(np.stack([first, second, np.cross(first, second)], axis=1))
