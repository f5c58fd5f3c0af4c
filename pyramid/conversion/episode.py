"""Looks into one episode: its table, its stretches of video, and what must be known of it before anything is written.

Which episodes there are is left to `origin`, their numbers in the new data set to the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import parquet
from pyramid.conversion.labels import LabelColumn, labels_of
from pyramid.conversion.pseudo import added_columns, vectors
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import Outcome
from pyramid.lerobot import stats
from pyramid.lerobot.columns import numbers
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY
from pyramid.shards.reader import Sample, ShardSet
from pyramid.video.remux import Segment, examine, opened_packets
from pyramid.video.scale import Picture, Scaler

COUNTERS = ("frame_index", "episode_index", "index", "task_index")
"""Whole numbers of every row."""
MAX_PICTURES = 16
"""Key frames per episode and camera that the statistics of pictures are taken of."""
_FINITE = (STATE_KEY, ACTION_KEY, "timestamp")


def read_table(task: Mapping[str, Any]) -> pa.Table:
    """Returns the rows of an episode, with every column that the source has and those that every data set needs.

    Raises:
        SkipItemError: ``bad_episode``, ``length_mismatch`` or ``bad_values``.
    """
    try:
        table = _shard_table(task) if task["kind"] == "shards" else _file_table(task)
    except SkipItemError:
        raise
    except DataError as error:
        raise SkipItemError("bad_episode", str(error)) from error
    if table.num_rows != task["length"] or table.num_rows == 0:
        detail = f"{task['name']}: {table.num_rows} rows, its length is said to be {task['length']}"
        raise SkipItemError("length_mismatch", detail)
    table = _with_counters(table, task)
    for name in _FINITE:
        values = numbers(table[name]) if name in table.column_names else None
        if values is not None and not np.isfinite(values).all():
            raise SkipItemError("bad_values", f"{task['name']}: column '{name}' holds a number that is not finite")
    return table.replace_schema_metadata(None)


def _file_table(task: Mapping[str, Any]) -> pa.Table:
    table = parquet.read(task["data"], rows=tuple(task["rows"]) if task["rows"] else None)
    if "task_index" in table.column_names and task["known_tasks"]:
        known = pc.max(table["task_index"]).as_py()
        if table["task_index"].null_count or not isinstance(known, int) or pc.min(table["task_index"]).as_py() < 0:
            raise SkipItemError("bad_values", f"{task['name']}: its column task_index holds no task")
    return table


def _shard_table(task: Mapping[str, Any]) -> pa.Table:
    sample, shards = _sample(task), _shards(task["folder"])
    row, n = shards.rows[task["row"]], len(sample)
    columns: dict[str, pa.Array] = {}
    for name, values in ((STATE_KEY, sample.state), (ACTION_KEY, sample.action)):
        if values is not None and values.shape[1]:
            columns[name] = vectors(values)
    columns["timestamp"] = pa.array((np.arange(n) / task["fps"]).astype(np.float32))
    columns["t_s"] = pa.array(sample.times_s)
    for entry in task["labels"]:
        column = LabelColumn(**entry)
        values = labels_of(task["folder"], row["shard"], row["key"], n, column)
        columns[column.name] = vectors(values) if column.dim else pa.array(values)
    return pa.table(columns | added_columns(columns, n, task.get("added", {})))


def _with_counters(table: pa.Table, task: Mapping[str, Any]) -> pa.Table:
    n = table.num_rows
    if "task_index" in table.column_names and not task["known_tasks"]:
        table = table.drop_columns(["task_index"])  # Numbers of a list that is not there.
    missing = {
        "timestamp": (np.arange(n) / task["fps"]).astype(np.float32),
        "frame_index": np.arange(n, dtype=np.int64),
        "task_index": np.full(n, task["task_index"], np.int64),
    }
    for name, values in missing.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array(values))
    return table


def numbered(table: pa.Table, number: int, first_index: int) -> pa.Table:
    """Returns an episode's table with its place in the new data set in ``episode_index`` and ``index``."""
    values = {
        "episode_index": np.full(table.num_rows, number, np.int64),
        "index": np.arange(first_index, first_index + table.num_rows),
    }
    for name, column in values.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, pa.array(column))
        else:
            table = table.append_column(name, pa.array(column))
    return table


