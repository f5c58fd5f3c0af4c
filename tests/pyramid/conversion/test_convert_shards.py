"""Shards to LeRobot and back: one episode per clip, label tables as columns of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion_data import CAMERAS, LENGTHS, frames_of, rows_of

from pyramid import convert, files, pack, parquet, scan
from pyramid.errors import ConfigError, DataError
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.lerobot import open_dataset, read_episode
from pyramid.shards.reader import ShardSet

FRAMES = (8, 6, 9, 7)
LEROBOT = ["lerobot-v2.1", "lerobot-v3.0"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return Path(drawing.write_shards(tmp_path / "shards", FRAMES, n_val=1))


def label(shards: Path, run: str, columns: dict[str, pa.DataType], rows: dict[str, list[dict[str, Any]]]) -> None:
    """Writes a label run by hand: ``rows`` by key."""
    opened = ShardSet.open(str(shards))
    schema = pa.schema([*BASE_FIELDS, *columns.items()])
    for shard in opened.shards:
        found = [
            {"key": key, "gap_s": 0.1, "flags": 0, "t_s": row["frame"] / 10, **row}
            for key in (opened.rows[i]["key"] for i in opened.of_shard(shard))
            for row in rows.get(key, [])
        ]
        meta = {"index_digest": opened.shard_digest(shard), "labeler_digest": run}
        parquet.write(
            shards / "labels" / run / shard.replace(".tar", ".parquet"), pa.Table.from_pylist(found, schema), meta
        )


LATENT = {"latent": pa.list_(pa.float32(), 4), "codes": pa.list_(pa.uint16(), 2), "recon_gain": pa.float32()}
PSEUDO = {"action": pa.list_(pa.float32()), "action_std": pa.list_(pa.float32()), "n_votes": pa.uint8()}


def latent_row(frame: int) -> dict[str, Any]:
    return {"frame": frame, "latent": [frame + i / 8 for i in range(4)], "codes": [65_535, frame], "recon_gain": 0.5}


def pseudo_row(frame: int) -> dict[str, Any]:
    return {"frame": frame, "action": [-frame, frame, 7], "action_std": [0.25] * 3, "n_votes": 3}


@pytest.mark.parametrize("to", LEROBOT)
def test_a_clip_becomes_an_episode(shards: Path, tmp_path: Path, to: str) -> None:
    result = convert(str(shards), str(tmp_path / "out"), to=to, camera="eye", workers=2)
    assert (result.episodes, result.frames, result.tasks) == (4, sum(FRAMES), 4)
    dataset = open_dataset(str(tmp_path / "out"))
    assert (dataset.fps, dataset.robot_type, dataset.cameras) == (10.0, "arm", ("observation.images.eye",))
    assert json.loads((tmp_path / "out/meta/info.json").read_text())["splits"] == {"train": "0:3", "val": "3:4"}
    opened = ShardSet.open(str(shards))
    for i, episode in enumerate(dataset.episodes):
        arrays, sample = read_episode(dataset, episode), opened.read(i)
        assert np.array_equal(arrays.state, sample.state)
        assert np.array_equal(arrays.action, sample.action)
        assert episode.task == f"show {i}"
        assert frames_of(dataset, episode, "observation.images.eye") == [
            drawing.number_of(i, t) for t in range(FRAMES[i])
        ]
        table = rows_of(episode)
        # A feature of the shape [1] is a plain number to LeRobot's readers, a longer one a list.
        assert table["observation.state"].type == pa.float32()
        assert pa.types.is_nested(table["action"].type)
        assert np.array_equal(table["t_s"], sample.times_s)
        assert np.array_equal(table["timestamp"], (np.arange(FRAMES[i]) / 10).astype(np.float32))


@pytest.mark.parametrize("to", LEROBOT)
def test_labels_are_columns_of_their_own(shards: Path, tmp_path: Path, to: str) -> None:
    first, second = drawing.key_of(0), drawing.key_of(1)
    label(shards, "lam", LATENT, {first: [latent_row(t) for t in (0, 2, 5)], second: [latent_row(1)]})
    label(shards, "idm", PSEUDO, {second: [pseudo_row(t) for t in (0, 3)]})
    convert(str(shards), str(tmp_path / "out"), to=to)
    dataset = open_dataset(str(tmp_path / "out"))
    plain = ShardSet.open(str(shards))
    for i, episode in enumerate(dataset.episodes):
        assert np.array_equal(read_episode(dataset, episode).action, plain.read(i).action)
    table = rows_of(dataset.episodes[0])
    latent, codes = (np.asarray(table[name].to_pylist()) for name in ("latent", "codes"))
    labelled = [0, 2, 5]
    rest = [t for t in range(FRAMES[0]) if t not in labelled]
    assert np.array_equal(latent[labelled], [latent_row(t)["latent"] for t in labelled])
    assert np.array_equal(codes[labelled], [[65_535, t] for t in labelled])
    assert np.isnan(latent[rest]).all()
    assert np.isnan(codes[rest]).all()
    assert np.isnan(np.asarray(table["pseudo_action"].to_pylist())).all()
    table = rows_of(dataset.episodes[1])
    pseudo = np.asarray(table["pseudo_action"].to_pylist())
    assert np.array_equal(pseudo[[0, 3]], [[0, 0, 7], [-3, 3, 7]])
    assert np.isnan(pseudo[[1, 2, 4, 5]]).all()
    assert np.asarray(table["pseudo_action_std"].to_pylist())[3].tolist() == [0.25] * 3
    features = json.loads((tmp_path / "out/meta/info.json").read_text())["features"]
    assert features["latent"] == {"dtype": "float32", "shape": [4], "names": None}
    assert features["pseudo_action"]["shape"] == [3]
    convert(str(shards), str(tmp_path / "bare"), to=to, labels="none")
    assert "latent" not in rows_of(open_dataset(str(tmp_path / "bare")).episodes[0]).column_names


def test_label_runs_are_chosen_by_name(shards: Path, tmp_path: Path) -> None:
    label(shards, "lam", LATENT, {drawing.key_of(0): [latent_row(0)]})
    label(shards, "other", LATENT, {drawing.key_of(0): [latent_row(1)]})
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="both give the column 'latent'"):
        convert(str(shards), out, to="lerobot-v2.1")
    with pytest.raises(ConfigError, match="did you mean 'other'"):
        convert(str(shards), out, to="lerobot-v2.1", labels="othr")
    convert(str(shards), out, to="lerobot-v2.1", labels="other")
    latent = rows_of(open_dataset(out).episodes[0])["latent"].to_pylist()
    assert latent[1] == latent_row(1)["latent"]
    assert np.isnan(latent[0]).all()


def test_labels_that_do_not_fit_are_refused(shards: Path, tmp_path: Path) -> None:
    label(shards, "lam", LATENT, {drawing.key_of(1): [latent_row(FRAMES[1])]})
    result = convert(str(shards), str(tmp_path / "out"), to="lerobot-v3.0")
    assert result.quarantined == {"bad_labels": 1}
    assert drawing.key_of(1) in result.items[0].detail
    stale = shards / "labels/lam/clips-000000.parquet"
    parquet.write(stale, parquet.read(stale), {"index_digest": "of other shards"})
    with pytest.raises(DataError, match="labels other shards"):
        convert(str(shards), str(tmp_path / "new"), to="lerobot-v3.0")


def test_clips_of_another_rate_are_set_aside(tmp_path: Path) -> None:
    drawing.write_shards(tmp_path / "a", (8, 6))
    drawing.write_shards(tmp_path / "b", (5,), rate_hz=5.0, first_clip=7)
    (tmp_path / "b/clips-000000.tar").rename(tmp_path / "a/other-000000.tar")
    rows = parquet.read(tmp_path / "b/shards.parquet").to_pylist()
    both = parquet.read(tmp_path / "a/shards.parquet")
    rows = both.to_pylist() + [{**row, "shard": "other-000000.tar"} for row in rows]
    parquet.write(tmp_path / "a/shards.parquet", pa.Table.from_pylist(rows, schema=both.schema), {})
    result = convert(str(tmp_path / "a"), str(tmp_path / "out"), to="lerobot-v3.0")
    assert (result.episodes, result.quarantined) == (2, {"other_shape": 1})
    assert "rate_hz 5.0 (most have 10.0)" in result.items[0].detail


def test_videos_without_actions_become_episodes_without_them(tmp_path: Path) -> None:
    drawing.write_shards(tmp_path / "human", (6, 5), actions=False)
    convert(str(tmp_path / "human"), str(tmp_path / "out"), to="lerobot-v3.0")
    dataset = open_dataset(str(tmp_path / "out"))
    assert "action" not in rows_of(dataset.episodes[0]).column_names
    assert frames_of(dataset, dataset.episodes[1], "observation.images.main") == [100, 101, 102, 103, 104]
    assert not (tmp_path / "out/meta/modality.json").exists()


@pytest.mark.parametrize("to", LEROBOT)
def test_there_and_back(shards: Path, tmp_path: Path, to: str) -> None:
    convert(str(shards), str(tmp_path / "lerobot"), to=to)
    result = convert(str(tmp_path / "lerobot"), str(tmp_path / "again"), to="webdataset", size_px=32)
    assert (result.episodes, result.frames, result.quarantined) == (4, sum(FRAMES), {})
    old, new = ShardSet.open(str(shards)), ShardSet.open(str(tmp_path / "again"))
    assert [row["text"] for row in new.rows] == [f"show {i}" for i in range(4)]
    assert len({row["split"] for row in new.rows}) == 2
    for i in range(4):
        before, after = old.read(i), new.read(i)
        assert np.array_equal(after.state, before.state)
        assert np.array_equal(after.action, before.action)
        assert np.abs(after.times_s - before.times_s).max() < 1e-4
        assert drawing.read_pictures(after.frames()) == drawing.read_pictures(before.frames())
        assert after.meta["rate_hz"] == 10.0


def test_parts_of_shared_files_get_their_own_rows_and_frames(v20: Path, tmp_path: Path) -> None:
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    manifest = str(tmp_path / "clips.parquet")
    found = scan("lerobot", str(tmp_path / "v30"), out=manifest, camera=CAMERAS[1], clip_s=0.3)
    done = pack(manifest, out=str(tmp_path / "shards"), size_px=64)
    assert (done.clips, done.frames, done.quarantined) == (found.clips, sum(LENGTHS), {})
    assert found.clips > len(LENGTHS)
    source = open_dataset(str(v20))
    states = {e.index: read_episode(source, e).state for e in source.episodes}
    for sample in (ShardSet.open(str(tmp_path / "shards")).read(i) for i in range(done.clips)):
        numbers = drawing.read_pictures(sample.frames())
        episode, frame = numbers[0] // 1000, numbers[0] % 100
        assert numbers == list(range(numbers[0], numbers[0] + len(sample)))
        assert np.array_equal(sample.state, states[episode][frame : frame + len(sample)])


@pytest.mark.parametrize("late", [-0.8, -0.2, 0.2, 0.8])
def test_a_video_that_is_late_is_refused_and_not_shifted(v20: Path, tmp_path: Path, late: float) -> None:
    root = tmp_path / "v30"
    convert(str(v20), str(root), to="lerobot-v3.0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for edge in ("from", "to"):
        rows[1][f"videos/{CAMERAS[0]}/{edge}_timestamp"] += late / 20
    pq.write_table(pa.Table.from_pylist(rows), path)
    manifest = str(tmp_path / "clips.parquet")
    scan("lerobot", str(root), out=manifest, camera=CAMERAS[0])
    done = pack(manifest, out=str(tmp_path / "shards"), size_px=64)
    assert done.quarantined == {"length_mismatch": 1}
    assert done.clips == len(LENGTHS) - 1
    again = convert(str(root), str(tmp_path / "v21"), to="lerobot-v2.1")
    assert list(again.quarantined) in (["bad_times"], ["no_key_frame"])
    assert again.episodes == len(LENGTHS) - 1


def test_the_source_shards_are_left_as_they_were(shards: Path, tmp_path: Path) -> None:
    before = drawing.tree(shards)
    convert(str(shards), str(tmp_path / "out"), to="lerobot-v3.0")
    assert drawing.tree(shards) == before
    with pytest.raises(ConfigError, match="holds shards already"):
        convert(str(shards), str(tmp_path / "new"), to="webdataset")
    assert files.listdir(tmp_path / "new") == []
