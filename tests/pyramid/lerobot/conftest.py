"""A small data set that the tests write and read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pyramid.lerobot import EpisodeData, Layout, ModalityGroup, write_v21
from pyramid.rng import rng

TASKS = ("pick up the cup", "close the drawer")


@pytest.fixture
def layout() -> Layout:
    return Layout(
        fps=20.0,
        robot_type="test_arm",
        state_names=("x", "y", "gripper"),
        action_names=("dx", "dy"),
        cameras=("front", "wrist"),
        height_px=32,
        width_px=48,
        state_groups=(("arm", ModalityGroup(start=0, end=2)), ("gripper", ModalityGroup(start=2, end=3))),
        action_groups=(("arm", ModalityGroup(start=0, end=2, absolute=False)),),
    )


@pytest.fixture
def episode_of(layout: Layout) -> Callable[[int], EpisodeData]:
    """Returns a function that makes episode ``i``: smooth pictures, random numbers, ``9 + i`` rows."""

    def make(i: int) -> EpisodeData:
        generator, n = rng(0, "episode", i), 9 + i
        ramp = np.linspace(0, 200, layout.width_px)[None, None, :, None] + 5.0 * np.arange(n)[:, None, None, None]
        picture = np.broadcast_to(ramp, (n, layout.height_px, layout.width_px, 3)).astype(np.uint8)
        return EpisodeData(
            state=generator.normal(size=(n, 3)).astype(np.float32),
            action=generator.normal(size=(n, 2)).astype(np.float32),
            frames={"front": picture, "wrist": picture[:, ::-1, ::-1].copy()},
            task=TASKS[i % 2],
            facts={"seed": i},
        )

    return make


@pytest.fixture
def written(tmp_path: Path, layout: Layout, episode_of: Callable[[int], EpisodeData]) -> Path:
    out = tmp_path / "arm"
    write_v21(str(out), (episode_of(i) for i in range(3)), layout=layout, tasks=TASKS)
    return out
