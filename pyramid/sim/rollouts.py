"""Closed-loop rollouts: a policy plays a task of the simulator, start by start, and how often it solves it.

What a policy is and how it is loaded is left to the caller; starts are never those of a data set's episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.actions import StateHistory
from pyramid.config import to_dict
from pyramid.errors import DataError
from pyramid.jobs import Outcome, Unit, run_job
from pyramid.rng import seed_of
from pyramid.sim.config import CAMERAS, CONTROL_HZ, require_place
from pyramid.sim.env import ACTION_DIM, MAX_STEPS, STATE_DIM, MetaWorldEnv
from pyramid.sim.looks import LOOKS, Look
from pyramid.sim.plan import PARTS
from pyramid.sim.stage import STAGE, View
from pyramid.sim.tasks import INSTRUCTIONS

_STARTS_PER_UNIT = 5


class Player(Protocol):
    """A policy as it is deployed: `vla.policy.Policy` and `vla.deploy.runtime.PolicyRuntime` are two.

    One with a method ``history``, as both have, is given the states that it asks for with it: the last ones as they
    were at the steps of the episode, where it takes more than one, and none of four numbers where it takes no state.
    """

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        """Returns the next actions, float32 [T, 4].

        Args:
            observation: ``images`` uint8 [1, H, W, 3] RGB, ``text`` str, ``state`` float32 [4], or the last [n, 4].
            seed: decides what is drawn at random.
        """
        ...


@runtime_checkable
class Remembering(Protocol):
    """A player that says which past states it takes."""

    def history(self) -> StateHistory:
        """Returns what keeps them in a control loop, empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How a policy is tried."""

    task: str = "push-v3"
    """Name of a Meta-World task."""
    n_starts: int = 60
    """Episodes, each from a start and a goal of its own; >= 1."""
    seed: int = 0
    """Decides the starts, and what the policy draws; >= 0."""
    max_steps: int = 250
    """An episode that is not solved by then has failed; steps of 12.5 ms, 1 .. 500."""
    execute: int = 4
    """Steps of each chunk that are done before the policy is asked again; >= 1, at most the chunk's length."""
    look: Look = "robot"
    """How the acting body looks."""
    size_px: int = 64
    """Height and width of the pictures; pixels."""
    camera: str = "corner4"
    """Camera of the scene."""
    fovy_deg: float = 45.0
    """Vertical field of view of the camera; degrees, 5 .. 120."""
    look_at: tuple[float, float, float] | None = None
    """Where the camera is turned to, from where it stands; metres, x y z of the world. None: as Meta-World has it."""
    oversample: int = 1
    """How many times as large pictures are drawn before they are averaged, as in the training data; 1 .. 4."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.task not in INSTRUCTIONS:
            raise ValueError(f"task '{self.task}' is none of Meta-World's {len(INSTRUCTIONS)}, such as 'push-v3'")
        if self.look not in LOOKS or self.camera not in CAMERAS:
            raise ValueError(f"look must be one of {LOOKS} and camera one of {CAMERAS}, got {self.look}, {self.camera}")
        if self.n_starts < 1 or self.execute < 1 or self.seed < 0 or self.size_px < 16:
            raise ValueError(f"n_starts, execute >= 1, seed >= 0 and size_px >= 16 are wanted, got {self}")
        if not (1 <= self.max_steps <= MAX_STEPS and 5 <= self.fovy_deg <= 120 and 1 <= self.oversample <= 4):
            raise ValueError(
                f"max_steps must be within 1 .. {MAX_STEPS}, fovy_deg within 5 .. 120 and oversample within 1 .. 4, "
                f"got {self}"
            )
        require_place(self.look_at)


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """How often a task was solved."""

    task: str
    """Meta-World's name of it."""
    solved: tuple[bool, ...]
    """Whether each start was solved."""
    steps: tuple[int, ...]
    """How long each episode took, in steps."""
    success: float
    """Share of starts that were solved, 0 .. 1."""
    low: float
    """Lower end of Wilson's interval at 95 %."""
    high: float
    """Its upper end."""

    @property
    def n(self) -> int:
        """Number of starts."""
        return len(self.solved)

    def __repr__(self) -> str:
        share = f"{self.success:.0%} ({self.low:.0%} .. {self.high:.0%})"
        return f"RolloutResult({self.task}: {sum(self.solved)} of {self.n} starts solved, {share})"


