"""Decoded clips in memory that all workers of a process share, bounded: a clip is decoded once for all of its items.

A source's order mixes the items of a few clips at a time, so the clips that were decoded last are the ones that are
asked for. What is held never decides what comes out.
"""

from __future__ import annotations

import multiprocessing
from collections import OrderedDict
from functools import partial
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.shards.frames import square_frames
from pyramid.shards.reader import Sample

_LAST_SAMPLES = 8
_HEAD, _DECODED, _USED = range(3)

Item = tuple[NDArray[np.uint8], NDArray[np.float32]]
"""A frame uint8 [S, S, 3], RGB, and rows of numbers float32 [n, W] from a step of its clip on."""


class SharedCounts:
    """Numbers that processes which are forked later add to together; another process begins with its own at 0."""

    def __init__(self, n: int) -> None:
        self._counts: NDArray[np.int64] = _shared((n,), np.int64)
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process as zeros."""
        return SharedCounts, (len(self._counts),)

    def add(self, place: int) -> None:
        """Adds one."""
        with self._lock:
            self._counts[place] += 1

    def values(self) -> list[int]:
        """Returns the numbers."""
        with self._lock:
            return [int(n) for n in self._counts]


class ClipCache:
    """Decoded clips of one source: their frames, and rows of numbers that go with them.

    They lie in a ring of anonymous shared memory, the oldest overwritten first. Processes that are forked after it was
    made share it; one that it is pickled for has a ring of its own. Memory that was never written to costs nothing.

    Args:
        n_clips: clips of the source.
        frames: frames that the ring holds; 0 for none: then only the frames asked for are decoded.
        width: numbers of a row.
        size_px: side of the frames, pixels.
        gop: longest distance between key frames in the packed clips, frames.
    """

    def __init__(self, n_clips: int, frames: int, *, width: int, size_px: int, gop: int) -> None:
        self.n_clips, self.frames, self.width, self.size_px, self.gop = n_clips, frames, width, size_px, gop
        self._counts: NDArray[np.int64] = _shared((3,), np.int64)
        self._starts: NDArray[np.int64] = _shared((n_clips if frames else 0,), np.int64)
        self._pictures: NDArray[np.uint8] = _shared((frames, size_px, size_px, 3), np.uint8)
        self._rows: NDArray[np.float32] = _shared((frames, width), np.float32)
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

    def find(self, clip: int, frame: int, step: int, n: int) -> Item | None:
        """Returns a frame of a clip and its rows from ``step`` on, up to ``n`` in the ring; None if it is not there."""
        if not self.frames:
            return None
        with self._lock:
            start = int(self._starts[clip]) - 1
            if start < 0 or self._counts[_HEAD] - start > self.frames:
                return None
            self._counts[_USED] += 1
            at = start % self.frames
            return self._pictures[at + frame].copy(), self._rows[at + step : at + step + n].copy()

    def decode(self, clip: int, sample: Sample, frame: int, rows: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Decodes one frame of a clip, and, where they fit, all others for the items to come.

        Args:
            clip: the clip.
            sample: its sample.
            frame: the frame that is asked for.
            rows: float32 [T, W] that go with the frames; None for none.

        Returns:
            uint8 [S, S, 3], RGB.
        """
        whole = len(sample) <= self.frames
        found = square_frames(sample, range(len(sample)) if whole else [frame], self.size_px)
        with self._lock:
            self._counts[_USED] += 1
            self._counts[_DECODED] += len(found) if whole else frame % self.gop + 1
            if whole:
                self._write(clip, found, rows)
        return np.asarray(found[frame if whole else 0])

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


def _shared(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    """Returns zeros in anonymous memory that forked processes share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap(-1, max(size, 1)), dtype, count=int(np.prod(shape))).reshape(shape)
