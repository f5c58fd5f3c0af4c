"""Writes LeRobot v3.0: data and video files of many episodes each, of bounded size; `info.json` comes last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.conversion import target
from pyramid.conversion.episode import numbered, read_table, segments
from pyramid.conversion.origin import Origin
from pyramid.conversion.target import Planned
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Unit
from pyramid.lerobot import schema, stats
from pyramid.video.remux import SegmentFacts, write_video

FORMAT_VERSION = 1
_MB = 2**20


def check_rate(fps: float) -> None:
    """Refuses a rate that v3.0 cannot say."""
    if not float(fps).is_integer():
        raise ConfigError(f"LeRobot v3.0 needs a whole number of frames per second, not {fps:g}; use --to lerobot-v2.1")


def plan(
    out: str, origin: Origin, planned: Sequence[Planned], *, data_file_mb: float, video_file_mb: float
) -> list[Unit]:
    """Deals episodes to files in their order; a file is closed before the episode that would pass its size."""
    units = []
    parts = _deal(planned, lambda item: item.facts["n_bytes"], lambda _: "", data_file_mb * _MB)
    for file, part in enumerate(parts):
        units.append(_unit("data", file, part, out=out, output=_path(schema.V3_DATA_PATH, file)))
    for place, key in enumerate(origin.cameras):

        def size(item: Planned, key: str = key) -> int:
            return int(item.facts["videos"][key]["n_bytes"])

        def coding(item: Planned, key: str = key) -> str:
            return str(item.facts["videos"][key]["coding"])

        for file, part in enumerate(_deal(planned, size, coding, video_file_mb * _MB)):
            output = _path(schema.V3_VIDEO_PATH, file, key)
            units.append(_unit(f"video-{place:02d}", file, part, out=out, output=output, key=key))
    return units


def _deal(
    planned: Sequence[Planned], size: Callable[[Planned], int], kind: Callable[[Planned], str], limit: float
) -> list[list[Planned]]:
    parts: list[list[Planned]] = []
    filled = 0
    for item in planned:
        if not parts or filled + size(item) > limit or kind(parts[-1][-1]) != kind(item):
            parts.append([])
            filled = 0
        parts[-1].append(item)
        filled += size(item)
    return parts


def _place(file: int) -> tuple[int, int]:
    return file // schema.CHUNK_SIZE, file % schema.CHUNK_SIZE


def _path(template: str, file: int, key: str = "") -> str:
    chunk, number = _place(file)
    return schema.fill_file_path(template, chunk=chunk, file=number, video_key=key)


def _unit(kind: str, file: int, part: Sequence[Planned], *, out: str, output: str, key: str = "") -> Unit:
    return Unit(
        name=f"{kind}-{file:06d}",
        digest=files.digest([FORMAT_VERSION, schema.V3, kind, key, output, [item.identity for item in part]]),
        task={
            "out": out,
            "output": output,
            "key": key,
            "episodes": [
                {
                    "number": item.number,
                    "first_index": item.first_index,
                    "task": item.task,
                    "video": item.facts["videos"].get(key),
                }
                for item in part
            ],
        },
        amount=sum(item.length for item in part),
    )


def write_file(task: Mapping[str, Any]) -> Outcome:
    """Writes one data or video file; runs in a worker."""
    try:
        return _write_video(task) if task["key"] else _write_data(task)
    except SkipItemError as error:  # It was looked at before, and was good then.
        raise DataError(f"{error.detail}; the source changed while it was converted, run the same again") from error


def _write_data(task: Mapping[str, Any]) -> Outcome:
    def table(entry: Mapping[str, Any]) -> pa.Table:
        return numbered(read_table(entry["task"]), entry["number"], entry["first_index"])

    first = table(task["episodes"][0])

    def tables() -> Iterator[pa.Table]:
        yield first
        for entry in task["episodes"][1:]:
            yield table(entry).select(first.column_names)

    parquet.write_tables(files.join(task["out"], task["output"]), tables(), first.schema)
    return Outcome(facts={"numbers": [entry["number"] for entry in task["episodes"]]}, output=task["output"])


def _write_video(task: Mapping[str, Any]) -> Outcome:
    parts = [segments(entry["task"])[task["key"]] for entry in task["episodes"]]
    facts = [SegmentFacts(**entry["video"]) for entry in task["episodes"]]
    starts = write_video(files.join(task["out"], task["output"]), parts, facts)
    numbers = [entry["number"] for entry in task["episodes"]]
    return Outcome(facts={"key": task["key"], "numbers": numbers, "starts_s": starts}, output=task["output"])


def finish(
    out: str,
    origin: Origin,
    planned: Sequence[Planned],
    report: JobReport,
    *,
    data_file_mb: float,
    video_file_mb: float,
) -> int:
    """Writes the metadata; returns the number of video files."""
    features = target.features_of(origin, planned)
    outcomes = [outcome for outcome in report.outcomes if outcome.facts.get("key")]
    data = [outcome for outcome in report.outcomes if not outcome.facts.get("key")]
    _write_tasks(files.join(out, "meta", schema.V3_TASKS), origin.tasks)
    _write_episodes(out, origin, planned, data, outcomes)
    paths = [files.join(out, outcome.output) for outcome in data]
    pooled = {name: target.pooled_statistics(paths, name) for name in features if name not in origin.cameras}
    pooled |= {key: stats.merge_statistics([item.facts["stats"][key] for item in planned]) for key in origin.cameras}
    files.write_json(files.join(out, "meta", schema.STATS), {name: found for name, found in pooled.items() if found})
    target.write_modality(out, origin, features)
    document = target.info_document(schema.V3, origin, planned, features, target.splits_of(planned))
    document |= {
        "data_files_size_in_mb": data_file_mb,
        "video_files_size_in_mb": video_file_mb,
        "data_path": schema.V3_DATA_PATH,
        "video_path": schema.V3_VIDEO_PATH if origin.cameras else None,
    }
    files.write_json(files.join(out, "meta", schema.INFO), document)
    return len(outcomes)


def _write_tasks(path: str, tasks: Mapping[int, str]) -> None:
    order = sorted(tasks)
    table = pa.table({"task_index": pa.array(order, pa.int64()), "task": pa.array([tasks[i] for i in order])})
    # What pandas writes of a frame whose index is named task.
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    described = {
        "index_columns": ["task"],
        "column_indexes": [{**index, "metadata": {"encoding": "UTF-8"}}],
        "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    table = table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})
    parquet.write_tables(path, [table], table.schema)


def _write_episodes(
    out: str, origin: Origin, planned: Sequence[Planned], data: Sequence[Outcome], videos: Sequence[Outcome]
) -> None:
    rows: list[dict[str, Any]] = [_episode_row(origin, item) for item in planned]
    for file, outcome in enumerate(data):
        chunk, number = _place(file)
        for episode in outcome.facts["numbers"]:
            rows[episode] |= {"data/chunk_index": chunk, "data/file_index": number}
    seen: dict[str, int] = {}
    for outcome in videos:
        key = outcome.facts["key"]
        chunk, number = _place(seen.get(key, 0))
        seen[key] = seen.get(key, 0) + 1
        for episode, start in zip(outcome.facts["numbers"], outcome.facts["starts_s"], strict=True):
            rows[episode] |= {
                f"videos/{key}/chunk_index": chunk,
                f"videos/{key}/file_index": number,
                f"videos/{key}/from_timestamp": start,
                f"videos/{key}/to_timestamp": start + planned[episode].length / origin.fps,
            }
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in names})
    path = schema.fill_file_path(schema.V3_EPISODES_PATH, chunk=0, file=0)
    parquet.write_tables(files.join(out, "meta", path), [table], table.schema)


def _column(values: list[Any]) -> pa.Array:
    """Returns values as a column; objects, and values of unlike types, as JSON texts: Parquet has none for them."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError):
        column = None
    if column is not None and "struct" not in str(column.type):
        return column
    return pa.array([json.dumps(value, ensure_ascii=False) for value in values])


def _episode_row(origin: Origin, item: Planned) -> dict[str, Any]:
    row = {
        "episode_index": item.number,
        "tasks": target.tasks_of(origin, item),
        "length": item.length,
        "dataset_from_index": item.first_index,
        "dataset_to_index": item.first_index + item.length,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **item.task["extra"],
    }
    for name, found in item.facts["stats"].items():
        row |= {f"stats/{name}/{statistic}": values for statistic, values in found.items()}
    return row
