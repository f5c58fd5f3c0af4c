"""Closed-loop rollouts: who solves a task, from which starts, and that being stopped or many workers change nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.actions import StateHistory
from pyramid.errors import DataError
from pyramid.rng import rng
from pyramid.sim.config import SimConfig
from pyramid.sim.env import MetaWorldEnv, Step
from pyramid.sim.plan import PARTS, items
from pyramid.sim.rollouts import RolloutConfig, play, rollout, start_seed, wilson

TASK = "drawer-close-v3"
CONFIG = RolloutConfig(task=TASK, n_starts=7, max_steps=24, size_px=32)


class Pusher:
    """Pushes forward and down, which closes the drawer in 20 steps; sleeps through some of its turns."""

    def __init__(self, lazy: float = 0.0) -> None:
        self.lazy, self.seen = lazy, list[dict[str, Any]]()

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        self.seen.append({**observation, "seed": seed})
        awake = rng(seed, "lazy").random() >= self.lazy
        return np.tile(np.array([0, awake, -float(awake), 1.0], np.float32), (6, 1))


class Short:
    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        return np.zeros((2, 4), np.float32)


@pytest.mark.sim
def test_the_policy_is_asked_with_what_is_seen_now(simulator: None) -> None:
    env = MetaWorldEnv(TASK)
    pictures = iter(np.full((32, 32, 3), value, np.uint8) for value in range(250))
    player = Pusher()
    solved, steps = rollout(env, lambda: next(pictures), player, seed=3, config=CONFIG)
    assert (solved, steps) == (True, 20)
    assert len(player.seen) == 5
    assert [int(seen["images"][0, 0, 0, 0]) for seen in player.seen] == list(range(len(player.seen)))
    assert player.seen[0]["images"].shape == (1, 32, 32, 3)
    assert player.seen[0]["text"] == env.instruction
    assert np.array_equal(player.seen[0]["state"], MetaWorldEnv(TASK).reset(3))
    assert not np.array_equal(player.seen[1]["state"], player.seen[0]["state"])
    assert len({seen["seed"] for seen in player.seen}) == len(player.seen)


class Drifting:
    """A stand-in for the simulator whose state tells how many steps were done."""

    instruction = "drift"

    def reset(self, seed: int) -> NDArray[np.float32]:
        self.done = 0
        return np.zeros(4, np.float32)

    def step(self, action: NDArray[np.float32]) -> Step:
        self.done += 1
        return Step(np.full(4, self.done, np.float32), 0.0, False)


class Remembered(Pusher):
    def history(self) -> StateHistory:
        return StateHistory(4, n=3, gap_s=2 / 80)


def test_a_player_that_takes_past_states_is_given_those_of_the_episode() -> None:
    player, picture = Remembered(), np.zeros((32, 32, 3), np.uint8)
    for _ in range(2):  # The second episode knows nothing of the first.
        player.seen.clear()
        assert rollout(Drifting(), lambda: picture, player, seed=0, config=CONFIG) == (False, 24)  # type: ignore[arg-type]
        told = [seen["state"][:, 0].tolist() for seen in player.seen]
        assert told == [[0, 0, 0], [0, 2, 4], [4, 6, 8], [8, 10, 12], [12, 14, 16], [16, 18, 20]]
    plain = Pusher()
    rollout(Drifting(), lambda: picture, plain, seed=0, config=CONFIG)  # type: ignore[arg-type]
    assert [seen["state"].tolist() for seen in plain.seen] == [[4.0 * k] * 4 for k in range(6)]


class Stateless(Pusher):
    def history(self) -> StateHistory:
        return StateHistory(0)


def test_a_player_that_takes_no_state_is_told_none() -> None:
    player = Stateless()
    rollout(Drifting(), lambda: np.zeros((32, 32, 3), np.uint8), player, seed=0, config=CONFIG)  # type: ignore[arg-type]
    assert {seen["state"].shape for seen in player.seen} == {(0,)}


@pytest.mark.parametrize(
    "wrong", [{"oversample": 0}, {"fovy_deg": 121.0}, {"max_steps": 501}, {"look_at": (0.0, 0.0, 11.0)}]
)
def test_tries_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RolloutConfig(**wrong)


@pytest.mark.sim
def test_an_answer_that_is_too_short_is_named(simulator: None) -> None:
    with pytest.raises(DataError, match=r"answers \[2, 4\], asked for at least 4 steps of 4 numbers"):
        rollout(MetaWorldEnv(TASK), lambda: np.zeros((32, 32, 3), np.uint8), Short(), seed=0, config=CONFIG)


@pytest.mark.sim
def test_workers_and_interruptions_change_nothing(simulator: None, tmp_path: Path) -> None:
    some = functools.partial(Pusher, 0.2)
    whole = play(some, "half", out=str(tmp_path / "one"), config=CONFIG)
    assert 0 < sum(whole.solved) < whole.n == 7, whole
    assert whole.low < whole.success < whole.high
    assert whole == play(some, "half", out=str(tmp_path / "two"), config=CONFIG, workers=2)
    (tmp_path / "one" / "_receipts" / "starts-00005.json").unlink()
    (tmp_path / "one" / "_receipts.json").unlink(missing_ok=True)
    assert whole == play(some, "half", out=str(tmp_path / "one"), config=CONFIG)
    better = play(Pusher, "whole", out=str(tmp_path / "one"), config=CONFIG)
    assert better.solved == (True,) * 7, "another digest is played anew"


def test_no_start_is_an_episodes(tmp_path: Path) -> None:
    starts = {start_seed(CONFIG, index) for index in range(500)}
    made = SimConfig(tasks=(TASK,), n_hand=300, n_generated=300, n_robot=300)
    taken = {item.seed(made.seed, attempt) for part in PARTS for item in items(made, part) for attempt in range(3)}
    assert len(starts) == 500
    assert not starts & taken
    assert {seed % 4 for seed in starts} == {3}


def test_wilsons_interval_is_that_of_the_book() -> None:
    low, high = wilson(61, 240)
    assert (round(low, 3), round(high, 3)) == (0.203, 0.313)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


@pytest.mark.parametrize(("field", "value"), [("task", "fly-v3"), ("n_starts", 0), ("look", "cat"), ("max_steps", 501)])
def test_options_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=str(value)):
        RolloutConfig(**{field: value})
