"""What an author says of episodes beyond the format, splits, and flags of labels: nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion_data import LENGTHS, rows_of, write_v20

from pyramid import convert, parquet
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.lerobot import open_dataset
from pyramid.lerobot.extra import extra_of, split_of, stretch_of
from pyramid.shards.reader import ShardSet

ChangeInfo = Callable[..., None]
EXTRA: list[dict[str, Any]] = [
    {"success": True, "operator": "Ann", "score": 0.5, "marks": [1, 2]},
    {"success": False, "operator": "Ben", "score": 1.5, "marks": []},
    {"success": True, "operator": "Ann", "score": None, "marks": [7]},
    {"success": True, "operator": "Öz", "score": 2.0, "marks": [3]},
]


def tell(root: Path, extra: list[dict[str, Any]]) -> None:
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, **more}) + "\n" for row, more in zip(rows, extra, strict=True)))


def said(root: Path) -> list[dict[str, Any]]:
    return [episode.extra for episode in open_dataset(str(root)).episodes]


def splits(root: Path) -> dict[str, str]:
    return json.loads((root / "meta/info.json").read_text())["splits"]


def test_keys_of_an_author_go_full_circle(v20: Path, tmp_path: Path) -> None:
    tell(v20, EXTRA)
    assert said(v20) == EXTRA
    for source, version in ((v20, "v3.0"), (tmp_path / "v3.0", "v2.1")):
        convert(str(source), str(tmp_path / version), to=f"lerobot-{version}")
        assert said(tmp_path / version) == EXTRA
    rows = [json.loads(line) for line in (tmp_path / "v2.1/meta/episodes.jsonl").read_text().splitlines()]
    assert [row["operator"] for row in rows] == ["Ann", "Ben", "Ann", "Öz"]
    assert [row["length"] for row in rows] == list(LENGTHS)


def test_values_without_a_column_of_their_own_become_texts(v20: Path, tmp_path: Path) -> None:
    values = [{"a": 1}, {}, {"b": [1, {"c": None}]}, {}]
    mixed = [1, "two", [3], None]
    tell(v20, [{"setup": one, "mixed": other} for one, other in zip(values, mixed, strict=True)])
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    assert [json.loads(one["setup"]) for one in said(tmp_path / "v30")] == values
    assert [json.loads(one["mixed"]) for one in said(tmp_path / "v30")] == mixed


def test_keys_that_would_overwrite_the_formats_own_are_left_out(v20: Path, tmp_path: Path) -> None:
    taken = {"dataset_from_index": 99, "data/chunk_index": 7, "videos/x/file_index": 7, "stats/action/min": 1}
    tell(v20, [taken | {"mine": i} for i in range(4)])
    assert said(v20) == [{"mine": i} for i in range(4)]
    convert(str(v20), str(tmp_path / "v30"), to="lerobot-v3.0")
    assert [e.length for e in open_dataset(str(tmp_path / "v30")).episodes] == list(LENGTHS)


def test_strange_values_are_plain_afterwards() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    found = extra_of({"nan": float("nan"), "deep": deep, "bytes": b"x", "episode_index": 3, "tasks": []})
    assert (found["nan"], found["bytes"]) == (None, "b'x'")
    json.dumps(found, allow_nan=False)
    assert set(found) == {"nan", "deep", "bytes"}


def test_splits_keep_their_episodes(v20: Path, tmp_path: Path, change_info: ChangeInfo) -> None:
    change_info(v20, splits={"train": "0:2", "val": "2:3", "test": "3:100"})
    for source, version in ((v20, "v3.0"), (tmp_path / "v3.0", "v2.1")):
        convert(str(source), str(tmp_path / version), to=f"lerobot-{version}")
        assert splits(tmp_path / version) == {"train": "0:2", "val": "2:3", "test": "3:4"}


def test_splits_follow_episodes_that_get_other_numbers(tmp_path: Path, change_info: ChangeInfo) -> None:
    root = write_v20(tmp_path / "v20")
    change_info(root, splits={"train": "0:2", "val": "2:4"})
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    convert(str(root), str(tmp_path / "v21"), to="lerobot-v2.1")
    assert splits(tmp_path / "v21") == {"train": "0:1", "val": "1:3"}


@pytest.mark.parametrize("told", [None, 3, "0:4", {}, {"train": "all"}, {"train": [0, 4]}, {"train": "9:20"}])
def test_splits_that_are_none_make_all_of_it_train(
    v20: Path, tmp_path: Path, change_info: ChangeInfo, told: object
) -> None:
    change_info(v20, splits=told)
    convert(str(v20), str(tmp_path / "out"), to="lerobot-v2.1")
    assert splits(tmp_path / "out") == {"train": "0:4"}


def test_stretches_of_splits() -> None:
    assert [stretch_of(told) for told in ("0:80", "80:100", "a:b", "-1:3", "1:2:3", 5)] == [
        (0, 80),
        (80, 100),
        *[None] * 4,
    ]
    assert [split_of({"train": "0:2", "val": "2:3"}, i) for i in range(4)] == ["train", "train", "val", ""]


@pytest.mark.parametrize("to", ["lerobot-v2.1", "lerobot-v3.0"])
def test_flags_of_labels_are_columns(tmp_path: Path, to: str) -> None:
    shards = Path(drawing.write_shards(tmp_path / "shards", (8, 6)))
    opened = ShardSet.open(str(shards))
    schema = pa.schema([*BASE_FIELDS, ("latent", pa.list_(pa.float32(), 2))])
    rows = [
        {"key": opened.rows[0]["key"], "gap_s": 0.1, "flags": flags, "t_s": t / 10, "frame": t, "latent": [t, -t]}
        for t, flags in ((1, 0), (3, 5), (4, 2))
    ]
    meta = {"index_digest": opened.shard_digest(opened.shards[0]), "labeler_digest": "x"}
    parquet.write(shards / "labels/run/clips-000000.parquet", pa.Table.from_pylist(rows, schema), meta)
    convert(str(shards), str(tmp_path / "out"), to=to)
    dataset = open_dataset(str(tmp_path / "out"))
    first, second = (rows_of(episode)["latent_flags"].to_numpy() for episode in dataset.episodes)
    assert np.flatnonzero(~np.isnan(first)).tolist() == [1, 3, 4]
    assert first[[1, 3, 4]].tolist() == [0, 5, 2]
    assert np.isnan(second).all()
    assert pq.read_schema(dataset.episodes[0].data).field("latent_flags").type == pa.float32()
