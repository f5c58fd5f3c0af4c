"""YAML and Parquet made to harm: refused by name, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid import parquet
from pyramid.config import load_config_file, load_yaml, resolve
from pyramid.corpora.manifest import SCHEMA, read_manifest
from pyramid.corpora.source import ScanConfig
from pyramid.errors import ConfigError, DataError, PyramidError, UnsafeInputError
from pyramid.mixture.spec import read_mixture
from pyramid.shards.layout import INDEX_SCHEMA
from pyramid.shards.reader import ShardSet

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
YAML = {
    "billion laughs": LAUGHS,
    "alias": "a: &x 1\nb: *x",
    "itself": "a: &x [*x]",
    "merge": "a: &x {b: 1}\nc: {<<: *x}",
    "python object": "!!python/object/apply:os.system ['touch {sentinel}']",
    "python name": "a: !!python/name:os.system",
    "python module": "a: !!python/module:os",
    "python tuple": "a: !!python/tuple [1, 2]",
    "own tag": "a: !mine 3",
    "binary": "a: !!binary aGVsbG8=",
    "set": "a: !!set {x, y}",
    "date": "a: !!timestamp 2026-01-01",
    "ordered map": "a: !!omap [x: 1]",
    "twice": "a: 1\na: 2",
    "twice inside": "a: {b: 1, b: 2}",
    "list as key": "? [1, 2]\n: 3",
    "map as key": "? {a: 1}\n: 3",
    "null as key": "~: 3",
    "deep": "[" * 20_000,
    "deep map": "{a: " * 20_000,
    "deep and closed": "[" * 3_000 + "]" * 3_000,
    "two documents": "a: 1\n---\nb: 2",
    "tab": "a:\t- b\n\t- c",
    "nul": "a: \0",
    "unclosed": "a: 'b",
    "a colon too many": "a: b: c",
    "no anchor": "a: *nothing",
    "directive": "%YAML 9.9\n---\na: 1",
    "jinja": "a: {{ x }}",
    "a long number": "a: " + "9" * 10_000,
}
HARMLESS = {"set", "date", "binary", "ordered map"}
"""Tags of YAML's own: plain data, though no config field takes them."""


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_not_plain_is_refused(tmp_path: Path, kind: str) -> None:
    text = YAML[kind].replace("{sentinel}", str(tmp_path / "sentinel"))
    path = tmp_path / "c.yaml"
    path.write_text(text)
    start = time.monotonic()
    if kind not in HARMLESS:
        with pytest.raises(PyramidError, match=r"c\.yaml") as caught:
            load_yaml(text, str(path))
        assert isinstance(caught.value, ConfigError | UnsafeInputError)
        assert "\n" not in str(caught.value)
    for read in (lambda: resolve(ScanConfig, str(path)), lambda: read_mixture(str(path))):
        with pytest.raises(PyramidError):
            read()
    assert time.monotonic() - start < 20
    assert not (tmp_path / "sentinel").exists()


def test_yaml_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(UnsafeInputError, match="larger than"):
        load_config_file(tmp_path / "c.yaml")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        load_config_file(tmp_path / "b.yaml")
    with pytest.raises(PyramidError):
        load_config_file("/dev/zero.yaml")


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "lam/../../../etc/passwd", "/etc/passwd", "http://host/c.yaml"]
)
def test_preset_names_are_no_paths(name: str) -> None:
    with pytest.raises(PyramidError):
        load_config_file(name)


def bomb(path: Path, table: pa.Table, **options: object) -> Path:
    pq.write_table(table, path, compression="zstd", **options)
    return path


