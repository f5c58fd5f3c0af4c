"""LeRobot to LeRobot: every value and every picture carries over; no video is encoded anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import drawing
import killing
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conversion_data import CAMERAS, FPS, LENGTHS, frames_of, number_of, rows_of, write_v20

from pyramid import convert
from pyramid.errors import ConfigError, DataError
from pyramid.lerobot import open_dataset, read_episode
from pyramid.video.decode import DecodeRequest, decode_source

REAL = Path(__file__).parents[4] / "shared" / "data" / "robot" / "gr1_pick_and_place"


def assert_same(source: Path, other: Path) -> None:
    """Every value, task, time and decoded picture of two data sets."""
    before, after = open_dataset(str(source)), open_dataset(str(other))
    assert (after.fps, after.robot_type, after.cameras) == (before.fps, before.robot_type, before.cameras)
    assert (after.tasks, after.modality) == (before.tasks, before.modality)
    assert len(after.episodes) == len(before.episodes) > 0
    for old, new in zip(before.episodes, after.episodes, strict=True):
        assert (new.index, new.length, new.task, new.tasks) == (old.index, old.length, old.task, old.tasks)
        old_rows, new_rows = rows_of(old), rows_of(new)
        assert set(new_rows.column_names) - set(old_rows.column_names) <= {"frame_index"}
        assert new_rows["frame_index"].to_pylist() == list(range(old.length))
        for name in old_rows.column_names:
            assert new_rows[name].type == old_rows[name].type
            # Equal as texts, so that NaN is NaN.
            assert repr(new_rows[name].to_pylist()) == repr(old_rows[name].to_pylist()), name
        for camera in before.cameras:
            assert pixels(after, new, camera).tobytes() == pixels(before, old, camera).tobytes()


def pixels(dataset, episode, camera) -> np.ndarray:
    start, end = episode.stretches.get(camera, (0.0, episode.length / dataset.fps))
    half = 0.25 / dataset.fps
    request = DecodeRequest(start_s=max(0, start - half), end_s=end - half)
    return decode_source(episode.videos[camera], request).pixels


@pytest.mark.parametrize("bframes", [0, 2])
def test_v20_to_v30_to_v21_is_identity(tmp_path: Path, bframes: int) -> None:
    source = write_v20(tmp_path / "v20", bframes=bframes)
    result = convert(str(source), str(tmp_path / "v30"), to="lerobot-v3.0")
    assert (result.episodes, result.frames, result.tasks, result.quarantined) == (4, sum(LENGTHS), 3, {})
    assert_same(source, tmp_path / "v30")
    back = convert(str(tmp_path / "v30"), str(tmp_path / "v21"), to="lerobot-v2.1", workers=2)
    assert (back.episodes, back.videos) == (4, 8)
    assert_same(source, tmp_path / "v21")
    assert open_dataset(str(tmp_path / "v21")).version == "v2.1"
    dataset = open_dataset(str(tmp_path / "v30"))
    for episode in dataset.episodes:
        for place, camera in enumerate(CAMERAS):
            assert frames_of(dataset, episode, camera) == [
                number_of(episode.index, t, place) for t in range(episode.length)
            ]


def test_compressed_pictures_are_the_same_bytes(v20: Path, tmp_path: Path) -> None:
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")

    def packets(path: str) -> list[bytes]:
        with av.open(path) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    before = open_dataset(str(v20))
    after = open_dataset(str(tmp_path / "v30"))
    for camera in CAMERAS:
        assert len({episode.videos[camera] for episode in after.episodes}) == 1
        one_by_one = [p for episode in before.episodes for p in packets(episode.videos[camera])]
        assert packets(after.episodes[0].videos[camera]) == one_by_one
    convert(str(v20), str(tmp_path / "v21"), to="lerobot-v2.1")
    for old, new in zip(before.episodes, open_dataset(str(tmp_path / "v21")).episodes, strict=True):
        for camera in CAMERAS:
            assert Path(new.videos[camera]).read_bytes() == Path(old.videos[camera]).read_bytes()


def test_documents_of_v30_are_as_its_readers_want_them(v20: Path, tmp_path: Path) -> None:
    root = tmp_path / "v30"
    convert(str(v20), str(root), to="lerobot-v3.0")
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["fps"] == FPS
    assert isinstance(info["fps"], int)
    assert (info["total_episodes"], info["total_frames"], info["splits"]) == (4, sum(LENGTHS), {"train": "0:4"})
    columns = pq.read_table(root / "data/chunk-000/file-000.parquet").column_names
    assert set(info["features"]) == {*columns, *CAMERAS}
    assert info["features"]["action"]["names"] == ["dx", "dy"]
    assert info["features"]["note"] == {"dtype": "string", "shape": [1], "names": None}
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert tasks.index.name == "task"
    assert tasks["task_index"].to_dict() == {"lift the cup": 0, "valid": 1, "öffne die Schublade": 2}
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in rows] == [0, *np.cumsum(LENGTHS)[:-1].tolist()]
    assert [row["dataset_to_index"] for row in rows] == np.cumsum(LENGTHS).tolist()
    starts = [row[f"videos/{CAMERAS[0]}/from_timestamp"] for row in rows]
    assert np.allclose(starts, np.asarray([0, *np.cumsum(LENGTHS)[:-1]]) / FPS, atol=1e-9)
    pieces = pq.ParquetFile(root / "data/chunk-000/file-000.parquet")
    assert [pieces.metadata.row_group(i).num_rows for i in range(pieces.num_row_groups)] == list(LENGTHS)


def test_statistics_are_those_of_the_values(v20: Path, tmp_path: Path) -> None:
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    stats = json.loads((tmp_path / "v30/meta/stats.json").read_text())
    dataset = open_dataset(str(v20))
    actions = np.concatenate([np.asarray(rows_of(episode)["action"].to_pylist()) for episode in dataset.episodes])
    rewards = np.concatenate([np.asarray(rows_of(episode)["next.reward"]) for episode in dataset.episodes])
    found = stats["action"]
    assert found["count"] == [sum(LENGTHS)]
    for name, expected in {"mean": actions.mean(0), "std": actions.std(0), "min": actions.min(0)}.items():
        assert np.allclose(found[name], expected)
    for name, q in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        assert np.allclose(found[name], np.quantile(actions, q, axis=0))
    assert stats["next.reward"]["count"] == [int(np.isfinite(rewards).sum())]
    assert np.allclose(stats["next.reward"]["mean"], np.nanmean(rewards))
    assert "note" not in stats
    picture = stats[CAMERAS[0]]
    assert np.shape(picture["q99"]) == (3, 1, 1)
    assert 0.1 < picture["mean"][0][0][0] < 0.9
    rows = pq.read_table(tmp_path / "v30/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    first = np.asarray(rows_of(dataset.episodes[1])["action"].to_pylist())
    assert np.allclose(rows[1]["stats/action/q50"], np.median(first, axis=0))


def test_files_are_closed_before_they_pass_their_size(v20: Path, tmp_path: Path) -> None:
    root = tmp_path / "v30"
    convert(str(v20), str(root), to="lerobot-v3.0", data_file_mb=1e-6, video_file_mb=1e-6)
    assert len(list((root / "data").rglob("*.parquet"))) == 4
    assert sorted(p.name for p in (root / "videos" / CAMERAS[0]).rglob("*.mp4")) == [
        f"file-{i:03d}.mp4" for i in range(4)
    ]
    assert_same(v20, root)


def test_videos_of_another_coding_get_a_file_of_their_own(v20: Path, tmp_path: Path) -> None:
    path = v20 / f"videos/chunk-000/{CAMERAS[0]}/episode_000001.mp4"
    drawing.write_video(path, [number_of(1, t) for t in range(LENGTHS[1])], rate=FPS, options={"bf": "0"})
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    dataset = open_dataset(str(tmp_path / "v30"))
    assert [Path(e.videos[CAMERAS[0]]).name for e in dataset.episodes] == [f"file-00{i}.mp4" for i in (0, 1, 2, 2)]
    assert_same(v20, tmp_path / "v30")


def test_a_container_that_lies_comes_out_at_the_true_rate(v20: Path, tmp_path: Path) -> None:
    for index, length in enumerate(LENGTHS):
        path = v20 / f"videos/chunk-000/{CAMERAS[0]}/episode_{index:06d}.mp4"
        drawing.write_video(path, [number_of(index, t) for t in range(length)], rate=30)
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    dataset = open_dataset(str(tmp_path / "v30"))
    assert frames_of(dataset, dataset.episodes[2], CAMERAS[0]) == [number_of(2, t) for t in range(LENGTHS[2])]


def test_any_number_of_workers_gives_the_same_bytes(v20: Path, tmp_path: Path) -> None:
    trees = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        convert(str(v20), str(out), to="lerobot-v3.0", workers=workers)
        trees.append({name: sha for name, sha in drawing.tree(out).items() if not name.startswith("_receipts")})
    assert trees[0] == trees[1]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["lerobot-v2.1", "lerobot-v3.0"])
@pytest.mark.parametrize("mode", ["kill", "error"])
def test_stopped_anywhere_it_is_not_whole_and_goes_on(tmp_path: Path, to: str, mode: str) -> None:
    source = write_v20(tmp_path / "v20", (3, 2), cameras=CAMERAS[:1])
    convert(str(source), str(tmp_path / "whole"), to=to)
    whole = drawing.tree(tmp_path / "whole")
    found = killing.stop_everywhere(
        "conversion_data:convert_into", out=tmp_path / "out", mode=mode, src=str(source), to=to
    )
    assert len(found) > 15
    for point in found:
        named = {name for name in point["stopped"] if ".tmp-" not in name}
        assert "meta/info.json" not in named or named == set(whole)
        assert all(whole.get(name) == point["stopped"][name] for name in named)
        assert point["resumed"] == whole


def test_converting_again_does_nothing_and_a_change_is_seen(v20: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "v30")
    convert(str(v20), out, to="lerobot-v3.0")
    before = drawing.tree(tmp_path / "v30")
    assert convert(str(v20), out, to="lerobot-v3.0").skipped_done == 3
    assert drawing.tree(tmp_path / "v30") == before
    path = v20 / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index("action"), "action", [[[9.0, 9.0]] * table.num_rows])
    pq.write_table(changed, path)
    assert convert(str(v20), out, to="lerobot-v3.0").skipped_done == 0
    dataset = open_dataset(out)
    assert (read_episode(dataset, dataset.episodes[1]).action == 9).all()


def test_a_folder_that_holds_something_else_is_refused(v20: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the source itself"):
        convert(str(v20), str(v20), to="lerobot-v3.0")
    other = write_v20(tmp_path / "other", (4, 4))
    with pytest.raises(ConfigError, match="not made by a conversion"):
        convert(str(v20), str(other), to="lerobot-v3.0")
    convert(str(v20), str(tmp_path / "out"), to="lerobot-v2.1")
    with pytest.raises(ConfigError, match="files of another conversion"):
        convert(str(v20), str(tmp_path / "out"), to="lerobot-v3.0")
    with pytest.raises(ConfigError, match=r"did you mean 'lerobot-v3\.0'"):
        convert(str(v20), str(tmp_path / "new"), to="lerobot-v3")
    with pytest.raises(DataError, match="neither a LeRobot data set"):
        convert(str(tmp_path), str(tmp_path / "new"), to="lerobot-v3.0")
    assert not (tmp_path / "new").exists()


def test_a_dry_run_writes_nothing(v20: Path, tmp_path: Path) -> None:
    result = convert(str(v20), str(tmp_path / "new"), to="lerobot-v3.0", dry_run=True)
    assert (result.episodes, result.frames) == (4, sum(LENGTHS))
    assert "nothing written" in repr(result)
    assert not (tmp_path / "new").exists()


def test_v30_refuses_a_rate_that_it_cannot_say(v20: Path, tmp_path: Path, change_info: Callable[..., None]) -> None:
    change_info(v20, fps=29.97)
    with pytest.raises(ConfigError, match=r"whole number of frames per second, not 29\.97"):
        convert(str(v20), str(tmp_path / "new"), to="lerobot-v3.0")
    convert(str(v20), str(tmp_path / "v21"), to="lerobot-v2.1")
    assert open_dataset(str(tmp_path / "v21")).fps == 29.97


def test_to_a_bucket_and_back(v20: Path, tmp_path: Path, s3: str) -> None:
    result = convert(str(v20), f"{s3}/v30", to="lerobot-v3.0")
    assert result.episodes == len(LENGTHS)
    assert convert(str(v20), f"{s3}/v30", to="lerobot-v3.0").skipped_done == 3
    convert(f"{s3}/v30", str(tmp_path / "v21"), to="lerobot-v2.1")
    assert_same(v20, tmp_path / "v21")


def test_av1_is_carried_over_as_it_is(tmp_path: Path) -> None:
    source = write_v20(tmp_path / "v20", (9, 7), cameras=CAMERAS[:1])
    for index, length in enumerate((9, 7)):
        path = source / f"videos/chunk-000/{CAMERAS[0]}/episode_{index:06d}.mp4"
        numbers = [number_of(index, t) for t in range(length)]
        drawing.write_video(path, numbers, rate=FPS, codec="libsvtav1", options={"crf": "20"}, gop=4)
    assert convert(str(source), str(tmp_path / "v30"), to="lerobot-v3.0").quarantined == {}
    convert(str(tmp_path / "v30"), str(tmp_path / "v21"), to="lerobot-v2.1")
    assert_same(source, tmp_path / "v30")
    assert_same(source, tmp_path / "v21")


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/robot/gr1_pick_and_place beside the project")
def test_a_real_data_set_there_and_back(tmp_path: Path) -> None:
    result = convert(str(REAL), str(tmp_path / "v30"), to="lerobot-v3.0")
    assert (result.episodes, result.frames, result.quarantined) == (5, 2096, {})
    convert(str(tmp_path / "v30"), str(tmp_path / "v21"), to="lerobot-v2.1")
    assert_same(REAL, tmp_path / "v30")
    assert_same(REAL, tmp_path / "v21")
