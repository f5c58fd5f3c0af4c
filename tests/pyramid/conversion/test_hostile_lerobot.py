"""Data sets whose metadata lies, leaves the folder or hurts: refused by name, good episodes next to them kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion_data import CAMERAS, FPS, LENGTHS, write_v20

from pyramid import convert, scan
from pyramid.errors import DataError, UnsafeInputError
from pyramid.lerobot import open_dataset

ChangeInfo = Callable[..., None]
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def v30(v20: Path, tmp_path: Path) -> Path:
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    return tmp_path / "v30"


def change_episode(root: Path, index: int, **values: Any) -> None:
    rows = pq.read_table(root / EPISODES).to_pylist()
    rows[index] |= {name.replace("__", "/").replace("CAMERA", CAMERAS[0]): value for name, value in values.items()}
    pq.write_table(pa.Table.from_pylist(rows), root / EPISODES)


def change_column(path: Path, name: str, values: Any) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, [values]), path)


@pytest.mark.parametrize(
    ("key", "template"),
    [
        ("data_path", "../outside/file-{file_index:03d}.parquet"),
        ("data_path", "/etc/passwd"),
        ("data_path", "data/{file_index.__class__}"),
        ("video_path", "../{video_key}/file-{file_index:03d}.mp4"),
        ("video_path", "s3://bucket/{video_key}.mp4"),
        ("data_path", "data/episode_{episode_index:06d}.parquet"),
    ],
)
def test_paths_that_leave_the_folder_are_refused(v30: Path, change_info: ChangeInfo, key: str, template: str) -> None:
    change_info(v30, **{key: template})
    with pytest.raises(UnsafeInputError, match="path template"):
        open_dataset(str(v30))


def test_a_camera_that_climbs_out_is_refused(v30: Path, v20: Path, tmp_path: Path, change_info: ChangeInfo) -> None:
    features = json.loads((v20 / "meta/info.json").read_text())["features"]
    change_info(v20, features={"../../climbs": features[CAMERAS[0]], **features})
    with pytest.raises(UnsafeInputError, match="leads out of the data set"):
        convert(str(v20), str(tmp_path / "out"), to="lerobot-v3.0")
    rows = pq.read_table(v30 / EPISODES).to_pylist()
    for row in rows:
        row |= {f"videos/../../climbs/{part}": 0 for part in ("chunk_index", "file_index")}
    pq.write_table(pa.Table.from_pylist(rows), v30 / EPISODES)
    change_info(v30, features={"../../climbs": features[CAMERAS[0]], **features})
    with pytest.raises(UnsafeInputError, match="leads out of the data set"):
        open_dataset(str(v30))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"length": 13}, "length_mismatch"),
        ({"data__file_index": 7}, "missing_file"),
        ({"data__file_index": -1}, "bad_place"),
        ({"videos__CAMERA__chunk_index": 9}, "missing_file"),
        ({"videos__CAMERA__from_timestamp": math.nan}, "bad_timestamps"),
        ({"videos__CAMERA__to_timestamp": math.inf}, "bad_timestamps"),
        ({"videos__CAMERA__to_timestamp": -1.0}, "bad_timestamps"),
        ({"videos__CAMERA__to_timestamp": None}, "bad_timestamps"),
        ({"videos__CAMERA__file_index": None}, "no_video"),
        ({"videos__CAMERA__to_timestamp": 1.0}, "length_mismatch"),
    ],
)
def test_a_lying_row_costs_its_episode_only(v30: Path, tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    change_episode(v30, 1, **values)
    result = convert(str(v30), str(tmp_path / "out"), to="lerobot-v2.1")
    assert result.quarantined == {reason: 1}
    assert "1" in result.items[0].detail
    kept = open_dataset(str(tmp_path / "out")).episodes
    assert [episode.length for episode in kept] == [LENGTHS[0], *LENGTHS[2:]]
    assert [episode.index for episode in kept] == [0, 1, 2]
    found = scan("lerobot", str(v30), out=str(tmp_path / "clips.parquet"), camera=CAMERAS[0])
    assert (found.clips, found.skipped) == (3, {reason: 1})


@pytest.mark.parametrize("values", [{"length": 0}, {"length": -4}, {"episode_index": 0}, {"episode_index": None}])
def test_rows_that_are_no_episodes_are_refused(v30: Path, values: dict[str, Any]) -> None:
    change_episode(v30, 1, **values)
    with pytest.raises(DataError, match="is none, or stands twice"):
        open_dataset(str(v30))


def test_metadata_that_is_missing_is_named(v30: Path) -> None:
    (v30 / EPISODES).unlink()
    with pytest.raises(DataError, match="lists no episodes"):
        open_dataset(str(v30))


def test_a_damaged_table_of_tasks_is_named(v30: Path) -> None:
    pq.write_table(pa.table({"task": ["a", "b"], "task_index": [0, 0]}), v30 / "meta/tasks.parquet")
    with pytest.raises(DataError, match="stands twice"):
        open_dataset(str(v30))
    pq.write_table(pa.table({"name": ["a"]}), v30 / "meta/tasks.parquet")
    with pytest.raises(DataError, match="wanted the columns task and task_index"):
        open_dataset(str(v30))


def test_rows_of_one_episode_in_two_places_are_refused(v30: Path) -> None:
    numbers = np.repeat(np.arange(4), LENGTHS)
    numbers[-1] = 0
    change_column(v30 / "data/chunk-000/file-000.parquet", "episode_index", numbers)
    with pytest.raises(DataError, match="do not stand together"):
        open_dataset(str(v30))


@pytest.mark.parametrize("to", ["lerobot-v2.1", "lerobot-v3.0"])
@pytest.mark.parametrize("case", ["nan", "rows", "frames", "damaged", "task", "columns", "no_file", "no_video"])
def test_a_bad_episode_is_set_aside_by_name(tmp_path: Path, to: str, case: str) -> None:
    root = write_v20(tmp_path / "v20", bframes=0)
    data = root / "data/chunk-000/episode_000001.parquet"
    video = root / f"videos/chunk-000/{CAMERAS[0]}/episode_000001.mp4"
    reason = {
        "nan": "bad_values",
        "rows": "length_mismatch",
        "frames": "length_mismatch",
        "damaged": "not_a_video",
        "task": "unknown_task",
        "columns": "other_columns",
        "no_file": "missing_file",
        "no_video": "no_video",
    }[case]
    if case == "nan":
        change_column(data, "action", [[math.nan, 0.0]] * LENGTHS[1])
    elif case == "rows":
        pq.write_table(pq.read_table(data).slice(1), data)
    elif case == "frames":
        drawing.write_video(video, range(LENGTHS[1] - 1), rate=FPS, gop=6, options={"bf": "0"})
    elif case == "damaged":
        video.write_bytes(video.read_bytes()[:200])
    elif case == "task":
        change_column(data, "task_index", [99] * LENGTHS[1])
    elif case == "columns":
        pq.write_table(pq.read_table(data).drop_columns(["note"]), data)
    elif case == "no_file":
        data.unlink()
    else:
        video.unlink()
    result = convert(str(root), str(tmp_path / "out"), to=to)
    assert result.quarantined == {reason: 1}
    assert result.items[0].detail.count("1")
    assert [e.length for e in open_dataset(str(tmp_path / "out")).episodes] == [LENGTHS[0], *LENGTHS[2:]]


def test_nothing_left_is_an_error_and_no_data_set(tmp_path: Path) -> None:
    root = write_v20(tmp_path / "v20", (5,))
    change_column(root / "data/chunk-000/episode_000000.parquet", "action", [[math.inf, 0.0]] * 5)
    with pytest.raises(DataError, match=r"no episode that can be converted: .*'action' holds a number that is not"):
        convert(str(root), str(tmp_path / "out"), to="lerobot-v3.0")
    assert not (tmp_path / "out/meta").exists()


def test_cutting_where_there_is_no_key_frame_is_refused(tmp_path: Path) -> None:
    root = write_v20(tmp_path / "v20", (8, 8))
    convert(str(root), str(tmp_path / "v30"), to="lerobot-v3.0")
    whole = tmp_path / f"v30/videos/{CAMERAS[0]}/chunk-000/file-000.mp4"
    drawing.write_video(whole, range(16), rate=FPS, gop=100, options={"sc_threshold": "0"})
    result = convert(str(tmp_path / "v30"), str(tmp_path / "out"), to="lerobot-v2.1")
    assert (result.episodes, result.quarantined) == (1, {"no_key_frame": 1})
