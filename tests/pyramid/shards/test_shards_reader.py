"""Reading shards: any sample by number, exactly; whatever changed since is refused by name."""

from __future__ import annotations

from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
import pytest

from pyramid import files, parquet
from pyramid.errors import DataError, PyramidError
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.shards.reader import ShardSet

FRAMES = [5, 3, 8, 4, 6]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES, n_val=1)


def test_samples_by_number_in_any_order(folder: str) -> None:
    shards = ShardSet.open(folder)
    assert len(shards) == 5
    assert shards.shards == ["clips-000000.tar", "clips-000001.tar", "clips-000002.tar"]
    for clip in (4, 0, 3, 1, 2, 4):
        sample = shards.read(clip)
        numbers = [drawing.number_of(clip, t) for t in range(FRAMES[clip])]
        assert sample.key == drawing.key_of(clip)
        assert drawing.read_pictures(sample.frames()) == numbers
        assert drawing.read_pictures(sample.frames([2, 0, 2])) == [numbers[2], numbers[0], numbers[2]]
        assert sample.times_s.tolist() == [t / 10 for t in range(FRAMES[clip])]
        assert sample.state.tolist() == [[n] for n in numbers]
        assert sample.action.tolist() == [[n, -n] for n in numbers]
        assert sample.meta["split"] == ("val" if clip == 4 else "train")
        assert len(sample) == FRAMES[clip]
        assert str(FRAMES[clip]) in repr(sample)


def test_shards_in_order(folder: str) -> None:
    shards = ShardSet.open(folder)
    keys = [sample.key for shard in shards.shards for sample in shards.iter_shard(shard)]
    assert keys == [drawing.key_of(i) for i in range(5)] == shards.index["key"].to_pylist()
    assert [shards.of_shard(shard) for shard in shards.shards] == [[0, 1], [2, 3], [4]]
    assert shards.number[drawing.key_of(3)] == 3


def test_videos_have_no_numbers(tmp_path: Path) -> None:
    sample = ShardSet.open(drawing.write_shards(tmp_path, [3], actions=False)).read(0)
    assert sample.state is None
    assert sample.action is None


def test_digests_follow_content_and_order(tmp_path: Path) -> None:
    one, same = (ShardSet.open(drawing.write_shards(tmp_path / n, FRAMES)) for n in "ab")
    assert one.digest == same.digest
    assert [one.shard_digest(s) for s in one.shards] == [same.shard_digest(s) for s in same.shards]
    other = ShardSet.open(drawing.write_shards(tmp_path / "c", [*FRAMES[:4], 7]))
    assert other.digest != one.digest
    assert [other.shard_digest(s) == one.shard_digest(s) for s in one.shards] == [True, True, False]


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards in .*pyramid pack"):
        ShardSet.open(str(tmp_path))


def test_a_shard_that_is_gone_or_changed_is_named(folder: str) -> None:
    shards = ShardSet.open(folder)
    path = Path(folder, "clips-000001.tar")
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"clips-000001\.tar: sample drawn-000000000002-0000 .*pyramid verify"):
        shards.read(2)
    assert len(shards.read(3)) == 4  # Its neighbour is whole.
    path.unlink()
    with pytest.raises(DataError, match=r"clips-000001\.tar"):
        shards.read(3)


def test_every_way_of_cutting_a_shard_is_noticed(folder: str) -> None:
    shards = ShardSet.open(folder)
    path = Path(folder, "clips-000000.tar")
    data = path.read_bytes()
    ends = [shards.rows[i]["offset"] + shards.rows[i]["size"] for i in (0, 1)]
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        for i in (0, 1):
            if length >= ends[i]:
                assert shards.read(i).key == drawing.key_of(i)
            else:
                with pytest.raises(DataError, match="truncated"):
                    shards.read(i)


def test_plain_webdataset_over_the_folder(folder: str) -> None:
    pytest.importorskip("webdataset")
    found = list(ShardSet.open(folder).as_webdataset())
    assert [f["__key__"] for f in found] == [drawing.key_of(i) for i in range(5)]


