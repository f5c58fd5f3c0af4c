"""Batches for training loops of one's own: a PyTorch loader that is resumed from one number.

The global order is the same for any number of workers and ranks: batch after batch it is dealt out to the ranks, and a
rank's batches to its workers in turn. So the whole state is how many samples all ranks together were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pyramid.errors import ConfigError, PyramidError, raised, told
from pyramid.mixture.batch import Batch, MixtureStream
from pyramid.mixture.group import Packed, fresh_memory, largest, pack, unpack
from pyramid.mixture.stretches import Stretches

__all__ = ["MixtureLoader"]

_HELD = 3
"""Batches that whoever trains may hold before a worker takes fresh memory for the next."""


class _Share(IterableDataset[Batch | Packed | PyramidError]):
    """One rank's part of every global batch from a position on."""

    def __init__(self, stream: MixtureStream, batch_size: int, rank: int, ranks: int, steps: int | None) -> None:
        self.stream, self.batch_size, self.rank, self.ranks, self.steps = stream, batch_size, rank, ranks, steps
        self.position = 0
        self.stretches: Stretches | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Goes to a process that is not forked without the memory that it could not share."""
        return {**vars(self), "stretches": None}

    def __iter__(self) -> Iterator[Batch | Packed | PyramidError]:
        return told(self._batches()) if get_worker_info() else self._batches()

    def _batches(self) -> Iterator[Batch | Packed]:
        worker = get_worker_info()
        step, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while self.steps is None or step < self.steps:
            first = self.position + step * self.batch_size + self.rank
            drawn = self.stream.draw(first, self.batch_size // self.ranks, self.ranks)
            batch = self.stream.batch_of(drawn, self._allocate)
            yield pack(batch, self.stretches) if worker else batch
            step += stride

    def _allocate(self, n: int) -> Tensor:
        worker = get_worker_info()
        taken = self.stretches.take(worker.id, n) if worker and self.stretches else None
        return fresh_memory(n) if taken is None else taken


class MixtureLoader:
    """Iterates over a rank's batches of a mixture, from where the state says.

    Rank r of R is given the samples r, r + R, ... of each global batch.

    Args:
        stream: an open mixture.
        batch_size: samples of a step over all ranks; a multiple of their number.
        rank: this process's number.
        ranks: number of processes.
        workers: processes that read for this rank; 0 reads in this one.
        steps: steps of one iteration; None goes on without end.
        prefetch: batches that each worker reads ahead.

    Raises:
        ConfigError: sizes that do not go together, or a training that the mixture is not made for.
    """

    def __init__(
        self,
        stream: MixtureStream,
        *,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        steps: int | None = None,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < ranks or batch_size % ranks:
            raise ConfigError(
                f"rank {rank} of {ranks} with a batch size of {batch_size}: "
                "the batch size counts the samples of all ranks and is a multiple of their number"
            )
        stream.check_run(batch_size)
        self._share = _Share(stream, batch_size, rank, ranks, steps)
        ahead: dict[str, Any] = {"prefetch_factor": prefetch} if workers else {}
        self._each = prefetch + _HELD
        self._loader = DataLoader(self._share, batch_size=None, num_workers=workers, **ahead)
        self.position = 0
        """Samples that all ranks together were given."""

    def __iter__(self) -> Iterator[Batch]:
        self._share.position = self.position
        self._share.stretches = stretches = self._stretches()
        for batch in raised(self._loader):
            self.position += self._share.batch_size
            yield unpack(batch, stretches)

    def _stretches(self) -> Stretches | None:
        share, workers = self._share, self._loader.num_workers
        if not workers:
            return None
        bodies, n = share.stream.embodiments.values(), share.batch_size // share.ranks
        return Stretches(
            workers, self._each, largest(bodies, n, share.stream.image_size, future=share.stream.spec.future_s > 0)
        )

    def state_dict(self) -> dict[str, int]:
        """Returns where the loader is; the same on every rank."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from a state, of whichever rank and with whatever number of ranks and workers now."""
        self.position = int(state["position"])
