"""Holds the totals and the statistics of a LeRobot data set against what its tables hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import DataError
from pyramid.findings import Findings
from pyramid.lerobot import schema
from pyramid.lerobot.columns import numbers
from pyramid.lerobot.extra import stretch_of
from pyramid.lerobot.read import LeRobotDataset, LeRobotEpisode

_ORDER = ("min", "q01", "q10", "q50", "q90", "q99", "max")
"""Statistics, none of which is smaller than the one before."""


def totals(dataset: LeRobotDataset, found: Findings) -> None:
    """Compares the totals of `info.json` with the episodes; those that readers count on are faults if they lie."""
    path = files.join(dataset.root, "meta", schema.INFO)
    listed = len(dataset.episodes) + len(dataset.refused)
    counts = {"total_episodes": listed}
    if not dataset.refused:
        counts["total_frames"] = sum(episode.length for episode in dataset.episodes)
    for name, count in counts.items():
        if name in dataset.info and dataset.info[name] != count:
            found.refuse(path, f"{name} is {dataset.info[name]!r}, the episodes make {count}")
    n_videos = len({path for episode in dataset.episodes for path in episode.videos.values()})
    harmless = {"total_tasks": len(dataset.tasks)}
    if dataset.version != schema.V3:
        harmless |= {"total_videos": n_videos, "total_chunks": -(-listed // schema.CHUNK_SIZE)}
    for name, count in harmless.items():
        if name in dataset.info and dataset.info[name] != count:
            found.remark(f"{path}: {name} is {dataset.info[name]!r}, there are {count}")
    splits = dataset.info.get("splits", {})
    for name, told in splits.items() if isinstance(splits, dict) else [("splits", splits)]:
        stretch = stretch_of(told)
        if stretch is None or stretch[1] > listed:
            found.remark(f"{path}: the split {name!r} is {str(told)[:80]!r}, there are {listed} episodes")


class Statistics:
    """The range of every column, and whether `stats.json` and `episodes_stats.jsonl` know it."""

    def __init__(self, dataset: LeRobotDataset, found: Findings) -> None:
        self.found = found
        self.path = files.join(dataset.root, "meta", schema.STATS)
        self.whole = self._document(self.path)
        self.ranges: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self.of_episodes_path = files.join(dataset.root, "meta", schema.EPISODES_STATS)
        self.of_episodes = dict(self._lines()) if dataset.version != schema.V3 else {}
        if self.of_episodes:
            for episode in dataset.episodes:
                if episode.index not in self.of_episodes:
                    found.refuse(self.of_episodes_path, f"episode {episode.index} has no statistics")

    def _document(self, path: str) -> dict[str, Any]:
        try:
            document = files.read_json(path) if files.exists(path) else {}
        except DataError as error:
            self.found.refuse(path, str(error))
            return {}
        if isinstance(document, dict):
            return document
        self.found.refuse(path, "no JSON object of columns")
        return {}

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        path = self.of_episodes_path
        try:
            lines = files.read_text(path).splitlines() if files.exists(path) else []
            for number, line in enumerate(lines, start=1):
                row = json.loads(line) if line.strip() else {"episode_index": -1, "stats": {}}
                if not (isinstance(row, dict) and isinstance(row.get("stats"), dict)):
                    raise DataError(f"line {number}: no statistics of an episode")
                yield row.get("episode_index", -1), row["stats"]
        except (DataError, ValueError, RecursionError) as error:
            self.found.refuse(path, f"line by line JSON is wanted: {error}")

    def add(self, episode: LeRobotEpisode, table: pa.Table) -> None:
        """Takes note of an episode's rows, and compares them with the statistics of the episode."""
        own = self.of_episodes.get(episode.index, {})
        for name in table.column_names:
            if name not in self.whole and name not in own:
                continue
            values = numbers(table[name])
            wide = np.zeros((0, 0)) if values is None else values.reshape(len(values), -1).astype(np.float64)
            wide = wide[np.isfinite(wide).all(axis=1)]  # Rows without a label are in no statistics.
            if not wide.size:
                continue
            span = wide.min(axis=0), wide.max(axis=0)
            former = self.ranges.get(name)
            if former is not None and former[0].shape == span[0].shape:
                self.ranges[name] = np.minimum(former[0], span[0]), np.maximum(former[1], span[1])
            else:
                self.ranges[name] = span
            if name in own:
                where = f"episode {episode.index}, column '{name}'"
                self._compare(self.of_episodes_path, where, own[name], span)

    def finish(self) -> None:
        """Compares the statistics of the whole data set with all its rows."""
        for name, told in self.whole.items():
            if name in self.ranges:
                self._compare(self.path, f"column '{name}'", told, self.ranges[name])
            elif not str(name).startswith(schema.IMAGE_PREFIX):
                self.found.remark(f"{self.path} tells of the column '{name}', which no table has as finite numbers")

    def _compare(self, path: str, where: str, told: Any, span: tuple[NDArray[Any], NDArray[Any]]) -> None:
        rows = _vectors(told)
        if rows is None or any(len(row) != len(span[0]) for row in rows.values()):
            self.found.refuse(path, f"{where}: no finite statistics of {len(span[0])} numbers")
            return
        ordered = [rows[name] for name in _ORDER if name in rows]
        slack = 1e-4 * (np.abs(span[0]) + np.abs(span[1])) + 1e-6  # Statistics are kept as float32 by some.
        if any((high < low - slack).any() for low, high in itertools.pairwise(ordered)):
            self.found.refuse(path, f"{where}: {', '.join(n for n in _ORDER if n in rows)} are not in order")
        if "std" in rows and (rows["std"] < 0).any():
            self.found.refuse(path, f"{where}: a negative standard deviation")
        for name, data, outside in (
            ("min", span[0], span[0] < rows.get("min", span[0]) - slack),
            ("max", span[1], span[1] > rows.get("max", span[1]) + slack),
        ):
            if outside.any():
                i = int(np.argmax(outside))
                detail = f"{name} is said to be {rows[name][i]:.6g} in dimension {i}, the rows reach {data[i]:.6g}"
                self.found.refuse(path, f"{where}: {detail}; the statistics are not of these rows")


def _vectors(told: Any) -> dict[str, NDArray[np.float64]] | None:
    """Returns the statistics of a column as flat vectors; None where one is no vector of finite numbers."""
    if not isinstance(told, Mapping):
        return None
    rows = {}
    for name in (*_ORDER, "mean", "std"):
        if name not in told:
            continue
        try:
            row = np.asarray(told[name], np.float64).reshape(-1)
        except (ValueError, TypeError, OverflowError):
            return None
        if not np.isfinite(row).all():
            return None
        rows[name] = row
    return rows
