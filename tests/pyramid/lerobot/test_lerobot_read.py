"""Reading LeRobot v2.x: what files bear out, whatever the metadata claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid.errors import DataError, UnsafeInputError
from pyramid.lerobot import EpisodeData, open_v2, read_episode, read_rows
from pyramid.types import Frames
from pyramid.video.decode import DecodeRequest, decode_source

REAL = Path(__file__).parents[4] / "shared" / "data" / "robot" / "gr1_pick_and_place"
MakeEpisode = Callable[[int], EpisodeData]


def change_info(root: Path, **changes: Any) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def first_file(root: Path) -> Path:
    return root / "data" / "chunk-000" / "episode_000000.parquet"


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(first_file(root))), first_file(root))


def test_what_was_written_is_read_back(written: Path, episode_of: MakeEpisode) -> None:
    dataset = open_v2(str(written))
    assert (dataset.version, dataset.fps, dataset.robot_type, dataset.notes) == ("v2.1", 20.0, "test_arm", ())
    assert dataset.cameras == ("observation.images.front", "observation.images.wrist")
    assert [episode.index for episode in dataset.episodes] == [0, 1, 2]
    for episode in dataset.episodes:
        expected = episode_of(episode.index)
        arrays = read_episode(dataset, episode)
        assert np.array_equal(arrays.state, expected.state)
        assert np.array_equal(arrays.action, expected.action)
        assert arrays.times_s.dtype == np.float64
        assert np.array_equal(arrays.times_s, np.arange(len(expected.state)) / 20)
        assert episode.task == expected.task
        assert episode.length == len(arrays) == len(expected.state)
        assert all(Path(path).is_file() for path in episode.videos.values())
    assert "3 episodes" in repr(dataset)


def test_lying_totals_and_splits_are_passed_over(written: Path) -> None:
    honest = open_v2(str(written)).episodes
    change_info(written, total_episodes=100, total_frames=0, total_chunks=0, splits={"train": "0:100"})
    assert open_v2(str(written)).episodes == honest


def test_a_declared_camera_without_files_is_noted_and_ignored(written: Path) -> None:
    features = json.loads((written / "meta" / "info.json").read_text())["features"]
    change_info(written, features={"observation.images.ghost": {"dtype": "video"}, **features})
    dataset = open_v2(str(written))
    assert "observation.images.ghost" not in dataset.cameras
    assert len(dataset.notes) == 1
    assert "observation.images.ghost" in dataset.notes[0]


def test_missing_and_unlisted_files_are_noted(written: Path) -> None:
    first_file(written).rename(first_file(written).with_name("episode_000009.parquet"))
    (written / "videos" / "chunk-000" / "observation.images.wrist" / "episode_000002.mp4").unlink()
    dataset = open_v2(str(written))
    assert [episode.index for episode in dataset.episodes] == [1, 2]
    assert list(dataset.episodes[1].videos) == ["observation.images.front"]
    notes = "\n".join(dataset.notes)
    assert len(dataset.notes) == 3
    assert "episode 0 is listed" in notes
    assert "episode_000009.parquet is not listed" in notes
    assert "episode 2 has no video of camera 'observation.images.wrist'" in notes


def test_the_validity_mark_is_no_instruction(written: Path) -> None:
    path = written / "meta" / "episodes.jsonl"
    rows = [
        {"episode_index": 0, "tasks": ["valid", "pour"], "length": 9},
        {"episode_index": 1, "tasks": [], "length": 10},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert [episode.task for episode in open_v2(str(written)).episodes] == ["pour", ""]


def test_version_2_0_without_modality_is_read(written: Path) -> None:
    change_info(written, codebase_version="v2.0")
    (written / "meta" / "modality.json").unlink()
    dataset = open_v2(str(written))
    assert (dataset.version, dataset.modality) == ("v2.0", {})


def test_version_3_is_answered_honestly(written: Path) -> None:
    change_info(written, codebase_version="v3.0")
    with pytest.raises(DataError, match=r"v3\.0 .* is not read here, v2\.0 and v2\.1 are"):
        open_v2(str(written))


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no LeRobot data set"):
        open_v2(str(tmp_path))


@pytest.mark.parametrize("fps", [0, -1, None, "20", True])
def test_a_rate_that_is_none_is_refused(written: Path, fps: object) -> None:
    change_info(written, fps=fps)
    with pytest.raises(DataError, match=r"info\.json: fps"):
        open_v2(str(written))


def test_paths_that_lead_out_are_refused(written: Path) -> None:
    change_info(written, data_path="../{episode_index:06d}.parquet")
    with pytest.raises(UnsafeInputError, match="leads out"):
        open_v2(str(written))


@pytest.mark.parametrize(
    "line",
    [
        '{"episode_index": 0',
        "[1]",
        '{"episode_index": -1, "length": 3}',
        '{"episode_index": 0, "length": 0}',
        '{"length": 3}',
    ],
)
def test_broken_lines_are_named(written: Path, line: str) -> None:
    (written / "meta" / "episodes.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"episodes\.jsonl"):
        open_v2(str(written))


@pytest.mark.parametrize("column", ["observation.state", "action"])
def test_a_missing_column_is_named_with_its_file(written: Path, column: str) -> None:
    rewrite(written, lambda table: table.drop_columns([column]))
    with pytest.raises(DataError, match=rf"episode_000000\.parquet: there is no column '{column}'"):
        read_rows(str(first_file(written)), 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0], [3.0]], "lengths"),
        ([[1.0, float("nan")], [3.0, 4.0]], "not finite in 1 rows, the first is row 0"),
        ([[1.0, 2.0], None], "numbers in every row"),
        ([[1.0, None], [3.0, 4.0]], "numbers in every row"),
        (["a", "b"], "numbers in every row"),
    ],
)
def test_numbers_that_are_none_are_refused(written: Path, values: list[object], message: str) -> None:
    rewrite(written, lambda table: table.slice(0, 2).drop_columns(["action"]).append_column("action", pa.array(values)))
    with pytest.raises(DataError, match=rf"episode_000000\.parquet.*'action'.*{message}"):
        read_rows(str(first_file(written)), 20)


def test_lists_of_doubles_and_single_numbers_are_read(written: Path) -> None:
    doubles = pa.array([[float(i), 0.5] for i in range(9)], pa.list_(pa.float64()))
    rewrite(
        written, lambda t: t.drop_columns(["action"]).append_column("action", doubles).append_column("grip", t["index"])
    )
    arrays = read_rows(str(first_file(written)), 20, state_key="grip")
    assert arrays.action.dtype == np.float32
    assert arrays.action[:, 0].tolist() == list(range(9))
    assert arrays.state.shape == (9, 1)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.arange(9) / 20 + 0.05, np.arange(9) / 20),  # GR-1: begins one frame late
        (np.zeros(9), np.arange(9) / 20),  # no times at all
        (np.arange(9) / 3, np.arange(9) / 3),  # the declared rate is wrong
        (np.arange(9)[::-1] / 20, np.arange(9) / 20),  # backwards
    ],
)
def test_times_count_from_the_first_row(written: Path, stored: np.ndarray, expected: np.ndarray) -> None:
    column = pa.array(stored.astype(np.float32))
    rewrite(written, lambda t: t.drop_columns(["timestamp"]).append_column("timestamp", column))
    assert np.allclose(read_rows(str(first_file(written)), 20).times_s, expected, atol=1e-6)


def test_files_without_times_are_counted(written: Path) -> None:
    rewrite(written, lambda t: t.drop_columns(["timestamp"]))
    assert np.array_equal(read_rows(str(first_file(written)), 10).times_s, np.arange(9) / 10)


def test_a_file_without_rows_is_refused(written: Path) -> None:
    rewrite(written, lambda t: t.slice(0, 0))
    with pytest.raises(DataError, match="no rows"):
        read_rows(str(first_file(written)), 20)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real GR-1 episodes are not at {REAL}")
def test_real_gr1_episodes_are_read_in_spite_of_their_metadata() -> None:
    dataset = open_v2(str(REAL))
    assert dataset.cameras == ("observation.images.ego_view",)
    assert [episode.length for episode in dataset.episodes] == [416, 470, 470, 412, 328]
    assert dataset.episodes[0].task == "pick the pear from the counter and place it in the plate"
    assert any("observation.images.egoview" in note for note in dataset.notes)
    for episode in dataset.episodes:
        arrays = read_episode(dataset, episode)
        assert arrays.state.shape == arrays.action.shape == (episode.length, 44)
        assert arrays.times_s[-1] == pytest.approx((episode.length - 1) / 20)
    frames = decode_source(dataset.episodes[4].videos[dataset.cameras[0]], DecodeRequest(size_px=(32, 32)))
    assert isinstance(frames, Frames)
    assert len(frames) == 328
