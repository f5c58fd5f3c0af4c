"""Pictures of the scene: fast, the same every time, with the body that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.errors import ConfigError
from pyramid.sim.env import MetaWorldEnv
from pyramid.sim.episodes import Episode, rollout_expert
from pyramid.sim.looks import Look, apply_look
from pyramid.sim.render import Renderer

pytestmark = pytest.mark.sim
SIZE_PX = 64


def drawn(
    look: Look,
    *,
    seed: int = 3,
    before: int | None = None,
    stride: int = 1,
    task: str = "push-v3",
    size_px: int = SIZE_PX,
    oversample: int = 1,
) -> Episode:
    env = MetaWorldEnv(task)
    apply_look(env.model, look)
    with Renderer(env.model, size_px=size_px, fovy_deg=45, oversample=oversample) as renderer:
        if before is not None:
            rollout_expert(env, seed=before, max_steps=20, renderer=renderer)
        return rollout_expert(env, seed=seed, max_steps=7, renderer=renderer, frame_stride=stride)


def reddish(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = (frames[..., i].astype(int) for i in range(3))
    return (red > 90) & (red > 3 * green) & (red > 3 * blue)


def greenish(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = (frames[..., i].astype(int) for i in range(3))
    return (green > 120) & (green > 2 * red) & (green > 2 * blue)


def skin(frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = (frames[..., i].astype(int) for i in range(3))
    return (red > 180) & (green > 120) & (red - blue > 30) & (red - green > 10)


def test_the_robot_is_red_and_the_hand_is_skin(simulator: None) -> None:
    robot, hand = drawn("robot").frames, drawn("hand").frames
    assert reddish(robot).mean() > 0.05
    assert reddish(hand).mean() < 0.01
    assert skin(hand).mean() > 0.005
    assert skin(robot).mean() < 0.001


def test_the_goal_is_seen_in_both_looks(simulator: None) -> None:
    assert greenish(drawn("robot").frames[0]).sum() >= 2
    assert greenish(drawn("hand").frames[0]).sum() >= 2


def test_the_look_changes_no_physics(simulator: None) -> None:
    robot, hand = drawn("robot"), drawn("hand")
    assert np.array_equal(robot.state, hand.state)
    assert np.array_equal(robot.action, hand.action)


def test_pictures_do_not_depend_on_what_was_drawn_before(simulator: None) -> None:
    # Meta-World's own first picture shows the goal of the episode before.
    assert np.array_equal(drawn("robot").frames, drawn("robot", before=9).frames)


def test_the_picture_is_upright(simulator: None) -> None:
    floor = drawn("hand").frames[0].astype(int)
    top, bottom = floor[:8], floor[-24:-8]
    brown = lambda part: float((part[..., 0] - part[..., 2]).mean())  # noqa: E731
    assert brown(bottom) > brown(top) + 10, "the wooden table is below"


def test_rows_of_an_episode_belong_together(simulator: None) -> None:
    episode = drawn("robot")
    assert len(episode) == 7
    assert episode.frames.shape == (7, SIZE_PX, SIZE_PX, 3)
    assert episode.frames.dtype == np.uint8
    assert episode.state.shape == episode.action.shape == (7, 4)
    assert episode.state.dtype == episode.action.dtype == np.float32
    assert np.abs(episode.action).max() <= 1
    assert episode.fps == 80
    assert not episode.success


def test_half_the_rate_is_every_second_frame(simulator: None) -> None:
    whole, half = drawn("robot"), drawn("robot", stride=2)
    assert np.array_equal(half.frames, whole.frames[::2])
    assert np.array_equal(half.action, whole.action)
    assert half.fps == 40


def test_nothing_drawn_is_the_same_episode(simulator: None) -> None:
    blind = rollout_expert(MetaWorldEnv("push-v3"), seed=3, max_steps=7)
    assert blind.frames.shape == (0, 0, 0, 3)
    assert np.array_equal(blind.action, drawn("robot").action)


def test_drawn_larger_a_picture_is_the_mean_of_its_squares(simulator: None) -> None:
    large = drawn("robot", size_px=2 * SIZE_PX).frames.astype(np.float64)
    small = drawn("robot", oversample=2).frames
    assert small.shape == (7, SIZE_PX, SIZE_PX, 3)
    means = large.reshape(7, SIZE_PX, 2, SIZE_PX, 2, 3).mean((2, 4))
    assert np.abs(small - means).max() <= 0.5


def test_the_camera_is_turned_to_a_place(simulator: None) -> None:
    env = MetaWorldEnv("push-v3")
    env.reset(3)
    goal = env.model.site("goal").pos
    with Renderer(env.model, size_px=SIZE_PX, fovy_deg=10, look_at=goal, oversample=2) as renderer:
        env.reset(3)
        frame = renderer.frame(env.data)
    rows, columns = np.nonzero(greenish(frame))
    assert abs(rows.mean() - (SIZE_PX - 1) / 2) < 1.5
    assert abs(columns.mean() - (SIZE_PX - 1) / 2) < 1.5


def test_a_camera_that_is_turned_hangs_as_before(simulator: None) -> None:
    env = MetaWorldEnv("push-v3")
    with Renderer(env.model, size_px=SIZE_PX, fovy_deg=45) as renderer:
        env.reset(3)
        before = renderer.frame(env.data).astype(int)
    camera = env.model.cam("corner4")
    ahead = camera.pos - camera.mat0.reshape(3, 3)[:, 2]  # What it looks at as it is.
    with Renderer(env.model, size_px=SIZE_PX, fovy_deg=45, look_at=ahead) as renderer:
        env.reset(3)
        after = renderer.frame(env.data).astype(int)
    # Its own attitude is told to a few digits, and rolls a little.
    assert np.median(np.abs(before - after)) <= 3


@pytest.mark.parametrize("place", [(0.75, 0.075, 0.7), (0.75, 0.075, 0.0)])
def test_a_camera_cannot_be_turned_to_itself_or_straight_down(
    place: tuple[float, float, float], simulator: None
) -> None:
    with pytest.raises(ConfigError, match="look_at"):
        Renderer(MetaWorldEnv("push-v3").model, size_px=SIZE_PX, look_at=place)
