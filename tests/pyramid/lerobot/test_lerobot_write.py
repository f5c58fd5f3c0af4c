"""Writing LeRobot v2.1: checked against independent readers (json, pandas, PyAV) and closed forms."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from pyramid import parquet
from pyramid.errors import DataError
from pyramid.lerobot import EpisodeData, EpisodeWriter, Layout, write_v21

TASKS = ("pick up the cup", "close the drawer")
MakeEpisode = Callable[[int], EpisodeData]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tree_is_lerobots(written: Path) -> None:
    found = sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file())
    cameras = ("observation.images.front", "observation.images.wrist")
    meta = ["episodes.jsonl", "episodes_stats.jsonl", "info.json", "modality.json", "stats.json", "tasks.jsonl"]
    assert found == sorted(
        [f"data/chunk-000/episode_{i:06d}.parquet" for i in range(3)]
        + [f"meta/{name}" for name in meta]
        + [f"videos/chunk-000/{camera}/episode_{i:06d}.mp4" for camera in cameras for i in range(3)]
    )


def test_metadata(written: Path) -> None:
    meta = written / "meta"
    info = json.loads((meta / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["total_videos"]) == (3, 30, 2, 6)
    assert lines(meta / "tasks.jsonl") == [{"task_index": 0, "task": TASKS[0]}, {"task_index": 1, "task": TASKS[1]}]
    assert lines(meta / "episodes.jsonl") == [
        {"episode_index": i, "tasks": [TASKS[i % 2]], "length": 9 + i} for i in range(3)
    ]
    modality = json.loads((meta / "modality.json").read_text())
    assert modality["state"] == {"arm": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3}}
    assert modality["video"]["wrist"] == {"original_key": "observation.images.wrist"}


def test_pandas_reads_the_rows(written: Path, episode_of: MakeEpisode) -> None:
    first = 0
    for i in range(3):
        frame = pd.read_parquet(written / "data" / "chunk-000" / f"episode_{i:06d}.parquet")
        expected, n = episode_of(i), 9 + i
        assert np.array_equal(np.stack(frame["observation.state"].to_list()), expected.state)
        assert np.array_equal(np.stack(frame["action"].to_list()), expected.action)
        assert frame["index"].tolist() == list(range(first, first + n))
        assert frame["frame_index"].tolist() == list(range(n))
        assert set(frame["episode_index"]) == {i}
        assert set(frame["task_index"]) == {i % 2}
        assert frame["timestamp"].dtype == np.float32
        assert np.allclose(frame["timestamp"], np.arange(n) / 20, atol=1e-6)
        first += n


def test_pyav_reads_the_videos(written: Path, episode_of: MakeEpisode) -> None:
    for camera in ("front", "wrist"):
        path = written / "videos" / "chunk-000" / f"observation.images.{camera}" / "episode_000001.mp4"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.codec_context.name, stream.pix_fmt) == (20, "h264", "yuv420p")
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        expected = episode_of(1).frames[camera]
        assert decoded.shape == expected.shape
        assert np.abs(decoded.astype(int) - expected).mean() < 3


def test_statistics_are_those_of_numpy(written: Path, episode_of: MakeEpisode) -> None:
    episodes = [episode_of(i) for i in range(3)]
    for i, row in enumerate(lines(written / "meta" / "episodes_stats.jsonl")):
        stats = row["stats"]
        assert isinstance(stats, dict)
        action = episodes[i].action.astype(np.float64)
        assert np.allclose(stats["action"]["mean"], action.mean(0))
        assert np.allclose(stats["action"]["std"], action.std(0))
        assert stats["action"]["count"] == [9 + i]
        image = stats["observation.images.front"]
        pixels = episodes[i].frames["front"].astype(np.float64) / 255
        assert np.shape(image["mean"]) == (3, 1, 1)
        assert np.allclose(np.ravel(image["mean"]), pixels.mean((0, 1, 2)))
        assert np.allclose(np.ravel(image["std"]), pixels.std((0, 1, 2)))
        assert 0 <= np.min(image["min"]) <= np.max(image["max"]) <= 1
    whole = np.concatenate([e.state for e in episodes]).astype(np.float64)
    stats = json.loads((written / "meta" / "stats.json").read_text())["observation.state"]
    assert np.allclose(stats["q01"], np.quantile(whole, 0.01, axis=0))
    assert np.allclose(stats["q99"], np.quantile(whole, 0.99, axis=0))
    assert np.allclose(stats["mean"], whole.mean(0))
    assert np.array_equal(stats["max"], whole.max(0))


def test_episodes_may_come_in_any_order(written: Path, tmp_path: Path, layout: Layout, episode_of: MakeEpisode) -> None:
    writer = EpisodeWriter(str(tmp_path / "other"), layout, TASKS)
    for i in (2, 0, 1):
        writer.write(i, episode_of(i), first_frame=[0, 9, 19][i])
    report = writer.finish(3)
    assert (report.episodes, report.frames, report.tasks) == (3, 30, 2)
    for path in written.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "other" / path.relative_to(written)).read_bytes(), path


def test_facts_stay_with_the_episode(written: Path) -> None:
    kept = parquet.metadata(written / "data" / "chunk-000" / "episode_000002.parquet")
    assert kept["facts"] == {"seed": 2}
    assert kept["task"] == TASKS[0]


def test_a_gap_between_episodes_is_refused(tmp_path: Path, layout: Layout, episode_of: MakeEpisode) -> None:
    writer = EpisodeWriter(str(tmp_path), layout, TASKS)
    writer.write(0, episode_of(0), first_frame=0)
    writer.write(1, episode_of(1), first_frame=8)
    with pytest.raises(DataError, match=r"episode_000001.*index 8, 9 frames"):
        writer.finish(2)
    writer.write(1, episode_of(1), first_frame=9)
    with pytest.raises(DataError, match="episode_000002"):
        writer.finish(3)
    assert not (tmp_path / "meta" / "info.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros((9, 2), np.float32)}, "shapes"),
        ({"action": np.zeros((8, 2), np.float32)}, "shapes"),
        ({"state": np.full((9, 3), np.nan, np.float32)}, "finite"),
        ({"task": "dance"}, "dance"),
        ({"frames": {}}, "shapes"),
        ({"state": np.zeros((0, 3), np.float32), "action": np.zeros((0, 2), np.float32)}, "shapes"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(
    tmp_path: Path, layout: Layout, episode_of: MakeEpisode, change: dict[str, object], message: str
) -> None:
    writer = EpisodeWriter(str(tmp_path), layout, TASKS)
    with pytest.raises(DataError, match=message):
        writer.write(0, replace(episode_of(0), **change), first_frame=0)
    assert not list(tmp_path.rglob("*.*"))


def test_one_instruction_stands_once(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(DataError, match="twice"):
        write_v21(str(tmp_path), [], layout=layout, tasks=["a", "a"])
