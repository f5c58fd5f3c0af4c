"""The order of training pairs of data that is too large to lie decoded in memory: a few clips at a time.

The order is a mixture's (`pyramid.mixture.order`): a pure function of seed and number, so that any step can be asked
for. Which frames make a pair is left to `lam.pairs`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyramid.mixture.order import ItemOrder
from pyramid.shards.frames import ClipFrames

__all__ = ["PairOrder"]

_WINDOW_SHARDS = 64
_ROUNDING = 1e-6


class PairOrder:
    """Which clip, and which part of it, the n-th pair of a training is from.

    Every clip has as many places as frames with room for a pair behind them; each comes once before any comes again.

    Args:
        clips: the training clips.
        room_s: float64 [clips], seconds of each clip in which a pair can start; 0 and less: none.
        seed: seed of the order.
        spread: frames over which the pairs of a clip are spread: those of about so many frames are mixed at any time.
    """

    def __init__(self, clips: ClipFrames, room_s: NDArray[np.float64], *, seed: int, spread: int) -> None:
        places = np.ceil(np.maximum(room_s, 0) / clips.periods_s - _ROUNDING).astype(np.int64)
        frames = np.array([row["frames"] for row in clips.rows], np.int64) * (places > 0)
        self._places, self._ends = places, np.cumsum(places)
        self._order = ItemOrder(
            seed, "lam", places, frames, _shard_numbers(clips), window=_WINDOW_SHARDS, spread=spread
        )

    @property
    def n_places(self) -> int:
        """Pairs of an epoch."""
        return int(self._ends[-1])

    def at(self, number: int, within: float) -> tuple[int, float]:
        """Returns the clip of a pair, and where in the room for starts it begins, a share in [0, 1).

        Args:
            number: number of the pair in the training, >= 0.
            within: where in its place, a share in [0, 1).
        """
        item = self._order.at(number)
        clip = int(np.searchsorted(self._ends, item, side="right"))
        step = item - int(self._ends[clip] - self._places[clip])
        return clip, (step + within) / int(self._places[clip])


def _shard_numbers(clips: ClipFrames) -> NDArray[np.int64]:
    """Returns the number of each clip's shard, ascending over all folders."""
    shards = [(id(source), row["shard"]) for (source, _), row in zip(clips.sources, clips.rows, strict=True)]
    begins = np.array([i > 0 and shards[i] != shards[i - 1] for i in range(len(shards))])
    return np.cumsum(begins).astype(np.int64)
