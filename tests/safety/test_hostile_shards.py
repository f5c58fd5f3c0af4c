"""Shards made to harm: nothing runs, nothing is written outside, everything is refused by name."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
import pytest

from pyramid import files, parquet
from pyramid.errors import DataError, PyramidError, UnsafeInputError
from pyramid.shards.layout import ACTION, INDEX_FILE, INDEX_SCHEMA, META, load_array
from pyramid.shards.reader import Sample, ShardSet, parse_sample

KEY = drawing.key_of(0)


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return (os.system, (f"touch {self.sentinel}",))


@pytest.fixture
def sentinel(tmp_path: Path):
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists(), "data became code, or left its folder"


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry, data


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{KEY}.{name}", data) for name, data in drawing.sample_members(0, 4).items()]


def folder_of(path: Path, data: bytes, key: str = KEY) -> str:
    """A shard folder whose index vouches for ``data`` as one sample."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "clips-000000.tar").write_bytes(data)
    sha = files.sha256_bytes(data)
    row = {name: None for name in INDEX_SCHEMA.names}
    row |= {"shard": "clips-000000.tar", "key": key, "offset": 0, "size": len(data), "sha256": sha, "frames": 4}
    row |= {"rate_hz": 10.0, "split": "train", "embodiment": "arm", "duration_s": 0.4, "action_dim": 2, "state_dim": 1}
    row |= {"shard_sha256": sha, "shard_bytes": len(data), "clip_id": "x", "corpus": "drawn", "tier": "top", "text": ""}
    parquet.write(path / INDEX_FILE, pa.Table.from_pylist([row], schema=INDEX_SCHEMA), {})
    return str(path)


def test_the_harmless_one_is_read(tmp_path: Path) -> None:
    assert len(ShardSet.open(folder_of(tmp_path, tar_of(*good_members()))).read(0)) == 4


