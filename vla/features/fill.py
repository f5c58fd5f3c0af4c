"""Fills in the features that are missing before a training begins: shard by shard, each file written in one go.

A file is its own receipt: it is there whole or not at all, and says of which clips it is. So nothing is locked, a run
that was killed goes on where it stopped, and several may fill at once: each begins elsewhere and passes over what
another has finished. `pyramid.jobs` is for folders with one owner.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from pyramid.errors import ConfigError, DataError, OutputError
from pyramid.mixture.batch import MixtureStream
from pyramid.progress import Progress, format_bytes, format_seconds, say
from pyramid.rng import rng
from pyramid.shards.features import ClipRows
from pyramid.shards.frames import square_frames
from pyramid.shards.reader import ShardSet
from vla.features.kept import KeptFeatures, places
from vla.features.maker import FeatureMaker
from vla.features.writing import ShardWriter, clear

__all__ = ["FeatureFill", "FillPlan"]

_PROBED = 16
"""Frames by which the time is estimated."""


@dataclass(frozen=True, kw_only=True)
class FillPlan:
    """What is missing."""

    shards: list[tuple[ShardSet, str, list[int]]]
    """Folder, shard, and the row numbers of the clips that are drawn from it, of each shard that lacks any."""
    frames: int
    """Frames that are missing."""
    frames_kept: int
    """Frames that are there."""
    bytes: int
    """Size of what is missing."""
    step_s: float
    """Seconds for a frame on this machine, decoding included; 0 when it was not measured."""

    @property
    def seconds(self) -> float:
        """Estimated time of filling in what is missing."""
        return self.frames * self.step_s

    def line(self, where: str) -> str:
        """Returns it for a person to read."""
        if not self.frames:
            return f"features: all {self.frames_kept:,} frames are kept in {where}"
        about = f", about {format_seconds(self.seconds)}" if self.step_s else ""
        return (
            f"features: {self.frames:,} frames to be worked out once ({self.frames_kept:,} are kept), "
            f"{format_bytes(self.bytes)} in {where}{about}"
        )


class FeatureFill:
    """The features of all clips that a mixture draws from.

    Args:
        stream: the mixture, at the policy's size.
        maker: what makes the features.
        pictures: whether batches need the pictures all the same.

    Raises:
        ConfigError: the mixture varies its pictures, so that no frame is ever seen twice.
    """

    def __init__(self, stream: MixtureStream, maker: FeatureMaker, *, pictures: bool = False) -> None:
        if stream.spec.augment.active:
            raise ConfigError(
                "policy.backbone.cache_features keeps what is seen in a frame, and the mixture varies its pictures at "
                "random (augment): no two are alike; take augment out of the mixture, or set cache_features: false"
            )
        self.stream, self.maker, self.pictures = stream, maker, pictures
        self._refused: set[str] = set()

    @cached_property
    def kept(self) -> KeptFeatures:
        """What looks them up for batches."""
        return KeptFeatures(self.maker, pictures=self.pictures)

    @cached_property
    def writer(self) -> ShardWriter:
        """What writes them."""
        return ShardWriter(self.maker, self.kept)

    @property
    def where(self) -> str:
        """The folder of the first source's features."""
        return places(self._folders()[0][0].folder, self.maker.layout.maker)[0]

    def plan(self, *, timed: bool = False) -> FillPlan:
        """Looks at what is there; ``timed``: works out a few frames, only to see how long they take."""
        shards, frames, kept, size = [], 0, 0, 0
        for found, shard, numbers in self._shards():
            missing = self.writer.missing(found, shard, numbers)
            n = _frames(missing)
            frames, kept = frames + n, kept + _frames(self.writer.clips(found, numbers)) - n
            size += sum(clip.frames * clip.tokens for clip in missing) * self.maker.layout.token_bytes
            shards += [(found, shard, numbers)] if missing else []
        step_s = self._probe(*shards[0]) if shards and timed else 0.0
        return FillPlan(shards=shards, frames=frames, frames_kept=kept, bytes=size, step_s=step_s)

    def fill(self, plan: FillPlan) -> None:
        """Works out what is missing; what cannot be kept anywhere is said once, and left to the training."""
        for found, _ in self._folders():
            for place in places(found.folder, self.maker.layout.maker):
                clear(place)
        order = rng(os.getpid(), "features", time.monotonic_ns()).permutation(len(plan.shards))
        with Progress("features", len(plan.shards)) as progress, self.maker.at_work():
            for i in order.tolist():
                found, shard, numbers = plan.shards[i]
                missing = self.writer.missing(found, shard, numbers, again=True)
                if missing and not self._fill_shard(found, shard, numbers):
                    return
                progress.add(amount=_frames(missing))

    def _folders(self) -> list[tuple[ShardSet, list[int]]]:
        """Returns each shard folder once, with the row numbers of the clips that sources draw from."""
        drawn: dict[str, tuple[ShardSet, set[int]]] = {}
        for source in self.stream.sources:
            for part, found in enumerate(source.clips.shard_sets):
                numbers = drawn.setdefault(found.folder, (found, set()))[1]
                numbers.update(source.clips.number[source.clips.part == part].tolist())
        return [(found, sorted(numbers)) for found, numbers in drawn.values()]

    def _shards(self) -> Iterator[tuple[ShardSet, str, list[int]]]:
        for found, numbers in self._folders():
            names = found.index["shard"].take(np.asarray(numbers, np.int64)).to_pylist()
            by_shard: dict[str, list[int]] = {}
            for name, number in zip(names, numbers, strict=True):
                by_shard.setdefault(name, []).append(number)
            yield from ((found, shard, own) for shard, own in by_shard.items())

    def _probe(self, found: ShardSet, shard: str, numbers: Sequence[int]) -> float:
        """Returns the seconds that a frame takes, from the first clip that can be read."""
        with self.maker.at_work():
            for number in numbers:
                text, length = (found.index[name][number].as_py() for name in ("text", "frames"))
                start, n = time.perf_counter(), min(_PROBED, int(length))
                try:
                    frames = square_frames(found.read(number), range(n), self.maker.size_px)
                except DataError:
                    continue
                self.maker.encode(torch.from_numpy(frames), text or "")
                return (time.perf_counter() - start) / n
        return 0.0

    def _fill_shard(self, found: ShardSet, shard: str, numbers: Sequence[int]) -> bool:
        """Writes the file of a shard; returns whether there was a place for it."""
        for place in places(found.folder, self.maker.layout.maker):
            if place in self._refused:
                continue
            try:
                self.writer.write(place, found, shard, numbers)
            except OutputError as error:
                self._refused.add(place)
                say(f"features: not kept in '{place}': {str(error).partition(';')[0]}")
            else:
                return True
        say("features: there is no other place to keep them; they are worked out for each sample anew")
        return False


def _frames(clips: Sequence[ClipRows]) -> int:
    return sum(clip.frames for clip in clips)
