"""Brings the samples of a batch to their places: what is held is copied at once, the rest decoded clip after clip.

While another process decodes a clip that is needed here, others are decoded here. Nothing here decides what a batch
holds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyramid.errors import DataError
from pyramid.mixture.clips import Wanted
from pyramid.mixture.kept import Kept, found
from pyramid.mixture.source import Chunk, Source

_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.008


class Slots:
    """The places of a group's samples."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.arrays: dict[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in tensors.items()}


class Filling:
    """The samples of one source that a group holds.

    Args:
        source: the source.
        items: its items.
        at: their places in the group.
        slots: the places.
        kept: what is kept of frames; what is kept of these is taken in the place of their pictures.
    """

    def __init__(
        self, source: Source, items: Sequence[int], at: Sequence[int], slots: Slots, kept: Kept | None = None
    ) -> None:
        self.source, self.at, self.slots = source, list(at), slots
        self._want = self._wanted(items)
        self._left = np.arange(len(self.at))
        self.clips: list[int] = self._want.clips.tolist()
        """Clip of each sample that is read."""
        self.replaced = [False] * len(self.at)
        """Whether it is another than the one asked for."""
        self.failed: list[int] = []
        """Samples that cannot be read, by number in ``items``."""
        self.quality: dict[int, Mapping[str, NDArray[Any]]] = {}
        """What a labeler says of the labels of each sample that has any, by number in ``items``."""
        self.kept: dict[int, Tensor] = found(kept, source, self._want.clips, self._want.frames)
        """What is kept of the frame of each sample of which anything is, by number in ``items``."""
        if kept is not None and not kept.pictures:
            self._without_pictures(np.array(sorted(self.kept), np.int64))

    def _wanted(self, items: Sequence[int]) -> Wanted:
        return self.source.wanted(items, self.at, self.slots.arrays["images"][:, 0])

    def _without_pictures(self, numbers: NDArray[np.int64]) -> None:
        """Writes the actions of samples whose frames nobody needs; their pictures are 0."""
        self.slots.arrays["images"][self._want.at[numbers]] = 0
        for clip in dict.fromkeys(self._want.clips[numbers].tolist()):
            of_it = numbers[self._want.clips[numbers] == clip]
            try:
                rows = self.source.clip_rows(clip)
            except DataError:
                self.failed += of_it.tolist()
                continue
            self._write(of_it, None if rows is None else rows[self._want[of_it].rows(self.source.after)])
        self._left = np.setdiff1d(self._left, numbers)

    def advance(self) -> bool:
        """Copies what is held and decodes a clip of what is not; returns whether there was anything to do."""
        left = self._want[self._left]
        held, rows, clip = self.source.cache.take(left, self.source.after)
        self._write(self._left[held], rows)
        self._left = self._left[~held]
        if clip is not None:
            of_it = self._want.clips[self._left] == clip
            self._decode(clip, self._left[of_it])
            self._left = self._left[~of_it]
        return clip is not None or bool(held.any())

    @property
    def done(self) -> bool:
        """Whether all samples are there or have failed."""
        return not len(self._left)

    def _decode(self, clip: int, numbers: NDArray[np.int64]) -> None:
        source, want = self.source, self._want[numbers]
        try:
            sample = source.sample(clip)
            rows = source.measured_rows(sample)
            source.cache.decode(want, sample, rows)
        except DataError:
            # What is wrong is said when a sample is looked for in its place.
            self.failed += numbers.tolist()
            return
        finally:
            source.cache.release(clip)
        self._write(numbers, None if rows is None else rows[want.rows(source.after)])

    def _write(self, numbers: NDArray[np.int64], rows: NDArray[np.float32] | None) -> None:
        """Writes the actions of samples whose frames are there; ``rows`` [n, k, D + S] are those of `Source.after`."""
        if self.source.measured and rows is not None:
            self._write_measured(numbers, rows)
            return
        for number in numbers.tolist():
            try:
                self._put(number, self.source.chunk(self.clips[number], int(self._want.steps[number])))
            except DataError:
                self.failed.append(number)

    def _write_measured(self, numbers: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        want, body, arrays = self._want[numbers], self.source.embodiment, self.slots.arrays
        chunk, width = rows[:, -body.horizon :], body.action_dim
        there = (np.arange(body.horizon) < (want.lengths - want.steps)[:, None])[..., None]
        action, states = np.where(there, chunk[..., :width], np.float32(0)), rows[:, : body.state_history, width:]
        arrays["action"][want.at], arrays["mask"][want.at] = action, there
        arrays["state"][want.at] = states.reshape(len(states), *body.state_shape)
        finite = np.isfinite(action).all((1, 2)) & np.isfinite(states).all((1, 2))
        self.failed += numbers[~finite].tolist()

    def put(self, number: int, clip: int, chunk: Chunk, image: NDArray[np.uint8]) -> None:
        """Fills in a sample that was read alone."""
        self.kept.pop(number, None)
        self.clips[number] = clip
        self.slots.arrays["images"][self.at[number], 0] = image
        self._put(number, chunk)

    def _put(self, number: int, chunk: Chunk) -> None:
        at, arrays = self.at[number], self.slots.arrays
        arrays["action"][at], arrays["mask"][at] = chunk.action, chunk.mask[:, None]
        # Labels that are told to a robot's own slot have no state.
        arrays["state"][at] = chunk.state if len(chunk.state) else 0
        if chunk.quality:
            self.quality[number] = chunk.quality


class LaterFrames(Filling):
    """The frames ``future_s`` after those of the samples of one source; where a clip ends before, there is none."""

    def _wanted(self, items: Sequence[int]) -> Wanted:
        self.slots.arrays["future_known"][self.at] = False
        self.slots.arrays["future"][self.at] = 0
        return self.source.wanted(items, self.at, self.slots.arrays["future"][:, 0], later=True)

    def __init__(self, source: Source, items: Sequence[int], at: Sequence[int], slots: Slots) -> None:
        super().__init__(source, items, at, slots)
        self._left = np.flatnonzero(self._want.frames < self._want.lengths)

    def _write(self, numbers: NDArray[np.int64], rows: NDArray[np.float32] | None) -> None:
        self.slots.arrays["future_known"][self._want.at[numbers]] = True

    def replace(self, number: int, frame: NDArray[np.uint8] | None) -> None:
        """Fills in the later frame of a sample that stands in for another; None where its clip ends before."""
        at = self.at[number]
        self.slots.arrays["future_known"][at] = frame is not None
        self.slots.arrays["future"][at, 0] = 0 if frame is None else frame


def fill(fillings: Sequence[Filling]) -> None:
    """Fills in all samples that can be read."""
    left, pause = list(fillings), _PAUSE_S
    while left:
        # Not any(): each of them is to go on.
        busy = [filling.advance() for filling in left]
        left = [filling for filling in left if not filling.done]
        if any(busy):
            pause = _PAUSE_S
        elif left:
            # Another process decodes what is left; looking costs the processor's time that it needs for that.
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
