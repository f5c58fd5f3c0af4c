"""Batches of a mixture, each a pure function of its step: the same for any worker, and resumable anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pyramid import files
from pyramid.mixture.schedule import Schedule, item_at
from pyramid.mixture.source import Source, statistics
from pyramid.mixture.spec import MixtureSpec, describe, read_mixture
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment, Split


@dataclass(frozen=True, kw_only=True)
class Group:
    """All samples of a batch that share an embodiment."""

    embodiment: str
    """Slot of the policy."""
    images: Tensor
    """uint8 [B, V, H, W, 3], RGB."""
    text: tuple[str, ...]
    """Instructions, B."""
    state: Tensor
    """float32 [B, S], physical units; S = 0 without proprioception."""
    state_known: Tensor
    """bool [B]: False where there is no state."""
    action: Tensor
    """float32 [B, T, D], physical units."""
    mask: Tensor
    """bool [B, T, D]: False for padding and steps past the end."""
    weight: Tensor
    """float32 [B]: weight in the loss."""
    source: tuple[str, ...]
    """Names of the sources, B."""
    tier: tuple[str, ...]
    """Levels of the pyramid, B."""
    key: tuple[str, ...]
    """Keys of the clips, B."""
    position: Tensor
    """int64 [B]: place in the global order of samples."""


Batch = list[Group]


@dataclass(frozen=True)
class Drawn:
    """Which item stands at a position of the global order."""

    position: int
    """Place in the global order."""
    source: Source
    """Where it comes from."""
    item: int
    """Number of the item in its source."""


class MixtureStream:
    """A mixture, opened."""

    def __init__(self, spec: MixtureSpec, *, batch_size: int, image_size: int, split: Split = "train") -> None:
        self.spec, self.batch_size, self.image_size = spec, batch_size, image_size
        opened = list(spec.sources())
        room = spec.cache_mb // len(opened)
        self.sources = [
            Source(name, tier, spec, split=split, cache_mb=room, size_px=image_size) for tier, name, _ in opened
        ]
        self.plan = Schedule(spec.shares())
        """Which source each position draws from."""
        self.statistics: dict[str, dict[str, Normalizer]] = statistics(self.sources)
        """Normalisers of every embodiment: ``action``, and ``state`` where there is one."""

    @cached_property
    def embodiments(self) -> dict[str, Embodiment]:
        """The embodiments of all sources by name."""
        return {source.embodiment.name: source.embodiment for source in self.sources}

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides the batches: the file, the clips, the labels."""
        return files.digest([describe(self.spec), [[s.name, s.digest] for s in self.sources], self.image_size])

    def draw(self, first: int, n: int) -> list[Drawn]:
        """Returns what stands at the positions ``first`` to ``first + n - 1``, without reading data."""
        positions = np.arange(first, first + n, dtype=np.int64)
        numbers, ranks = self.plan.at(positions)
        return [
            Drawn(int(g), source := self.sources[int(k)], item_at(self.spec.seed, source.name, int(rank), len(source)))
            for g, k, rank in zip(positions, numbers, ranks, strict=True)
        ]

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step: one group per embodiment, by name; within a group in the global order."""
        drawn = self.draw(step * self.batch_size, self.batch_size)
        names = sorted({d.source.embodiment.name for d in drawn})
        return [collate([d for d in drawn if d.source.embodiment.name == name]) for name in names]


def collate(drawn: Sequence[Drawn]) -> Group:
    """Reads the samples of one embodiment and stacks them."""
    places = [d.source.locate(d.item) for d in drawn]
    chunks = [d.source.chunk(*place) for d, place in zip(drawn, places, strict=True)]
    rows = [d.source.row(clip) for d, (clip, _) in zip(drawn, places, strict=True)]
    action = np.stack([chunk.action for chunk in chunks])
    mask = np.stack([chunk.mask for chunk in chunks])
    state = np.stack([chunk.state for chunk in chunks])
    images = np.stack([d.source.image(*place) for d, place in zip(drawn, places, strict=True)])
    return Group(
        embodiment=drawn[0].source.embodiment.name,
        images=torch.from_numpy(images)[:, None],
        text=tuple(str(row["text"]) for row in rows),
        state=torch.from_numpy(state),
        state_known=torch.full((len(drawn),), state.shape[1] > 0),
        action=torch.from_numpy(action),
        mask=torch.from_numpy(np.broadcast_to(mask[..., None], action.shape).copy()),
        weight=torch.ones(len(drawn)),
        source=tuple(d.source.name for d in drawn),
        tier=tuple(d.source.tier for d in drawn),
        key=tuple(str(row["key"]) for row in rows),
        position=torch.tensor([d.position for d in drawn]),
    )


def open_mixture(
    mixture: str | MixtureSpec, *, batch_size: int, image_size: int, split: Split = "train"
) -> MixtureStream:
    """Opens a mixture file and everything that it names.

    Args:
        mixture: a YAML file, or a spec.
        batch_size: samples per batch.
        image_size: height and width of the frames, pixels.
        split: ``train`` or ``val``.

    Raises:
        ConfigError: the file says nothing that makes a mixture.
        DataError: a source is missing, empty or does not fit its labels; it is named.
    """
    spec = mixture if isinstance(mixture, MixtureSpec) else read_mixture(mixture)
    return MixtureStream(spec, batch_size=batch_size, image_size=image_size, split=split)
