"""Which episodes a simulated data set has: their tasks, files and seeds, as pure functions of the config.

Running them is left to `stage`, the order of work to `dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyramid.corpora.naming import dreamgen_name
from pyramid.lerobot.schema import DATA_PATH, Layout, ModalityGroup, fill_path
from pyramid.rng import seed_of
from pyramid.sim.config import ACTION_NAMES, CONTROL_HZ, STATE_NAMES, SimConfig
from pyramid.sim.tasks import instruction

Part = Literal["hand", "generated", "robot"]
PARTS: tuple[Part, ...] = ("hand", "generated", "robot")
"""The folders of a data set: base, middle and top of the pyramid."""
_STRIDE: dict[Part, int] = {"hand": 1, "generated": 2, "robot": 1}
ROBOT_TYPE = "metaworld_sawyer"


def fps_of(part: Part) -> float:
    """Returns the frames per second of a part; generated clips come at half the rate, as video models' do."""
    return CONTROL_HZ / _STRIDE[part]


def stride_of(config: SimConfig, part: Part) -> int:
    """Returns every how manieth step is drawn: leaving steps out at the same rate is moving faster."""
    return _STRIDE[part] * (config.hand.speed if part == "hand" else 1)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One episode to be made."""

    part: Part
    """The folder it belongs to."""
    index: int
    """Its number within the part, from 0."""
    task: str
    """Meta-World's name of its task."""
    file: str
    """Its video, or for the robot its Parquet file, relative to the data set's folder."""

    @property
    def name(self) -> str:
        """A name that no other item has."""
        return f"{self.part}-{self.index:06d}"

    def seed(self, seed: int, attempt: int) -> int:
        """Returns the environment's seed; no two parts ever share one."""
        # The last two bits belong to the part, so that disjointness is no matter of luck.
        return seed_of(seed, "sim", self.part, self.task, self.index, attempt) >> 2 << 2 | PARTS.index(self.part)


def items(config: SimConfig, part: Part) -> list[Item]:
    """Returns the episodes of one part in the order of their numbers; tasks take turns."""
    counts = {"hand": config.n_hand, "generated": config.n_generated, "robot": config.n_robot}
    tasks = [config.tasks[i % len(config.tasks)] for i in range(counts[part])]
    return [
        Item(part=part, index=i, task=task, file=_file(part, i, i // len(config.tasks), task))
        for i, task in enumerate(tasks)
    ]


def _file(part: Part, index: int, turn: int, task: str) -> str:
    if part == "hand":
        return f"hand/{task}-{turn:03d}.mp4"
    if part == "generated":
        return f"generated/{dreamgen_name(index, instruction(task))}.mp4"
    return f"robot/{fill_path(DATA_PATH, index=index)}"


def robot_layout(config: SimConfig) -> Layout:
    """Returns what every robot episode has."""
    return Layout(
        fps=CONTROL_HZ,
        robot_type=ROBOT_TYPE,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        cameras=(config.camera.lower(),),
        height_px=config.size_px,
        width_px=config.size_px,
        state_groups=(
            ("hand_position", ModalityGroup(start=0, end=3)),
            ("gripper_opening", ModalityGroup(start=3, end=4)),
        ),
        action_groups=(
            ("hand_delta", ModalityGroup(start=0, end=3, absolute=False)),
            ("gripper_effort", ModalityGroup(start=3, end=4)),
        ),
    )
