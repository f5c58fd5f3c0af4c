"""Names, keys, arrays and tars of the shard format."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import drawing
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pyramid.errors import DataError, UnsafeInputError
from pyramid.shards.layout import MEMBERS, SHARD_PATTERN, dump_array, load_array, sample_key, shard_name, table_name
from pyramid.shards.writer import write_shard
from pyramid.types import KEY_PATTERN, Clip


def clip(clip_id: str, corpus: str = "folder") -> Clip:
    return Clip(clip_id=clip_id, corpus=corpus, video="v.mp4", start_s=0, end_s=1)


def test_names() -> None:
    assert shard_name("clips", 17) == "clips-000017.tar"
    assert table_name("clips-000017.tar") == "clips-000017.parquet"
    assert SHARD_PATTERN.fullmatch(shard_name("clips", 0))
    for bad in ("../clips-000017.tar", "clips-17.tar", "clips-000017.tar\n", "/clips-000017.tar", "pipe:ls"):
        assert not SHARD_PATTERN.fullmatch(bad)


@given(st.text(min_size=1, max_size=40))
def test_any_clip_id_gives_a_key_that_tools_can_split(clip_id: str) -> None:
    try:
        key = sample_key(clip(clip_id))
    except UnicodeEncodeError:
        return  # A lone surrogate is no text; file names with one are not listed by name.
    assert KEY_PATTERN.fullmatch(key)
    assert "." not in key
    assert key == sample_key(clip(clip_id))


def test_keys_differ_with_the_id() -> None:
    assert len({sample_key(clip(f"folder/v{i}.mp4#0.000")) for i in range(2000)}) == 2000
    assert sample_key(clip("folder/a#0.000")).startswith("folder-")


ARRAYS = st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.uint8, np.uint16, np.float16]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_arrays_come_back(array: np.ndarray) -> None:
    data = dump_array(array)
    found = load_array(data, "a")
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == array.tobytes()
    assert dump_array(np.asfortranarray(array)) == data


def test_a_shard_is_a_tar_that_plain_tools_read(tmp_path: Path) -> None:
    samples = [(drawing.key_of(i), drawing.sample_members(i, 4)) for i in range(3)]
    rows = write_shard(str(tmp_path / "clips-000000.tar"), samples)
    data = (tmp_path / "clips-000000.tar").read_bytes()
    with tarfile.open(tmp_path / "clips-000000.tar") as tar:
        entries = tar.getmembers()
        assert [e.name for e in entries] == [
            f"{key}.{name}" for key, members in samples for name in MEMBERS if name in members
        ]
        assert all((e.mtime, e.uid, e.gid, e.uname, e.mode) == (0, 0, 0, "", 0o644) for e in entries)
        for key, members in samples:
            for name, content in members.items():
                assert tar.extractfile(f"{key}.{name}").read() == content
    for row, (key, _) in zip(rows, samples, strict=True):
        assert row["key"] == key
        piece = data[row["offset"] : row["offset"] + row["size"]]
        assert __import__("hashlib").sha256(piece).hexdigest() == row["sha256"]
        assert row["shard_bytes"] == len(data)
    assert rows[-1]["offset"] + rows[-1]["size"] + 1024 == len(data)


def test_webdataset_reads_a_shard_with_no_help(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = [(drawing.key_of(i), drawing.sample_members(i, 4)) for i in range(3)]
    write_shard(str(tmp_path / "clips-000000.tar"), samples)
    found = list(webdataset.WebDataset(str(tmp_path / "clips-000000.tar"), shardshuffle=False))
    assert [f["__key__"] for f in found] == [key for key, _ in samples]
    for sample, (_, members) in zip(found, samples, strict=True):
        assert {name: sample[name] for name in members} == members


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("../../etc/x", {"json": b""})], "no sample key"),
        ([("/etc/x-0123456789ab-0000", {"json": b""})], "no sample key"),
        ([(drawing.key_of(0), {"json": b""}), (drawing.key_of(0), {"json": b""})], "stands twice"),
        ([(drawing.key_of(0), {"pkl": b""})], "not part of the format"),
    ],
)
def test_what_no_reader_would_take_is_not_written(tmp_path: Path, samples: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_shard(str(tmp_path / "clips-000000.tar"), samples)
    assert list(tmp_path.iterdir()) == []


def test_objects_are_never_written() -> None:
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        dump_array(np.array([{}], dtype=object))
    with pytest.raises(UnsafeInputError, match="plain numbers"):
        load_array(dump_array(np.array(["text"])), "a")
