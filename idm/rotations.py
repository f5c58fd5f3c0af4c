"""Weighted means of rotations in the ways that action vectors write them.

The mean is the chordal one on SO(3): the eigenvector of the largest eigenvalue of ``sum_i w_i q_i q_i^T`` (Markley et
al., "Averaging Quaternions", J. Guidance, Control, and Dynamics 30(4), 2007), which does not care about signs. A vote
is compared with the mean in the writing nearest to it, so that 179 and -179 degrees are 2 degrees apart.

The writings themselves are in `pyramid.actions.rotations`. Shapes: V votes, W numbers of one writing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyramid.actions.rotations import from_quaternion, multiply, to_quaternion

__all__ = ["mean_rotation", "turn_by", "turn_to"]

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
    quaternions = to_quaternion(votes, kind)
    mean = _mean_quaternion(quaternions, weights)
    if kind == "quaternion":
        # q and -q are one rotation: the sign that most votes have.
        mean = mean * (1.0 if weights @ votes @ mean >= 0 else -1.0)
        return mean, quaternions * np.where(quaternions @ mean < 0, -1.0, 1.0)[:, None]
    written = from_quaternion(mean[None], kind)[0]
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


def turn_to(start: Array, end: Array, share: Array) -> Array:
    """Returns the rotations that lie a share, float64 [V] in [0, 1], of the shortest arc from start to end, [V, 4]."""
    cosine = (start * end).sum(-1, keepdims=True)
    end, angle = end * np.where(cosine < 0, -1.0, 1.0), np.arccos(np.clip(np.abs(cosine), 0, 1))
    part = share[:, None]
    small = np.sin(angle) < 1e-9
    sine = np.where(small, 1.0, np.sin(angle))
    before = np.where(small, 1 - part, np.sin((1 - part) * angle) / sine)
    after = np.where(small, part, np.sin(part * angle) / sine)
    return to_quaternion(before * start + after * end, "quaternion")


def turn_by(turns: Array, powers: Array) -> Array:
    """Returns, as a quaternion [4], turns one after the other, [V, 4] with w first, each in part or more than once.

    Each is about the axes that the ones before it have turned; a power is what its angle is multiplied with.
    """
    whole = np.array([[1.0, 0.0, 0.0, 0.0]])
    for turn in to_quaternion(from_quaternion(turns, "axis_angle") * powers[:, None], "axis_angle"):
        whole = multiply(whole, turn[None])
    return np.asarray(whole[0])
