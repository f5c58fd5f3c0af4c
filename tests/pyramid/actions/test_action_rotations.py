"""Writings of rotations against SciPy's, there and back, and where they are degenerate."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from pyramid.actions.rotations import WIDTHS, conjugate, from_quaternion, multiply, rotate, to_quaternion
from pyramid.errors import ConfigError
from pyramid.rng import rng

AXES = {"r": "x", "p": "y", "y": "z"}
EULER = {f"euler_angles_{''.join(o)}": "".join(AXES[letter] for letter in o) for o in permutations("rpy")}
READERS = {
    "quaternion": lambda v: Rotation.from_quat(np.roll(v, -1, 1)),
    "quaternion_xyzw": Rotation.from_quat,
    "axis_angle": Rotation.from_rotvec,
    "matrix": lambda v: Rotation.from_matrix(v.reshape(-1, 3, 3)),
    "rotation_6d": lambda v: Rotation.from_matrix(np.stack([v[:, :3], v[:, 3:], np.cross(v[:, :3], v[:, 3:])], 1)),
    # Lower-case axes are fixed ones.
    **{name: lambda v, axes=axes: Rotation.from_euler(axes, v) for name, axes in EULER.items()},
}
QUATERNIONS = arrays(np.float64, (5, 4), elements=st.floats(-1, 1)).filter(
    lambda q: np.linalg.norm(q, axis=1).min() > 1e-2
)


def angle(a: Rotation, b: Rotation) -> float:
    return float((a.inv() * b).magnitude().max())


def scipy_of(q: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(q, -1, 1))


def test_every_writing_is_held_against_scipy() -> None:
    assert set(READERS) == set(WIDTHS)


@pytest.mark.parametrize("kind", WIDTHS)
@settings(max_examples=10, deadline=None)
@given(q=QUATERNIONS)
def test_a_rotation_comes_back_and_is_the_one_that_scipy_reads(kind: str, q: np.ndarray) -> None:
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    written = from_quaternion(q, kind)
    assert written.shape == (5, WIDTHS[kind])
    assert angle(READERS[kind](written), scipy_of(q)) < 1e-6
    assert angle(scipy_of(to_quaternion(written, kind)), scipy_of(q)) < 1e-6


@pytest.mark.parametrize("kind", EULER)
@pytest.mark.parametrize("middle", [np.pi / 2, -np.pi / 2])
def test_gimbal_lock_loses_no_rotation(kind: str, middle: float) -> None:
    angles = np.array([[0.3, middle, -1.1], [0.0, middle, 2.0]])
    back = from_quaternion(to_quaternion(angles, kind), kind)
    assert angle(READERS[kind](back), READERS[kind](angles)) < 1e-6


@pytest.mark.parametrize("kind", WIDTHS)
def test_what_is_no_rotation_reads_as_one(kind: str) -> None:
    q = to_quaternion(np.zeros((1, WIDTHS[kind])), kind)
    assert np.isfinite(q).all()
    assert np.linalg.norm(q) == pytest.approx(1)
    if kind.startswith("quaternion"):
        assert np.abs(q[0, 0]) == pytest.approx(1)


def test_turns_compose_and_move_vectors_as_scipy_has_it() -> None:
    draw = rng(0, "turns")
    a, b = (Rotation.random(7, random_state=seed) for seed in (1, 2))
    qa, qb = (np.roll(r.as_quat(), 1, 1) for r in (a, b))
    v = draw.normal(size=(7, 3))
    assert angle(scipy_of(multiply(qa, qb)), a * b) < 1e-6
    assert angle(scipy_of(conjugate(qa)), a.inv()) < 1e-6
    assert np.allclose(rotate(qa, v), a.apply(v))
    assert np.allclose(rotate(qa[None], v[:, None]), np.stack([a.apply(np.tile(x, (7, 1))) for x in v]))


def test_an_unknown_writing_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown rotation type 'quaternoin'.*quaternion.*known: "):
        to_quaternion(np.zeros((1, 4)), "quaternoin")
