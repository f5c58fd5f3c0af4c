"""The order of a source's items: a keyed shuffle of its shards, then of the items in each window of shards.

A pure function of (seed, source, epoch, position); every item comes exactly once per epoch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pyramid.rng import rng

_KEPT_WINDOWS = 4


class ItemOrder:
    """The order of one source.

    Args:
        seed: the mixture's seed.
        source: the source's name.
        sizes: items of each shard, int64 [shards]; items are numbered through in the order of the shards.
        window: shards whose items are shuffled among each other.
    """

    def __init__(self, seed: int, source: str, sizes: NDArray[np.int64], *, window: int) -> None:
        self.seed, self.source, self.sizes, self.window = seed, source, np.asarray(sizes, np.int64), window
        self.n_items = int(self.sizes.sum())
        self._first = np.cumsum(self.sizes) - self.sizes
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._items = lru_cache(maxsize=_KEPT_WINDOWS)(self._make_window)

    def __reduce__(self) -> tuple[object, ...]:
        """Goes to another process without its caches."""
        return (_rebuilt, (self.seed, self.source, self.sizes, self.window))

    def at(self, rank: int) -> int:
        """Returns the item that is the source's ``rank``-th sample, counted over all epochs."""
        epoch, number, place = self.locate(rank)
        return int(self._items(epoch, number)[place])

    def locate(self, rank: int) -> tuple[int, int, int]:
        """Returns epoch, window and place in the window of a rank."""
        epoch, place = divmod(rank, self.n_items)
        ends = self._epoch(epoch)[1]
        number = int(np.searchsorted(ends, place, side="right"))
        return epoch, number, place - int(ends[number - 1] if number else 0)

    def shards_of(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Returns the shards of a window; past the last window, those of the next epoch's first."""
        order, ends = self._epoch(epoch)
        if number >= len(ends):
            return self.shards_of(epoch + 1, 0)
        return order[number * self.window : (number + 1) * self.window]

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the shards in their order, and the number of items up to the end of each window."""
        order = rng(self.seed, "shards", self.source, epoch).permutation(len(self.sizes))
        ends = np.cumsum(np.add.reduceat(self.sizes[order], np.arange(0, len(order), self.window)))
        return order, ends

    def _make_window(self, epoch: int, number: int) -> NDArray[np.int64]:
        shards = self.shards_of(epoch, number)
        items = np.concatenate([np.arange(self._first[s], self._first[s] + self.sizes[s]) for s in shards])
        mixed = rng(self.seed, "items", self.source, epoch, number).permutation(items)
        mixed.setflags(write=False)
        return mixed


def _rebuilt(seed: int, source: str, sizes: NDArray[np.int64], window: int) -> ItemOrder:
    return ItemOrder(seed, source, sizes, window=window)
