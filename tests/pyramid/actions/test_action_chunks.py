"""Chunks less the state: what they are in closed form, that they come back, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pyramid.actions import ActionPart, BodySpec, ChunkCodec, StatePart
from pyramid.actions.rotations import WIDTHS, from_quaternion, to_quaternion
from pyramid.errors import DataError
from pyramid.rng import rng

T = 6
REPRESENTATIONS = ("absolute", "delta", "relative")


def body(representation: str, rotation: str = "quaternion", **joints: Any) -> BodySpec:
    """A gripper, a pose and two joints, which lie at other places in the state than in the action."""
    wide = 3 + WIDTHS[rotation]
    spec = BodySpec(
        name="arm",
        state={
            "joints": StatePart(start=0, end=2, normalizer="sin_cos", **joints),
            "eef": StatePart(start=2, end=9, kind="pose", rotation="quaternion"),
        },
        action={
            "grip": ActionPart(start=0, end=1, kind="gripper"),
            "hand": ActionPart(start=1, end=1 + wide, kind="pose", rotation=rotation, state="eef"),
            "joints": ActionPart(start=1 + wide, end=3 + wide, **joints),
        },
    )
    return spec.with_actions(representation)  # type: ignore[arg-type]


def turns(seed: int, n: int) -> np.ndarray:
    """Quaternions w first, of either sign."""
    q = np.roll(Rotation.random(n, random_state=seed).as_quat(), 1, 1)
    return q * rng(seed, "signs").choice([-1.0, 1.0], (n, 1))


def drawn(spec: BodySpec, seed: int, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Actions [n, T, D] and states [n, S]."""
    draw, part = rng(seed, "chunks"), spec.action["hand"]
    state = np.concatenate([draw.uniform(-3, 3, (n, 5)), turns(seed, n)], 1)
    written = from_quaternion(turns(seed + 1, n * T), part.rotation).reshape(n, T, -1)
    action = np.concatenate(
        [draw.random((n, T, 1)), draw.normal(size=(n, T, 3)), written, draw.uniform(-3, 3, (n, T, 2))], -1
    )
    return action.astype(np.float32), state.astype(np.float32)


def same_rotation(a: np.ndarray, b: np.ndarray, rotation: str) -> float:
    """Largest angle between rotations in one writing, radians."""
    six = [from_quaternion(_quaternion(v, rotation), "matrix").reshape(-1, 3, 3) for v in (a, b)]
    return float((Rotation.from_matrix(six[0]).inv() * Rotation.from_matrix(six[1])).magnitude().max())


def _quaternion(v: np.ndarray, rotation: str) -> np.ndarray:
    return to_quaternion(v.reshape(-1, WIDTHS[rotation]).astype(np.float64), rotation)


