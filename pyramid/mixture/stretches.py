"""Memory for batches on their way from the workers to the training process, used over and over.

Fresh shared memory costs a page fault for every page of a batch, about as much as an eighth of its decoding. What a
batch holds is decided by `pyramid.mixture.batch`, how it lies there by `pyramid.mixture.group`.
"""

from __future__ import annotations

import os
import weakref
from mmap import PAGESIZE

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyramid.mixture.clips import shared_zeros

_FREE, _LENT = 0, 1


class Stretches:
    """Equal stretches of anonymous memory that workers, forked later, fill and the process that made them reads.

    Each worker has its own. One that it has filled is its again once nothing of the batch is held any more.

    Args:
        workers: number of workers.
        each: stretches of a worker.
        size: least bytes of a stretch.
    """

    def __init__(self, workers: int, each: int, size: int) -> None:
        self.each, self.size, self._owner = each, -(-size // PAGESIZE) * PAGESIZE, os.getpid()
        self._memory: NDArray[np.uint8] = shared_zeros((workers * each, self.size), np.uint8)
        self._state: NDArray[np.uint8] = shared_zeros((workers * each,), np.uint8)

    def take(self, worker: int, size: int) -> Tensor | None:
        """Returns the first ``size`` bytes of a stretch of a worker, uint8; None if none is free or large enough."""
        free = np.flatnonzero(self._state[worker * self.each : (worker + 1) * self.each] == _FREE)
        if size > self.size or not len(free):
            return None
        place = worker * self.each + int(free[0])
        self._state[place] = _LENT
        return torch.from_numpy(self._memory[place, :size])

    def place_of(self, memory: Tensor) -> int | None:
        """Returns the number of the stretch that begins where ``memory`` does; None if there is none."""
        place, rest = divmod(memory.data_ptr() - self._memory.ctypes.data, self.size)
        return None if rest or not 0 <= place < len(self._state) else place

    def receive(self, place: int) -> Tensor:
        """Returns a filled stretch, uint8; it is the worker's again once the tensor and all its views are gone."""
        part = self._memory[place]
        weakref.finalize(part, self._give_back, place).atexit = False
        return torch.from_numpy(part)

    def _give_back(self, place: int) -> None:
        # A process that was forked meanwhile has references of its own, which say nothing of the others.
        if os.getpid() == self._owner:
            self._state[place] = _FREE
