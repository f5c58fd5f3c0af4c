"""Episodes of the scripted expert: frames, states, actions, row by row.

Which seeds are run and where the result is kept is left to `dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyramid.rng import rng
from pyramid.sim.config import CONTROL_HZ
from pyramid.sim.env import ACTION_DIM, STATE_DIM, MetaWorldEnv
from pyramid.sim.render import Renderer


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One episode; row t of state and action belongs to frame ``t / frame_stride``."""

    frames: NDArray[np.uint8]
    """uint8 [ceil(T / frame_stride), H, W, 3], RGB; [0, 0, 0, 3] when nothing was drawn."""
    state: NDArray[np.float32]
    """float32 [T, 4]: hand x, y, z (m), gripper opening (0 .. 1), before the action."""
    action: NDArray[np.float32]
    """float32 [T, 4] in -1 .. 1: what was applied, noise included."""
    task: str
    """Meta-World's name of the task."""
    instruction: str
    """The task in a sentence."""
    seed: int
    """Decides start, goal and noise."""
    success: bool
    """Whether the last step solved the task."""
    frame_stride: int = 1
    """Every how manieth step was drawn."""

    def __len__(self) -> int:
        return len(self.state)

    @property
    def fps(self) -> float:
        """Frames per second of simulated time."""
        return CONTROL_HZ / self.frame_stride

    def __repr__(self) -> str:
        outcome = "solved" if self.success else "not solved"
        return f"Episode({self.task}, seed {self.seed}, {len(self)} steps, frames {self.frames.shape}, {outcome})"


def rollout_expert(
    env: MetaWorldEnv,
    *,
    seed: int,
    action_noise: float = 0.3,
    max_steps: int = 200,
    renderer: Renderer | None = None,
    frame_stride: int = 1,
) -> Episode:
    """Runs the scripted expert with noise on its actions until it succeeds or ``max_steps`` are over.

    Args:
        env: the task; is reset.
        seed: decides start, goal and noise, whether anything is drawn or not.
        action_noise: standard deviation of the noise; the noisy action is clipped to -1 .. 1 and recorded.
        max_steps: steps after which to give up.
        renderer: draws frames before each ``frame_stride``-th step; None draws nothing, which is ten times as fast.
        frame_stride: 2 halves the frame rate.
    """
    noise = rng(seed, "action_noise")
    state, success = env.reset(seed), False
    frames: list[NDArray[np.uint8]] = []
    states: list[NDArray[np.float32]] = []
    actions: list[NDArray[np.float32]] = []
    while len(actions) < max_steps and not success:
        if renderer is not None and len(actions) % frame_stride == 0:
            frames.append(renderer.frame(env.data))
        shaken = env.expert_action() + noise.normal(0.0, action_noise, ACTION_DIM)
        action = np.clip(shaken, -1, 1).astype(np.float32)
        step = env.step(action)
        states.append(state)
        actions.append(action)
        state, success = step.state, step.success
    return Episode(
        frames=np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8),
        state=np.stack(states) if states else np.zeros((0, STATE_DIM), np.float32),
        action=np.stack(actions) if actions else np.zeros((0, ACTION_DIM), np.float32),
        task=env.task,
        instruction=env.instruction,
        seed=seed,
        success=success,
        frame_stride=frame_stride,
    )
