"""Looks kept features up for the batches of a mixture, in whichever process reads them.

Beside the shards first, then in the user's cache folder, where they go if the shards' folder cannot be written. What is
not there, damaged, or of something else is worked out anew by whoever trains, with the same numbers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyramid import files
from pyramid.errors import PyramidError
from pyramid.mixture.source import Source
from pyramid.shards.cache import cache_folder
from pyramid.shards.features import DIGITS, FOLDER, ClipRows, FeatureFile, clip_digest, file_of
from vla.features.maker import FeatureMaker

__all__ = ["KeptFeatures", "places"]

_LOG = logging.getLogger("pyramid.vla")
_OPEN_FILES, _KNOWN_CLIPS = 256, 8192


def places(folder: str, maker: str) -> tuple[str, str]:
    """Returns the folders that features of a shard folder may lie in: beside the shards, and in the user's cache."""
    name = maker[:DIGITS]
    return files.join(folder, FOLDER, name), str(cache_folder() / FOLDER / name / files.digest(folder)[:DIGITS])


class KeptFeatures:
    """What is kept; a `pyramid.mixture.kept.Kept`.

    Args:
        maker: what makes the features.
        pictures: whether the pictures are needed all the same.
    """

    def __init__(self, maker: FeatureMaker, *, pictures: bool = False) -> None:
        self.pictures, self.layout = pictures, maker.layout
        self.dtype, self.width = maker.torch_dtype, maker.layout.width
        self._tokenizer, self._most = maker.policy.processor.tokenizer, maker.max_text_tokens
        self._inserted = maker.inserted
        self._known: OrderedDict[tuple[str, int], tuple[ClipRows, str, str]] = OrderedDict()
        self._files: OrderedDict[tuple[str, str], list[FeatureFile]] = OrderedDict()
        self._complained: set[str] = set()
        self._tokens = lru_cache(maxsize=2**16)(self._count)

    def __getstate__(self) -> dict[str, Any]:
        """Goes to another process without what it has opened."""
        return {**vars(self), "_files": OrderedDict(), "_tokens": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over what `__getstate__` gave."""
        vars(self).update(state)
        self._tokens = lru_cache(maxsize=2**16)(self._count)

    def clip(self, row: dict[str, Any]) -> ClipRows:
        """Returns what is to be kept of a clip, given its row in the index."""
        text = row["text"] or ""
        of = clip_digest(row["sha256"], text)
        return ClipRows(key=row["key"], of=of, frames=row["frames"], tokens=self._tokens(text))

    def rows(self, source: Source, clips: NDArray[np.int64], frames: NDArray[np.int64]) -> list[Tensor | None]:
        """Returns the features of frames, [L, C] each; None where they are not kept."""
        both = zip(clips.tolist(), frames.tolist(), strict=True)
        return [self.row(*self._clip_of(source, clip), frame) for clip, frame in both]

    def _clip_of(self, source: Source, clip: int) -> tuple[ClipRows, str, str]:
        found = self._known.pop((source.name, clip), None)
        if found is None:
            row, part = source.clips.row(clip), int(source.clips.part[clip])
            found = self.clip(row), source.clips.shard_sets[part].folder, str(row["shard"])
        self._known[source.name, clip] = found
        while len(self._known) > _KNOWN_CLIPS:
            self._known.popitem(last=False)
        return found

    def row(self, clip: ClipRows, folder: str, shard: str, frame: int) -> Tensor | None:
        """Returns the features of one frame of a clip in a shard, [L, C]; None where they are not kept."""
        for again in (False, True):
            holding = [file for file in self.opened(folder, shard, again=again) if file.holds(clip, self.layout)]
            data = self._read(holding, clip, frame)
            if data is not None:
                return torch.frombuffer(bytearray(data), dtype=self.dtype).reshape(clip.tokens, self.width)
            if not holding:
                return None
        return None

    def opened(self, folder: str, shard: str, *, again: bool = False) -> list[FeatureFile]:
        """Returns the files of a shard that are there, opened; ``again``: another process may have replaced them."""
        found = self._files.pop((folder, shard), None)
        if found is None or again:
            found = [file for place in places(folder, self.layout.maker) if (file := self._open(place, shard))]
        self._files[folder, shard] = found
        while len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)
        return found

    def _open(self, place: str, shard: str) -> FeatureFile | None:
        path = files.join(place, file_of(shard))
        try:
            return FeatureFile.open(path) if files.exists(path) else None
        except PyramidError as error:
            self._complain(path, error)
        return None

    def _read(self, holding: Sequence[FeatureFile], clip: ClipRows, frame: int) -> bytes | None:
        for file in holding:
            try:
                if (data := file.row(clip, frame)) is not None:
                    return data
            except PyramidError as error:
                self._complain(file.path, error)
        return None

    def _complain(self, path: str, error: PyramidError) -> None:
        if path not in self._complained:
            self._complained.add(path)
            _LOG.warning("%s; they are worked out anew each time: delete the file, and it is made again", error)

    def _count(self, text: str) -> int:
        return self._inserted + self._words(text)

    def _words(self, text: str) -> int:
        # One by one: a process that was forked from one with the tokenizer's threads has none.
        return min(len(self._tokenizer.encode(text).ids), self._most)
