"""What a simulated data set is made of.

Making it is left to `dataset`, breaking a picture on purpose to `degrade`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyramid.sim.tasks import INSTRUCTIONS

CONTROL_HZ = 80.0
"""Steps per second of Meta-World: 5 physics steps of 2.5 ms each."""
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper")
"""The state: where the hand is (m) and how far the gripper is open (0 .. 1)."""
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "gripper")
"""The action, -1 .. 1: hand displacement in cm per step, and the gripper's effort (closing is positive)."""
CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Cameras of the scene; ``corner4`` is where LeRobot's wrapper moves ``corner2`` to."""
_FARTHEST_M = 10.0


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """How a rendered clip is made to look like one that a video model generated."""

    flicker: float = 0.006
    """Standard deviation of a frame's brightness gain; share of 1, >= 0."""
    drift: float = 0.06
    """Largest change of a colour channel's gain from the first frame to the last; share of 1, >= 0."""
    blur_px: int = 1
    """Radius of the blur; pixels, >= 0."""
    ghost: float = 0.25
    """Share of the frame before that shows through; 0 .. 1 (exclusive)."""
    noise: float = 1.5
    """Standard deviation of grain; grey levels of 255, >= 0."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("flicker", "drift", "blur_px", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.ghost < 1:
            raise ValueError(f"ghost must be within 0 .. 1 (exclusive), got {self.ghost}")


@dataclass(frozen=True, kw_only=True)
class HandConfig:
    """How a person was filmed: not where the robot's camera stands, not at its pace, not in its light."""

    camera: str = ""
    """Camera of the scene; empty takes the robot's."""
    speed: int = 1
    """How many times as fast as the robot the hand moves; 1 .. 8."""
    light: float = 1.0
    """Brightness of the lights relative to the robot's; 0.1 .. 4."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.camera and self.camera not in CAMERAS:
            raise ValueError(f"hand.camera must be one of {', '.join(CAMERAS)}, got '{self.camera}'")
        if not 1 <= self.speed <= 8:
            raise ValueError(f"hand.speed must be within 1 .. 8, got {self.speed}")
        if not 0.1 <= self.light <= 4:
            raise ValueError(f"hand.light must be within 0.1 .. 4, got {self.light}")


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """A small data pyramid from Meta-World: hand videos, generated-looking clips and robot episodes.

    Episodes are dealt over the tasks in turn, so that a larger number only adds episodes to a smaller one.
    """

    tasks: tuple[str, ...] = ("push-v3", "reach-v3", "button-press-topdown-v3")
    """Names of Meta-World tasks."""
    n_hand: int = 24
    """Videos of a floating hand without actions, over all tasks; >= 0."""
    n_generated: int = 8
    """Clips that look generated, over all tasks; >= 0."""
    n_robot: int = 10
    """Robot episodes with states and actions, over all tasks; >= 0."""
    size_px: int = 128
    """Height and width of every picture; pixels, even, 16 .. 1024."""
    camera: str = "corner4"
    """Camera of the scene."""
    fovy_deg: float = 45.0
    """Vertical field of view of the camera; degrees, 5 .. 120 (Meta-World's own is 60, with a small hand)."""
    look_at: tuple[float, float, float] | None = None
    """Where the camera is turned to, from where it stands; metres, x y z of the world. None: as Meta-World has it."""
    oversample: int = 1
    """Draw pictures so many times as large and average them, so that small things stay whole; 1 .. 4."""
    action_noise: float = 0.3
    """Standard deviation of the noise on the expert's actions; 0 .. 1."""
    seed: int = 0
    """Decides every start, goal and noise; >= 0."""
    max_steps: int = 200
    """An expert that has not succeeded by then has failed; steps, 1 .. 500."""
    success_only: bool = True
    """Replace an episode in which the expert failed by the next of its seeds."""
    robot_look: Literal["robot", "hand"] = "robot"
    """How robot episodes look; ``hand`` makes hand videos with true actions, which no real corpus has: a reference."""
    hand: HandConfig = field(default_factory=HandConfig)
    """How hand videos differ from the robot's, beyond who acts."""
    degrade: DegradeConfig = field(default_factory=DegradeConfig)
    """How the generated-looking clips are spoilt."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must name at least one task, each once, got {self.tasks}")
        unknown = [task for task in self.tasks if task not in INSTRUCTIONS]
        if unknown:
            raise ValueError(f"tasks {unknown} are none of Meta-World's {len(INSTRUCTIONS)}, such as 'push-v3'")
        ranges = {
            "n_hand": (0, 10**6),
            "n_generated": (0, 10**6),
            "n_robot": (0, 10**6),
            "size_px": (16, 1024),
            "fovy_deg": (5, 120),
            "oversample": (1, 4),
            "action_noise": (0, 1),
            "seed": (0, 2**62),
            "max_steps": (1, 500),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be within {low} .. {high}, got {getattr(self, name)}")
        if self.size_px % 2:
            raise ValueError(f"size_px must be even for H.264, got {self.size_px}")
        if self.camera not in CAMERAS:
            raise ValueError(f"camera must be one of {', '.join(CAMERAS)}, got '{self.camera}'")
        require_place(self.look_at)


def require_place(look_at: tuple[float, float, float] | None) -> None:
    """Refuses a place that is none.

    Raises:
        ValueError: it is not within 10 m of the world's middle, or not a number.
    """
    if look_at is not None and not all(abs(value) <= _FARTHEST_M for value in look_at):
        raise ValueError(f"look_at must be three numbers within -{_FARTHEST_M} .. {_FARTHEST_M} m, got {look_at}")
