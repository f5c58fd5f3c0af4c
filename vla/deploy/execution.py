"""From overlapping action chunks to one action per control step, and the limits that it must keep; numpy alone.

When a chunk is asked for, and what is done when none comes, is `vla.deploy.control`'s.

Shapes: N chunk steps, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyramid.actions.chunks import ChunkCodec
from pyramid.errors import DataError
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment

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

    The rules are those of `pyramid.nn.realtime`, of which a graph without gradients can run two: with "line", a bound
    step follows the straight line from its noise to the old action; with "published" (N1.6, N1.7) the old actions
    replace the noise. Steps are bound wholly while frozen, less and less over the rest of the overlap, then not at all.
    """

    previous: Array
    """float32 [n, D], physical units: what the old chunk says from now on; rows past a chunk's length are not read."""
    frozen: int
    """First steps that are kept as they are, >= 0; more than the old chunk has left are as many as it has."""
    ramp: float = 6.0
    """How fast the others are let go, > 0."""
    rule: Literal["line", "published"] = "line"
    """How the others are bound."""

    def free(self, horizon: int) -> Array:
        """Returns how free each step is, float32 [N, 1]: 0 while frozen, 1 past the overlap, rising in between."""
        overlap = min(len(self.previous), horizon)
        frozen = min(self.frozen, overlap)
        rise = 1 - np.exp(-self.ramp * np.linspace(0, 1, overlap - frozen + 2))
        parts = [np.zeros(frozen), (rise / rise[-1])[1:-1], np.ones(horizon - overlap)]
        return np.concatenate(parts).astype(np.float32)[:, None]

    def planned(self, body: Embodiment, statistics: Normalizer, state: Array | None) -> Array:
        """Returns the old chunk as a network would be taught it now, normalised, float32 [min(n, N), E].

        Args:
            body: whose actions they are.
            statistics: of its encoded actions.
            state: float32 [S], physical units; what delta and relative actions begin from.

        Raises:
            DataError: the old chunk is empty, of another width or not finite, or the state is missing.
        """
        old = np.asarray(self.previous, np.float32)[: body.horizon]
        if old.ndim != 2 or not len(old) or old.shape[1] != body.action_dim:
            raise DataError(f"the chunk under way must be float [1 or more, {body.action_dim}], got {list(old.shape)}")
        if not np.isfinite(old).all():
            raise DataError("the chunk under way has values that are not finite")
        if self.frozen < 0 or not self.ramp > 0:
            raise DataError(f"the chunk under way needs frozen >= 0 and ramp > 0, got {self.frozen} and {self.ramp}")
        whole = np.concatenate([old, np.repeat(old[-1:], body.horizon - len(old), axis=0)])
        spread = np.where(statistics.scale == 0, 1, statistics.scale)
        # Not clipped: what the robot is about to do may lie outside the range of the data.
        encoded = (body.encode_action(whole, state) - statistics.center) / spread
        return np.where(statistics.scale == 0, 0, encoded)[: len(old)].astype(np.float32)


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


def action_limits(
    statistics: Normalizer, *, margin: float, change: float, body: Embodiment | None = None
) -> ActionLimits:
    """Reads limits off the statistics of the training data.

    Of a body with a declaration, the statistics are those of the encoded actions. Absolute numbers are limited as they
    are; delta and relative ones begin at the state, so that only their change is limited; rotations are not.

    Args:
        statistics: the action's normaliser; `identity` knows no range and gives no limits.
        margin: how far outside the range of the data an action may lie, as a share of half the range, >= 0.
        change: largest change per control step, as a share of half the range, > 0.
        body: whose actions they are; None for one without a declaration.
    """
    if body is not None and body.codec is not None:
        return _declared_limits(body.codec, body.action_dim, statistics, margin=margin, change=change)
    spread = np.float32(_SPREADS if statistics.kind == "mean_std" else 1.0)
    half = statistics.scale * spread
    if statistics.kind == "identity":
        half = np.full_like(half, np.inf)
    wide = half * np.float32(1 + margin)
    return ActionLimits(statistics.center - wide, statistics.center + wide, half * np.float32(change))


def _declared_limits(
    codec: ChunkCodec, action_dim: int, statistics: Normalizer, *, margin: float, change: float
) -> ActionLimits:
    low, high, steps = (np.full(action_dim, v, np.float32) for v in (-np.inf, np.inf, np.inf))
    # Statistics per step of the chunk: the widest step counts.
    center, scale = np.atleast_2d(statistics.center), np.atleast_2d(statistics.scale)
    for index, dimension in _dimensions(codec):
        column = codec.action_columns[index]
        half = scale[:, index] * (_SPREADS if column.rule == "mean_std" else 1.0)
        if column.rule == "identity":
            continue
        if column.by_step:
            steps[dimension] = change * (np.abs(center[:, index]) + half).max()
            continue
        low[dimension] = (center[:, index] - half * (1 + margin)).min()
        high[dimension] = (center[:, index] + half * (1 + margin)).max()
        steps[dimension] = np.inf if column.rule == "binary" else change * half.max()
    return ActionLimits(low, high, steps)


def _dimensions(codec: ChunkCodec) -> Iterator[tuple[int, int]]:
    """Yields encoded dimensions that are a single number of the action, and which one."""
    at = 0
    for part in codec.spec.action.values():
        width = part.width if not part.rotation else 6 + 3 * (part.kind == "pose")
        # Of a pose, an absolute position is three numbers of the action; a relative one is in the state's frame.
        plain = part.width if not part.rotation else 3 * (part.kind == "pose" and part.representation == "absolute")
        yield from ((at + d, part.start + d) for d in range(plain))
        at += width
