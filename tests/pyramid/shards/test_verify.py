"""Verifying: nothing wrong is missed, nothing right is touched, and what is bad can be set aside."""

from __future__ import annotations

from pathlib import Path

import drawing
import pyarrow as pa
import pytest

from pyramid import parquet
from pyramid.errors import DataError, ExitCode
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import QUARANTINE, verify

SHARD = "clips-000001.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(drawing.write_shards(tmp_path / "shards", [4, 3, 5, 3]))


def label_run(folder: Path, key: str | None = None) -> Path:
    """Writes a label table for each shard."""
    shards = ShardSet.open(str(folder))
    for i, shard in enumerate(shards.shards):
        table = pa.table({"key": [key or shards.rows[2 * i]["key"]], "t_s": [0.0]})
        path = folder / "labels" / "run" / shard.replace(".tar", ".parquet")
        parquet.write(path, table, {"index_digest": shards.shard_digest(shard)})
    return folder / "labels" / "run"


def test_a_sound_folder_is_as_the_index_says(folder: Path) -> None:
    label_run(folder)
    before = drawing.tree(folder)
    result = verify(str(folder), quarantine=True)
    assert (result.shards, result.samples, result.bad, result.exit_code) == (2, 4, [], ExitCode.DONE)
    assert drawing.tree(folder) == before


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: change(p, 600), "sample drawn-000000000002-0000 is not what the index says"),
        (lambda p: change(p, -3), "changed outside its samples"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, the index says"),
        (lambda p: p.write_bytes(b""), "0 bytes, the index says"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes, the index says"),
        (lambda p: p.unlink(), "missing"),
    ],
    ids=["a bit", "the end", "short", "empty", "longer", "gone"],
)
def test_a_bad_shard_is_named_and_set_aside(folder: Path, damage, reason: str) -> None:
    damage(folder / SHARD)
    found = verify(str(folder))
    assert [b["path"] for b in found.bad] == [str(folder / SHARD)]
    assert reason in found.bad[0]["reason"]
    assert found.exit_code == ExitCode.FAILED
    existed = (folder / SHARD).exists()
    aside = verify(str(folder), quarantine=True)
    assert aside.exit_code == ExitCode.QUARANTINED
    assert not (folder / SHARD).exists()
    assert (folder / QUARANTINE / SHARD).exists() == existed
    after = verify(str(folder))
    assert (after.shards, after.samples, after.bad) == (1, 2, [])
    assert ShardSet.open(str(folder)).read(1).key == drawing.key_of(1)


def test_bad_label_tables_are_named(folder: Path) -> None:
    run = label_run(folder)
    (run / "clips-000000.parquet").write_bytes(b"no parquet")
    parquet.write(run / "clips-000001.parquet", pa.table({"key": ["x"], "t_s": [0.0]}), {"index_digest": "other"})
    parquet.write(run / "clips-000009.parquet", pa.table({"key": ["x"], "t_s": [0.0]}), {})
    found = {Path(b["path"]).name: b["reason"] for b in verify(str(folder)).bad}
    assert "not a readable Parquet file" in found["clips-000000.parquet"]
    assert "label again" in found["clips-000001.parquet"]
    assert "no shard of this number" in found["clips-000009.parquet"]
    assert verify(str(folder), quarantine=True).exit_code == ExitCode.QUARANTINED
    assert verify(str(folder)).bad == []
    assert sorted(p.name for p in (folder / QUARANTINE / "labels" / "run").iterdir()) == sorted(found)


def test_labels_of_strangers_are_named(folder: Path) -> None:
    label_run(folder, key=drawing.key_of(77))
    assert {b["reason"].split(",")[0] for b in verify(str(folder)).bad} == {f"labels the clip {drawing.key_of(77)}"}


def test_what_cannot_be_verified_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards"):
        verify(str(tmp_path))
