"""From overlapping action chunks to one action per control step, and the limits that it must keep; numpy alone.

When a chunk is asked for, and what is done when none comes, is `vla.deploy.control`'s.

Shapes: N chunk steps, D action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyramid.normalize import Normalizer

__all__ = ["ActionLimits", "ChunkPlayer", "Inpainting", "action_limits"]

Array = NDArray[np.float32]
_SPREADS = 4.0
"""Standard deviations that count as the range where the statistics know mean and spread alone."""


class ChunkPlayer:
    """Plays chunks that were asked for at different steps.

    Without `decay` the newest chunk that covers a step gives its action (receding horizon). With it, all chunks that
    cover the step are averaged with weights ``exp(-decay i)``, i = 0 for the oldest: temporal ensembling (ACT, arXiv
    2304.13705).

    Args:
        decay: >= 0, or None for the newest chunk alone.
    """

    def __init__(self, decay: float | None = None) -> None:
        self._decay = decay
        self._chunks: list[tuple[int, Array]] = []

    def add(self, chunk: Array, step: int) -> None:
        """Takes in a chunk float32 [N, D] whose first row is meant for control step `step`."""
        self._chunks = [(s, c) for s, c in self._chunks if s + len(c) > step and self._decay is not None]
        self._chunks.append((step, chunk))

    def action(self, step: int) -> Array | None:
        """Returns the action float32 [D] of a step; None when no chunk covers it."""
        rows = [chunk[step - start] for start, chunk in self._chunks if 0 <= step - start < len(chunk)]
        if not rows:
            return None
        if self._decay is None:
            return np.asarray(rows[-1], np.float32)
        weights = np.exp(-self._decay * np.arange(len(rows)))
        return np.asarray(np.average(rows, axis=0, weights=weights), np.float32)

    def rest(self, step: int) -> Array | None:
        """Returns what the newest chunk still holds from `step` on, float32 [n, D]; None when nothing is left."""
        if not self._chunks:
            return None
        start, chunk = self._chunks[-1]
        left = chunk[step - start :] if step >= start else chunk
        return left if len(left) else None


@dataclass(frozen=True)
class Inpainting:
    """How a new chunk is tied to the one before it while it is denoised (real-time chunking, arXiv 2506.07339).

    The published N1.7 head's form: the old actions replace the noise, and the velocity is scaled by 0 for the frozen
    steps, then by ``1 - exp(-ramp t)`` with t from 0 to 1 over the rest of the overlap, and by 1 behind it.
    """

    previous: Array
    """float32 [n, D], physical units: what the old chunk says from now on."""
    frozen: int
    """First steps that are kept as they are, >= 0."""
    ramp: float = 6.0
    """How fast the others are let go, > 0."""

    def scale(self, horizon: int) -> Array:
        """Returns the factor on the velocity of each step, float32 [N, 1]."""
        overlap = min(len(self.previous), horizon)
        frozen = min(self.frozen, overlap)
        t = (np.arange(frozen, overlap) - frozen + 1) / max(overlap - frozen, 1)
        ramp = 1 - np.exp(-self.ramp * t)
        return np.concatenate([np.zeros(frozen), ramp, np.ones(horizon - overlap)]).astype(np.float32)[:, None]


@dataclass(frozen=True)
class ActionLimits:
    """What an action may be, in physical units."""

    low: Array
    """float32 [D]."""
    high: Array
    """float32 [D]."""
    change: Array
    """Largest change from one control step to the next, float32 [D]."""

    def apply(self, action: Array, last: Array | None) -> tuple[Array, list[int]]:
        """Returns an action within the limits, and the dimensions that had to be limited.

        Args:
            action: float32 [D], finite.
            last: the action before it; None when there is none.
        """
        out = np.clip(action, self.low, self.high)
        if last is not None:
            out = np.clip(out, last - self.change, last + self.change)
        return out.astype(np.float32), [int(d) for d in np.flatnonzero(out != action)]


def action_limits(statistics: Normalizer, *, margin: float, change: float) -> ActionLimits:
    """Reads limits off the statistics of the training data.

    Args:
        statistics: the action's normaliser; `identity` knows no range and gives no limits.
        margin: how far outside the range of the data an action may lie, as a share of half the range, >= 0.
        change: largest change per control step, as a share of half the range, > 0.
    """
    spread = np.float32(_SPREADS if statistics.kind == "mean_std" else 1.0)
    half = statistics.scale * spread
    if statistics.kind == "identity":
        half = np.full_like(half, np.inf)
    wide = half * np.float32(1 + margin)
    return ActionLimits(statistics.center - wide, statistics.center + wide, half * np.float32(change))
