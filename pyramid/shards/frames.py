"""Clips of shard folders as small square frames, with a bounded cache; needs torch, unlike the reader beside it.

Which frames belong together is left to the model that asks; reading tars to `pyramid.shards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyramid.errors import DataError
from pyramid.shards.reader import Sample, ShardSet
from pyramid.types import Split

__all__ = ["ClipFrames", "cuts_of", "resized_frames", "square_frames"]

_CHUNK = 256
"""Frames that are held at full size at once."""
_GOP = 12
"""Longest distance between key frames where shards do not say it."""


def cuts_of(sample: Sample) -> list[int]:
    """Returns the frames of a sample that begin a new shot, as they were found when it was packed."""
    return list(sample.meta.get("scores", {}).get("cuts", ()))


def resized_frames(sample: Sample, indices: Sequence[int], size_px: int) -> Tensor:
    """Decodes frames and resizes them to a square; other shapes are squashed, so that nothing of the view is lost.

    Args:
        sample: a sample of a shard.
        indices: frame numbers, in any order.
        size_px: side of the square, pixels.

    Returns:
        uint8 [n, 3, size_px, size_px], RGB, in the order of ``indices``.
    """
    chunks = [
        _resize(sample.frames(list(indices[start : start + _CHUNK])), size_px)
        for start in range(0, len(indices), _CHUNK)
    ]
    return torch.cat(chunks) if chunks else torch.zeros(0, 3, size_px, size_px, dtype=torch.uint8)


def square_frames(sample: Sample, indices: Sequence[int], size_px: int) -> NDArray[np.uint8]:
    """Does what `resized_frames` does, channels last: uint8 [n, size_px, size_px, 3], RGB."""
    chunks = []
    for start in range(0, len(indices), _CHUNK):
        frames = sample.frames(list(indices[start : start + _CHUNK]))
        if frames.shape[1:3] != (size_px, size_px):
            frames = _resize(frames, size_px).permute(0, 2, 3, 1).contiguous().numpy()
        chunks.append(frames)
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _resize(frames: NDArray[np.uint8], size_px: int) -> Tensor:
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    if planes.shape[-2:] == (size_px, size_px):
        return planes.contiguous()
    return torch.nn.functional.interpolate(planes, (size_px, size_px), mode="bilinear", antialias=True).contiguous()


def _passed(indices: Sequence[int], gop: int) -> int:
    """Returns how many frames a decoder goes through for some: from the key frame before each, or from the last one."""
    wanted, total, last = sorted(set(indices)), 0, -1
    for index in wanted:
        total += min(index % gop + 1, index - last)
        last = index
    return total


class ClipFrames:
    """Random access to the frames of many clips.

    Clips are kept decoded until the bound is reached and none is dropped for another: draws are random, so a newer clip
    is no likelier to be asked for again. Past the bound only the frames asked for are decoded. Where draws stay with a
    few clips at a time, set ``drops_oldest``. The cache never decides what comes out.

    Args:
        sources: shard folder and sample number of each clip.
        size_px: side of the frames, pixels.
        cache_mb: bound of the cache, MiB.
    """

    def __init__(self, sources: Sequence[tuple[ShardSet, int]], *, size_px: int, cache_mb: int) -> None:
        self.sources, self.size_px = list(sources), size_px
        self.rows: list[dict[str, Any]] = [shards.rows[number] for shards, number in sources]
        """What the index says of each clip."""
        self.periods_s = np.array([1 / row["rate_hz"] for row in self.rows], np.float64)
        """float64 [clips]: seconds between frames."""
        self.durations_s = np.array([row["frames"] - 1 for row in self.rows], np.float64) * self.periods_s
        """float64 [clips]: seconds from the first frame to the last."""
        self.drops_oldest = False
        """Whether the clips decoded first make room for others."""
        self.decoded = self.used = 0
        """Frames that the decoder gave or had to go through, and frames that were asked for, in this process."""
        self._bound = self._room = cache_mb * 2**20
        self._kept: dict[int, tuple[NDArray[np.float64], Tensor]] = {}
        self._last: tuple[int, Sample] | None = None

    @classmethod
    def open(
        cls,
        shards: str | Sequence[str],
        *,
        split: Split,
        size_px: int,
        cache_mb: int = 0,
        limit: int | None = None,
        with_actions: bool = False,
    ) -> ClipFrames:
        """Opens the clips of one split of one or more shard folders.

        Args:
            shards: one or more shard folders.
            split: ``train`` or ``val``.
            size_px: side of the frames, pixels.
            cache_mb: bound of the cache, MiB.
            limit: keep the first clips only.
            with_actions: keep clips with measured actions only.
        """
        folders = [shards] if isinstance(shards, str) else list(shards)
        sources = [
            (one, number)
            for one in map(ShardSet.open, folders)
            for number, row in enumerate(one.rows)
            if row["split"] == split and (row["action_dim"] or not with_actions)
        ]
        if not sources:
            what = f"clip {'with actions ' if with_actions else ''}of split '{split}'"
            raise DataError(f"no {what} in {', '.join(folders) or 'no folder'}; pack some: pyramid pack ...")
        return cls(sources[:limit], size_px=size_px, cache_mb=cache_mb)

    def __len__(self) -> int:
        return len(self.sources)

    def sample(self, clip: int) -> Sample:
        """Reads the sample of a clip."""
        if self._last is None or self._last[0] != clip:
            shards, number = self.sources[clip]
            self._last = (clip, shards.read(number))
        return self._last[1]

    def times_s(self, clip: int) -> NDArray[np.float64]:
        """Returns the presentation times of a clip's frames, float64 [T], seconds."""
        return self._kept[clip][0] if clip in self._kept else self.sample(clip).times_s

    def frames(self, clip: int, indices: Sequence[int], *, keep: bool = True) -> Tensor:
        """Returns frames of a clip, uint8 [n, 3, S, S], RGB, in the order of ``indices``.

        Args:
            clip: the clip.
            indices: frame numbers, in any order.
            keep: whether more of this clip will be asked for soon.
        """
        self.used += len(indices)
        if clip not in self._kept and not (keep and self._keep(clip)):
            sample = self.sample(clip)
            self.decoded += _passed(indices, self._gop(clip) if sample.jpegs_at is None else 1)
            return resized_frames(sample, indices, self.size_px)
        return self._kept[clip][1][list(indices)]

    def _keep(self, clip: int) -> bool:
        sample = self.sample(clip)
        size = len(sample.times_s) * 3 * self.size_px**2
        while self.drops_oldest and self._room < size <= self._bound:
            self._room += self._kept.pop(next(iter(self._kept)))[1].numel()
        if size > self._room:
            return False
        self._room -= size
        self.decoded += len(sample.times_s)
        self._kept[clip] = (sample.times_s, resized_frames(sample, range(len(sample.times_s)), self.size_px))
        return True

    def _gop(self, clip: int) -> int:
        return int(self.sources[clip][0].metadata.get("config", {}).get("gop", _GOP))

    def digests(self) -> dict[str, str]:
        """Returns the digests of the shard folders under ``shards_0``, ``shards_1``, ..., in the order given."""
        found = dict.fromkeys(shards.digest for shards, _ in self.sources)
        return {f"shards_{i}": digest for i, digest in enumerate(found)}
