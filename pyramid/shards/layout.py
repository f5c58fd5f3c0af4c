"""How a shard folder is laid out: file names, sample members, the index's columns, safe arrays.

Writing is left to `pyramid.shards.writer`, reading to `pyramid.shards.reader`.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import DataError, UnsafeInputError
from pyramid.types import KEY_PATTERN, Clip

INDEX_FILE = "shards.parquet"
SHARD_PATTERN = re.compile(r"[a-z0-9_]+-[0-9]{6}\.tar")
MAX_MEMBER_BYTES = 2**30
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
# Read by a pattern: numpy's own reader evaluates the header as a Python literal.
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][iuf][1248])', 'fortran_order': False, 'shape': \(((?:\d{1,18}, ?)*\d{0,18})\),? ?\}\s*"
)
_MAX_SIDE = 2**31

META, VIDEO, TIMES, STATE, ACTION = "json", "mp4", "t_s.npy", "state.npy", "action.npy"
JPEGS, JPEGS_AT = "mjpeg", "mjpeg_at.npy"
MEMBERS = (META, VIDEO, JPEGS, JPEGS_AT, TIMES, STATE, ACTION)
"""What a sample may hold; the part after the key and a dot."""

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("frames", pa.int32()),
        ("sha256", pa.string()),
        ("clip_id", pa.string()),
        ("corpus", pa.string()),
        ("tier", pa.string()),
        ("embodiment", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("text_origin", pa.string()),
        ("person", pa.string()),
        ("verb", pa.string()),
        ("noun", pa.string()),
        ("rate_hz", pa.float64()),
        ("duration_s", pa.float64()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("state_dim", pa.int32()),
        ("action_dim", pa.int32()),
        ("static_share", pa.float64()),
        ("camera_px", pa.float64()),
        ("cuts", pa.list_(pa.int32())),
        ("notes", pa.list_(pa.string())),
        ("shard_sha256", pa.string()),
        ("shard_bytes", pa.int64()),
    ]
)


INDEX_OPTIONAL = ("text_origin", "person", "verb", "noun")
"""Columns that an index of a former version lacks; they are read as null."""


def shard_name(prefix: str, number: int) -> str:
    """Returns the file name of a shard, such as ``clips-000017.tar``."""
    return f"{prefix}-{number:06d}.tar"


def table_name(shard: str) -> str:
    """Returns the file name of a shard's label table: the same number."""
    return shard.removesuffix(".tar") + ".parquet"


def sample_key(clip: Clip, part: int = 0) -> str:
    """Returns the key of a clip's sample: corpus, digest of the clip id, part; a clip of several views has several."""
    key = f"{clip.corpus}-{files.sha256_bytes(clip.clip_id.encode())[:12]}-{part:04d}"
    if not KEY_PATTERN.fullmatch(key):
        raise DataError(f"clip '{clip.clip_id}': '{key}' is no sample key")
    return key


def dump_array(array: NDArray[Any]) -> bytes:
    """Writes an array in numpy's own format, version 1.0, without pickle."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def load_array(data: bytes, name: str) -> NDArray[Any]:
    """Reads a numpy array, trusting its header only as far as the bytes behind it go.

    Raises:
        UnsafeInputError: a header that claims more or less data than there is, or anything but plain numbers.
    """
    if not data.startswith(_NPY_MAGIC):
        raise DataError(f"{name} is not a numpy array of format version 1.0")
    start = len(_NPY_MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    header = _NPY_HEADER.fullmatch(data[start:end])
    if header is None:
        raise UnsafeInputError(
            f"{name}: arrays with the header {data[start:end][:80]!r} are not read; only plain numbers in C order"
        )
    dtype, shape = np.dtype(header[1].decode()), [int(n) for n in header[2].split(b",") if n.strip()]
    if math.prod(shape) * dtype.itemsize != len(data) - end or max(shape, default=0) > _MAX_SIDE:
        raise UnsafeInputError(f"{name}: the header claims {shape} of {dtype}, but {len(data) - end} bytes follow")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)
