"""All sample data that lies beside the project: it is scanned, packed and verified, and robot data goes full circle."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pyramid import convert, pack, scan, verify
from pyramid.lerobot import LeRobotDataset, open_dataset, read_episode
from pyramid.shards.reader import ShardSet

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample data is not in {DATA}"),
]


def n_frames(path: str | Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def walk(kind: str, root: Path, out: Path, **options: object) -> tuple[ShardSet, dict[str, str]]:
    """Scans, packs and verifies; returns the shards, and what was refused on the way: reason by file name."""
    found = scan(kind, str(root), out=str(out / "clips.parquet"), **options)
    assert verify(found.out).bad == []
    packed = pack(found.out, out=str(out / "shards"), size_px=64, workers=2)
    checked = verify(packed.out)
    assert (checked.bad, checked.samples) == ([], found.clips - len(packed.items))
    items = [(Path(item.item.partition("#")[0]).name, item.reason) for item in (*found.items, *packed.items)]
    return ShardSet.open(packed.out), dict(items)


def test_people(tmp_path: Path) -> None:
    shards, refused = walk("folder", DATA / "human", tmp_path)
    assert refused == {}
    frames = {row["clip_id"].partition("/")[2].partition("#")[0]: row["frames"] for row in shards.rows}
    assert frames == {path.name: n_frames(path) for path in (DATA / "human").iterdir()}
    times = {row["clip_id"]: shards.read(i).times_s for i, row in enumerate(shards.rows)}
    holes = np.diff(times["folder/variable_frame_rate.mp4#0.000"])
    assert np.argmax(holes) == 66
    assert holes.max() == pytest.approx(0.2, abs=0.01)


def test_codecs(tmp_path: Path) -> None:
    shards, refused = walk("folder", DATA / "codecs", tmp_path)
    assert refused == {"corrupted.mp4": "decode_error"}
    assert {row["clip_id"]: row["frames"] for row in shards.rows} == {
        "folder/h264_10bits.mp4#0.000": 30,
        "folder/h265.mp4#0.000": 10,
        "folder/rotated_90.mov#0.000": 3,
    }


def test_generated_clips_and_the_pair_of_equal_bytes(tmp_path: Path) -> None:
    shards, refused = walk("generated", DATA / "generated", tmp_path)
    assert refused == {"5_0_counterfactual_2.mp4": "duplicate"}
    assert len(shards) == 7
    assert {row["frames"] for row in shards.rows} <= {81, 49}


def test_robot_clips_whose_container_lies(tmp_path: Path) -> None:
    """They were taken at 3 Hz; the container says 30."""
    root = DATA / "robot" / "rt1_clips"
    shards, refused = walk("folder", root, tmp_path, source_hz=3.0, tier="top", embodiment="google_robot")
    assert refused == {}
    assert len(shards) == 6
    for i, row in enumerate(shards.rows):
        frames = n_frames(root / row["clip_id"].partition("/")[2].partition("#")[0])
        assert (row["rate_hz"], row["frames"]) == (3.0, frames)
        assert row["duration_s"] == pytest.approx(frames / 3)
        assert np.allclose(shards.read(i).times_s, np.arange(frames) / 3)


def values(dataset: LeRobotDataset) -> list[tuple[str, int, bytes, bytes, bytes]]:
    found = [(episode, read_episode(dataset, episode)) for episode in dataset.episodes]
    return [
        (episode.task, len(own), own.state.tobytes(), own.action.tobytes(), own.times_s.tobytes())
        for episode, own in found
    ]


def test_robot_episodes_full_circle(tmp_path: Path) -> None:
    """v2.0 to shards to v3.0 to v2.1: every state, action, time, length and instruction is the same."""
    root = DATA / "robot" / "gr1_pick_and_place"
    assert verify(str(root)).bad == []
    result = convert(str(root), str(tmp_path / "shards"), to="webdataset", size_px=64)
    assert (result.episodes, result.frames, result.quarantined) == (5, 2096, {})
    assert verify(str(tmp_path / "shards")).bad == []
    before, source = values(open_dataset(str(root))), str(tmp_path / "shards")
    for version in ("v3.0", "v2.1"):
        result = convert(source, str(tmp_path / version), to=f"lerobot-{version}")
        assert (result.episodes, result.frames, result.quarantined) == (5, 2096, {})
        source = str(tmp_path / version)
        after = open_dataset(source)
        assert sorted(values(after)) == sorted(before)  # Held-out episodes come last.
        assert verify(source).bad == []
        for episode in after.episodes if version == "v2.1" else ():
            assert n_frames(next(iter(episode.videos.values()))) == episode.length
    shards = walk("lerobot", root, tmp_path / "again", clip_s=3600)[0]
    assert [row["frames"] for row in shards.rows] == [length for _, length, *_ in before]
