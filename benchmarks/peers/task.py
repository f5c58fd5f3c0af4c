"""What every loader of the comparison is asked for, and how it is timed; imported in the environment of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from torch.utils.data import IterableDataset

from pyramid.shards.layout import load_array
from pyramid.video.packed import decode_mp4

SHUFFLE = 1000
"""Frames that are mixed at a time, of each source."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement."""

    folders: list[str]
    """Where the sources lie, in the loader's own format; local or s3://."""
    weights: list[float]
    batch_size: int
    workers: int
    warm_up: int
    """Batches before the clock starts: buffers are full then."""
    batches: int
    horizon: int
    size_px: int
    scratch: str
    """A folder for copies."""


def expand(video: bytes, action: bytes, horizon: int) -> Iterator[dict[str, Any]]:
    """All samples of a clip: its frame, the chunk of actions from there on, and which of them are there."""
    frames, actions = decode_mp4(video), load_array(action, "action")
    for t, frame in enumerate(frames):
        chunk = np.zeros((horizon, actions.shape[1]), np.float32)
        left = actions[t : t + horizon]
        chunk[: len(left)] = left
        yield {"frame": frame, "action": chunk, "mask": np.arange(horizon) < len(left)}


class Expanded(IterableDataset[dict[str, Any]]):
    """The samples of clips that another loader gives, through a shuffle buffer; without end."""

    def __init__(self, clips: Any, horizon: int) -> None:
        self.clips, self.horizon = clips, horizon

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return shuffled(self._samples())

    def _samples(self) -> Iterator[dict[str, Any]]:
        while True:
            for clip in self.clips:
                yield from expand(bytes(clip["mp4"]), bytes(clip["action"]), self.horizon)


def shuffled(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    random, held = np.random.default_rng(), []
    for sample in samples:
        if len(held) < SHUFFLE:
            held.append(sample)
            continue
        place = int(random.integers(SHUFFLE))
        yield held[place]
        held[place] = sample


def measure(loader: Iterable[Any], task: Task) -> dict[str, float]:
    """Takes batches; returns samples per second of the clock and per second of processor time of all processes."""
    begun = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - begun
    for _ in range(task.warm_up):
        next(batches)
    cpu, clock = cpu_seconds(), time.perf_counter()
    for _ in range(task.batches):
        next(batches)
    cpu, clock = cpu_seconds() - cpu, time.perf_counter() - clock
    n = task.batches * task.batch_size
    return {"first_s": first, "wall": n / clock, "cpu": n / cpu}


def cpu_seconds() -> float:
    """Processor time of this process and all below it."""
    total, own = 0.0, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total
