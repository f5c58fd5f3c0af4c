"""Writing LeRobot v2.1 with GR00T's `modality.json` and `stats.json`, an episode at a time, in any order.

A data set is complete when `meta/info.json` is there: it is written last, from facts that the episodes' own files keep.
Encoding is left to `pyramid.video`, the documents' content to `schema` and `stats`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.lerobot import schema, stats
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY, Layout
from pyramid.video.encode import encode_mp4

_STATISTICS_COLUMNS = (STATE_KEY, ACTION_KEY, "timestamp")


@dataclass(frozen=True, kw_only=True)
class EpisodeData:
    """One episode to write; row t of every array belongs to frame t."""

    state: NDArray[np.float32]
    """float32 [T, S], physical units."""
    action: NDArray[np.float32]
    """float32 [T, D]: what is commanded at frame t, physical units."""
    frames: Mapping[str, NDArray[np.uint8]]
    """uint8 [T, H, W, 3], RGB, by short camera name."""
    task: str
    """The instruction."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Plain data kept in the Parquet file's own metadata, such as a seed."""


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """What a data set holds."""

    out: str
    """The data set's folder."""
    episodes: int
    """Number of episodes."""
    frames: int
    """Frames of all episodes, of one camera."""
    tasks: int
    """Distinct instructions."""


