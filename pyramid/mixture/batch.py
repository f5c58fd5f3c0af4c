"""Batches of a mixture, each a pure function of its positions: the same for any worker, and resumable anywhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.augment import augment
from pyramid.mixture.clips import SharedCounts, ring_frames
from pyramid.mixture.filling import Filling, LaterFrames, Slots, fill
from pyramid.mixture.group import Allocate, Batch, Group, empty_tensors, fresh_memory
from pyramid.mixture.kept import Kept, joined
from pyramid.mixture.schedule import Schedule
from pyramid.mixture.source import Source
from pyramid.mixture.spec import MixtureSpec, describe, read_mixture
from pyramid.mixture.statistics import normalizers
from pyramid.mixture.weights import ledger
from pyramid.normalize import Normalizer
from pyramid.rng import rng
from pyramid.shards.reader import ShardSet
from pyramid.types import Embodiment, Split

__all__ = ["Batch", "Drawn", "Group", "MixtureStream", "open_mixture"]

_LOG = logging.getLogger("pyramid.mixture")
_TRIES = 16
_READ, _BAD = 0, 1
_LEAST_READ = 100
"""Samples below which a share of bad ones is not yet judged by."""


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
        self.embodiments = _bodies(self.sources)
        """The embodiments of all sources by name."""
        self.judged = SharedCounts(2)
        """Samples read, and how many of them could not be, by this process and the workers that it forked."""
        self.bad: Counter[str] = Counter()
        """Samples that could not be read and were replaced, by source, in this process."""
        self.kept: Kept | None = None
        """What is kept of frames, and goes into batches in the place of their pictures; None for nothing."""

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
    def digest(self) -> str:
        """Digest of everything that decides the batches: the file, the clips, the labels, what bodies are declared."""
        declared = [body.to_dict() for body in self.embodiments.values() if body.declaration]
        return files.digest([self.data_digest, self.image_size, *declared])

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

    def batch_of(self, drawn: Sequence[Drawn], allocate: Allocate = fresh_memory) -> Batch:
        """Reads samples and groups them by embodiment; ``allocate`` gives the memory for them.

        Raises:
            DataError: a shard vanished or changed, or more than the set share of samples is bad.
        """
        self.judged.add(_READ, len(drawn))
        by_body: dict[str, list[Drawn]] = {}
        for one in drawn:
            by_body.setdefault(one.source.embodiment.name, []).append(one)
        bodies = sorted(by_body)
        sizes = [(self.embodiments[name], len(by_body[name])) for name in bodies]
        ahead = self.spec.future_s > 0
        slots = [Slots(tensors) for tensors in empty_tensors(sizes, self.image_size, allocate, future=ahead)]
        parts = [
            (
                mine,
                Filling(source, [one.item for one in mine], at, slot, self.kept),
                LaterFrames(source, [one.item for one in mine], at, slot) if ahead else None,
            )
            for name, slot in zip(bodies, slots, strict=True)
            for source, mine, at in _by_source(by_body[name])
        ]
        fill([filling for _, *fillings in parts for filling in fillings if filling is not None])
        for mine, filling, later in parts:
            for number in sorted(filling.failed):
                self._replace(mine[number], filling, later, number)
        return [
            self._group(by_body[name], slot, [f for _, f, _ in parts if f.slots is slot])
            for name, slot in zip(bodies, slots, strict=True)
        ]

    def _replace(self, drawn: Drawn, filling: Filling, later: LaterFrames | None, number: int) -> None:
        """Fills in another sample of the source for one that cannot be read, always the same one.

        Raises:
            DataError: a shard vanished or changed, or more than the set share of samples is bad.
        """
        source, item = drawn.source, drawn.item
        for attempt in range(_TRIES):
            clip, step = source.locate(item)
            try:
                filling.put(number, clip, *source.read(clip, step))
                if later is not None:
                    later.replace(number, source.later(clip, step))
            except DataError as error:
                source.check_shard(clip)
                self._count_bad(source, error)
            else:
                filling.replaced[number] = attempt > 0
                return
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

    def _group(self, drawn: Sequence[Drawn], slots: Slots, fillings: Sequence[Filling]) -> Group:
        """Returns the samples of one embodiment, their words beside their numbers."""
        clips, replaced = [0] * len(drawn), [False] * len(drawn)
        for filling in fillings:
            for at, clip, other in zip(filling.at, filling.clips, filling.replaced, strict=True):
                clips[at], replaced[at] = clip, other
        tensors = slots.tensors
        slots.arrays["state_known"][:] = [one.source.embodiment.state_dim > 0 for one in drawn]
        tensors["weight"].fill_(1.0)
        slots.arrays["position"][:] = [one.position for one in drawn]
        for name in ("images", "future"):
            if name in tensors:
                self._vary(tensors[name], drawn)
        both = list(zip(drawn, clips, strict=True))
        return Group(
            **tensors,
            **_quality(fillings, len(drawn)),
            **self._context(fillings, len(drawn)),
            embodiment=drawn[0].source.embodiment.name,
            text=tuple(one.source.clips.text(clip) for one, clip in both),
            source=tuple(one.source.name for one in drawn),
            tier=tuple(one.source.tier for one in drawn),
            key=tuple(one.source.clips.key(clip) for one, clip in both),
            label=tuple(one.source.label_of(clip) for one, clip in both),
            replaced=tuple(replaced),
        )

    def _context(self, fillings: Sequence[Filling], n: int) -> dict[str, Tensor]:
        """Returns what is kept of the frames of a group of ``n``."""
        if self.kept is None:
            return {}
        rows = {filling.at[number]: row for filling in fillings for number, row in filling.kept.items()}
        return joined(self.kept, rows, n)

    def _vary(self, images: Tensor, drawn: Sequence[Drawn]) -> None:
        """Varies the views of each sample [B, V, H, W, 3] in training."""
        if self.split == "train" and self.spec.augment.active:
            for views, one in zip(images, drawn, strict=True):
                views.copy_(augment(views, self.spec.augment, self.spec.seed, one.position))


def _bodies(sources: Sequence[Source]) -> dict[str, Embodiment]:
    """Returns the embodiments by name; pseudo-actions may be told to a robot's own slot, where their state is unknown.

    Raises:
        DataError: sources that say different things of one embodiment.
    """
    first: dict[str, Source] = {}
    for source in sorted(sources, key=lambda source: not source.measured):
        body, other = source.embodiment, first.setdefault(source.embodiment.name, source)
        if other.embodiment != body and not _same_actions(other.embodiment, body):
            raise DataError(
                f"embodiment '{body.name}': source '{other.name}' says {other.embodiment.to_dict()}, "
                f"source '{source.name}' says {body.to_dict()}; give them different embodiments"
            )
    return {source.embodiment.name: first[source.embodiment.name].embodiment for source in sources}


def _same_actions(robot: Embodiment, told: Embodiment) -> bool:
    """Whether actions without a state can be taught in the place of a robot's own."""
    same = (robot.action_dim, robot.horizon) == (told.action_dim, told.horizon)
    needs_state = robot.declaration is not None and robot.declaration.needs_state
    near = abs(robot.rate_hz - told.rate_hz) <= 0.01 * robot.rate_hz
    return same and near and not needs_state and (robot.label, told.label) == ("action", "pseudo")


def _by_source(drawn: Sequence[Drawn]) -> Iterator[tuple[Source, list[Drawn], list[int]]]:
    """Yields each source's samples and their places; makes the source ready for them."""
    places: dict[str, list[int]] = {}
    for at, one in enumerate(drawn):
        places.setdefault(one.source.name, []).append(at)
    for own in places.values():
        mine = [drawn[at] for at in own]
        source = mine[0].source
        source.enter(mine[0].rank)
        source.enter(mine[-1].rank)
        yield source, mine, own


def _quality(fillings: Sequence[Filling], n: int) -> dict[str, Tensor]:
    """Stacks what labelers say of the labels of a group of ``n``, as far as it is known of every sample."""
    found = {at: filling.quality.get(i, {}) for filling in fillings for i, at in enumerate(filling.at)}
    names = set.intersection(*(set(one) for one in found.values()))
    return {name: torch.from_numpy(np.stack([found[at][name] for at in range(n)])) for name in sorted(names)}


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
