"""Decoded clips in memory that all workers of a process share, bounded: a clip is decoded once for all of its items.

A source's order mixes the items of a few clips at a time, so the clips that were decoded last are the ones that are
asked for. What is held never decides what comes out.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.shards.frames import square_frames
from pyramid.shards.reader import Sample

_LAST_SAMPLES = 8
_HEAD, _DECODED, _USED = range(3)

_CLAIM_S = 10.0
"""After so many seconds a clip that a process set out to decode is anybody's again: the process may be dead."""


@dataclass(frozen=True)
class Wanted:
    """Items of a source and where their frames go."""

    clips: NDArray[np.int64]
    """[n]: their clips."""
    lengths: NDArray[np.int64]
    """[n]: frames of those."""
    frames: NDArray[np.int64]
    """[n]: frame of the clip."""
    steps: NDArray[np.int64]
    """[n]: row of the clip that a chunk begins with."""
    at: NDArray[np.int64]
    """[n]: places in ``images``."""
    images: NDArray[np.uint8]
    """uint8 [N, S, S, 3], RGB: what is filled."""

    def __getitem__(self, some: NDArray[Any]) -> Wanted:
        """Returns some of the items."""
        clips, lengths, frames, steps, at = (
            part[some] for part in (self.clips, self.lengths, self.frames, self.steps, self.at)
        )
        return Wanted(clips, lengths, frames, steps, at, self.images)

    def __len__(self) -> int:
        return len(self.clips)

    def rows(self, after: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows so many steps ``after`` [m] each item's, int64 [n, m].

        Before the beginning of the clip (``after`` may be negative) it is its first, past its end its last.
        """
        found: NDArray[np.int64] = np.clip(self.steps[:, None] + after, 0, self.lengths[:, None] - 1)
        return found


class SharedCounts:
    """Numbers that processes which are forked later add to together; another process begins with its own at 0."""

    def __init__(self, n: int) -> None:
        self._counts: NDArray[np.int64] = shared_zeros((n,), np.int64)
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process as zeros."""
        return SharedCounts, (len(self._counts),)

    def add(self, place: int, n: int = 1) -> None:
        """Adds ``n`` to a number."""
        with self._lock:
            self._counts[place] += n

    def values(self) -> list[int]:
        """Returns the numbers."""
        with self._lock:
            return [int(n) for n in self._counts]


class ClipCache:
    """Decoded clips of one source: their frames, and rows of numbers that go with them.

    They lie in a ring of anonymous shared memory, the oldest overwritten first. Processes that are forked after it was
    made share it, and none decodes what another is about to have; one that it is pickled for has a ring of its own.
    Memory that was never written to costs nothing.

    Args:
        n_clips: clips of the source.
        frames: frames that the ring holds; 0 for none: then only the frames asked for are decoded.
        width: numbers of a row.
        size_px: side of the frames, pixels.
        gop: longest distance between key frames in the packed clips, frames.
    """

    def __init__(self, n_clips: int, frames: int, *, width: int, size_px: int, gop: int) -> None:
        self.n_clips, self.frames, self.width, self.size_px, self.gop = n_clips, frames, width, size_px, gop
        self._counts: NDArray[np.int64] = shared_zeros((3,), np.int64)
        self._starts: NDArray[np.int64] = shared_zeros((n_clips if frames else 0,), np.int64)
        self._claims: NDArray[np.float64] = shared_zeros((n_clips if frames else 0,), np.float64)
        self._pictures: NDArray[np.uint8] = shared_zeros((frames, size_px, size_px, 3), np.uint8)
        self._rows: NDArray[np.float32] = shared_zeros((frames, width), np.float32)
        self._lock = multiprocessing.Lock()
        self._last: OrderedDict[int, Sample] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process as an empty cache of its own."""
        return partial(ClipCache, width=self.width, size_px=self.size_px, gop=self.gop), (self.n_clips, self.frames)

    @property
    def decoded(self) -> int:
        """Frames that the decoder gave or had to go through, in all processes that share the ring."""
        return int(self._counts[_DECODED])

    @property
    def used(self) -> int:
        """Frames that went into batches, in all processes that share the ring."""
        return int(self._counts[_USED])

    def sample(self, clip: int) -> Sample | None:
        """Returns a clip's sample if it is one of the last that were read."""
        return self._last.get(clip)

    def keep(self, clip: int, sample: Sample) -> None:
        """Takes in a sample that was read."""
        self._last[clip] = sample
        while len(self._last) > _LAST_SAMPLES:
            self._last.popitem(last=False)

    def take(self, want: Wanted, after: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32], int | None]:
        """Copies the frames that are held, and says what to decode.

        Args:
            want: items; the frames of those that are held are filled in.
            after: rows of an item, int64 [k]: steps after its own.

        Returns:
            Which items are held, bool [n]; their rows, float32 [m, k, W]; and one clip of the others that the
            caller is to `decode`, or None if there is none that no other process is decoding.
        """
        if not self.frames:
            none = np.zeros((0, len(after), self.width), np.float32)
            return np.zeros(len(want), bool), none, int(want.clips[0]) if len(want) else None
        with self._lock:
            starts = self._starts[want.clips] - 1
            held = (starts >= 0) & (self._counts[_HEAD] - starts <= self.frames)
            found, at = want[held], starts[held] % self.frames
            for place, picture in zip(found.at.tolist(), (at + found.frames).tolist(), strict=True):
                want.images[place] = self._pictures[picture]
            self._counts[_USED] += len(found)
            return held, self._rows[at[:, None] + found.rows(after)], self._claim(want[~held])

    def _claim(self, want: Wanted) -> int | None:
        now = time.monotonic()
        for clip, length in zip(want.clips.tolist(), want.lengths.tolist(), strict=True):
            if length > self.frames:
                return int(clip)
            if self._claims[clip] <= now:
                self._claims[clip] = now + _CLAIM_S
                return int(clip)
        return None

    def release(self, clip: int) -> None:
        """Says that this process is done with a clip that it was given to decode."""
        if self.frames:
            self._claims[clip] = 0.0

    def decode(self, want: Wanted, sample: Sample, rows: NDArray[np.float32] | None) -> None:
        """Decodes the frames of items of one clip, and, where they fit, all others for the items to come.

        Args:
            want: items of one clip; their frames are filled in.
            sample: its sample.
            rows: float32 [T, W] that go with the frames; None for none.
        """
        whole = len(sample) <= self.frames
        wanted = want.frames.tolist()
        found = square_frames(sample, range(len(sample)) if whole else wanted, self.size_px)
        for place, picture in zip(want.at.tolist(), wanted if whole else range(len(wanted)), strict=True):
            want.images[place] = found[picture]
        with self._lock:
            self._counts[_USED] += len(wanted)
            self._counts[_DECODED] += len(found) if whole else sum(frame % self.gop + 1 for frame in wanted)
            if whole:
                self._write(int(want.clips[0]), found, rows)

    def _write(self, clip: int, pictures: NDArray[np.uint8], rows: NDArray[np.float32] | None) -> None:
        head, n = int(self._counts[_HEAD]), len(pictures)
        if head % self.frames + n > self.frames:
            head += self.frames - head % self.frames
        at = head % self.frames
        self._counts[_HEAD] = head + n
        self._pictures[at : at + n] = pictures
        if rows is not None:
            self._rows[at : at + n] = rows
        self._starts[clip] = head + 1


def ring_frames(needed: dict[str, int], *, spread: int, frame_bytes: int, cache_mb: float) -> dict[str, int]:
    """Deals memory out to the sources' rings.

    Args:
        needed: frames by source that it is at most worth to hold.
        spread: frames over which the items of a clip are spread in a source's order.
        frame_bytes: bytes of a frame.
        cache_mb: bound of all rings, MiB.

    Returns:
        Frames of each ring; 0 where so few fit that clips would be decoded over and over.
    """
    part = min(1.0, cache_mb * 2**20 / max(sum(needed.values()) * frame_bytes, 1))
    room = {name: int(frames * part) for name, frames in needed.items()}
    return {name: n if n >= min(spread, needed[name]) else 0 for name, n in room.items()}


def shared_zeros(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    """Returns zeros in anonymous memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap(-1, max(size, 1)), dtype, count=int(np.prod(shape))).reshape(shape)
