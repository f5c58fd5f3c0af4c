"""Holds the metadata of a LeRobot data set against its tables and videos, an episode at a time; nothing is changed.

Totals and statistics are left to `verify_meta`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyramid import files, parquet
from pyramid.errors import DataError, SkipItemError
from pyramid.findings import Findings
from pyramid.lerobot import schema
from pyramid.lerobot.columns import numbers
from pyramid.lerobot.read import LeRobotDataset, LeRobotEpisode
from pyramid.lerobot.read_v3 import open_dataset
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY
from pyramid.lerobot.verify_meta import Statistics, totals
from pyramid.progress import Progress
from pyramid.video.probe import probe
from pyramid.video.remux import Segment, examine

MAX_TABLE_BYTES = 2**30
"""Memory that one file of rows may take."""
_FINITE = (STATE_KEY, ACTION_KEY, "timestamp")


def check_dataset(root: str) -> Findings:
    """Looks through a LeRobot data set of any version that is read: every row of numbers, every video's frames.

    Frames are counted from their packets and not decoded. Memory holds one file of rows at a time.
    """
    found = Findings()
    try:
        dataset = open_dataset(root)
    except DataError as error:
        found.refuse(files.join(root, "meta"), str(error))
        return found
    for item in dataset.refused:
        found.refuse(item.item, item.detail)
    faults = {item.detail for item in dataset.refused}
    for note in dataset.notes:
        if note not in faults and " has no video of " not in note:
            found.remark(note)
    found.items = len(dataset.episodes)
    checking = _Checking(dataset, found)
    with Progress("verify", len(dataset.episodes)) as progress:
        for episode in dataset.episodes:
            checking.episode(episode)
            progress.add()
    checking.finish()
    return found


@dataclass(frozen=True)
class _Stretch:
    """Where an episode lies in a video."""

    start_s: float
    end_s: float
    episode: int


class _Checking:
    """What must be remembered from one episode to the next."""

    def __init__(self, dataset: LeRobotDataset, found: Findings) -> None:
        self.dataset, self.found = dataset, found
        self.statistics = Statistics(dataset, found)
        self.first = 0
        self._file: tuple[str, pa.Table] | None = None
        self._files: set[str] = set()
        self._without: dict[str, int] = {}
        self._compared: set[str] = set()
        self._stretches: dict[str, list[_Stretch]] = {}

    def episode(self, episode: LeRobotEpisode) -> None:
        """Checks the rows and the videos of one episode."""
        try:
            table = self._rows(episode)
        except DataError as error:
            self.found.refuse(episode.data, str(error))
        else:
            for reason in _row_faults(self.dataset, episode, table, None if self.dataset.refused else self.first):
                self.found.refuse(episode.data, f"episode {episode.index}: {reason}")
            for reason in self._shape_faults(table):
                self.found.refuse(episode.data, f"episode {episode.index}: {reason}")
            self.statistics.add(episode, table)
        self.first += episode.length
        for camera in self.dataset.cameras:
            self._video(episode, camera)

    def _rows(self, episode: LeRobotEpisode) -> pa.Table:
        if self._file is None or self._file[0] != episode.data:
            self._file = None  # Gives back the former one first.
            self._file = (episode.data, parquet.read(episode.data, max_bytes=MAX_TABLE_BYTES))
            self._files.add(episode.data)
        table = self._file[1]
        return table if episode.rows is None else table.slice(*episode.rows)

    def _shape_faults(self, table: pa.Table) -> Iterator[str]:
        for name, dim in vector_features(self.dataset).items():
            if name not in table.column_names:
                self._without[name] = self._without.get(name, 0) + 1
                continue
            values = numbers(table[name])
            if values is None:
                # Texts and missing values are nobody's vector; states and actions are refused elsewhere.
                continue
            has = 1 if values.ndim == 1 else values.shape[1]
            if has != dim:
                yield f"column '{name}' holds {has} numbers a row, meta/info.json says {dim}"

    def _video(self, episode: LeRobotEpisode, camera: str) -> None:
        path = episode.videos.get(camera)
        if path is None:
            self.found.refuse(episode.data, f"episode {episode.index} has no video of camera '{camera}'")
            return
        stretch = episode.stretches.get(camera)
        if stretch:
            self._stretches.setdefault(path, []).append(_Stretch(*stretch, episode.index))
        start, end = stretch or (None, None)
        try:
            facts = examine(Segment(path=path, rate_hz=self.dataset.fps, start_s=start, end_s=end))
            if facts.n_frames != episode.length:
                detail = f"{facts.n_frames} frames, but the episode has {episode.length} rows"
                raise SkipItemError("length_mismatch", detail)
            shape = [facts.height_px, facts.width_px]
            if camera not in self._compared:
                self._compared.add(camera)
                self._compare(path, camera, shape, whole=stretch is None)
        except DataError as error:
            self.found.refuse(path, f"episode {episode.index}: {error}")

    def _compare(self, path: str, camera: str, shape: list[int], *, whole: bool) -> None:
        told = feature(self.dataset, camera).get("shape")
        if isinstance(told, list) and told[:2] != shape and told[1:] != shape:
            self.found.remark(f"camera '{camera}' is {shape[0]} pixels high and {shape[1]} wide, not {told}")
        rate = probe(path).rate_hz if whole else None
        if rate is not None and abs(rate - self.dataset.fps) > 0.01 * self.dataset.fps:
            self.found.remark(f"videos of camera '{camera}' say {rate:g} frames per second, not {self.dataset.fps:g}")

    def finish(self) -> None:
        """Checks what only the whole data set can tell."""
        self.found.files = len(self._files)
        n, info = len(self.dataset.episodes), files.join(self.dataset.root, "meta", schema.INFO)
        for name, count in self._without.items():
            if count == n:
                self.found.remark(f"feature '{name}' is declared in {info} and no table has it")
            else:
                self.found.refuse(info, f"feature '{name}' is missing in {count} of {n} episodes")
        for path, stretches in self._stretches.items():
            for one, other in itertools.pairwise(sorted(stretches, key=lambda s: s.start_s)):
                if other.start_s < one.end_s - 0.5 / self.dataset.fps:
                    detail = f"episodes {one.episode} and {other.episode} share frames at {other.start_s:.3f} s"
                    self.found.refuse(path, detail)
        totals(self.dataset, self.found)
        self.statistics.finish()


def feature(dataset: LeRobotDataset, name: str) -> dict[str, Any]:
    """Returns what `info.json` says of a feature; empty when it says nothing that can be read."""
    features = dataset.info.get("features")
    found = features.get(name) if isinstance(features, dict) else None
    return found if isinstance(found, dict) else {}


def vector_features(dataset: LeRobotDataset) -> dict[str, int]:
    """Returns how many numbers a row of each declared feature has; those of pictures are left out."""
    features = dataset.info.get("features")
    dims = {}
    for name in features if isinstance(features, dict) else ():
        told = feature(dataset, name)
        shape = told.get("shape")
        plain = isinstance(shape, list) and len(shape) <= 1 and all(type(n) is int for n in shape)
        if plain and told.get("dtype") not in ("video", "image", "string"):
            dims[str(name)] = math.prod(shape or [])
    return dims


def _row_faults(dataset: LeRobotDataset, episode: LeRobotEpisode, table: pa.Table, first: int | None) -> Iterator[str]:
    """Yields what is wrong with the rows of an episode, whose first one is number ``first`` of the data set."""
    n, names = table.num_rows, table.column_names
    if n != episode.length:
        yield f"{n} rows, its length is said to be {episode.length}"
    if "timestamp" not in names:
        yield "there is no column 'timestamp'"
    yield from _counter_faults(episode, table, first)
    for name in _FINITE:
        values = numbers(table[name]) if name in names else np.zeros(0)
        if values is None:
            yield f"column '{name}' does not hold numbers, as many in every row"
        elif not np.isfinite(values).all():
            yield f"column '{name}' is not finite, first in row {np.argwhere(~np.isfinite(values))[0][0]}"
    yield from _time_faults(dataset, table)
    if "task_index" in names and dataset.tasks:
        unknown = [str(task) for task in pc.unique(table["task_index"]).to_pylist() if task not in dataset.tasks]
        if unknown:
            yield f"task_index {min(unknown)} is none of the {len(dataset.tasks)} tasks that are listed"


def _counter_faults(episode: LeRobotEpisode, table: pa.Table, first: int | None) -> Iterator[str]:
    rows = np.arange(table.num_rows)
    counters = {"episode_index": np.full(len(rows), episode.index), "frame_index": rows}
    if first is not None:
        counters["index"] = rows + first
    for name, wanted in counters.items():
        if name in table.column_names and len(rows):
            values = numbers(table[name])
            if values is None or (values.reshape(-1)[: len(rows)] != wanted).any():
                yield f"column '{name}' is not {wanted[0]} .. {wanted[-1]}"


def _time_faults(dataset: LeRobotDataset, table: pa.Table) -> Iterator[str]:
    times = numbers(table["timestamp"]) if "timestamp" in table.column_names else None
    if times is None or not len(times) or not np.isfinite(times).all():
        return
    times = times.reshape(len(times), -1)[:, 0].astype(np.float64)
    if not (np.diff(times) > 0).all():
        row = int(np.argmin(np.diff(times) > 0)) + 1
        yield f"timestamps do not ascend: row {row} is at {times[row]:.6g} s, after {times[row - 1]:.6g} s"
        return
    # float32 seconds, and rates that were rounded, leave a jitter far below this.
    late = np.abs(times - times[0] - np.arange(len(times)) / dataset.fps) - 1e-4 * np.abs(times)
    if late.max() > 0.25 / dataset.fps:
        row = int(np.argmax(late > 0.25 / dataset.fps))
        yield f"timestamps are not those of {dataset.fps:g} Hz: row {row} is at {times[row] - times[0]:.6g} s"
