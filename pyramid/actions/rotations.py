"""Rotations in the ways that states and actions write them, to quaternions and back.

Quaternions are unit ones, w first; q and -q are one rotation. Which numbers are rotations, `pyramid.actions.spec` says.

Shapes: ``...`` any, W numbers of one writing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, nearest

__all__ = ["WIDTHS", "conjugate", "from_quaternion", "multiply", "rotate", "to_quaternion"]

Array = NDArray[np.float64]

_EULER = {f"euler_angles_{''.join(order)}": "".join(order) for order in permutations("rpy")}
WIDTHS = {
    "quaternion": 4,
    "quaternion_xyzw": 4,
    "axis_angle": 3,
    "rotation_6d": 6,
    "matrix": 9,
    **dict.fromkeys(_EULER, 3),
}
"""Writings by name, and how many numbers each has.

``quaternion`` is w, x, y, z (``_xyzw`` as it says), ``axis_angle`` the rotation vector, ``rotation_6d`` the first two
rows of the matrix (Zhou et al., arXiv 1812.07035), ``matrix`` all three. ``euler_angles_rpy`` turns about the fixed
axis x by roll, then y by pitch, then z by yaw; other orders turn in the order of their letters. Angles are radians.
"""


def to_quaternion(values: NDArray[np.floating], kind: str) -> Array:
    """Reads rotations [..., W]; returns unit quaternions float64 [..., 4].

    Numbers that are no rotation (a quaternion or rows of zeros) read as no turn.

    Raises:
        ConfigError: a writing that is not known.
    """
    x = np.asarray(values, np.float64)
    flat = x.reshape(-1, x.shape[-1])
    return _writing(kind)[0](flat).reshape(*x.shape[:-1], 4)


def from_quaternion(q: Array, kind: str) -> Array:
    """Writes unit quaternions [..., 4] as float64 [..., W]; the inverse of `to_quaternion` up to what means the same.

    Raises:
        ConfigError: a writing that is not known.
    """
    return _writing(kind)[1](q.reshape(-1, 4)).reshape(*q.shape[:-1], WIDTHS[kind])


def conjugate(q: Array) -> Array:
    """Returns the opposite turns."""
    return np.asarray(q * np.array([1.0, -1.0, -1.0, -1.0]))


def multiply(a: Array, b: Array) -> Array:
    """Returns the turns b, then a, [..., 4]; leading axes broadcast."""
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = aw * bw - (av * bv).sum(-1, keepdims=True)
    return np.concatenate([w, aw * bv + bw * av + np.cross(av, bv)], -1)


def rotate(q: Array, v: NDArray[np.floating]) -> Array:
    """Turns vectors [..., 3]; leading axes broadcast."""
    twice = 2 * np.cross(q[..., 1:], v)
    return np.asarray(v + q[..., :1] * twice + np.cross(q[..., 1:], twice))


def _writing(kind: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    if kind not in _WRITINGS:
        raise ConfigError(f"unknown rotation type '{kind}'{nearest(kind, _WRITINGS)}; known: {', '.join(_WRITINGS)}")
    return _WRITINGS[kind]


def _unit(q: Array) -> Array:
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    identity = np.eye(q.shape[-1])[0]
    return np.asarray(np.where(norm > 1e-9, q / np.maximum(norm, 1e-9), identity))


def _from_rotvec(v: Array) -> Array:
    half = np.linalg.norm(v, axis=1, keepdims=True) / 2
    # sinc is sin(pi x) / (pi x).
    return np.concatenate([np.cos(half), v / 2 * np.sinc(half / np.pi)], axis=1)


def _to_rotvec(q: Array) -> Array:
    q = q * np.where(q[:, :1] < 0, -1.0, 1.0)
    half = np.arctan2(np.linalg.norm(q[:, 1:], axis=1, keepdims=True), q[:, :1])
    return np.asarray(2 * q[:, 1:] / np.sinc(half / np.pi))


def _from_matrix(m: Array) -> Array:
    """Takes float64 [N, 3, 3] to quaternions: the eigenvector of Bar-Itzhack's matrix, good at any angle."""
    k = np.zeros((len(m), 4, 4))
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    k[:, 0, 0] = trace
    k[:, 1:, 1:] = m + m.transpose(0, 2, 1) - trace[:, None, None] * np.eye(3)
    k[:, 0, 1:] = k[:, 1:, 0] = np.stack(
        [m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], axis=1
    )
    return np.asarray(np.linalg.eigh(k)[1][:, :, -1])


def _to_matrix(q: Array) -> Array:
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.asarray(np.moveaxis(np.array(rows), 2, 0))


def _from_6d(v: Array) -> Array:
    """Takes two rows to a rotation by Gram-Schmidt; columns give the transpose."""
    first = _unit(v[:, :3])
    rest = v[:, 3:] - (first * v[:, 3:]).sum(1, keepdims=True) * first
    # A second row that says nothing is any that stands upright on the first.
    axis = np.eye(3)[np.abs(first).argmin(1)]
    spare = axis - (first * axis).sum(1, keepdims=True) * first
    second = _unit(np.where(np.linalg.norm(rest, axis=1, keepdims=True) > 1e-9, rest, spare))
    return _from_matrix(np.stack([first, second, np.cross(first, second)], axis=1))


def _from_euler(order: str) -> Callable[[Array], Array]:
    axes = ["rpy".index(letter) for letter in order]

    def read(v: Array) -> Array:
        q = np.broadcast_to(np.eye(4)[0], (len(v), 4))
        for place, axis in enumerate(axes):
            turn = np.zeros((len(v), 4))
            turn[:, 0], turn[:, 1 + axis] = np.cos(v[:, place] / 2), np.sin(v[:, place] / 2)
            q = multiply(turn, q)
        return q

    return read


def _to_euler(order: str) -> Callable[[Array], Array]:
    i, j, k = ("rpy".index(letter) for letter in order)
    even = 1.0 if (i, j, k) in ((0, 1, 2), (1, 2, 0), (2, 0, 1)) else -1.0

    def write(q: Array) -> Array:
        m = _to_matrix(q)
        level = np.hypot(m[:, i, i], m[:, j, i])
        # Where the middle angle is a right one, the first and the last turn the same way: the last is 0.
        locked = level < 1e-9
        first = np.where(locked, np.arctan2(-even * m[:, j, k], m[:, j, j]), np.arctan2(even * m[:, k, j], m[:, k, k]))
        last = np.where(locked, 0.0, np.arctan2(even * m[:, j, i], m[:, i, i]))
        return np.stack([first, np.arctan2(-even * m[:, k, i], level), last], axis=1)

    return write


_WRITINGS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "quaternion": (_unit, _unit),
    "quaternion_xyzw": (
        lambda v: _unit(np.roll(np.where(np.linalg.norm(v, axis=1, keepdims=True) > 1e-9, v, [0, 0, 0, 1]), 1, 1)),
        lambda q: np.roll(_unit(q), -1, 1),
    ),
    "axis_angle": (_from_rotvec, _to_rotvec),
    "rotation_6d": (_from_6d, lambda q: _to_matrix(q)[:, :2].reshape(-1, 6)),
    "matrix": (lambda v: _from_matrix(v.reshape(-1, 3, 3)), lambda q: _to_matrix(q).reshape(-1, 9)),
    **{name: (_from_euler(order), _to_euler(order)) for name, order in _EULER.items()},
}
