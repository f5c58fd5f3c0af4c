"""How fast things move in real robot data: the range that the motion of generated clips is held against.

Scoring a clip is left to `scores`, deciding to `verdict`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neural_traj.clips import open_clips
from neural_traj.scores import PACE_GAP_S, pace
from pyramid.errors import DataError, SkipItemError
from pyramid.progress import Progress

QUANTILES = (0.01, 0.99)
"""Share of the reference's clips that are slower than the range, and that are not faster."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The range of ``pace`` in a source of real clips."""

    source: str
    """Where the clips are."""
    clips: int
    """Clips measured."""
    gap_s: float
    """Seconds between the frames that were compared."""
    low: float
    """1 % quantile of the clips' pace, grey levels."""
    high: float
    """99 % quantile."""
    digest: str
    """Digest of what the clips are."""

    def objection(self, found: float) -> str:
        """Returns what speaks against a pace, with both numbers; empty if it lies in the range."""
        if found < self.low:
            return f"pace {found:g} < {self.low:g} (1 % of '{self.source}')"
        return f"pace {found:g} > {self.high:g} (99 % of '{self.source}')" if found > self.high else ""


def measure_reference(source: str) -> Reference:
    """Measures real clips.

    Args:
        source: a folder of packed shards, a clip manifest, or a folder of videos.

    Raises:
        DataError: it is missing, or fewer than two of its clips can be measured.
    """
    candidates, found = open_clips(source), []
    with Progress("reference", len(candidates.clips)) as progress:
        for clip in candidates.clips:
            try:
                found.append(pace(clip.load()))
            except (SkipItemError, DataError):
                continue
            finally:
                progress.add()
    if len(found) < 2:
        raise DataError(f"reference '{source}': {len(found)} of {len(candidates.clips)} clips decode, 2 are needed")
    low, high = (round(float(value), 4) for value in np.quantile(found, QUANTILES))
    return Reference(source=source, clips=len(found), gap_s=PACE_GAP_S, low=low, high=high, digest=candidates.digest)