def test_parquet_that_says_it_is_large_is_refused(tmp_path: Path) -> None:
    path = bomb(tmp_path / "t.parquet", pa.table({"x": pa.array([0.0] * 2_000_000)}), use_dictionary=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnsafeInputError, match="unpacks to"):
        parquet.read(path, max_bytes=10**7)
    assert parquet.read(path).num_rows == 2_000_000


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0] * 4_000_000, pa.int64()),
        pa.array(["x" * 100_000] * 3_000),
        pa.array([[7] * 1000] * 4_000, pa.list_(pa.int64())),
        pa.array([b"x" * 100_000] * 3_000, pa.binary()),
        pa.array([None] * 30_000_000, pa.int32()),
    ],
    ids=["equal numbers", "equal texts", "equal lists", "equal bytes", "nothing"],
)
def test_parquet_that_is_small_until_it_is_read_is_refused(tmp_path: Path, column: pa.Array) -> None:
    """A dictionary or run-length code makes gigabytes of a few bytes, and the footer's sizes do not tell."""
    path = bomb(tmp_path / "t.parquet", pa.table({"x": column}))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UnsafeInputError, match="unpacks to"):
        parquet.read(path, max_bytes=10**7)


READ_BOMB = """
import resource, sys
from pyramid import parquet
from pyramid.errors import UnsafeInputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: parquet.read(sys.argv[1])
except UnsafeInputError: print("refused", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_parquet_bomb_takes_no_memory(tmp_path: Path) -> None:
    """Ten gigabytes of equal texts in a file of some hundred kilobytes."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * 1_000_000]))
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"clip_id": text}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1_000_000
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMB, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    answer, grown_mb = done.stdout.split()
    assert answer == "refused"
    assert int(grown_mb) < 300


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1" * 3, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", b"text" * 100, bytes(1000)]
)
def test_what_is_no_parquet_is_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("clips.parquet", "shards.parquet"):
        (tmp_path / name).write_bytes(data)
    for read in (
        lambda: parquet.read(tmp_path / "clips.parquet"),
        lambda: parquet.metadata(tmp_path / "clips.parquet"),
        lambda: read_manifest(str(tmp_path / "clips.parquet")),
        lambda: ShardSet.open(str(tmp_path)),
    ):
        with pytest.raises(DataError, match=r"\.parquet"):
            read()


@pytest.mark.parametrize("value", [b"{", b"\xff", b"[" * 100_000, b"3"])
def test_metadata_that_is_no_json_is_refused_or_nothing(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({b"latent_pyramid": value}), path)
    if value == b"3":
        assert parquet.metadata(path) == {}
    else:
        with pytest.raises(DataError, match=r"t\.parquet"):
            parquet.metadata(path)


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.list_(pa.string()), pa.binary(), pa.struct([("a", pa.int8())]), pa.bool_()]
)
def test_columns_of_other_types_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    for name in ("start_s", "clip_id", "tier", "video"):
        columns = {f.name: pa.array([None], f.type) for f in SCHEMA} | {name: pa.array([None], kind)}
        pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
        with pytest.raises(DataError, match=r"clips\.parquet"):
            read_manifest(str(tmp_path / "clips.parquet"))
    for name in ("shard", "offset", "sha256"):
        columns = {f.name: pa.array([None], f.type) for f in INDEX_SCHEMA} | {name: pa.array([None], kind)}
        pq.write_table(pa.table(columns), tmp_path / "shards.parquet")
        with pytest.raises(DataError, match=r"shards\.parquet"):
            ShardSet.open(str(tmp_path))


def test_a_damaged_parquet_never_escapes_our_errors(tmp_path: Path) -> None:
    from pyramid.corpora.manifest import write_manifest
    from pyramid.rng import rng
    from pyramid.types import Clip

    path = tmp_path / "clips.parquet"
    clips = [Clip(clip_id=f"f/{i}", corpus="f", video="v", start_s=i, end_s=i + 1) for i in range(50)]
    write_manifest(str(path), clips, {})
    data = path.read_bytes()
    draw, refused = rng(0, "damage"), 0
    for _ in range(300):
        broken = bytearray(data)
        for at in draw.integers(0, len(data), int(draw.integers(1, 6))):
            broken[at] = draw.integers(256)
        path.write_bytes(broken)
        try:
            read_manifest(str(path))
        except PyramidError:
            refused += 1
    assert 100 < refused <= 300
    path.write_bytes(data)
    assert read_manifest(str(path)) == clips
