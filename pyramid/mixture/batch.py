"""Batches of a mixture, each a pure function of its positions: the same for any worker, and resumable anywhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.augment import augment
from pyramid.mixture.clips import SharedCounts, ring_frames
from pyramid.mixture.schedule import Schedule
from pyramid.mixture.source import Chunk, Source
from pyramid.mixture.spec import MixtureSpec, describe, read_mixture
from pyramid.mixture.statistics import normalizers
from pyramid.mixture.weights import ledger
from pyramid.normalize import Normalizer
from pyramid.rng import rng
from pyramid.shards.reader import ShardSet
from pyramid.types import Embodiment, Split

_LOG = logging.getLogger("pyramid.mixture")
_TRIES = 16
_READ, _BAD = 0, 1
_LEAST_READ = 100
"""Samples below which a share of bad ones is not yet judged by."""


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
    label: tuple[str, ...] = ()
    """Where the actions come from, B: ``action``, or the folder of the label run."""
    replaced: tuple[bool, ...] = ()
    """Whether the sample stands in for one that could not be read, B."""
    future: Tensor | None = None
    """uint8 [B, V, H, W, 3], RGB: the views ``future_s`` later; 0 where unknown. None when the mixture reads none."""
    future_known: Tensor | None = None
    """bool [B]: False where the clip ends before."""
    action_std: Tensor | None = None
    """float32 [B, T, D], physical units: how far the votes of pseudo-actions lie apart; None where nobody says."""
    recon_gain: Tensor | None = None
    """float32 [B]: how much latent actions help the reconstruction; None where nobody says."""
    codes: Tensor | None = None
    """int64 [B, C]: codes of latent actions; None where there are none."""


Batch = list[Group]


class Drawn(NamedTuple):
    """Which item stands at a position of the global order."""

    position: int
    """Place in the global order."""
    source: Source
    """Where it comes from."""
    rank: int
    """How many samples the source gave before."""
    item: int
    """Number of the item in its source."""


@dataclass(frozen=True)
class Loaded:
    """One sample, read."""

    drawn: Drawn
    """What was asked for."""
    clip: int
    """Clip that was read."""
    chunk: Chunk
    """Its actions."""
    image: NDArray[np.uint8]
    """uint8 [H, W, 3], RGB."""
    replaced: bool
    """Whether the clip is another than the one asked for."""
    future: NDArray[np.uint8] | None = None
    """uint8 [H, W, 3], RGB: the frame ``future_s`` later, if it was asked for and the clip has it."""


class MixtureStream:
    """A mixture, opened."""

    def __init__(self, spec: MixtureSpec, *, batch_size: int, image_size: int, split: Split = "train") -> None:
        self.spec, self.batch_size, self.image_size, self.split = spec, batch_size, image_size, split
        opened = list(spec.sources())
        shards: dict[str, ShardSet] = {}
        self.sources = [
            Source(name, tier, spec, split=split, size_px=image_size, opened=shards) for tier, name, _ in opened
        ]
        self._hold_frames()
        self.plan = Schedule(ledger(spec, {source.name: source.size for source in self.sources}))
        """Which source each position draws from."""
        self._check_bodies()
        self.judged = SharedCounts(2)
        """Samples read, and how many of them could not be, by this process and the workers that it forked."""
        self.bad: Counter[str] = Counter()
        """Samples that could not be read and were replaced, by source, in this process."""

    def _hold_frames(self) -> None:
        needed = {source.name: source.held_frames for source in self.sources}
        size = 3 * self.image_size**2
        rings = ring_frames(needed, spread=self.spec.shuffle_frames, frame_bytes=size, cache_mb=self.spec.cache_mb)
        for source in self.sources:
            source.hold(rings[source.name])
            if not rings[source.name]:
                _LOG.warning(
                    "cache_mb: %d has no room for the %d frames that source '%s' mixes at a time: frames are decoded "
                    "one by one, several times as often as they are used",
                    *(self.spec.cache_mb, needed[source.name], source.name),
                )

    def _check_bodies(self) -> None:
        first: dict[str, Source] = {}
        for source in self.sources:
            other = first.setdefault(source.embodiment.name, source)
            if other.embodiment != source.embodiment:
                raise DataError(
                    f"embodiment '{source.embodiment.name}': source '{other.name}' says {other.embodiment.to_dict()}, "
                    f"source '{source.name}' says {source.embodiment.to_dict()}; give them different embodiments"
                )

    def check_run(self, batch_size: int) -> None:
        """Refuses a training that the mixture is not made for, before its first step.

        Raises:
            ConfigError: the schedule counts steps of another size, or a batch holds more of a source than there is.
        """
        if self.spec.schedule and batch_size != self.spec.schedule_batch:
            raise ConfigError(
                f"the mixture's schedule counts steps of {self.spec.schedule_batch} samples, the training's have "
                f"{batch_size}; set schedule_batch or the batch size"
            )
        for source in self.sources:
            most = max(piece.shares[source.name] for piece in self.plan.ledger) * batch_size
            if len(source) < most:
                raise ConfigError(
                    f"source '{source.name}' has {len(source)} samples, a batch of {batch_size} takes up to "
                    f"{float(most):.1f} of it; lower its weight or the batch size, or add data"
                )

    @cached_property
    def statistics(self) -> dict[str, dict[str, Normalizer]]:
        """Normalisers of every embodiment: ``action``, and ``state`` where there is one."""
        return normalizers(self.sources, self.typical_shares)

    @cached_property
    def typical_shares(self) -> dict[str, Fraction]:
        """Shares that statistics are weighted by: the mean of those at the start and after the last change."""
        first, last = self.plan.ledger[0].shares, self.plan.ledger[-1].shares
        mean = {name: (first[name] + last[name]) / 2 for name in first}
        # A source that is drawn in between only still has its statistics.
        return {name: share or Fraction(1, 1000) for name, share in mean.items()}

    @cached_property
    def embodiments(self) -> dict[str, Embodiment]:
        """The embodiments of all sources by name."""
        return {source.embodiment.name: source.embodiment for source in self.sources}

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides the batches: the file, the clips, the labels."""
        return files.digest([self.data_digest, self.image_size])

    @cached_property
    def data_digest(self) -> str:
        """The same without the size of the frames: what decides which samples come when."""
        return files.digest([describe(self.spec), [[s.name, s.digest] for s in self.sources]])

    @property
    def decoded_per_used(self) -> float:
        """Decoded frames per used frame, in this process and the workers that it forked."""
        return sum(s.cache.decoded for s in self.sources) / max(sum(s.cache.used for s in self.sources), 1)

    def draw(self, first: int, n: int, stride: int = 1) -> list[Drawn]:
        """Returns what stands at the positions ``first``, ``first + stride``, ... (``n`` of them), reading no data."""
        positions = first + stride * np.arange(n, dtype=np.int64)
        numbers, ranks = self.plan.at(positions)
        items = np.empty(n, np.int64)
        for number in set(numbers.tolist()):
            mine = numbers == number
            items[mine] = self.sources[number].order.at_many(ranks[mine])
        rows = zip(positions.tolist(), numbers.tolist(), ranks.tolist(), items.tolist(), strict=True)
        return [Drawn(position, self.sources[number], rank, item) for position, number, rank, item in rows]

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step: one group per embodiment, by name; within a group in the global order."""
        return self.batch_of(self.draw(step * self.batch_size, self.batch_size))

    def batch_of(self, drawn: Sequence[Drawn]) -> Batch:
        """Reads samples and groups them by embodiment."""
        loaded = [self.load(one) for one in drawn]
        names = sorted({one.source.embodiment.name for one in drawn})
        return [self._collate([one for one in loaded if one.drawn.source.embodiment.name == name]) for name in names]

    def load(self, drawn: Drawn) -> Loaded:
        """Reads one sample; what cannot be read is replaced by another of its source, always the same one.

        Raises:
            DataError: a shard vanished or changed, or more than the set share of samples is bad.
        """
        self.judged.add(_READ)
        source = drawn.source
        source.enter(drawn.rank)
        item = drawn.item
        for attempt in range(_TRIES):
            clip, step = source.locate(item)
            try:
                chunk, image = source.read(clip, step)
                future = source.future(clip, step) if self.spec.future_s else None
                return Loaded(drawn, clip, chunk, image, attempt > 0, future)
            except DataError as error:
                source.check_shard(clip)
                self._count_bad(source, error)
            item = int(rng(self.spec.seed, "replace", source.name, drawn.position, attempt).integers(len(source)))
        raise DataError(
            f"source '{source.name}': {_TRIES} samples in a row cannot be read; see the log for each of them"
        )

    def _count_bad(self, source: Source, error: DataError) -> None:
        self.bad[source.name] += 1
        _LOG.warning("a sample of source '%s' is replaced by another: %s", source.name, error)
        self.judged.add(_BAD)
        read, bad = self.judged.values()
        if bad > self.spec.max_bad_share * max(read, _LEAST_READ):
            raise DataError(
                f"{bad} of {read} samples cannot be read, more than max_bad_share: "
                f"{self.spec.max_bad_share:g} allows; the last one: {error}"
            ) from error

    def _collate(self, loaded: Sequence[Loaded]) -> Group:
        """Stacks the samples of one embodiment."""
        action = np.stack([one.chunk.action for one in loaded])
        mask = np.stack([one.chunk.mask for one in loaded])
        state = np.stack([one.chunk.state for one in loaded])
        future, quality = self._future(loaded), _quality(loaded)
        return Group(
            embodiment=loaded[0].drawn.source.embodiment.name,
            images=torch.stack([self._views(one, one.image) for one in loaded]),
            text=tuple(one.drawn.source.clips.text(one.clip) for one in loaded),
            state=torch.from_numpy(state),
            state_known=torch.full((len(loaded),), state.shape[1] > 0),
            action=torch.from_numpy(action),
            mask=torch.from_numpy(np.broadcast_to(mask[..., None], action.shape).copy()),
            weight=torch.ones(len(loaded)),
            source=tuple(one.drawn.source.name for one in loaded),
            tier=tuple(one.drawn.source.tier for one in loaded),
            key=tuple(one.drawn.source.clips.key(one.clip) for one in loaded),
            position=torch.tensor([one.drawn.position for one in loaded]),
            label=tuple(one.drawn.source.label_of(one.clip) for one in loaded),
            replaced=tuple(one.replaced for one in loaded),
            future=future,
            future_known=None if future is None else torch.tensor([one.future is not None for one in loaded]),
            action_std=quality.get("action_std"),
            recon_gain=quality.get("recon_gain"),
            codes=quality.get("codes"),
        )

    def _future(self, loaded: Sequence[Loaded]) -> Tensor | None:
        """Returns later frames, uint8 [B, V, H, W, 3], 0 where unknown; varied like those they follow."""
        if not self.spec.future_s:
            return None
        blank = np.zeros_like(loaded[0].image)
        return torch.stack([self._views(one, blank if one.future is None else one.future) for one in loaded])

    def _views(self, one: Loaded, image: NDArray[np.uint8]) -> Tensor:
        """Returns the views of a sample, uint8 [V, H, W, 3], varied in training."""
        views = torch.from_numpy(np.ascontiguousarray(image))[None]
        if self.split != "train":
            return views
        return augment(views, self.spec.augment, self.spec.seed, one.drawn.position)


def _quality(loaded: Sequence[Loaded]) -> dict[str, Tensor]:
    """Stacks what labelers say of the labels, as far as it is known of every sample."""
    names = set.intersection(*(set(one.chunk.quality) for one in loaded))
    return {n: torch.from_numpy(np.stack([one.chunk.quality[n] for one in loaded])) for n in sorted(names)}


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