def test_shards_on_s3(tmp_path: Path, s3: str) -> None:
    local = Path(drawing.write_shards(tmp_path, FRAMES))
    for path in local.iterdir():
        files.write_bytes(f"{s3}/shards/{path.name}", path.read_bytes())
    here, there = ShardSet.open(str(local)), ShardSet.open(f"{s3}/shards")
    assert there.digest == here.digest
    assert drawing.read_pictures(there.read(2).frames()) == [drawing.number_of(2, t) for t in range(8)]
    assert [f["__key__"] for f in there.as_webdataset()] == [drawing.key_of(i) for i in range(5)]


def altered(folder: str, name: str, value: object, row: int = 0) -> None:
    """Writes another value into one cell of the index."""
    path = Path(folder, INDEX_FILE)
    table = parquet.read(path)
    cells = table[name].to_pylist()
    cells[row] = value
    column = pa.array(cells, table.schema.field(name).type)
    parquet.write(path, table.set_column(table.column_names.index(name), name, column), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shard", "../outside-000000.tar"),
        ("shard", "/etc/passwd"),
        ("shard", None),
        ("key", None),
        ("key", "../../etc/x"),
        ("key", drawing.key_of(1)),
        ("offset", -512),
        ("offset", 2**62),
        ("offset", None),
        ("size", -1),
        ("size", 0),
        ("size", 2**40),
        ("size", None),
        ("sha256", "0" * 64),
        ("sha256", None),
        ("frames", None),
        ("rate_hz", None),
    ],
)
def test_an_index_that_lies_is_refused(folder: str, name: str, value: object) -> None:
    altered(folder, name, value)
    with pytest.raises(PyramidError, match=r"shards\.parquet|clips-000000|outside"):
        ShardSet.open(folder).read(0)


def test_an_index_with_other_columns_is_refused(folder: str) -> None:
    path = Path(folder, INDEX_FILE)
    table = parquet.read(path)
    parquet.write(path, table.drop_columns(["sha256"]))
    with pytest.raises(DataError, match="no column sha256"):
        ShardSet.open(folder)
    for name in ("offset", "shard", "rate_hz"):
        wrong = table.set_column(table.column_names.index(name), name, pa.array([[1]] * 5))
        parquet.write(path, wrong)
        with pytest.raises(DataError, match=rf"shards\.parquet.*{name}"):
            ShardSet.open(folder)


def test_more_columns_and_wider_types_are_read(folder: str) -> None:
    path = Path(folder, INDEX_FILE)
    table = parquet.read(path).append_column("mine", pa.array(range(5)))
    wide = table.set_column(0, "shard", table["shard"].cast(pa.large_string()))
    parquet.write(path, wide)
    assert len(ShardSet.open(folder).read(4)) == 6


def test_an_index_of_a_former_version_is_read_without_who_and_what(folder: str) -> None:
    path = Path(folder, INDEX_FILE)
    parquet.write(path, parquet.read(path).drop_columns(["person", "verb", "noun", "text_origin"]), {})
    shards = ShardSet.open(folder)
    assert len(shards.read(4)) == 6
    assert shards.index.column_names == INDEX_SCHEMA.names
    assert {shards.rows[4][name] for name in ("person", "verb", "noun", "text_origin")} == {None}


def test_numbers_that_do_not_fit_the_frames_are_refused(tmp_path: Path) -> None:
    from pyramid.shards.layout import ACTION, TIMES, dump_array
    from pyramid.shards.reader import parse_sample
    from pyramid.shards.writer import write_shard

    good = drawing.sample_members(0, 4)
    for change, message in (
        ({ACTION: dump_array(np.zeros((3, 2), np.float32))}, "4 frames"),
        ({ACTION: dump_array(np.zeros(4, np.float32))}, "4 frames"),
        ({TIMES: dump_array(np.zeros((4, 1)))}, "t_s"),
        ({TIMES: dump_array(np.zeros(0))}, "t_s"),
        ({TIMES: dump_array(np.array([0, 0.1, np.nan, 0.3]))}, "t_s"),
        ({TIMES: dump_array(np.array([0, 0.2, 0.1, 0.3]))}, "t_s"),
        ({"json": b"[]"}, "JSON"),
        ({"json": b"{"}, "JSON"),
        ({"json": b"[" * 100_000}, "JSON"),
    ):
        write_shard(str(tmp_path / "clips-000000.tar"), [(drawing.key_of(0), {**good, **change})])
        with pytest.raises(DataError, match=message):
            parse_sample((tmp_path / "clips-000000.tar").read_bytes(), drawing.key_of(0), "here")