@lru_cache(maxsize=2)
def _shards(folder: str) -> ShardSet:
    return ShardSet.open(folder)


def _sample(task: Mapping[str, Any]) -> Sample:
    shards = _shards(task["folder"])
    try:
        return shards.read(task["row"])
    except (DataError, IndexError) as error:
        _shards.cache_clear()
        raise SkipItemError("bad_sample", str(error)) from error


def segments(task: Mapping[str, Any]) -> dict[str, Segment]:
    """Returns where the pictures of an episode are, by camera key."""
    if task["kind"] == "shards":
        data = _sample(task).video
        if not data:
            what = "its frames are JPEGs and LeRobot keeps videos; pack with --codec h264 or both"
            raise SkipItemError("no_video", f"{task['name']}: {what}")
        return {task["camera"]: Segment(path=task["name"], data=data, rate_hz=task["fps"])}
    return {
        key: Segment(path=path, start_s=start, end_s=end, rate_hz=task["fps"])
        for key, (path, start, end) in task["videos"].items()
    }


def examine_episode(task: Mapping[str, Any]) -> Outcome:
    """Reads an episode's numbers and counts its frames; runs in a worker.

    Returns:
        Its number of rows, size in memory, columns, statistics, and what is known of its videos.

    Raises:
        SkipItemError: it cannot be converted; with the reason.
    """
    table = read_table(task)
    statistics = {
        name: stats.full_statistics(v) for name in table.column_names if (v := numbers(table[name])) is not None
    }
    videos = {}
    for key, segment in segments(task).items():
        facts = examine(segment)
        if facts.n_frames != table.num_rows:
            detail = f"{segment.path}: {facts.n_frames} frames, but the episode has {table.num_rows} rows"
            raise SkipItemError("length_mismatch", detail)
        videos[key] = asdict(facts)
        statistics[key] = stats.full_image_statistics(_key_frames(segment))
    used = pc.unique(table["task_index"]).to_pylist()
    return Outcome(
        facts={
            "n_rows": table.num_rows,
            "n_bytes": table.nbytes,
            "columns": [[field.name, str(field.type)] for field in table.schema],
            "dims": {name: _dim(table[name]) for name in table.column_names},
            "task_indices": used,
            "stats": {name: found for name, found in statistics.items() if found},
            "videos": videos,
        }
    )


def _key_frames(segment: Segment) -> NDArray[np.uint8]:
    """Decodes a few pictures of a segment, those that need no others: uint8 [n, H, W, 3]."""
    with opened_packets(segment) as packets:
        keys = [packet for packet in packets if packet.is_keyframe]
        picks = np.linspace(0, len(keys) - 1, min(len(keys), MAX_PICTURES)).round().astype(int)
        pictures, scaler = [], Scaler()
        try:
            for pick in sorted(set(picks.tolist())):
                context = keys[pick].stream.codec_context
                context.flush_buffers()
                frames = [*context.decode(keys[pick]), *context.decode(None)]
                pictures += [Picture(frame, scaler).rgb for frame in frames[:1]]
        except (av.error.FFmpegError, ValueError) as error:
            raise SkipItemError("decode_error", f"{segment.path}: damaged ({error})") from error
    if not pictures:
        raise SkipItemError("decode_error", f"{segment.path}: no key frame decodes")
    return np.stack(pictures)


def _dim(column: pa.ChunkedArray) -> int:
    values = numbers(column)
    return int(values.shape[1]) if values is not None and values.ndim == 2 else 1
