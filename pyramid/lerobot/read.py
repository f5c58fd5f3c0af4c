"""Reading LeRobot v2.0 and v2.1, with or without GR00T's `modality.json`: which episodes there are, and their numbers.

Metadata of real data sets lies, so files are believed: totals, splits and declared cameras without files are passed
over. Files of many episodes are left to `read_v3`, decoding the videos to `pyramid.video`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.lerobot import schema
from pyramid.lerobot.extra import extra_of
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY

_NO_INSTRUCTION = ("valid", "invalid")
_EPISODE_FILE = re.compile(r"episode_(\d+)\.parquet")
_MAX_ROWS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class LeRobotEpisode:
    """One episode of a data set: where its files are and what it is about."""

    index: int
    """The episode's number."""
    length: int
    """Rows, as the metadata says; `read_episode` counts them."""
    task: str
    """The instruction; empty when none is known."""
    data: str
    """Path of the Parquet file."""
    videos: dict[str, str]
    """Path of the video file by camera key, such as ``observation.images.front``."""
    tasks: tuple[str, ...] = ()
    """All that the metadata says it is about, validity marks included."""
    rows: tuple[int, int] | None = None
    """First row and number of rows in ``data``, which other episodes share; None: the whole file."""
    stretches: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Start and end (exclusive) in the video by camera key, seconds; a camera without one has the whole file."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What its metadata says beyond the format's own keys, plain data."""


@dataclass(frozen=True, kw_only=True)
class LeRobotDataset:
    """A data set's metadata, reduced to what its files bear out."""

    root: str
    """The data set's folder."""
    version: str
    """``v2.0``, ``v2.1`` or ``v3.0``."""
    fps: float
    """Frames and rows per second."""
    robot_type: str
    """Whose body it is; empty when the metadata does not say."""
    cameras: tuple[str, ...]
    """Camera keys that have a video file in one episode at least."""
    episodes: tuple[LeRobotEpisode, ...]
    """Episodes whose Parquet file is there, by number."""
    modality: dict[str, Any]
    """GR00T's `modality.json`; empty when there is none."""
    notes: tuple[str, ...]
    """What the metadata claims and the files do not bear out, as sentences for a person."""
    info: dict[str, Any] = field(default_factory=dict, repr=False)
    """The content of `info.json`."""
    tasks: dict[int, str] = field(default_factory=dict)
    """Instruction by ``task_index``; empty when the data set lists none."""
    refused: tuple[Quarantined, ...] = ()
    """Episodes that are listed and cannot be used, with reasons."""

    def __repr__(self) -> str:
        seconds = sum(episode.length for episode in self.episodes) / self.fps
        return (
            f"LeRobotDataset({self.root}: {self.version}, {len(self.episodes)} episodes, {seconds:.0f} s, "
            f"{self.fps:g} Hz, cameras {', '.join(self.cameras) or 'none'}, {len(self.notes)} notes)"
        )


@dataclass(frozen=True, kw_only=True)
class EpisodeArrays:
    """The numbers of one episode; row t belongs to frame t of its videos."""

    state: NDArray[np.float32]
    """float32 [T, S], physical units."""
    action: NDArray[np.float32]
    """float32 [T, D], physical units."""
    times_s: NDArray[np.float64]
    """float64 [T], seconds from the first row, ascending."""

    def __len__(self) -> int:
        return len(self.times_s)

    def __repr__(self) -> str:
        return f"EpisodeArrays({len(self)} rows, state {self.state.shape[1]}, action {self.action.shape[1]})"