def start_seed(config: RolloutConfig, index: int) -> int:
    """Returns the seed of a start; no episode of any data set ever has it."""
    # A data set's parts have the last two bits 0, 1 and 2 (`plan.Item.seed`).
    return seed_of(config.seed, "sim", "rollout", config.task, index) >> 2 << 2 | len(PARTS)


def rollout(
    env: MetaWorldEnv, draw: Callable[[], NDArray[np.uint8]], player: Player, *, seed: int, config: RolloutConfig
) -> tuple[bool, int]:
    """Plays one episode; returns whether the task was solved, and after how many steps.

    Args:
        env: the task; is reset.
        draw: returns the picture of the scene as it is now, uint8 [H, W, 3].
        player: is asked every ``config.execute`` steps.
        seed: decides start and goal.
        config: when to ask and when to stop.

    Raises:
        DataError: the player's answer is no chunk of finite actions of this robot.
    """
    done, history = 0, player.history() if isinstance(player, Remembering) else StateHistory(STATE_DIM)
    n = STATE_DIM if history.state_dim else 0  # A policy that learned from pictures alone is told no state.
    state = history.add(env.reset(seed)[:n], 0.0)
    while done < config.max_steps:
        observation = {"images": draw()[None], "text": env.instruction, "state": state}
        chunk = player.act(observation, seed=seed_of(seed, "noise", done))
        if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM or len(chunk) < config.execute:
            raise DataError(
                f"{config.task}: the policy answers {list(chunk.shape)}, asked for at least {config.execute} steps of "
                f"{ACTION_DIM} numbers"
            )
        for action in chunk[: config.execute]:
            step = env.step(action)
            done += 1
            state = history.add(step.state[:n], done / CONTROL_HZ)
            if step.success:
                return True, done
            if done == config.max_steps:
                break
    return False, done


@dataclass(frozen=True, kw_only=True)
class _Task:
    load: Callable[[], Player]
    config: RolloutConfig
    first: int
    n: int


def _play(task: _Task) -> Outcome:
    config = task.config
    view = View(
        look=config.look,
        size_px=config.size_px,
        camera=config.camera,
        fovy_deg=config.fovy_deg,
        look_at=config.look_at,
        oversample=config.oversample,
    )
    env = STAGE.env(config.task, view)
    renderer, player = STAGE.renderer(env, view), _player(task.load)
    played = [
        rollout(env, lambda: renderer.frame(env.data), player, seed=start_seed(config, index), config=config)
        for index in range(task.first, task.first + task.n)
    ]
    return Outcome(facts={"solved": [solved for solved, _ in played], "steps": [steps for _, steps in played]})


_LOADED: dict[Callable[[], Player], Player] = {}
"""The player of this process; loading one takes longer than an episode."""


def _player(load: Callable[[], Player]) -> Player:
    if load not in _LOADED:
        _LOADED.clear()
        _LOADED[load] = load()
    return _LOADED[load]


def play(
    load: Callable[[], Player], digest: str, *, out: str, config: RolloutConfig, workers: int = 1
) -> RolloutResult:
    """Plays all starts, and keeps in ``out`` what is done: the same call goes on where one was stopped.

    Args:
        load: makes the policy, in each process; a function at the top of a module, or a hashable object that can be
            sent to another process.
        digest: of whatever decides the policy's answers.
        out: folder of the receipts.
        config: how it is tried.
        workers: processes; nothing depends on it.

    Raises:
        MissingDependencyError: the extra ``sim`` or EGL is missing.
        InterruptedJobError: stopped by a person.
    """
    units = [
        Unit(
            name=f"starts-{first:05d}",
            digest=files.digest([digest, to_dict(config), first]),
            task=_Task(load=load, config=config, first=first, n=min(_STARTS_PER_UNIT, config.n_starts - first)),
            amount=min(_STARTS_PER_UNIT, config.n_starts - first),
        )
        for first in range(0, config.n_starts, _STARTS_PER_UNIT)
    ]
    try:
        job = run_job(units, _play, folder=out, label=f"rollouts of {config.task}", unit_name="starts", workers=workers)
    finally:
        STAGE.close()
        _LOADED.clear()
    solved = [one for outcome in job.outcomes for one in outcome.facts["solved"]]
    steps = [one for outcome in job.outcomes for one in outcome.facts["steps"]]
    low, high = wilson(sum(solved), len(solved))
    return RolloutResult(
        task=config.task,
        solved=tuple(solved),
        steps=tuple(steps),
        success=sum(solved) / len(solved),
        low=low,
        high=high,
    )


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of a share (Wilson 1927, JASA 22), 0 .. 1."""
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
