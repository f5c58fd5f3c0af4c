"""Cheap measures of a generated clip: flicker, frozen pictures, cuts, damage, black quadrants, colour drift, motion.

Which clips to keep is left to `judge`; what the pictures show, and whether physics would allow it, to larger models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyramid.types import Frames
from pyramid.video.filters import BORDER_LUMA, FROZEN_MAD, find_cuts, find_damage, to_luma

PACE_GAP_S = 0.25
_ENDS_SHARE = 0.1
"""Colour drift compares this share of the frames at either end."""
_SLACK_S = 1e-3
"""Rounding of presentation times."""


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """What can be measured of a clip without knowing what it shows; grey levels are of 255, at 64 x 64 pixels."""

    flicker: float
    """Grey levels by which a frame's mean brightness departs from the mean of its two neighbours; mean over frames."""
    frozen_share: float
    """Share of adjacent frames that differ by less than 0.3 grey levels; 0 .. 1."""
    damaged: bool
    """A frozen run with a broken picture at each end."""
    cuts: int
    """Frames that start another shot."""
    black_quadrant: float
    """Black share of the blackest quadrant, all frames together; 0 .. 1, near 1 in a 2x2 grid with three views."""
    colour_drift: float
    """Largest change of a colour channel's mean from the first tenth of the clip to the last; grey levels."""
    motion: float
    """Median mean absolute difference of adjacent frames; grey levels."""
    pace: float
    """The same of frames a quarter of a second apart, so that clips of different rates can be compared; grey levels."""


def score(frames: Frames) -> ClipScores:
    """Measures a clip of at least one frame."""
    luma = to_luma(frames.pixels)
    mad = np.abs(np.diff(luma, axis=0)).mean((1, 2)) if len(luma) > 1 else np.zeros(0, np.float32)
    return ClipScores(
        flicker=round(flicker(luma), 4),
        frozen_share=round(float((mad < FROZEN_MAD).mean()), 4) if len(mad) else 0.0,
        damaged=find_damage(mad) is not None,
        cuts=len(find_cuts(mad)),
        black_quadrant=round(black_quadrant(luma), 4),
        colour_drift=round(colour_drift(frames.pixels), 4),
        motion=round(float(np.median(mad)), 4) if len(mad) else 0.0,
        pace=round(_pace(luma, frames.times_s), 4),
    )


def pace(frames: Frames) -> float:
    """Returns the median mean absolute difference of frames `PACE_GAP_S` apart, grey levels; see `ClipScores.pace`."""
    return round(_pace(to_luma(frames.pixels), frames.times_s), 4)


def _pace(luma: NDArray[np.float32], times_s: NDArray[np.float64]) -> float:
    if len(luma) < 2:
        return 0.0
    after = np.searchsorted(times_s, times_s + PACE_GAP_S - _SLACK_S)
    first = np.flatnonzero(after < len(luma))
    if not len(first):  # A clip of less than a quarter of a second.
        first, after = np.array([0]), np.array([len(luma) - 1])
    return float(np.median(np.abs(luma[after[first]] - luma[first]).mean((1, 2))))


def flicker(luma: NDArray[np.float32]) -> float:
    """Returns the mean of ``|m[t] - (m[t-1] + m[t+1]) / 2|`` of the frames' mean brightness m; 0 for a steady change.

    Args:
        luma: float32 [T, H, W], 0 .. 255.
    """
    brightness = luma.mean((1, 2), dtype=np.float64)
    if len(brightness) < 3:
        return 0.0
    return float(np.abs(brightness[1:-1] - (brightness[:-2] + brightness[2:]) / 2).mean())


def black_quadrant(luma: NDArray[np.float32]) -> float:
    """Returns the share of pixels below luma 16 in the quadrant that has most of them.

    Args:
        luma: float32 [T, H, W], 0 .. 255.
    """
    black = (luma < BORDER_LUMA).mean(0)
    middle, centre = black.shape[0] // 2, black.shape[1] // 2
    halves = [black[:middle], black[middle:]]
    return max(float(part.mean()) for half in halves for part in (half[:, :centre], half[:, centre:]))


def colour_drift(pixels: NDArray[np.uint8]) -> float:
    """Returns by how much the mean of a colour channel changes from the first tenth of the frames to the last.

    Args:
        pixels: uint8 [T, H, W, 3].
    """
    ends = max(1, round(len(pixels) * _ENDS_SHARE))
    first, last = (part.mean((0, 1, 2), dtype=np.float64) for part in (pixels[:ends], pixels[-ends:]))
    return float(np.abs(last - first).max())
