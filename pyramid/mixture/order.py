"""The order of a source's items: its shards are shuffled, the clips of each window of shards, and items of near clips.

A pure function of (seed, source, epoch, position); every item comes exactly once per epoch. Items of a clip lie near
each other, so that it needs to be decoded only once for them.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from pyramid.rng import rng

_KEPT_WINDOWS = 2


class ItemOrder:
    """The order of one source.

    Args:
        seed: the mixture's seed.
        source: the source's name.
        items: items of each clip, int64 [clips]; items are numbered through in the order of the clips.
        frames: frames of each clip, int64 [clips], which are decoded for its items.
        shards: number of each clip's shard, int64 [clips], from 0 on and ascending.
        window: shards whose clips are shuffled among each other.
        spread: frames over which the items of a clip are spread: those of about so many frames are mixed at any time.
    """

    def __init__(
        self,
        seed: int,
        source: str,
        items: NDArray[np.int64],
        frames: NDArray[np.int64],
        shards: NDArray[np.int64],
        *,
        window: int,
        spread: int,
    ) -> None:
        self.seed, self.source, self.window, self.spread = seed, source, window, spread
        self._clips, self._frames, self._shards = (np.asarray(a, np.int64) for a in (items, frames, shards))
        self.sizes = np.bincount(self._shards, weights=self._clips).astype(np.int64)
        """int64 [shards]: items of each shard."""
        self.n_items = int(self.sizes.sum())
        self._first = np.cumsum(self._clips) - self._clips
        self._clip_ends = np.cumsum(np.bincount(self._shards))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._items = lru_cache(maxsize=_KEPT_WINDOWS)(self._make_window)

    def __reduce__(self) -> tuple[object, ...]:
        """Goes to another process without its caches."""
        arrays = (self._clips, self._frames, self._shards)
        make = partial(ItemOrder, window=self.window, spread=self.spread)
        return make, (self.seed, self.source, *arrays)

    def at(self, rank: int) -> int:
        """Returns the item that is the source's ``rank``-th sample, counted over all epochs."""
        epoch, number, place = self.locate(rank)
        return int(self._items(epoch, number)[place])

    def at_many(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Does what `at` does for many ranks [N] at once."""
        epochs, places = np.divmod(ranks, self.n_items)
        found = np.empty(len(ranks), np.int64)
        for epoch in set(epochs.tolist()):
            ends = self._epoch(epoch)[1]
            numbers = np.where(epochs == epoch, np.searchsorted(ends, places, side="right"), -1)
            for number in set(numbers.tolist()) - {-1}:
                mine = numbers == number
                found[mine] = self._items(epoch, number)[places[mine] - (ends[number - 1] if number else 0)]
        return found

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
        """Returns the items of a window in their order.

        The clips, shuffled, lie on a ring one after the other, each as long as it has frames; an item's place is its
        clip's, and a random part of ``spread`` further on. So at any place the items of about ``spread`` frames are
        mixed, and, since it is a ring, at its beginning and its end, too.
        """
        random = rng(self.seed, "items", self.source, epoch, number)
        ends = self._clip_ends
        clips = np.concatenate([np.arange(ends[s - 1] if s else 0, ends[s]) for s in self.shards_of(epoch, number)])
        clips = random.permutation(clips)
        counts, frames = self._clips[clips], self._frames[clips]
        total, n = int(frames.sum()), int(counts.sum())
        offset = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
        items = np.repeat(self._first[clips], counts) + offset
        places = np.repeat(np.cumsum(frames) - frames, counts) + random.random(n) * min(self.spread, total)
        mixed: NDArray[np.int64] = items[np.argsort(places % total, kind="stable")]
        mixed.setflags(write=False)
        return mixed
