"""What speaks against a generated clip: limits on its scores, and the sentence that names the one it breaks.

Measuring is left to `scores`, running over a whole source to `judge`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from neural_traj.scores import ClipScores


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
    drop_damaged: bool = True
    """Drop clips with a frozen run between broken pictures."""

    def __post_init__(self) -> None:
        """Refuses limits that no measure could have."""
        for limit in dataclasses.fields(self):
            if getattr(self, limit.name) < 0:
                raise ValueError(f"{limit.name} must be 0 or more, got {getattr(self, limit.name)}")
        for name in ("max_frozen_share", "max_black_quadrant"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a share of 1, got {getattr(self, name)}")


def objection(scores: ClipScores, config: JudgeConfig) -> str:
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
    return f"motion {scores.motion:g} < {config.min_motion:g}" if scores.motion < config.min_motion else ""