ENTRIES: dict[str, Callable[[Path], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "pickle": lambda s: [member(f"{KEY}.pkl", pickle.dumps(Payload(s)))],
    "pyd": lambda s: [member(f"{KEY}.pyd", pickle.dumps(Payload(s)))],
    "pth": lambda s: [member(f"{KEY}.pth", pickle.dumps(Payload(s)))],
    "upwards": lambda s: [member(f"../{s.name}", b"x")],
    "absolute": lambda s: [member(str(s), b"x")],
    "upwards under the key": lambda s: [member(f"{KEY}./../../{s.name}", b"x")],
    "another key": lambda s: [member(f"{drawing.key_of(1)}.json", b"{}")],
    "no key": lambda s: [member("json", b"{}")],
    "symlink": lambda s: [member(f"{KEY}.state.npy", type=tarfile.SYMTYPE, linkname=str(s))],
    "hard link": lambda s: [member(f"{KEY}.state.npy", type=tarfile.LNKTYPE, linkname=f"{KEY}.json")],
    "device": lambda s: [member(f"{KEY}.state.npy", type=tarfile.CHRTYPE)],
    "pipe": lambda s: [member(f"{KEY}.state.npy", type=tarfile.FIFOTYPE)],
    "folder": lambda s: [member(f"{KEY}.state.npy", type=tarfile.DIRTYPE)],
    "gzip": lambda s: [member(f"{KEY}.json.gz", b"\x1f\x8b")],
    "twice": lambda s: [member(f"{KEY}.{META}", b"{}")],
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_unexpected_members_are_refused(tmp_path: Path, sentinel: Path, kind: str) -> None:
    whole = {entry.name for entry, _ in ENTRIES[kind](sentinel)}
    others = [pair for pair in good_members() if kind == "twice" or pair[0].name not in whole]
    data = tar_of(*others, *ENTRIES[kind](sentinel))
    before = drawing.tree(tmp_path)
    shards = ShardSet.open(folder_of(tmp_path / "shards", data))
    with pytest.raises(UnsafeInputError, match="unexpected member"):
        shards.read(0)
    after = {name: sha for name, sha in drawing.tree(tmp_path).items() if not name.startswith("shards/")}
    assert after == before


@pytest.mark.parametrize("key", ["../../etc/x", "/abs/y", "a.b-0123456789ab-0000", ""])
def test_keys_are_never_paths(tmp_path: Path, key: str) -> None:
    members = [(tarfile.TarInfo(f"{key}.{e.name.removeprefix(KEY + '.')}"), d) for e, d in good_members()]
    for entry, data in members:
        entry.size = len(data)
    with pytest.raises(UnsafeInputError):
        ShardSet.open(folder_of(tmp_path, tar_of(*members), key)).read(0)


@pytest.mark.parametrize(
    "data", [b"", bytes(1024), b"not a tar" * 100, b"\x1f\x8b" + bytes(2000)], ids=["0 bytes", "zeros", "text", "gzip"]
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"clips-000000\.tar|shards\.parquet"):
        ShardSet.open(folder_of(tmp_path, data)).read(0)


def test_a_sample_cut_anywhere_is_refused_even_if_the_index_vouches_for_it() -> None:
    data = tar_of(*good_members(), form=tarfile.USTAR_FORMAT)
    end = data.index(f"{KEY}.state.npy".encode())  # From here on only the numbers are missing, which may be missing.
    for length in range(0, end, 97):
        with pytest.raises(PyramidError):
            parse_sample(data[:length], KEY, "here")
    whole = parse_sample(data, KEY, "here")
    for length in range(end, len(data), 97):
        try:
            found = parse_sample(data[:length], KEY, "here")
        except PyramidError:
            continue
        for part, all_of_it in ((found.state, whole.state), (found.action, whole.action)):
            assert part is None or (part == all_of_it).all()


def npy(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000, 2)}", bytes(8)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2)}", bytes(33)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2)}", bytes(31)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -8)}", bytes(32)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10000000000000000000000)}", b""),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        npy("{'descr': '|V8', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        npy("{'descr': '<U2', 'fortran_order': False, 'shape': (1,)}", bytes(8)),
        npy("{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,)}", bytes(12)),
        npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", bytes(16)),
        npy("{'descr': '<f4', 'shape': (2, 2)}", bytes(16)),
        npy("__import__('os').system('touch sentinel')", bytes(16)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': 4}", bytes(16)),
        npy("{'descr': 7, 'fortran_order': False, 'shape': (4,)}", bytes(16)),
        npy("(" * 60, bytes(16)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", bytes(8), b"\x03\x00"),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\x03\x04" + bytes(30),
        b"",
    ],
)
def test_array_headers_are_not_believed(data: bytes, sentinel: Path) -> None:
    with pytest.raises(DataError, match="here"):
        load_array(data, "here")


def test_an_object_array_is_never_unpickled(sentinel: Path) -> None:
    out = io.BytesIO()
    np.save(out, np.array([Payload(sentinel)], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeInputError, match="plain numbers"):
        load_array(out.getvalue(), "here")


def test_a_sparse_member_cannot_blow_up(tmp_path: Path) -> None:
    """A member of a few bytes that claims to be a gigabyte of zeros."""
    pax = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,8", "GNU.sparse.size": str(2**30)}
    entry, data = member(f"{KEY}.{ACTION}", bytes(8))
    entry.pax_headers = pax
    with pytest.raises(PyramidError):
        parse_sample(tar_of(*[m for m in good_members() if not m[0].name.endswith(ACTION)], (entry, data)), KEY, "here")


def test_damage_of_any_kind_is_an_error_with_a_name_or_a_sample() -> None:
    """Thousands of random changes to headers and members; anything but our own errors would escape here."""
    data = tar_of(*good_members(), form=tarfile.USTAR_FORMAT)
    pax = tar_of(*[(e, d) for e, d in good_members()])
    heads = [at for at in range(0, len(data), 512) if data[at : at + len(KEY)] == KEY.encode()]
    draw = random.Random(0)
    refused = 0
    for turn in range(3000):
        changed = bytearray(data if turn % 2 else pax)
        for _ in range(draw.randint(1, 4)):
            at = (draw.choice(heads) + draw.randint(0, 700)) if draw.random() < 0.9 else draw.randrange(len(changed))
            changed[min(at, len(changed) - 1)] = draw.choice([0, 255, 45, 48, 55, 57, draw.randrange(256)])
        try:
            assert isinstance(parse_sample(bytes(changed), KEY, "here"), Sample)
        except PyramidError:
            refused += 1
    assert refused > 500


def test_ten_thousand_members_take_bounded_time() -> None:
    entries = [member(f"{KEY}.x{i}", b"") for i in range(10_000)]
    with pytest.raises(UnsafeInputError, match="unexpected member"):
        parse_sample(tar_of(*entries, form=tarfile.USTAR_FORMAT), KEY, "here")


PAX_BOMB = """
import io, sys, tarfile
from pyramid.errors import PyramidError
from pyramid.shards.reader import parse_sample
for size in ("-1024", "-1", "99999999999999999999", "1e5", ""):
    entry = tarfile.TarInfo("drawn-000000000000-0000.json"); entry.pax_headers = {"size": size, "comment": "x"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar: tar.addfile(entry)
    try: parse_sample(out.getvalue(), "drawn-000000000000-0000", "here")
    except PyramidError as error: print("refused")
"""


def test_sizes_in_extended_headers_cannot_loop() -> None:
    """CVE-2025-8194: a negative size sent tarfile round in circles."""
    done = subprocess.run([sys.executable, "-c", PAX_BOMB], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["refused"] * 5
