"""How votes for one step join where a plain mean would be wrong: rotations and switches.

Which votes there are, and the mean of all other dimensions, is left to `idm.windows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idm.groups import ActionGroup
from idm.rotations import mean_rotation
from pyramid.normalize import Normalizer

__all__ = ["JoinRule"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class JoinRule:
    """The dimensions of an action that need a rule of their own; votes come and go in normalised units."""

    groups: Sequence[ActionGroup]
    """All groups; ``linear`` ones are left alone."""
    normalizer: Normalizer
    """Between normalised and physical units, in which rotations are rotations."""
    low: NDArray[np.floating]
    """float [D]: least training action, physical units; what a switch says when it is off."""
    high: NDArray[np.floating]
    """float [D]: greatest training action."""

    def join(
        self, chunks: Mapping[int, NDArray[np.floating]], weights: NDArray[np.floating], mean: Array, variance: Array
    ) -> None:
        """Overwrites the mean and variance of the dimensions with a rule of their own.

        Args:
            chunks: start -> float [R, H, D], normalised units; each of the R draws is a vote.
            weights: float [H, D], what each vote counts.
            mean: float64 [T, D], normalised units; overwritten.
            variance: float64 [T, D], the same; where a single vote has no spread it stays 0, but for switches.
        """
        special = [group for group in self.groups if group.kind != "linear"]
        if not special:
            return
        starts = np.array(sorted(chunks))
        values = np.stack([chunks[start] for start in starts]).astype(np.float64)
        draws, horizon = values.shape[1:3]
        for step in range(len(mean)):
            voters = np.flatnonzero((starts <= step) & (step < starts + horizon))
            places = step - starts[voters]
            for group in special:
                votes = values[voters, :, places][..., group.span].reshape(-1, group.end - group.start)
                count = np.repeat(weights[places][:, group.span], draws, axis=0)
                join = self._switch if group.kind == "binary" else self._rotation
                mean[step, group.span], variance[step, group.span] = join(group, votes, count)

    def _switch(self, group: ActionGroup, votes: Array, weights: NDArray[np.floating]) -> tuple[Array, Array]:
        """The side that has the greater share of the weight; the share is the probability p, p (1 - p) its variance."""
        off, on = (self._normalised(side)[group.span] for side in (self.low, self.high))
        reach = on - off
        on_share = np.clip((votes - off) / np.where(reach == 0, 1, reach), 0, 1)
        p = (weights * on_share).sum(0) / weights.sum(0)
        return np.where(p >= 0.5, on, off), p * (1 - p) * reach**2

    def _rotation(self, group: ActionGroup, votes: Array, weights: NDArray[np.floating]) -> tuple[Array, Array]:
        scale, center = (np.asarray(v, np.float64)[group.span] for v in (self.normalizer.scale, self.normalizer.center))
        count = weights.mean(1).astype(np.float64)
        mean, near = mean_rotation(votes * scale + center, count, group.kind)
        unit = np.where(scale == 0, 1, scale)
        spread = count @ ((near - mean) / unit) ** 2 / count.sum() if len(votes) > 1 else np.zeros_like(mean)
        return np.where(scale == 0, 0, (mean - center) / unit), np.where(scale == 0, 0, spread)

    def _normalised(self, values: NDArray[np.floating]) -> Array:
        """Not clipped: the mean of rotations may lie outside the range that the normaliser clips to."""
        scale = np.asarray(self.normalizer.scale, np.float64)
        return np.where(scale == 0, 0, (values - self.normalizer.center) / np.where(scale == 0, 1, scale))
