"""Clips on their way to labelers: read from a shard, decoded once for all labelers of a job, prepared.

Which process does this is left to `pyramid.labels.decoding`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import DataError, PyramidError, SkipItemError
from pyramid.jobs import Quarantined
from pyramid.labels.plan import Row, Task
from pyramid.labels.protocol import Prepare
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.cache import ShardCache
from pyramid.shards.reader import Sample, checked_sample
from pyramid.video.decode import decode_mp4

MAX_HELD_FRAMES = 4096
"""A longer clip is decoded anew for each labeler: all its frames at once might not fit into memory."""


class DecodedOnce(Sample):
    """A sample whose frames are decoded when they are first asked for, and then held."""

    @cached_property
    def _held(self) -> NDArray[np.uint8] | None:
        try:
            return decode_mp4(self.video) if len(self) <= MAX_HELD_FRAMES else None
        except DataError:
            return None  # The frames that are asked for may still decode.

    def frames(self, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Returns frames by index; uint8 [n, H, W, 3], RGB; all of them if ``indices`` is None."""
        held = self._held
        if held is None:
            return super().frames(indices)
        return held if indices is None else held[list(indices)]


@dataclass(frozen=True)
class ClipInputs:
    """One clip, ready for each labeler that is to label it."""

    key: str
    """Unique key."""
    n_frames: int
    """Frames in the shard; 0 for a sample that cannot be read."""
    inputs: dict[int, Any] = field(default_factory=dict)
    """Labeler -> what it is to label."""
    faults: dict[int, Quarantined] = field(default_factory=dict)
    """Labeler -> why the clip is set aside for it."""

    def __len__(self) -> int:
        return self.n_frames


def clip_inputs(
    folder: str,
    task: Task,
    prepares: Mapping[int, Prepare | None],
    *,
    decode: bool,
    cache: ShardCache | None = None,
) -> Iterator[ClipInputs]:
    """Yields the clips of a shard in order, one in memory at a time.

    Args:
        folder: the shard folder.
        task: what of it is wanted, for which labelers.
        prepares: each labeler's first step; None hands the sample over as it is.
        decode: decode here for labelers without a first step of their own.
        cache: read the shard, and those that will be wanted soon, into copies.

    Raises:
        UnreachableError: the store of the shards does not answer.
    """
    for row, data in _read(folder, task, cache):
        try:
            if isinstance(data, DataError):
                raise data
            sample = checked_sample(data, row.key, row.sha256, files.join(folder, task.shard))
        except DataError as error:
            fault = Quarantined(item=row.key, reason="bad_sample", detail=str(error))
            yield ClipInputs(row.key, 0, faults=dict.fromkeys(task.labelers, fault))
            continue
        if decode or len(task.labelers) > 1:
            sample = DecodedOnce(**vars(sample))
        yield _prepared(sample, {i: prepares[i] for i in task.labelers}, decode=decode)


def _read(folder: str, task: Task, cache: ShardCache | None) -> Iterator[tuple[Row, bytes | DataError]]:
    """Yields the bytes of each sample, or why they cannot be read."""
    path, ahead = files.join(folder, task.shard), ReadAhead()
    end = max(row.offset + row.size for row in task.rows)
    name, copy = files.digest([path, task.digest]), None
    if cache is not None:
        copy = cache.copy(path, name, end)
        later = [(files.join(folder, shard), digest, size) for shard, digest, size in task.ahead]
        cache.ahead((url, files.digest([url, digest]), size) for url, digest, size in later)
    try:
        for row in task.rows:
            yield row, _read_one(row, lambda row: ahead.read(path, row.offset, row.size, end), copy)
    finally:
        if cache is not None:
            cache.drop(name)


def _read_one(row: Row, read: Callable[[Row], bytes], copy: Path | None) -> bytes | DataError:
    if copy is not None:
        # A copy that another job has dropped, or that is not whole, is no reason to doubt the shard.
        with contextlib.suppress(DataError):
            return files.read_range(copy, row.offset, row.size)
    try:
        return read(row)
    except DataError as error:
        return error


def _prepared(sample: Sample, prepares: Mapping[int, Prepare | None], *, decode: bool) -> ClipInputs:
    clip = ClipInputs(sample.key, len(sample))
    for place, prepare in prepares.items():
        try:
            if prepare is not None:
                clip.inputs[place] = prepare(sample)
            else:
                clip.inputs[place] = sample
                if decode:
                    sample.frames([0])  # Holds them all.
        except (Exception, SystemExit) as error:
            clip.faults[place] = fault_of(error, sample.key)
    return clip


def fault_of(error: Exception | SystemExit, key: str, who: str = "prepare") -> Quarantined:
    """Returns why a clip is set aside; raises errors that are not the clip's own, such as a full disk."""
    if isinstance(error, PyramidError) and not isinstance(error, DataError):
        raise error
    reason = error.reason if isinstance(error, SkipItemError) else "label_error"
    detail = str(error) if isinstance(error, DataError) else f"{who}: {type(error).__name__}: {error}"
    return Quarantined(item=key, reason=reason, detail=detail)
