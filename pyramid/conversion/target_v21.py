"""Writes LeRobot v2.1: a Parquet file and a video per camera for each episode; `info.json` comes last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyramid import files, parquet
from pyramid.conversion import target
from pyramid.conversion.episode import numbered, read_table, segments
from pyramid.conversion.origin import Origin
from pyramid.conversion.target import Planned
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Unit
from pyramid.lerobot import schema
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY
from pyramid.video.remux import Segment, SegmentFacts, write_video

FORMAT_VERSION = 1
_PIECE_BYTES = 2**20


def plan(out: str, planned: Sequence[Planned]) -> list[Unit]:
    """Returns one unit per episode."""
    return [
        Unit(
            name=f"episode-{item.number:06d}",
            digest=files.digest([FORMAT_VERSION, schema.VERSION, item.identity]),
            task={
                "out": out,
                "number": item.number,
                "first_index": item.first_index,
                "episode": item.task,
                "videos": item.facts["videos"],
            },
            amount=item.length,
        )
        for item in planned
    ]


def write_episode(task: Mapping[str, Any]) -> Outcome:
    """Writes one episode, its Parquet file last; runs in a worker."""
    number = task["number"]
    output = schema.fill_path(schema.DATA_PATH, index=number)
    try:
        table = numbered(read_table(task["episode"]), number, task["first_index"])
        for key, segment in segments(task["episode"]).items():
            path = files.join(task["out"], schema.fill_path(schema.VIDEO_PATH, index=number, video_key=key))
            if segment.data is None and segment.start_s is None:
                _copy(segment, path)
            else:
                write_video(path, [segment], [SegmentFacts(**task["videos"][key])])
    except SkipItemError as error:  # It was looked at before, and was good then.
        raise DataError(f"{error.detail}; the source changed while it was converted, run the same again") from error
    parquet.write(files.join(task["out"], output), table)
    return Outcome(facts={"n_rows": table.num_rows}, output=output)


def _copy(segment: Segment, path: str) -> None:
    with files.open_read(segment.path) as source, files.atomic_write(path) as stream:
        while piece := source.read(_PIECE_BYTES):
            stream.write(piece)


def finish(out: str, origin: Origin, planned: Sequence[Planned], report: JobReport) -> int:
    """Writes the metadata; returns the number of video files."""
    features = target.features_of(origin, planned)
    lines: dict[str, list[dict[str, Any]]] = {
        schema.TASKS: [{"task_index": index, "task": task} for index, task in sorted(origin.tasks.items())],
        schema.EPISODES: [
            {
                "episode_index": item.number,
                "tasks": target.tasks_of(origin, item),
                "length": item.length,
                **item.task["extra"],
            }
            for item in planned
        ],
        schema.EPISODES_STATS: [{"episode_index": item.number, "stats": item.facts["stats"]} for item in planned],
    }
    for name, rows in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        files.write_text(files.join(out, "meta", name), text)
    paths = [files.join(out, outcome.output) for outcome in report.outcomes]
    pooled = {
        name: found
        for name in (STATE_KEY, ACTION_KEY, "timestamp")
        if name in features and (found := target.pooled_statistics(paths, name))
    }
    files.write_json(files.join(out, "meta", schema.STATS), pooled)
    target.write_modality(out, origin, features)
    n_videos = len(planned) * len(origin.cameras)
    document = target.info_document(schema.VERSION, origin, planned, features, target.splits_of(planned))
    document |= {
        "total_videos": n_videos,
        "total_chunks": -(-len(planned) // schema.CHUNK_SIZE),
        "data_path": schema.DATA_PATH,
        "video_path": schema.VIDEO_PATH,
    }
    files.write_json(files.join(out, "meta", schema.INFO), document)
    return n_videos
