"""One Meta-World task, stepped without pictures: starts and goals by seed, the scripted expert, states and success.

Drawing is left to `render`, recording to `episodes`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError
from pyramid.sim import backend
from pyramid.sim.config import ACTION_NAMES, STATE_NAMES
from pyramid.sim.tasks import instruction

STATE_DIM = len(STATE_NAMES)
ACTION_DIM = len(ACTION_NAMES)
MAX_STEPS = 500
"""Meta-World refuses to step an episode further."""


@dataclass(frozen=True)
class Step:
    """What one action led to."""

    state: NDArray[np.float32]
    """float32 [4]: hand x, y, z (m) and gripper opening (0 .. 1)."""
    reward: float
    """Meta-World's shaped reward, 0 .. 10."""
    success: bool
    """True when the task is solved in this step."""


class MetaWorldEnv:
    """A task of Meta-World's MT1 with the whole state hidden but four numbers.

    The same seed and actions give the same trajectory, whatever was run before.

    Args:
        task: name of a task, such as ``push-v3``.

    Raises:
        ConfigError: no such task.
        MissingDependencyError: the extra ``sim`` is not installed.
    """

    state_dim = STATE_DIM
    action_dim = ACTION_DIM

    def __init__(self, task: str) -> None:
        self.task, self.instruction = task, instruction(task)
        # With a seed the class leaves numpy's global generator as it was, and resets once: the expert's goal is set.
        self._env = backend.environments()[task](seed=0)
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.touching_object = functools.partial(touching, self._env)
        self._expert: Any = None
        self._observation: NDArray[np.float64] = np.zeros(0)

    @property
    def model(self) -> Any:
        """MuJoCo's model, for drawing; changing its looks changes no physics."""
        return self._env.model

    @property
    def data(self) -> Any:
        """MuJoCo's data: the scene as it is now, for drawing."""
        return self._env.data

    @property
    def state(self) -> NDArray[np.float32]:
        """The state as it is now, float32 [4]."""
        return self._observation[:STATE_DIM].astype(np.float32)

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Starts an episode whose start and goal are those of ``seed`` (>= 0); returns the state, float32 [4]."""
        self._env.seed(seed)
        self._observation, _ = self._env.reset()
        # Meta-World moves the goal's mark last: without this, the first picture shows it where the last episode had it.
        backend.mujoco().mj_kinematics(self._env.model, self._env.data)
        self._expert = backend.experts()[self.task]()
        return self.state

    def step(self, action: NDArray[np.float32]) -> Step:
        """Applies one action for 12.5 ms.

        Args:
            action: float32 [4] in -1 .. 1; values beyond are clipped.

        Raises:
            DataError: an action that is not four finite numbers, or an episode that was not started.
        """
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise DataError(f"{self.task}: an action is {ACTION_DIM} finite numbers, got {action!r}")
        self._started()
        clipped = np.clip(action, -1, 1).astype(np.float32)
        self._observation, reward, _, _, info = self._env.step(clipped)
        return Step(self.state, float(reward), bool(info["success"] > 0))

    def expert_action(self) -> NDArray[np.float32]:
        """Returns what the scripted expert, which sees the whole state, would do now: float32 [4] in -1 .. 1."""
        self._started()
        with backend.quiet_experts():
            action = self._expert.get_action(self._observation)
        return np.clip(np.asarray(action, np.float32), -1, 1)

    def _started(self) -> None:
        if self._expert is None:
            raise DataError(f"{self.task}: call reset(seed) before the first step")

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()


def touching(env: Any, geom: int) -> bool:
    """Tells whether both pads of the gripper press on something, as ``env.touching_object`` does without the loops.

    Meta-World asks in every step, and goes through all contacts twice: half the time of a step.
    """
    contact = env.data.contact
    pairs, forces = contact.geom, env.data.efc_force[contact.efc_address]
    pressed = (pairs == geom).any(1)
    pads = (env.data.geom(name).id for name in ("leftpad_geom", "rightpad_geom"))
    return all(float(forces[pressed & (pairs == pad).any(1)].sum()) > 0 for pad in pads)
