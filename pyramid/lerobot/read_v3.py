"""Reading LeRobot v3.0: episodes are stretches of files that they share.

`open_dataset` reads every version and answers with one kind of value; what lies in files of one episode each is left
to `read`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.lerobot import read, schema
from pyramid.lerobot.extra import extra_of, is_extra
from pyramid.lerobot.read import Folders, LeRobotDataset, LeRobotEpisode

_OWN_COLUMNS = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index")
_VIDEO_PARTS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class _RefusedError(Exception):
    """One episode cannot be used; carries the reason and the sentence."""


def open_dataset(root: str) -> LeRobotDataset:
    """Reads the metadata of a LeRobot v2.0, v2.1 or v3.0 data set and looks which of its files are there.

    Args:
        root: the folder that holds ``meta/info.json``, local or ``s3://``.

    Raises:
        DataError: no LeRobot data set, one of another version, or metadata that cannot be read.
        UnsafeInputError: paths in the metadata that leave the folder.
    """
    path = files.join(root, "meta", schema.INFO)
    if files.exists(path) and read.mapping(files.read_json(path), path).get("codebase_version") == schema.V3:
        return open_v3(root)
    return read.open_v2(root)


def open_v3(root: str) -> LeRobotDataset:
    """Reads a v3.0 data set; see `open_dataset`."""
    meta = files.join(root, "meta")
    path = files.join(meta, schema.INFO)
    info = read.mapping(files.read_json(path), path)
    declared = read.declared_cameras(info, path)
    found, refused = _Opener(str(root), info, declared).episodes()
    present = {camera for episode in found for camera in episode.videos}
    modality_path = files.join(meta, schema.MODALITY)
    modality = read.mapping(files.read_json(modality_path), modality_path) if files.exists(modality_path) else {}
    notes = [item.detail for item in refused]
    notes += [f"camera '{key}' is declared in {path} and has no files" for key in declared if key not in present]
    return LeRobotDataset(
        root=str(root),
        version=schema.V3,
        fps=read.rate_of(info, path),
        robot_type=str(info.get("robot_type") or ""),
        cameras=tuple(camera for camera in declared if camera in present),
        episodes=tuple(found),
        modality=modality,
        notes=tuple(notes),
        info=info,
        tasks=_tasks(files.join(meta, schema.V3_TASKS)),
        refused=tuple(refused),
    )


def _tasks(path: str) -> dict[int, str]:
    if not files.exists(path):
        return {}
    table = parquet.read(path)
    # Pandas names a column after its index; an index without a name becomes this.
    name = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        raise DataError(f"{path}: wanted the columns task and task_index; it has {', '.join(table.column_names)}")
    pairs = zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True)
    return read.task_table(list(pairs), path)


class _Opener:
    """Looks up the episodes of one data set, each shared file once."""

    def __init__(self, root: str, info: dict[str, Any], cameras: list[str]) -> None:
        self.root, self.cameras = root, cameras
        self.data_path = str(info.get("data_path") or schema.V3_DATA_PATH)
        self.video_path = str(info.get("video_path") or schema.V3_VIDEO_PATH)
        self.folders = Folders()
        self.ranges: dict[str, dict[int, tuple[int, int]]] = {}

    def episodes(self) -> tuple[list[LeRobotEpisode], list[Quarantined]]:
        found, refused = [], []
        for index, row in sorted(self._rows().items()):
            try:
                found.append(self._episode(index, row))
            except _RefusedError as error:
                reason, detail = error.args
                item = f"{self.root} episode {index}"
                refused.append(Quarantined(item=item, reason=reason, detail=f"{item}: {detail}"))
        return found, refused

    def _rows(self) -> dict[int, dict[str, Any]]:
        folder = files.join(self.root, "meta", "episodes")
        paths = [
            files.join(folder, chunk, name)
            for chunk in files.listdir(folder)
            for name in files.listdir(files.join(folder, chunk))
            if name.endswith(".parquet")
        ]
        if not paths:
            raise DataError(f"'{self.root}' lists no episodes: there is no Parquet file below {folder}")
        rows: dict[int, dict[str, Any]] = {}
        for path in paths:
            for row in self._table(path):
                index, length = row["episode_index"], row["length"]
                if not _is_count(index) or not _is_count(length) or not length or index in rows:
                    raise DataError(f"{path}: episode {index!r} with length {length!r} is none, or stands twice")
                rows[index] = row
        return rows

    def _table(self, path: str) -> list[dict[str, Any]]:
        # The statistics of a thousand features are not needed to find an episode.
        names = [*_OWN_COLUMNS]
        for camera in self.cameras:
            names += [f"videos/{camera}/{part}" for part in _VIDEO_PARTS]
        there = set(parquet.column_names(path))
        missing = [name for name in _OWN_COLUMNS if name not in there]
        if missing:
            raise DataError(f"{path}: there is no column {', '.join(missing)}")
        names = [name for name in names if name in there]
        names += sorted(name for name in there if is_extra(name))
        rows: list[dict[str, Any]] = parquet.read(path, names).to_pylist()
        return rows

    def _episode(self, index: int, row: dict[str, Any]) -> LeRobotEpisode:
        data = self._file(self.data_path, row, "data")
        if not self.folders.has(data):
            raise _RefusedError("missing_file", f"its file {data} is not there")
        rows = self._range(data).get(index)
        if rows is None or rows[1] != row["length"]:
            n = rows[1] if rows else 0
            raise _RefusedError("length_mismatch", f"{n} rows in {data}, its length is said to be {row['length']}")
        videos, stretches = {}, {}
        for key in self.cameras:
            if row.get(f"videos/{key}/file_index") is None:
                continue
            path = self._file(self.video_path, row, f"videos/{key}", key)
            if not self.folders.has(path):
                raise _RefusedError("missing_file", f"its video {path} is not there")
            videos[key], stretches[key] = path, _stretch(row, key)
        tasks = [str(task) for task in row["tasks"] or []]
        return LeRobotEpisode(
            index=index,
            length=row["length"],
            task=read.instruction(tasks),
            data=data,
            videos=videos,
            tasks=tuple(tasks),
            rows=rows,
            stretches=stretches,
            extra=extra_of(row),
        )

    def _file(self, template: str, row: dict[str, Any], place: str, video_key: str = "") -> str:
        chunk: Any = row.get(f"{place}/chunk_index")
        file: Any = row.get(f"{place}/file_index")
        if not _is_count(chunk) or not _is_count(file):
            raise _RefusedError("bad_place", f"{place}: chunk {chunk!r}, file {file!r} is no place of a file")
        return files.join(self.root, schema.fill_file_path(template, chunk=chunk, file=file, video_key=video_key))

    def _range(self, path: str) -> dict[int, tuple[int, int]]:
        """Returns first row and number of rows of each episode of a file, as its own column tells them."""
        if path not in self.ranges:
            numbers = parquet.read(path, ["episode_index"])["episode_index"].to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
            ends = [*starts[1:], len(numbers)]
            ranges: dict[int, tuple[int, int]] = {}
            for start, end in zip(starts, ends, strict=True):
                if int(numbers[start]) in ranges:
                    raise DataError(f"{path}: the rows of episode {numbers[start]} do not stand together")
                ranges[int(numbers[start])] = (start, end - start)
            self.ranges[path] = ranges
        return self.ranges[path]


def _stretch(row: dict[str, Any], key: str) -> tuple[float, float]:
    start: Any = row.get(f"videos/{key}/from_timestamp")
    end: Any = row.get(f"videos/{key}/to_timestamp")
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (start, end))
    if not numbers or not 0 <= start < end:
        raise _RefusedError("bad_timestamps", f"camera '{key}' from {start!r} to {end!r} s is no stretch of a video")
    return float(start), float(end)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10_000_000