class EpisodeWriter:
    """Writes the episodes of one data set, each whole or not at all, then its metadata.

    Args:
        out: the data set's folder, local or ``s3://``.
        layout: what every episode has.
        tasks: the instructions; an episode's ``task_index`` is its place here.
    """

    def __init__(self, out: str, layout: Layout, tasks: Iterable[str]) -> None:
        self.out, self.layout, self.tasks = str(out), layout, tuple(tasks)
        if len(set(self.tasks)) != len(self.tasks):
            raise DataError(f"tasks {self.tasks} hold one instruction twice")

    def data_path(self, index: int) -> str:
        """Returns an episode's Parquet file; it is there only when the whole episode is."""
        return files.join(self.out, schema.fill_path(schema.DATA_PATH, index=index))

    def video_path(self, index: int, camera: str) -> str:
        """Returns an episode's video file of one camera."""
        key = schema.IMAGE_PREFIX + camera
        return files.join(self.out, schema.fill_path(schema.VIDEO_PATH, index=index, video_key=key))

    def write(self, index: int, episode: EpisodeData, *, first_frame: int) -> str:
        """Writes one episode: its videos, then its Parquet file, each atomically.

        Args:
            index: the episode's number.
            episode: what it holds.
            first_frame: frames in all episodes before it, for the column ``index``.

        Returns:
            The Parquet file's path.
        """
        self._check(index, episode)
        for camera in self.layout.cameras:
            files.write_bytes(self.video_path(index, camera), encode_mp4(episode.frames[camera], self.layout.fps))
        path = self.data_path(index)
        table = self._table(index, episode, first_frame)
        facts = {"task": episode.task, "stats": self._statistics(table, episode), "facts": dict(episode.facts)}
        parquet.write(path, table, facts)
        return path

    def _check(self, index: int, episode: EpisodeData) -> None:
        layout, n = self.layout, len(episode.state)
        expected: dict[str, tuple[int, ...]] = {
            "state": (n, len(layout.state_names)),
            "action": (n, len(layout.action_names)),
        }
        expected |= {camera: (n, layout.height_px, layout.width_px, 3) for camera in layout.cameras}
        found = {"state": episode.state.shape, "action": episode.action.shape}
        found |= {camera: frames.shape for camera, frames in episode.frames.items()}
        if n == 0 or found != expected:
            raise DataError(f"{self.out}: episode {index} has the shapes {found}; wanted, with T > 0: {expected}")
        if not (np.isfinite(episode.state).all() and np.isfinite(episode.action).all()):
            raise DataError(f"{self.out}: episode {index} holds a state or action that is not a finite number")
        if episode.task not in self.tasks:
            raise DataError(f"{self.out}: episode {index} has the task '{episode.task}', the tasks are {self.tasks}")

    def _table(self, index: int, episode: EpisodeData, first_frame: int) -> pa.Table:
        n = len(episode.state)
        frame = np.arange(n, dtype=np.int64)
        return pa.table(
            {
                STATE_KEY: _vectors(episode.state),
                ACTION_KEY: _vectors(episode.action),
                "timestamp": pa.array((frame / self.layout.fps).astype(np.float32)),
                "frame_index": pa.array(frame),
                "episode_index": pa.array(np.full(n, index, np.int64)),
                "index": pa.array(frame + first_frame),
                "task_index": pa.array(np.full(n, self.tasks.index(episode.task), np.int64)),
            }
        )

    def _statistics(self, table: pa.Table, episode: EpisodeData) -> dict[str, Any]:
        of_columns = {name: stats.episode_statistics(column_values(table, name)) for name in table.column_names}
        picks = stats.sample_indices(len(episode.state))
        of_images = {
            schema.IMAGE_PREFIX + camera: stats.image_statistics(episode.frames[camera][picks])
            for camera in self.layout.cameras
        }
        return of_columns | of_images

    def finish(self, n_episodes: int) -> WriteReport:
        """Writes the metadata of episodes 0 .. ``n_episodes - 1`` from their files; `info.json` comes last.

        Raises:
            DataError: an episode is missing, or its ``index`` does not continue the one before.
        """
        rows, statistics, n_frames = [], [], 0
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _STATISTICS_COLUMNS}
        for index in range(n_episodes):
            path = self.data_path(index)
            table, kept = parquet.read(path), parquet.metadata(path)
            if table["index"][0].as_py() != n_frames:
                raise DataError(f"{path}: starts at index {table['index'][0]}, {n_frames} frames come before it")
            rows.append({"episode_index": index, "tasks": [kept["task"]], "length": table.num_rows})
            statistics.append({"episode_index": index, "stats": kept["stats"]})
            for name, parts in columns.items():
                parts.append(column_values(table, name))
            n_frames += table.num_rows
        self._write_meta(rows, statistics, {name: np.concatenate(parts) for name, parts in columns.items() if parts})
        info = schema.info_document(self.layout, episodes=n_episodes, frames=n_frames, tasks=len(self.tasks))
        files.write_json(self._meta(schema.INFO), info)
        return WriteReport(out=self.out, episodes=n_episodes, frames=n_frames, tasks=len(self.tasks))

    def _write_meta(
        self, rows: list[dict[str, Any]], statistics: list[dict[str, Any]], columns: Mapping[str, NDArray[Any]]
    ) -> None:
        tasks = [{"task_index": i, "task": task} for i, task in enumerate(self.tasks)]
        for name, lines in ((schema.TASKS, tasks), (schema.EPISODES, rows), (schema.EPISODES_STATS, statistics)):
            files.write_text(self._meta(name), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        files.write_json(self._meta(schema.STATS), stats.dataset_statistics(columns))
        files.write_json(self._meta(schema.MODALITY), schema.modality_document(self.layout))

    def _meta(self, name: str) -> str:
        return files.join(self.out, "meta", name)


def _vectors(values: NDArray[np.float32]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def column_values(table: pa.Table, name: str) -> NDArray[Any]:
    """Returns a column of numbers [T], or of equally long vectors [T, D], as an array."""
    column = table[name].combine_chunks()
    if not pa.types.is_nested(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(len(column), -1)


def write_v21(out: str, episodes: Iterable[EpisodeData], *, layout: Layout, tasks: Iterable[str]) -> WriteReport:
    """Writes a whole data set, one episode after the other.

    Args:
        out: the data set's folder, local or ``s3://``.
        episodes: taken one at a time; only one is held in memory.
        layout: what every episode has.
        tasks: the instructions that the episodes may have, in the order of their ``task_index``.

    Returns:
        What the data set holds.
    """
    writer = EpisodeWriter(out, layout, tasks)
    n_episodes = first_frame = 0
    for episode in episodes:
        writer.write(n_episodes, episode, first_frame=first_frame)
        n_episodes, first_frame = n_episodes + 1, first_frame + len(episode.state)
    return writer.finish(n_episodes)
