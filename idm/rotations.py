"""Weighted means of rotations in the ways that action vectors write them.

The mean is the chordal one on SO(3): the eigenvector of the largest eigenvalue of ``sum_i w_i q_i q_i^T`` (Markley et
al., "Averaging Quaternions", J. Guidance, Control, and Dynamics 30(4), 2007), which does not care about signs. A vote
is compared with the mean in the writing nearest to it, so that 179 and -179 degrees are 2 degrees apart.

Shapes: V votes, W numbers of one writing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["mean_rotation", "read_rotations", "turn_by", "turn_to", "write_rotations"]

Array = NDArray[np.float64]


def mean_rotation(votes: Array, weights: Array, kind: str) -> tuple[Array, Array]:
    """Averages rotations.

    Args:
        votes: float64 [V, W].
        weights: float64 [V], >= 0, not all 0.
        kind: ``quaternion`` (any order of components), ``rotation_6d`` (two rows or two columns of the matrix),
            ``axis_angle`` (rotation vector), ``euler_angles_rpy`` (roll, pitch, yaw about fixed axes) or ``matrix``.

    Returns:
        The mean, float64 [W], and the votes written as near to it as possible, float64 [V, W].
    """
    to_quaternion, from_quaternion = _WRITINGS[kind]
    quaternions = to_quaternion(votes)
    mean = _mean_quaternion(quaternions, weights)
    if kind == "quaternion":
        # q and -q are one rotation: the sign that most votes have.
        mean = mean * (1.0 if weights @ votes @ mean >= 0 else -1.0)
        return mean, quaternions * np.where(quaternions @ mean < 0, -1.0, 1.0)[:, None]
    written = from_quaternion(mean[None])[0]
    return written, _nearest(votes, written, kind)


def _mean_quaternion(quaternions: Array, weights: Array) -> Array:
    moment = np.einsum("v,vi,vj->ij", weights, quaternions, quaternions)
    return np.asarray(np.linalg.eigh(moment)[1][:, -1])


def _nearest(votes: Array, mean: Array, kind: str) -> Array:
    if kind == "axis_angle":
        angle = np.linalg.norm(votes, axis=1, keepdims=True)
        around = votes * (1 - 2 * np.pi / np.where(angle > 1e-9, angle, np.inf))
        nearer = ((around - mean) ** 2).sum(1, keepdims=True) < ((votes - mean) ** 2).sum(1, keepdims=True)
        return np.where(nearer, around, votes)
    if kind == "euler_angles_rpy":
        return np.asarray(mean + (votes - mean + np.pi) % (2 * np.pi) - np.pi)
    return votes


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
    """Takes float64 [V, 3, 3] to w, x, y, z: the eigenvector of Bar-Itzhack's matrix, good at any angle."""
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
    """Takes two rows to a rotation by Gram-Schmidt (Zhou et al., arXiv 1812.07035); columns give the transpose."""
    first = _unit(v[:, :3])
    second = _unit(v[:, 3:] - (first * v[:, 3:]).sum(1, keepdims=True) * first)
    return _from_matrix(np.stack([first, second, np.cross(first, second)], axis=1))


def _from_euler(v: Array) -> Array:
    (cr, cp, cy), (sr, sp, sy) = np.cos(v / 2).T, np.sin(v / 2).T
    return np.stack(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ],
        axis=1,
    )


def _to_euler(q: Array) -> Array:
    w, x, y, z = q.T
    return np.stack(
        [
            np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
            np.arcsin(np.clip(2 * (w * y - z * x), -1, 1)),
            np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
        ],
        axis=1,
    )


_WRITINGS = {
    "quaternion": (_unit, _unit),
    "axis_angle": (_from_rotvec, _to_rotvec),
    "rotation_6d": (_from_6d, lambda q: _to_matrix(q)[:, :2].reshape(-1, 6)),
    "euler_angles_rpy": (_from_euler, _to_euler),
    "matrix": (lambda v: _from_matrix(v.reshape(-1, 3, 3)), lambda q: _to_matrix(q).reshape(-1, 9)),
}


def read_rotations(values: Array, kind: str) -> Array:
    """Returns unit quaternions, float64 [V, 4], w first (but for ``quaternion``: as written), of [V, W]."""
    return np.asarray(_WRITINGS[kind][0](values))


def write_rotations(quaternions: Array, kind: str) -> Array:
    """Returns rotations written as ``kind``, float64 [V, W], of unit quaternions [V, 4]."""
    return np.asarray(_WRITINGS[kind][1](quaternions))


def turn_to(start: Array, end: Array, share: Array) -> Array:
    """Returns the rotations that lie a share, float64 [V] in [0, 1], of the shortest arc from start to end, [V, 4]."""
    cosine = (start * end).sum(-1, keepdims=True)
    end, angle = end * np.where(cosine < 0, -1.0, 1.0), np.arccos(np.clip(np.abs(cosine), 0, 1))
    part = share[:, None]
    small = np.sin(angle) < 1e-9
    sine = np.where(small, 1.0, np.sin(angle))
    before = np.where(small, 1 - part, np.sin((1 - part) * angle) / sine)
    after = np.where(small, part, np.sin(part * angle) / sine)
    return _unit(before * start + after * end)


def turn_by(turns: Array, powers: Array) -> Array:
    """Returns, as a quaternion [4], turns one after the other, [V, 4] with w first, each in part or more than once.

    Each is about the axes that the ones before it have turned; a power is what its angle is multiplied with.
    """
    whole = np.array([1.0, 0.0, 0.0, 0.0])
    for w, x, y, z in _from_rotvec(_to_rotvec(turns) * powers[:, None]):
        a, b, c, d = whole
        whole = np.array(
            [
                a * w - b * x - c * y - d * z,
                a * x + b * w + c * z - d * y,
                a * y - b * z + c * w + d * x,
                a * z + b * y - c * x + d * w,
            ]
        )
    return whole
