"""Clips held in memory: frames, actions and states of the window of shards that a source is at; bounded.

A clip is decoded once for the window and then used for all of its items, as far as the bound allows. Past the bound
only the frame asked for is decoded. What is held never decides what comes out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyramid.shards.frames import resized_frames
from pyramid.shards.reader import Sample

_LAST_SAMPLES = 8


@dataclass
class Held:
    """A clip in memory."""

    sample: Sample
    """Without its video once the frames are held."""
    frames: NDArray[np.uint8] | None
    """uint8 [T, S, S, 3]."""


@dataclass
class Decoding:
    """How much was decoded for how much that was used."""

    decoded: int = 0
    """Frames that the decoder gave or had to go through."""
    used: int = 0
    """Frames that went into batches."""

    @property
    def per_used(self) -> float:
        """Decoded frames per used frame."""
        return self.decoded / self.used if self.used else 0.0


class ClipCache:
    """Clips of one source.

    Args:
        size_px: side of the frames, pixels.
        cache_mb: bound, MiB.
        gop: longest distance between key frames in the packed clips, frames.
    """

    def __init__(self, *, size_px: int, cache_mb: float, gop: int) -> None:
        self.size_px, self.gop = size_px, gop
        self.decoding = Decoding()
        self._room = int(cache_mb * 2**20)
        self._held: dict[int, tuple[Held, int]] = {}
        self._last: OrderedDict[int, Sample] = OrderedDict()
        self._window: tuple[int, int] | None = None

    def enter(self, window: tuple[int, int]) -> bool:
        """Drops what belongs to earlier windows; returns whether the window is a new one."""
        if window == self._window:
            return False
        for _, size in self._held.values():
            self._room += size
        self._held.clear()
        self._window = window
        return True

    def find(self, clip: int) -> Sample | None:
        """Returns a clip's sample if it is in memory."""
        if clip in self._held:
            return self._held[clip][0].sample
        return self._last.get(clip)

    def put(self, clip: int, sample: Sample) -> None:
        """Takes in a sample that was read."""
        self._last[clip] = sample
        while len(self._last) > _LAST_SAMPLES:
            self._last.popitem(last=False)

    def frame(self, clip: int, sample: Sample, index: int) -> NDArray[np.uint8]:
        """Returns one frame of a clip, uint8 [S, S, 3], RGB."""
        self.decoding.used += 1
        if clip not in self._held and not self._hold(clip, sample):
            self.decoding.decoded += index % self.gop + 1
            return np.asarray(_channels_last(sample, [index], self.size_px)[0])
        frames = self._held[clip][0].frames
        assert frames is not None  # noqa: S101
        return np.asarray(frames[index])

    def _hold(self, clip: int, sample: Sample) -> bool:
        size = len(sample) * 3 * self.size_px**2
        if size > self._room:
            return False
        self._room -= size
        self.decoding.decoded += len(sample)
        frames = _channels_last(sample, range(len(sample)), self.size_px)
        light = Sample(sample.key, {}, sample.times_s, b"", sample.state, sample.action)
        self._held[clip] = (Held(light, frames), size)
        self._last.pop(clip, None)
        return True


def _channels_last(sample: Sample, indices: list[int] | range, size_px: int) -> NDArray[np.uint8]:
    frames: NDArray[np.uint8] = resized_frames(sample, indices, size_px).permute(0, 2, 3, 1).contiguous().numpy()
    return frames