@pytest.mark.parametrize("rotation", ["quaternion", "quaternion_xyzw", "axis_angle", "rotation_6d", "euler_angles_rpy"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_chunk_comes_back(representation: str, rotation: str, seed: int) -> None:
    spec = body(representation, rotation)
    codec, (action, state) = ChunkCodec(spec), drawn(spec, seed)
    encoded = codec.encode_action(action, state)
    assert encoded.dtype == np.float32
    assert encoded.shape == (3, T, codec.action_width) == (3, T, 1 + 9 + 2)
    back = codec.decode_action(encoded, state)
    turn = slice(4, 4 + WIDTHS[rotation])
    rest = [d for d in range(spec.action_dim) if not 4 <= d < turn.stop]
    assert np.abs(back[..., rest] - action[..., rest]).max() < 1e-5
    assert same_rotation(back[..., turn], action[..., turn], rotation) < 1e-5
    assert (encoded[..., 0] == action[..., 0]).all()


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_rotation_alone_comes_back_in_its_own_writing(representation: Any) -> None:
    spec = BodySpec(
        name="head",
        state={"gaze": StatePart(start=0, end=3, kind="rotation", rotation="euler_angles_ypr")},
        action={"gaze": ActionPart(start=0, end=9, kind="rotation", rotation="matrix")},
    ).with_actions(representation)
    codec, state = ChunkCodec(spec), Rotation.random(2, random_state=1).as_euler("zyx").astype(np.float32)
    action = Rotation.random(2 * T, random_state=2).as_matrix().reshape(2, T, 9).astype(np.float32)
    encoded = codec.encode_action(action, state)
    assert encoded.shape == (2, T, 6)
    assert np.allclose(codec.decode_action(encoded, state), action, atol=1e-5)
    if representation == "relative":
        want = (
            Rotation.from_euler("zyx", state[1]).inv() * Rotation.from_matrix(action[1, 3].reshape(3, 3))
        ).as_matrix()
        assert np.allclose(encoded[1, 3], want[:2].ravel(), atol=1e-5)


def test_relative_is_the_pose_in_the_frame_of_the_state() -> None:
    spec = body("relative")
    action, state = drawn(spec, 4, n=1)
    encoded = ChunkCodec(spec).encode_action(action, state)[0]
    at = Rotation.from_quat(np.roll(state[0, 5:9], -1))
    for step in range(T):
        turn = (at.inv() * Rotation.from_quat(np.roll(action[0, step, 4:8], -1))).as_matrix()
        assert np.allclose(encoded[step, 1:4], at.inv().apply(action[0, step, 1:4] - state[0, 2:5]), atol=1e-5)
        assert np.allclose(encoded[step, 4:10], turn[:2].ravel(), atol=1e-5)
    assert np.allclose(encoded[:, 10:], action[0, :, 8:] - state[0, :2], atol=1e-6)


def test_delta_is_from_step_to_step_and_begins_at_the_state() -> None:
    spec = body("delta")
    action, state = drawn(spec, 5, n=1)
    encoded = ChunkCodec(spec).encode_action(action, state)[0]
    before = np.concatenate([state[:, :2], action[0, :-1, 8:]])
    assert np.allclose(encoded[:, 10:], action[0, :, 8:] - before, atol=1e-6)
    turned = [Rotation.from_quat(np.roll(q, -1)) for q in (state[0, 5:9], *action[0, :, 4:8])]
    for step in range(T):
        want = (turned[step].inv() * turned[step + 1]).as_matrix()[:2].ravel()
        assert np.allclose(encoded[step, 4:10], want, atol=1e-5)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_both_signs_of_a_quaternion_teach_the_same(representation: str) -> None:
    spec = body(representation)
    codec, (action, state) = ChunkCodec(spec), drawn(spec, 6)
    other, turned = action.copy(), state.copy()
    other[..., 4:8] *= -1
    turned[..., 5:9] *= -1
    assert np.allclose(codec.encode_action(other, state), codec.encode_action(action, state), atol=1e-6)
    assert np.allclose(codec.encode_action(action, turned), codec.encode_action(action, state), atol=1e-6)
    assert np.allclose(codec.encode_state(turned), codec.encode_state(state), atol=1e-6)
    out = codec.decode_action(codec.encode_action(action, state), state)[..., 4:8]
    assert ((out[:, 1:] * out[:, :-1]).sum(-1) > -1e-6).all(), "a quaternion's sign jumps within a chunk"


@pytest.mark.parametrize("representation", ["delta", "relative"])
@pytest.mark.parametrize("period", [2 * np.pi, 360.0])
def test_angles_that_go_round_take_the_short_way(representation: str, period: float) -> None:
    codec = ChunkCodec(body(representation, period=period))
    action, state = drawn(codec.spec, 7, n=1)
    state[0, :2] = 0.49 * period
    action[0, :, 8:] = -0.49 * period
    encoded = codec.encode_action(action, state)[0, :, 10:]
    assert np.allclose(encoded[0], 0.02 * period, rtol=1e-4)
    back = codec.decode_action(codec.encode_action(action, state), state)[0, :, 8:]
    assert np.allclose((back - action[0, :, 8:]) / period, 1, atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_state_comes_back(seed: int) -> None:
    spec = body("absolute")
    codec, (_, state) = ChunkCodec(spec), drawn(spec, seed)
    encoded = codec.encode_state(state)
    assert encoded.shape == (3, 4 + 9)
    assert np.allclose(encoded[:, :2] ** 2 + encoded[:, 2:4] ** 2, 1, atol=1e-5)
    back = codec.decode_state(encoded)
    assert np.allclose(back[:, :5], state[:, :5], atol=1e-5)
    assert same_rotation(back[:, 5:], state[:, 5:], "quaternion") < 1e-5


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_what_is_past_the_end_changes_nothing_before(representation: str) -> None:
    spec = body(representation)
    codec, (action, state) = ChunkCodec(spec), drawn(spec, 8)
    valid = np.arange(T) < np.array([[2], [T], [1]])
    clean = codec.encode_action(action, state, valid)
    action[~valid] = np.nan
    dirty = codec.encode_action(action, state, valid)
    assert np.isfinite(dirty).all()
    assert (clean[valid] == dirty[valid]).all()
    mask = codec.encode_mask(np.broadcast_to(valid[..., None], action.shape))
    assert (mask == valid[..., None]).all()


def test_a_rotation_counts_as_a_whole_and_a_delta_with_the_step_before() -> None:
    mask = np.ones((1, T, 10), bool)
    mask[0, 2, 5] = mask[0, 3, 9] = False
    kept = ChunkCodec(body("delta")).encode_mask(mask)[0]
    assert kept[:, 1:10].all(1).tolist() == [True, True, False, False, False, False]
    assert kept[:, 11].tolist() == [True, True, True, False, False, False]
    assert kept[:, [0, 10]].all()
    kept = ChunkCodec(body("relative")).encode_mask(mask)[0]
    assert kept[:, 1:10].any(1).tolist() == [True, True, False, True, True, True]
    assert kept[:, 11].tolist() == [True, True, True, False, True, True]


def test_bad_numbers_and_missing_states_are_refused_by_name() -> None:
    spec = body("relative")
    codec, (action, state) = ChunkCodec(spec), drawn(spec, 9)
    with pytest.raises(DataError, match="'arm': the actions of hand, joints need the state, there is none"):
        codec.encode_action(action)
    with pytest.raises(DataError, match="need the state"):
        codec.decode_action(np.zeros((T, codec.action_width)), np.zeros(0))
    with pytest.raises(DataError, match=r"action of shape \(3, 6, 9\), 10 dimensions are declared"):
        codec.encode_action(action[..., 1:], state)
    with pytest.raises(DataError, match=r"state of shape \(3, 8\), 9 dimensions are declared"):
        codec.encode_action(action, state[:, 1:])
    action[0, 1, 9] = np.nan
    with pytest.raises(DataError, match="action values that are not finite numbers in joints"):
        codec.encode_action(action, state)
    state[1, 3] = np.inf
    with pytest.raises(DataError, match="state values that are not finite numbers in eef"):
        codec.encode_action(action, state)
    absolute = ChunkCodec(body("absolute"))
    assert absolute.encode_action(drawn(spec, 9)[0]).shape == (3, T, 12)
