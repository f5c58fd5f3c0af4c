"""Votes for rotations and switches: means on SO(3), whatever the writing; majorities; groups out of modality.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from idm.groups import ActionGroup, read_groups
from idm.joining import JoinRule
from idm.rotations import mean_rotation
from idm.windows import vote
from pyramid.errors import ConfigError, DataError
from pyramid.normalize import Normalizer
from pyramid.rng import rng

METADATA = Path(__file__).parents[3] / "shared/data/robot/embodiment_metadata"
WRITERS = {
    "quaternion": lambda r: r.as_quat(),
    "axis_angle": lambda r: r.as_rotvec(),
    "euler_angles_rpy": lambda r: r.as_euler("xyz"),
    "matrix": lambda r: r.as_matrix().reshape(-1, 9),
    "rotation_6d": lambda r: r.as_matrix()[:, :2].reshape(-1, 6),
}
READERS = {
    "quaternion": Rotation.from_quat,
    "axis_angle": Rotation.from_rotvec,
    "euler_angles_rpy": lambda v: Rotation.from_euler("xyz", v),
    "matrix": lambda v: Rotation.from_matrix(v.reshape(-1, 3, 3)),
    "rotation_6d": lambda v: Rotation.from_matrix(np.stack([v[:, :3], v[:, 3:], np.cross(v[:, :3], v[:, 3:])], axis=1)),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_is_the_chordal_mean_in_every_writing(kind, seed):
    generator = rng(seed, "rotations")
    centre = Rotation.from_quat(generator.normal(size=4))
    votes = centre * Rotation.from_rotvec(generator.normal(size=(7, 3)) * 0.4)
    weights = generator.uniform(0.1, 1, 7)
    mean, near = mean_rotation(WRITERS[kind](votes), weights, kind)
    expected = votes.mean(weights)
    assert (READERS[kind](mean[None]).inv() * expected).magnitude() == pytest.approx(0, abs=1e-6)
    # Written near the mean, the votes still are the same rotations.
    assert np.abs((READERS[kind](near).inv() * votes).magnitude()).max() < 1e-6


@pytest.mark.parametrize("kind", ["quaternion", "axis_angle", "euler_angles_rpy"])
def test_two_writings_of_nearly_one_rotation_do_not_cancel(kind):
    votes = np.array([[0.0, 0.0, np.pi - 0.01], [0.0, 0.0, -np.pi + 0.01]])
    if kind == "quaternion":
        votes = Rotation.from_rotvec(votes).as_quat() * np.array([[1], [-1]])
        votes[1] *= np.sign(votes[0] @ votes[1]) * -1
    mean, near = mean_rotation(votes, np.ones(2), kind)
    assert READERS[kind](mean[None]).magnitude()[0] == pytest.approx(np.pi, abs=1e-6)
    assert np.abs(near - mean).max() < 0.011


def rule(groups, dim):
    unit = Normalizer("mean_std", np.full(dim, 0.25, np.float32), np.full(dim, 2.0, np.float32))
    return JoinRule(groups, unit, np.zeros(dim), np.ones(dim))


def test_a_switch_takes_the_side_with_more_weight_and_says_how_sure_it_is():
    groups = [ActionGroup(name="gripper", start=1, end=2, kind="binary")]
    joined = rule(groups, 2)
    on = joined.normalizer.normalize(np.array([0.5, 1.0]))
    off = joined.normalizer.normalize(np.array([0.5, 0.0]))
    votes = vote({0: np.stack([on] * 3), 1: np.stack([off] * 3)}, 5, np.array([[1.0], [3.0], [1.0]]), joined)
    physical = joined.normalizer.denormalize(votes.mean)
    assert physical[:, 0] == pytest.approx(0.5)
    assert physical[:, 1] == pytest.approx([1, 1, 0, 0])  # 3 to 1 for on, then 1 to 3
    std = np.sqrt(votes.variance[:, 1]) * 2.0
    assert std == pytest.approx([0, np.sqrt(0.75 * 0.25), np.sqrt(0.75 * 0.25), 0], abs=1e-6)


def test_rotations_of_overlapping_windows_and_draws_join_on_the_sphere():
    groups = [ActionGroup(name="wrist", start=0, end=3, kind="axis_angle")]
    joined = rule(groups, 4)
    ends = np.array([[0, 0, np.pi - 0.02, 7.0], [0, 0, -np.pi + 0.02, 9.0]])
    left, right = ((one - 0.25) / 2 for one in ends)
    draws = np.stack([np.stack([left] * 2), np.stack([right] * 2)])  # [2 draws, H = 2, D]
    votes = vote({0: draws, 1: draws}, 4, None, joined)
    physical = joined.normalizer.denormalize(votes.mean)
    assert np.abs(np.linalg.norm(physical[:, :3], axis=1) - np.pi).max() < 1e-5
    assert physical[:, 3] == pytest.approx(8.0)
    assert np.sqrt(votes.variance[1, 2]) * 2 == pytest.approx(0.02, rel=1e-3)
    plain = vote({0: draws, 1: draws}, 4, None, None)
    assert np.abs(joined.normalizer.denormalize(plain.mean)[:, 2]).max() < 1e-5  # what a plain mean makes of it


def test_groups_are_read_from_modality_json(tmp_path):
    (tmp_path / "meta").mkdir()
    path = tmp_path / "meta" / "modality.json"
    document = {
        "action": {
            "arm": {"start": 0, "end": 3},
            "turn": {"start": 3, "end": 6, "rotation_type": "axis_angle"},
            "gripper_close": {"start": 6, "end": 7, "dtype": "int64"},
            "gripper": {"start": 7, "end": 8},
        }
    }
    path.write_text(json.dumps(document))
    actions = rng(0, "a").normal(size=(50, 8))
    kinds = {group.name: group.kind for group in read_groups(str(tmp_path), actions)}
    assert kinds == {"arm": "linear", "turn": "axis_angle", "gripper_close": "binary", "gripper": "linear"}
    actions[:, 7] = actions[:, 7] > 0
    assert read_groups(str(path), actions)[3].kind == "binary"
    with pytest.raises(DataError, match=r"'gripper_close' spans 6..7, the actions have 6"):
        read_groups(str(path), actions[:, :6])
    document["action"]["turn"]["rotation_type"] = "axis_angel"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="'axis_angel' of 3 dimensions"):
        read_groups(str(path), actions)
    with pytest.raises(ConfigError, match="no modality"):
        read_groups(str(tmp_path / "nowhere"), actions)


@pytest.mark.skipif(not METADATA.exists(), reason="the published metadata of four robots is not here")
@pytest.mark.parametrize(("robot", "dim"), [("gr1", 44), ("robocasa", 12)])
def test_published_groups_are_understood(robot, dim):
    groups = read_groups(str(METADATA / robot), np.zeros((2, dim)))
    assert sum(group.end - group.start for group in groups) == dim
    if robot == "robocasa":
        assert {g.name: g.kind for g in groups}["end_effector_rotation"] == "axis_angle"
