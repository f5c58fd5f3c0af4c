"""Data sets that say in every picture which episode and frame it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pyramid import convert
from pyramid.lerobot import LeRobotDataset, LeRobotEpisode
from pyramid.video.decode import DecodeRequest, decode_source

CAMERAS = ("observation.images.front", "observation.images.wrist")
LENGTHS = (9, 14, 11, 7)
FPS = 20


def number_of(episode: int, frame: int, camera: int = 0) -> int:
    return episode * 1000 + camera * 100 + frame


def frames_of(dataset: LeRobotDataset, episode: LeRobotEpisode, camera: str) -> list[int]:
    """Reads the numbers drawn in one episode's stretch of video, and checks that its times are those of its rows."""
    start, end = episode.stretches.get(camera, (0.0, episode.length / dataset.fps))
    half = 0.25 / dataset.fps
    request = DecodeRequest(start_s=max(start - half, 0), end_s=end - half)
    frames = decode_source(episode.videos[camera], request)
    assert np.abs(frames.times_s - start - np.arange(len(frames)) / dataset.fps).max() < 1e-4
    return drawing.read_pictures(frames.pixels)


def rows_of(episode: LeRobotEpisode) -> pa.Table:
    table = pq.read_table(episode.data).replace_schema_metadata(None)
    return table if episode.rows is None else table.slice(*episode.rows)


def write_v20(
    root: Path, lengths: Sequence[int] = LENGTHS, *, bframes: int = 2, cameras: Sequence[str] = CAMERAS
) -> Path:
    """Writes LeRobot v2.0 as strangers do: float64 vectors as lists, columns of their own, no frame_index."""
    tasks = ["lift the cup", "valid", "öffne die Schublade"]
    first = 0
    episodes = []
    for index, length in enumerate(lengths):
        for place, camera in enumerate(cameras):
            numbers = [number_of(index, t, place) for t in range(length)]
            path = root / f"videos/chunk-000/{camera}/episode_{index:06d}.mp4"
            drawing.write_video(path, numbers, rate=FPS, options={"bf": str(bframes)}, gop=6)
        rows = np.arange(length)
        generator = np.random.default_rng(index)
        table = pa.table(
            {
                "observation.state": generator.normal(size=(length, 3)).tolist(),
                "action": generator.normal(size=(length, 2)).tolist(),
                "timestamp": rows / FPS,
                "task_index": np.full(length, 2 * (index % 2)),
                "episode_index": np.full(length, index),
                "index": rows + first,
                "next.reward": np.where(rows % 3 == 0, np.nan, rows.astype(np.float64)),
                "next.done": rows == length - 1,
                "note": [f"row {t}" for t in rows],
            }
        )
        path = root / f"data/chunk-000/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        episodes.append({"episode_index": index, "tasks": [tasks[2 * (index % 2)], "valid"], "length": length})
        first += length
    meta = root / "meta"
    meta.mkdir()
    lines: dict[str, list[dict[str, Any]]] = {
        "episodes.jsonl": episodes,
        "tasks.jsonl": [{"task_index": i, "task": task} for i, task in enumerate(tasks)],
    }
    for name, rows_ in lines.items():
        (meta / name).write_text("".join(json.dumps(row) + "\n" for row in rows_))
    video = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v2.0",
        "robot_type": "arm",
        "fps": float(FPS),
        "chunks_size": 1000,
        "splits": {"train": "0:100"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.images.ghost": video,
            **dict.fromkeys(cameras, video),
            "observation.state": {"dtype": "float64", "shape": [3], "names": ["x", "y", "grip"]},
            "action": {"dtype": "float64", "shape": [2], "names": ["dx", "dy"]},
        },
    }
    (meta / "info.json").write_text(json.dumps(info))
    (meta / "modality.json").write_text(json.dumps({"state": {"arm": {"start": 0, "end": 2}}}))
    return root


def convert_into(out: str, src: str, to: str) -> None:
    """Calls the verb as `killing` calls one."""
    convert(src, out, to=to)