def open_v2(root: str) -> LeRobotDataset:
    """Reads a data set's metadata and looks which of its files are there.

    Args:
        root: the folder that holds ``meta/info.json``, local or ``s3://``.

    Raises:
        DataError: no LeRobot data set, one of version 3, or metadata that cannot be read.
        UnsafeInputError: paths in the metadata that leave the folder.
    """
    meta = files.join(root, "meta")
    path = files.join(meta, schema.INFO)
    if not files.exists(path):
        raise DataError(f"'{root}' is no LeRobot data set: there is no {path}")
    info = mapping(files.read_json(path), path)
    version = schema.check_version(info.get("codebase_version"), path)
    modality_path = files.join(meta, schema.MODALITY)
    modality = mapping(files.read_json(modality_path), modality_path) if files.exists(modality_path) else {}
    declared = declared_cameras(info, path)
    found, refused = _episodes(str(root), info, declared)
    notes = [item.detail for item in refused]
    unlisted = _unlisted(str(root), {episode.index for episode in found})
    notes += [f"{name} is not listed in meta/{schema.EPISODES} and is passed over" for name in unlisted]
    present = {camera for episode in found for camera in episode.videos}
    notes += [f"camera '{key}' is declared in {path} and has no files" for key in declared if key not in present]
    notes += [
        f"episode {episode.index} has no video of camera '{key}'"
        for episode in found
        for key in declared
        if key in present and key not in episode.videos
    ]
    return LeRobotDataset(
        root=str(root),
        version=version,
        fps=rate_of(info, path),
        robot_type=str(info.get("robot_type") or ""),
        cameras=tuple(camera for camera in declared if camera in present),
        episodes=tuple(found),
        modality=modality,
        notes=tuple(notes),
        info=info,
        tasks=_task_table(meta),
        refused=tuple(refused),
    )


def _task_table(meta: str) -> dict[int, str]:
    path = files.join(meta, schema.TASKS)
    rows = list(_lines(path)) if files.exists(path) else []
    return task_table([(row.get("task_index"), row.get("task")) for row in rows], path)


def task_table(rows: list[tuple[Any, Any]], path: str) -> dict[int, str]:
    """Returns instructions by number; refuses, by name, numbers and instructions that are none or stand twice."""
    table: dict[int, str] = {}
    for index, task in rows:
        if isinstance(index, bool) or not isinstance(index, int) or not isinstance(task, str) or index in table:
            raise DataError(f"{path}: task_index {index!r} with the task {task!r} is no task, or stands twice")
        table[index] = task
    return table


def mapping(value: Any, path: str) -> dict[str, Any]:
    """Returns a JSON object, or refuses what is none."""
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def rate_of(info: dict[str, Any], path: str) -> float:
    """Returns the rate of a data set, rows and frames per second."""
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise DataError(f"{path}: fps {fps!r} is not a rate")
    return float(fps)


def declared_cameras(info: dict[str, Any], path: str) -> list[str]:
    """Returns the video features of `info.json`, whether or not they have files."""
    features = mapping(info.get("features", {}), f"{path} (features)")
    return [str(key) for key, value in features.items() if isinstance(value, dict) and value.get("dtype") == "video"]


def _lines(path: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                yield mapping(json.loads(line), f"{path} line {number}")
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path} line {number}: not JSON: {error}") from error


class Folders:
    """Answers whether files are there with one listing per folder."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        """Tells whether a file is there."""
        folder, _, name = path.rpartition("/")
        if folder not in self._names:
            self._names[folder] = frozenset(files.listdir(folder))
        return name in self._names[folder]


def _episodes(root: str, info: dict[str, Any], cameras: list[str]) -> tuple[list[LeRobotEpisode], list[Quarantined]]:
    data_path = str(info.get("data_path") or schema.DATA_PATH)
    video_path = str(info.get("video_path") or schema.VIDEO_PATH)
    chunk_size = info.get("chunks_size")
    chunk_size = chunk_size if isinstance(chunk_size, int) and chunk_size > 0 else schema.CHUNK_SIZE
    folders, found, refused = Folders(), [], []
    for index, row in sorted(_rows(root).items()):
        data = files.join(root, schema.fill_path(data_path, index=index, chunk_size=chunk_size))
        if not folders.has(data):
            detail = f"episode {index} is listed and its file {data} is not there"
            refused.append(Quarantined(item=data, reason="missing_file", detail=detail))
            continue
        paths = {
            key: files.join(root, schema.fill_path(video_path, index=index, chunk_size=chunk_size, video_key=key))
            for key in cameras
        }
        videos = {key: path for key, path in paths.items() if folders.has(path)}
        task = instruction(row["tasks"])
        found.append(
            LeRobotEpisode(
                index=index,
                length=row["length"],
                task=task,
                data=data,
                videos=videos,
                tasks=tuple(row["tasks"]),
                extra=row["extra"],
            )
        )
    return found, refused


def _rows(root: str) -> dict[int, dict[str, Any]]:
    path = files.join(root, "meta", schema.EPISODES)
    rows = {}
    for row in _lines(path):
        index, length, tasks = row.get("episode_index"), row.get("length"), row.get("tasks", [])
        if not isinstance(index, int) or not isinstance(length, int) or index < 0 or not 0 < length <= _MAX_ROWS:
            raise DataError(f"{path}: episode_index {index!r} with length {length!r} is not an episode")
        if not isinstance(tasks, list) or index in rows:
            raise DataError(f"{path}: episode {index} stands twice, or its tasks are no list")
        rows[index] = {"length": length, "tasks": [str(task) for task in tasks], "extra": extra_of(row)}
    return rows


def instruction(tasks: list[str]) -> str:
    """Returns the first of an episode's tasks that says what to do."""
    # GR00T keeps the validity mark of an episode among its tasks.
    return next((task for task in tasks if task.strip().lower() not in _NO_INSTRUCTION), "")


