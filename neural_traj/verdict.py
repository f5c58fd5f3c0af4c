"""What speaks against a generated clip: limits on its scores, and the sentence that names the one it breaks.

Measuring is left to `scores`, running over a whole source to `judge`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neural_traj.reference import Reference
from neural_traj.scores import ClipScores
from neural_traj.vlm import VLMConfig


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What a clip may be like. Eight published GR00T-Dreams clips, all of use, stay well inside the defaults."""

    max_flicker: float = 2.0
    """Grey levels of 255, >= 0; the eight reach 0.64."""
    max_frozen_share: float = 0.5
    """Share of frames, 0 .. 1; the eight reach 0.19."""
    max_cuts: int = 0
    """Shots after the first, >= 0."""
    max_black_quadrant: float = 1.0
    """Share of black pixels, 0 .. 1; 0.95 drops 2x2 grids with three views, 1 drops nothing."""
    max_colour_drift: float = 25.0
    """Grey levels of 255, >= 0; the eight reach 14."""
    min_motion: float = 0.1
    """Grey levels of 255, >= 0; the eight begin at 1.5."""
    max_motion: float = 255.0
    """Grey levels of 255, >= 0; what no camera or robot of the data reaches; the eight end at 14.1."""
    reference: str = ""
    """Real clips (shards, a manifest, a folder of videos) whose motion bounds that of generated ones: those outside the
    1 and 99 % quantiles of ``pace`` are dropped; empty for none."""
    drop_damaged: bool = True
    """Drop clips with a frozen run between broken pictures."""
    copy_levels: float = 6.0
    """Clips no block of which differs by more at eight moments are copies of one content, grey levels of 255, >= 0; all
    but the first are dropped; 0 looks for none."""
    best_of: int = 0
    """Clips to keep of each instruction, the best ones, >= 0; 0 keeps all that nothing speaks against."""
    vlm: VLMConfig = field(default_factory=VLMConfig)
    """Who is asked whether clips follow their instruction and obey physics."""
    min_follows: float = 0.5
    """Least mark for following the instruction, 0 .. 1, where a vision-language model was asked."""
    min_physics: float = 0.5
    """Least mark for obeying physics, 0 .. 1, where a vision-language model was asked."""

    def __post_init__(self) -> None:
        """Refuses limits that no measure could have."""
        for name in (limit.name for limit in dataclasses.fields(self) if limit.name not in ("vlm", "reference")):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("max_frozen_share", "max_black_quadrant", "min_follows", "min_physics"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share of 1, got {getattr(self, name)}")


def objection(scores: ClipScores, config: JudgeConfig, reference: Reference | None = None) -> str:
    """Returns the first thing that speaks against a clip, with both numbers; empty if nothing does."""
    if scores.damaged and config.drop_damaged:
        return "damaged (a frozen run between broken pictures)"
    over = {
        "cuts": config.max_cuts,
        "frozen_share": config.max_frozen_share,
        "flicker": config.max_flicker,
        "colour_drift": config.max_colour_drift,
        "black_quadrant": config.max_black_quadrant,
    }
    for name, most in over.items():
        if getattr(scores, name) > most:
            return f"{name} {getattr(scores, name):g} > {most:g}"
    if scores.motion > config.max_motion:
        return f"motion {scores.motion:g} > {config.max_motion:g}"
    if scores.motion < config.min_motion:
        return f"motion {scores.motion:g} < {config.min_motion:g}"
    return reference.objection(scores.pace) if reference else ""


def strain(row: Mapping[str, Any], config: JudgeConfig) -> float:
    """Returns how much of its limits a clip uses up, by the measure that uses most; above 1 is over one of them.

    Args:
        row: a row of the table of scores.
        config: the limits; those of 0 are not counted, but for what exceeds them.
    """
    limits = {"flicker": config.max_flicker, "frozen_share": config.max_frozen_share, "cuts": config.max_cuts}
    limits |= {"colour_drift": config.max_colour_drift, "motion": config.max_motion}
    parts = [row[name] / most if most else math.inf * bool(row[name]) for name, most in limits.items() if row[name]]
    still = config.min_motion / row["motion"] if row["motion"] else math.inf * bool(config.min_motion)
    return max([*parts, still if not math.isnan(still) else 0.0, math.inf if row["damaged"] else 0.0])
