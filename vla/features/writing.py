"""Makes the file of one shard: rows that are kept already, rows of frames that pass the backbone now.

Which shards, and in which folder, is left to `vla.features.fill`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyramid import files
from pyramid.config import provenance
from pyramid.errors import DataError
from pyramid.progress import say
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.features import ClipRows, file_of, write_features
from pyramid.shards.frames import square_frames
from pyramid.shards.reader import ShardSet
from vla.features.kept import KeptFeatures
from vla.features.maker import FeatureMaker

__all__ = ["ShardWriter", "clear"]

_PIECE = 32
"""Frames that are decoded at a time."""
_STALE_S = 3600.0


class ShardWriter:
    """Writes the features of a shard.

    Args:
        maker: what makes them.
        kept: what looks up those that are there.
    """

    def __init__(self, maker: FeatureMaker, kept: KeptFeatures) -> None:
        self.maker, self.kept = maker, kept

    def clips(self, found: ShardSet, numbers: Sequence[int]) -> list[ClipRows]:
        """Returns what is to be kept of clips, given their row numbers in the index."""
        columns = found.index.select(["key", "sha256", "text", "frames"]).take(np.asarray(numbers, np.int64))
        return [self.kept.clip(row) for row in columns.to_pylist()]

    def missing(self, found: ShardSet, shard: str, numbers: Sequence[int], *, again: bool = False) -> list[ClipRows]:
        """Returns the clips that no file of the shard holds; ``again``: whatever was known of its files."""
        self.kept.opened(found.folder, shard, again=again)
        return [clip for clip in self.clips(found, numbers) if not self._held(found, shard, clip)]

    def write(self, place: str, found: ShardSet, shard: str, numbers: Sequence[int]) -> None:
        """Writes the features of clips, and of those whose features were there already, into a folder.

        Raises:
            OutputError: it cannot be written.
        """
        files.make_dirs(place)
        about = files.join(place, "features.json")
        if not files.exists(about):
            source = provenance(config=self.maker.about, inputs={})
            files.write_json(about, {"maker": self.maker.layout.maker, **source})
        numbers = sorted({*numbers, *self._others(found, shard)})
        clips, path = self.clips(found, numbers), files.join(place, file_of(shard))
        write_features(path, self.maker.layout, clips, self._rows(found, shard, numbers, clips), {"shard": shard})
        self.kept.opened(found.folder, shard, again=True)

    def _held(self, found: ShardSet, shard: str, clip: ClipRows) -> bool:
        return any(file.holds(clip, self.kept.layout) for file in self.kept.opened(found.folder, shard))

    def _others(self, found: ShardSet, shard: str) -> list[int]:
        """Returns what mixtures have kept of the shard's clips, this or another."""
        numbers = found.of_shard(shard) if self.kept.opened(found.folder, shard) else []
        both = zip(numbers, self.clips(found, numbers), strict=True)
        return [number for number, clip in both if self._held(found, shard, clip)]

    def _rows(
        self, found: ShardSet, shard: str, numbers: Sequence[int], clips: Sequence[ClipRows]
    ) -> Iterator[bytes | None]:
        """Yields the row of every frame; None where it cannot be read."""
        ahead = ReadAhead()
        for number, clip in zip(numbers, clips, strict=True):
            done = 0
            try:
                for row in self._clip_rows(found, shard, number, clip, ahead):
                    yield row
                    done += 1
            except DataError as error:
                # The training replaces its samples by others, and says so; here is nothing to keep.
                say(f"features: {error}")
                yield from (None for _ in range(clip.frames - done))

    def _clip_rows(self, found: ShardSet, shard: str, number: int, clip: ClipRows, ahead: ReadAhead) -> Iterator[bytes]:
        text, sample, held = found.index["text"][number].as_py() or "", None, self._held(found, shard, clip)
        for first in range(0, clip.frames, _PIECE):
            frames = range(first, min(first + _PIECE, clip.frames))
            known = [self.kept.row(clip, found.folder, shard, frame) for frame in frames] if held else [None]
            if any(row is None for row in known):
                sample = sample or found.read(number, ahead)
                pictures = square_frames(sample, frames, self.maker.size_px)
                known = list(self.maker.encode(torch.from_numpy(pictures), text))
            yield from (_bytes(row) for row in known if row is not None)


def _bytes(row: Tensor) -> bytes:
    return bytes(row.contiguous().view(torch.uint8).numpy())


def clear(place: str) -> None:
    """Removes what a killed run left half-written; what is young may be another's who is at work."""
    if files.is_remote(place):
        return
    for path in Path(place).glob(f"{files.TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