def _unlisted(root: str, listed: set[int]) -> list[str]:
    data = files.join(root, "data")
    names = [f"{chunk}/{name}" for chunk in files.listdir(data) for name in files.listdir(files.join(data, chunk))]
    return [n for n in names if (m := _EPISODE_FILE.fullmatch(n.rpartition("/")[2])) and int(m[1]) not in listed]


def read_episode(
    dataset: LeRobotDataset, episode: LeRobotEpisode, *, state_key: str = STATE_KEY, action_key: str = ACTION_KEY
) -> EpisodeArrays:
    """Reads the states, actions and times of one episode.

    Args:
        dataset: what `open_v2` returned.
        episode: one of its episodes.
        state_key: the state's column.
        action_key: the action's column.

    Raises:
        DataError: a missing column, rows of unequal length, or a number that is not finite; file and column are named.
    """
    return read_rows(episode.data, dataset.fps, state_key=state_key, action_key=action_key, rows=episode.rows)


def read_rows(
    path: str,
    fps: float,
    *,
    state_key: str = STATE_KEY,
    action_key: str = ACTION_KEY,
    rows: tuple[int, int] | None = None,
) -> EpisodeArrays:
    """Reads the numbers of one episode file, whatever data set it stands in; see `read_episode`.

    Args:
        path: the episode's Parquet file.
        fps: rows per second, for files without usable timestamps.
        state_key: the state's column.
        action_key: the action's column.
        rows: first row and number of rows of a file that episodes share; None reads all.
    """
    table = parquet.read(path, rows=rows)
    if table.num_rows == 0:
        raise DataError(f"{path}: holds no rows")
    state, action = _vectors(table, state_key, path), _vectors(table, action_key, path)
    return EpisodeArrays(state=state, action=action, times_s=_times(table, fps, path))


def _column(table: pa.Table, name: str, path: str) -> pa.Array:
    if name not in table.column_names:
        raise DataError(f"{path}: there is no column '{name}'; the columns are {', '.join(table.column_names)}")
    return table[name].combine_chunks()


def _vectors(table: pa.Table, name: str, path: str) -> NDArray[np.float32]:
    column = _column(table, name, path)
    types = pa.types
    lists = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    flat = column.flatten() if lists else column
    if column.null_count or flat.null_count or not (types.is_floating(flat.type) or types.is_integer(flat.type)):
        raise DataError(f"{path}: column '{name}' of type {column.type} does not hold numbers in every row")
    lengths = set(pc.list_value_length(column).to_pylist()) if lists else {1}
    if len(lengths) != 1:
        raise DataError(f"{path}: rows of column '{name}' have lengths {sorted(lengths)}; all must be equal")
    values = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), lengths.pop())
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: column '{name}' is not finite in {len(bad)} rows, the first is row {bad[0]}")
    return values


def _times(table: pa.Table, fps: float, path: str) -> NDArray[np.float64]:
    counted = np.arange(table.num_rows) / fps
    if "timestamp" not in table.column_names:
        return counted
    stored = _vectors(table, "timestamp", path)[:, 0].astype(np.float64)
    stored -= stored[0]
    # float32 seconds and a rate that was rounded leave jitter; times that do not even ascend are no times.
    near = np.allclose(stored, counted, rtol=1e-4, atol=0.25 / fps)
    return counted if near or not (np.diff(stored) > 0).all() else stored
