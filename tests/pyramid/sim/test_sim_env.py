"""Meta-World stepped without pictures."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pyramid.errors import ConfigError, DataError
from pyramid.sim import backend
from pyramid.sim.env import MetaWorldEnv, touching
from pyramid.sim.episodes import rollout_expert
from pyramid.sim.tasks import INSTRUCTIONS

pytestmark = pytest.mark.sim


def test_the_table_of_tasks_is_meta_worlds(simulator: None) -> None:
    assert set(backend.environments()) == set(INSTRUCTIONS) == set(backend.experts())


@pytest.mark.parametrize("task", ["push-v3", "reach-v3", "button-press-topdown-v3"])
def test_the_expert_succeeds_without_noise(simulator: None, task: str) -> None:
    env = MetaWorldEnv(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        episodes = [rollout_expert(env, seed=seed, action_noise=0.0) for seed in range(3)]
    assert [episode.success for episode in episodes] == [True] * 3
    starts = {tuple(episode.action[10]) for episode in episodes}
    assert len(starts) == 3, "another seed is another goal"


def test_a_seed_is_the_same_episode_whatever_ran_before(simulator: None) -> None:
    env, fresh = MetaWorldEnv("push-v3"), MetaWorldEnv("push-v3")
    rollout_expert(env, seed=1, max_steps=30)
    again, first = rollout_expert(env, seed=2, max_steps=30), rollout_expert(fresh, seed=2, max_steps=30)
    assert np.array_equal(again.state, first.state)
    assert np.array_equal(again.action, first.action)


def test_opening_a_task_leaves_numpys_generator_alone(simulator: None) -> None:
    before = np.random.get_state()[1].copy()
    MetaWorldEnv("reach-v3").reset(3)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3"])
def test_touch_is_told_as_meta_world_tells_it(simulator: None, task: str) -> None:
    env, told = MetaWorldEnv(task), []
    world = env._env
    env.reset(5)
    for _ in range(100):
        env.step(env.expert_action())
        for geom in (world._get_id_main_object(), 0):
            told.append(type(world).touching_object(world, geom))
            assert touching(world, geom) == told[-1]
    assert {True, False} == set(told)
    env.close()


def test_the_state_follows_the_action(quick_env: MetaWorldEnv) -> None:
    start = quick_env.reset(0)
    assert start.shape == (4,)
    assert start.dtype == np.float32
    for _ in range(20):
        step = quick_env.step(np.array([0, 0, 1, -1], np.float32))
    assert step.state[2] > start[2] + 0.05, "the hand goes up"
    assert abs(step.state[0] - start[0]) < 0.02
    assert np.array_equal(step.state, quick_env.state)


def test_actions_beyond_the_range_are_clipped(quick_env: MetaWorldEnv) -> None:
    states = []
    for size in (1.0, 50.0):
        quick_env.reset(0)
        states.append(quick_env.step(np.array([size, 0, 0, 0], np.float32)).state)
    assert np.array_equal(states[0], states[1])


@pytest.mark.parametrize("action", [np.zeros(3, np.float32), np.full(4, np.nan, np.float32)])
def test_what_is_no_action_is_refused(quick_env: MetaWorldEnv, action: np.ndarray) -> None:
    quick_env.reset(0)
    with pytest.raises(DataError, match="4 finite"):
        quick_env.step(action)


def test_stepping_comes_after_reset(quick_env: MetaWorldEnv) -> None:
    with pytest.raises(DataError, match="reset"):
        quick_env.step(np.zeros(4, np.float32))
    with pytest.raises(DataError, match="reset"):
        quick_env.expert_action()


def test_an_unknown_task_is_refused(simulator: None) -> None:
    with pytest.raises(ConfigError, match="push-v3"):
        MetaWorldEnv("push-v4")


def test_the_goals_mark_is_where_the_goal_is_from_the_first_frame_on(simulator: None) -> None:
    # Meta-World itself shows it there from the second frame on.
    env = MetaWorldEnv("push-v3")
    rollout_expert(env, seed=9, max_steps=5)
    env.reset(5)
    marked = env.data.site("goal").xpos.copy()
    env.step(np.zeros(4, np.float32))
    assert np.array_equal(marked, env.data.site("goal").xpos)
