"""A mixture as a Lightning data module, for training loops of one's own; its loader is `pyramid.mixture.loader`."""

from __future__ import annotations

from collections.abc import Iterator

import lightning

from pyramid.mixture.batch import Batch, MixtureStream
from pyramid.mixture.loader import MixtureLoader

__all__ = ["MixtureData"]


class _FromCheckpoint:
    """A loader for Lightning that begins where its data module says.

    It shows no state of its own: Lightning would save one that counts the batch which it holds in reserve.
    """

    def __init__(self, data: MixtureData, loader: MixtureLoader) -> None:
        self.data, self.loader = data, loader

    def __iter__(self) -> Iterator[Batch]:
        self.loader.load_state_dict(self.data.state_dict())
        return iter(self.loader)


class MixtureData(lightning.LightningDataModule):
    """A mixture as a Lightning data module; its state goes into the checkpoint.

    Lightning saves the state of rank 0 only, which is that of all ranks. Batches are groups of samples by embodiment.

    Args:
        stream: an open mixture.
        batch_size: samples of a step over all ranks.
        workers: processes that read, per rank.
    """

    def __init__(self, stream: MixtureStream, *, batch_size: int, workers: int = 0) -> None:
        super().__init__()
        self.stream, self.batch_size, self.workers = stream, batch_size, workers
        self._from = self._seen_before = 0

    def train_dataloader(self) -> _FromCheckpoint:
        """Returns the loader of this rank."""
        assert self.trainer is not None  # noqa: S101
        loader = MixtureLoader(
            self.stream,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
            workers=self.workers,
        )
        self._seen_before = self._done()
        return _FromCheckpoint(self, loader)

    def _done(self) -> int:
        """Returns the steps that were trained on; the loader itself reads ahead of them."""
        assert self.trainer is not None  # noqa: S101
        return int(self.trainer.global_step) * int(self.trainer.accumulate_grad_batches)

    def state_dict(self) -> dict[str, int]:
        """Returns how many samples were trained on."""
        return {"position": self._from + (self._done() - self._seen_before) * self.batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on from a checkpoint."""
        self._from = int(state_dict["position"])
