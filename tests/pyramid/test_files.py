"""Reading and writing: nothing half-written, nothing unbounded, on disk and on S3."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid import files, parquet, remote
from pyramid.errors import DataError, OutputError, UnsafeInputError

PLACES = ("local", "s3")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new folder: on disk, and on S3."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Lets the system refuse every byte of a file past ``n_bytes``, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def all_names(folder: str) -> list[str]:
    """Every name in a folder, temporaries too."""
    return sorted(os.listdir(folder)) if Path(folder).exists() else []


def test_what_is_written_is_read(place: str) -> None:
    path = files.join(place, "deep", "a.bin")
    data = bytes(range(256)) * 1000
    files.write_bytes(path, data)
    assert files.read_bytes(path) == data
    assert files.exists(path)
    assert files.exists(files.join(place, "deep"))
    assert files.is_dir(files.join(place, "deep"))
    assert not files.is_dir(path)
    assert files.size_bytes(path) == len(data)
    assert files.read_range(path, 1000, 300) == data[1000:1300]
    assert files.sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert files.listdir(files.join(place, "deep")) == ["a.bin"]
    assert list(files.walk_files(place)) == [path]
    files.write_bytes(path, b"shorter")
    assert files.read_bytes(path) == b"shorter"
    files.remove(path)
    files.remove(path)
    assert not files.exists(path)
    assert files.listdir(files.join(place, "deep")) == []


def test_what_is_not_there_is_named(place: str) -> None:
    path = files.join(place, "nothing.json")
    for read in (files.read_bytes, files.read_json, files.size_bytes, files.sha256_file, parquet.read):
        with pytest.raises(DataError, match=r"nothing\.json"):
            read(path)
    with pytest.raises(DataError, match=r"nothing\.json"):
        files.read_range(path, 0, 4)
    assert files.listdir(place) == []
    assert not files.exists(path)


def test_an_exception_while_writing_publishes_nothing(place: str) -> None:
    path = files.join(place, "a.bin")
    files.write_bytes(path, b"old")

    def write_and_fail(error: BaseException) -> None:
        with files.atomic_write(path) as out:
            out.write(b"n" * 6_000_000)  # More than one part of an S3 upload.
            raise error

    for error in (RuntimeError("no"), KeyboardInterrupt(), OSError(errno.EIO, "input/output error")):
        expected = OutputError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected):
            write_and_fail(error)
        assert files.read_bytes(path) == b"old"
    assert files.listdir(place) == ["a.bin"]
    if not files.is_remote(place):
        assert all_names(place) == ["a.bin"]


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with largest_file(100_000), pytest.raises(OutputError, match=r"cannot write .*a\.bin"):
        files.write_bytes(path, bytes(200_000))
    assert all_names(str(tmp_path)) == []
    files.write_bytes(path, b"old")
    # Also when the disk fills at the last flush only, behind the writer's buffer.
    with largest_file(4), pytest.raises(OutputError):
        files.write_bytes(path, b"newer")
    assert path.read_bytes() == b"old"
    assert all_names(str(tmp_path)) == ["a.bin"]


def test_a_full_disk_leaves_no_table(tmp_path: Path) -> None:
    table = pa.table({"x": list(range(100_000))})
    with largest_file(10_000), pytest.raises(OutputError):
        parquet.write(tmp_path / "t.parquet", table, {"a": 1})
    assert all_names(str(tmp_path)) == []


def test_a_name_that_cannot_be_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="folder"):
        files.write_bytes(tmp_path / "folder", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file"):
        files.write_bytes(tmp_path / "file" / "x", b"x")
    with pytest.raises(OutputError, match="file"):
        files.make_dirs(tmp_path / "file" / "x")
    assert all_names(str(tmp_path)) == ["file", "folder"]


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(OutputError, match="no-such-bucket"):
        files.write_bytes("s3://no-such-bucket/a", b"x")


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_temporaries_of_a_killed_writer_are_hidden_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / f"{files.TEMPORARY_PREFIX}abc").write_bytes(b"half")
    (tmp_path / "a").write_bytes(b"x")
    assert files.listdir(tmp_path) == ["a"]
    assert [Path(p).name for p in files.walk_files(tmp_path)] == ["a"]
    assert files.remove_temporaries(tmp_path) == 1
    assert all_names(str(tmp_path)) == ["a"]
    assert files.remove_temporaries(tmp_path / "none") == 0


def test_reads_are_bounded(place: str) -> None:
    path = files.join(place, "a.json")
    files.write_text(path, json.dumps("x" * 100))
    assert files.read_json(path, max_bytes=102) == "x" * 100
    for read in (files.read_bytes, files.read_json, files.read_text):
        with pytest.raises(UnsafeInputError, match="larger than the 101 bytes"):
            read(path, max_bytes=101)


def test_a_file_that_ends_early_is_truncated(place: str) -> None:
    path = files.join(place, "a.bin")
    files.write_bytes(path, b"0123456789")
    for offset, size in ((8, 3), (10, 1), (50, 1)):
        with pytest.raises(DataError, match="truncated"):
            files.read_range(path, offset, size)


@pytest.mark.parametrize("url", ["http://host/a", "https://host/a", "pipe://ls", "file:///etc/passwd", "gs://b/k"])
def test_other_schemes_are_refused(url: str) -> None:
    for use in (files.read_bytes, files.exists, files.listdir, files.size_bytes, files.make_dirs, files.remove):
        with pytest.raises(UnsafeInputError, match="scheme"):
            use(url)
    with pytest.raises(UnsafeInputError, match="scheme"):
        files.write_bytes(url, b"")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nul"])
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert all_names(str(tmp_path)) == []


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), PLAIN, max_size=4))
def test_digests_do_not_depend_on_the_order_of_keys(data: dict) -> None:
    assert files.digest(data) == files.digest(dict(reversed(data.items())))
    assert files.digest(data) == files.digest(json.loads(json.dumps(data)))
    assert files.digest(data) != files.digest({**data, "one more": 1})


def test_the_digest_is_sha256_of_canonical_json() -> None:
    text = b'{"a":[1,2.5,null],"b":"\\u00e4"}'
    assert files.digest({"b": "ä", "a": [1, 2.5, None]}) == hashlib.sha256(text).hexdigest()


def test_parquet_keeps_rows_types_and_metadata(place: str) -> None:
    table = pa.table(
        {
            "key": pa.array(["a", "b", None] * 50, pa.string()),
            "x": pa.array(range(150), pa.int32()),
            "v": pa.array([[1.0, 2.0]] * 150, pa.list_(pa.float32(), 2)),
            "w": pa.array([[1], [], None] * 50, pa.list_(pa.float32())),
        }
    )
    path = files.join(place, "t.parquet")
    parquet.write(path, table, {"labeler": "lam", "n": 3})
    found = parquet.read(path)
    assert found.equals(table)
    assert found.schema.equals(table.schema)
    assert parquet.read(path, ["x"]).column_names == ["x"]
    assert parquet.metadata(path) == {"labeler": "lam", "n": 3}
    with pytest.raises(DataError, match="no column y"):
        parquet.read(path, ["x", "y"])


def test_parquet_bytes_are_a_function_of_the_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        parquet.write(tmp_path / name, pa.table({"x": [1, 2, 3]}), {"b": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_metadata(tmp_path / "a").row_group(0).column(0).compression == "ZSTD"


def test_a_strangers_parquet_has_no_metadata(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    assert parquet.metadata(tmp_path / "t.parquet") == {}


def test_walking_stays_inside_and_in_order(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (
        root / "b" / "2",
        root / "a",
        root / "b" / "1",
        root / ".hidden" / "x",
        root / ".y",
        outside / "secret",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(outside)
    assert list(files.walk_files(root)) == [str(root / name) for name in ("a", "b/1", "b/2")]


def test_joining() -> None:
    assert files.join("a/b/", "c", "d") == "a/b/c/d"
    assert files.join("s3://bucket/a/", "b") == "s3://bucket/a/b"
    assert files.join(Path("/a"), "b") == "/a/b"


def test_a_failed_upload_leaves_nothing_in_the_bucket(s3: str) -> None:
    def fail() -> None:
        with files.atomic_write(f"{s3}/gone/a.bin") as out:
            out.write(bytes(10))
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    gc.collect()  # What the stream does when it is thrown away counts, too.
    fs = remote.filesystem()
    assert fs.call_s3("list_multipart_uploads", Bucket=s3.removeprefix("s3://")).get("Uploads", []) == []
    assert files.listdir(f"{s3}/gone") == []


def test_what_another_process_wrote_is_seen(s3: str) -> None:
    folder = f"{s3}/shared"
    files.write_bytes(f"{folder}/a", b"1")
    assert files.listdir(folder) == ["a"]
    script = f"from pyramid import files; files.write_bytes('{folder}/b', b'22'); files.remove('{folder}/a')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert files.listdir(folder) == ["b"]
    assert files.size_bytes(f"{folder}/b") == 2
    assert not files.exists(f"{folder}/a")


def test_an_os_error_while_reading_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        files.read_bytes(tmp_path)
