"""Reads shard folders through their index: any sample by number, checked against its sha256, nothing extracted.

Joining labels and mixing sources is left to `pyramid.mixture`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import files, parquet, remote
from pyramid.errors import DataError, UnsafeInputError
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.layout import (
    ACTION,
    INDEX_FILE,
    INDEX_OPTIONAL,
    INDEX_SCHEMA,
    JPEGS,
    JPEGS_AT,
    MAX_MEMBER_BYTES,
    MEMBERS,
    META,
    SHARD_PATTERN,
    STATE,
    TIMES,
    VIDEO,
    load_array,
)
from pyramid.types import KEY_PATTERN
from pyramid.video.jpeg import check_jpegs, decode_jpegs
from pyramid.video.packed import decode_mp4

_NEEDED = (
    "shard",
    "key",
    "offset",
    "size",
    "frames",
    "sha256",
    "embodiment",
    "split",
    "rate_hz",
    "shard_sha256",
    "shard_bytes",
)
Fetch = Callable[[str, str, int, int, int], bytes]
_LEAST = {"offset": 0, "size": 1, "frames": 1, "rate_hz": 1e-6}


@dataclass(frozen=True)
class Sample:
    """One clip as it stands in a shard."""

    key: str
    """Unique key."""
    meta: dict[str, Any]
    """The sample's JSON: clip_id, text, tier, embodiment, rate_hz, split, scores, ..."""
    times_s: NDArray[np.float64]
    """float64 [T], seconds from the clip's start."""
    video: bytes = field(repr=False)
    """MP4 (H.264, short GOP) of the T frames; empty if they are kept as JPEGs alone."""
    state: NDArray[np.float32] | None = field(default=None, repr=False)
    """float32 [T, S], physical units; None without proprioception."""
    action: NDArray[np.float32] | None = field(default=None, repr=False)
    """float32 [T, D], physical units, row t applied at frame t; None for videos without actions."""
    jpegs: bytes = field(default=b"", repr=False)
    """The T frames as JPEGs, one after the other; empty if they are kept as a video alone."""
    jpegs_at: NDArray[np.int64] | None = field(default=None, repr=False)
    """int64 [T + 1]: frame t is ``jpegs[jpegs_at[t] : jpegs_at[t + 1]]``; None without them."""

    def frames(self, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Decodes frames by index; uint8 [n, H, W, 3], RGB; all of them if ``indices`` is None.

        Of a sample that has both, always the JPEGs: what comes out does not depend on how many are asked for.
        """
        return (
            decode_mp4(self.video, indices)
            if self.jpegs_at is None
            else decode_jpegs(self.jpegs, self.jpegs_at, indices)
        )

    def __len__(self) -> int:
        return len(self.times_s)

    def __repr__(self) -> str:
        numbers = "".join(
            f", {n} {a.shape[1]}-D" for n, a in (("state", self.state), ("action", self.action)) if a is not None
        )
        return f"Sample({self.key}: {len(self)} frames, {self.times_s[-1]:.2f} s{numbers})"


class ShardSet:
    """A shard folder, opened through its index."""

    def __init__(self, folder: str, index: pa.Table, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.index = index
        """One row per sample, in the order of the shards; columns as in `INDEX_SCHEMA`."""
        self.metadata = metadata
        """Provenance of the index."""

    @classmethod
    def open(cls, folder: str) -> ShardSet:
        """Opens a folder that `pyramid pack` wrote.

        Raises:
            DataError: no index there, other columns, or names that are no shard names.
        """
        return cls(str(folder), read_index(folder), parquet.metadata(files.join(folder, INDEX_FILE)))

    def __len__(self) -> int:
        return int(self.index.num_rows)

    @cached_property
    def digest(self) -> str:
        """Digest of every sample's key and content, in order; what mixtures refer to."""
        return files.digest([self.index["key"].to_pylist(), self.index["sha256"].to_pylist()])

    def shard_digest(self, shard: str) -> str:
        """Digest of the keys and contents of one shard; what its label tables refer to."""
        rows = [self.rows[i] for i in self.of_shard(shard)]
        return files.digest([[row["key"], row["sha256"]] for row in rows])

    @cached_property
    def shards(self) -> list[str]:
        """Shard file names in order."""
        return list(dict.fromkeys(self.index["shard"].to_pylist()))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The index as a list of mappings."""
        return list(self.index.to_pylist())

    @cached_property
    def number(self) -> dict[str, int]:
        """Row number of each key."""
        return {row["key"]: i for i, row in enumerate(self.rows)}

    def of_shard(self, shard: str) -> list[int]:
        """Returns the row numbers of a shard's samples, in order."""
        return self._numbers[shard]

    @cached_property
    def _numbers(self) -> dict[str, list[int]]:
        numbers: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            numbers.setdefault(row["shard"], []).append(i)
        return numbers

    def read(self, i: int, ahead: ReadAhead | None = None, *, fetch: Fetch | None = None) -> Sample:
        """Reads and checks sample ``i``.

        Args:
            i: its row number.
            ahead: for samples of one shard in their order; spares requests to a remote store.
            fetch: reads a range of a shard, given its path, sha256, size, offset and length.

        Raises:
            DataError: the shard is gone, was cut or changed since the index was written; it is named.
        """
        row = self._row(i)
        path = files.join(self.folder, row["shard"])
        if fetch is not None:
            data = fetch(path, row["shard_sha256"], row["shard_bytes"], row["offset"], row["size"])
        elif ahead is None:
            data = files.read_range(path, row["offset"], row["size"])
        else:
            last = self.rows[self.of_shard(row["shard"])[-1]]
            data = ahead.read(path, row["offset"], row["size"], last["offset"] + last["size"])
        return checked_sample(data, row["key"], row["sha256"], path)

    def _row(self, i: int) -> dict[str, Any]:
        """Returns one row of the index without making mappings of all, unless they are there already."""
        return self.rows[i] if "rows" in vars(self) else dict(self.index.slice(i, 1).to_pylist()[0])

    def as_webdataset(self) -> Any:
        """Returns a plain ``webdataset.WebDataset`` over the shards, for pipelines that know nothing of the index.

        Its samples are undecoded members by name. Nothing checks them against the index: see `read` for that.
        """
        import webdataset

        urls = [files.join(self.folder, shard) for shard in self.shards]
        if files.is_remote(self.folder):
            webdataset.gopen_schemes["s3"] = lambda url, *_, **__: remote.open_read(url)
        return webdataset.WebDataset(urls, shardshuffle=False)

    def iter_shard(self, shard: str) -> Iterator[Sample]:
        """Yields the samples of one shard in order."""
        ahead = ReadAhead()
        for i in self.of_shard(shard):
            yield self.read(i, ahead)


def read_index(folder: str, schema: pa.Schema = INDEX_SCHEMA) -> pa.Table:
    """Reads columns of a shard folder's index, ``shard`` and ``key`` among them; in pieces, whatever its length.

    Raises:
        DataError: no index there, other columns, or names that are no shard names.
    """
    path = files.join(folder, INDEX_FILE)
    if not files.exists(path):
        raise DataError(
            f"no shards in '{folder}' ({INDEX_FILE} is missing); make them: pyramid pack clips.parquet --out ..."
        )
    if schema is INDEX_SCHEMA:
        return _checked(parquet.read(path, schema.names, optional=INDEX_OPTIONAL), path, schema)
    pieces = list(parquet.iter_batches(path, schema, max_total_bytes=files.MAX_READ_BYTES))
    return _checked(pa.Table.from_batches(pieces, schema), path, schema)


def checked_sample(data: bytes, key: str, sha256: str, path: str) -> Sample:
    """Reads a sample from its bytes in the shard ``path``.

    Raises:
        DataError: they are not what the index says.
    """
    if files.sha256_bytes(data) != sha256:
        folder = path.rpartition("/")[0]
        raise DataError(f"{path}: sample {key} is not what the index says; run 'pyramid verify {folder} --quarantine'")
    return parse_sample(data, key, path)


def _checked(index: pa.Table, path: str, schema: pa.Schema) -> pa.Table:
    """Returns an index with the columns' own types; refuses one that cannot be what it says it is."""
    columns = []
    for kind in schema:
        if kind.name not in index.column_names:  # `INDEX_OPTIONAL`: the reader refused any other.
            columns.append(pa.nulls(len(index), kind.type))
            continue
        try:
            columns.append(index[kind.name].cast(kind.type))
        except pa.ArrowException as error:
            raise DataError(f"'{path}': column '{kind.name}' of type {index[kind.name].type}: {error}") from error
        if kind.name in _NEEDED and columns[-1].null_count:
            raise DataError(f"'{path}': column '{kind.name}' lacks values")
    index = pa.Table.from_arrays(columns, schema=schema)
    bad = [name for name in index["shard"].unique().to_pylist() if not SHARD_PATTERN.fullmatch(name)]
    if bad:
        raise UnsafeInputError(f"'{path}' names the shard {bad[0]!r}, which is no shard name")
    for name, least in _LEAST.items():
        if name in schema.names and len(index) and not pc.min(index[name]).as_py() >= least:
            raise DataError(f"'{path}': {pc.min(index[name]).as_py()} in column '{name}', at least {least} is needed")
    if pc.count_distinct(index["key"]).as_py() != len(index):
        raise DataError(f"'{path}' names a key twice; keys are unique in a shard folder")
    return index


def parse_sample(data: bytes, key: str, where: str) -> Sample:
    """Reads the tar members of one sample; everything unexpected is refused by name."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for entry in tar:
                name = entry.name.removeprefix(key + ".")
                if (
                    entry.type != tarfile.REGTYPE
                    or entry.issparse()
                    or not KEY_PATTERN.fullmatch(key)
                    or name not in MEMBERS
                    or name in members
                ):
                    raise UnsafeInputError(f"{where}: unexpected member {entry.name!r} in sample {key}")
                stream = tar.extractfile(entry)
                if stream is None or entry.size > min(MAX_MEMBER_BYTES, len(data)):
                    raise UnsafeInputError(f"{where}: member {entry.name!r} of {entry.size} bytes is not read")
                members[name] = stream.read()
    except (tarfile.TarError, ValueError, RecursionError) as error:
        # Numbers in extended headers that are none; headers that announce headers without end.
        raise DataError(f"{where}: sample {key} is not a tar: {error}") from error
    pictures = [VIDEO] if JPEGS not in members and JPEGS_AT not in members else [JPEGS, JPEGS_AT]
    missing = [name for name in (META, *pictures, TIMES) if name not in members]
    if missing:
        raise DataError(f"{where}: sample {key} lacks {', '.join(missing)}")
    return _build(members, key, where)


def _build(members: dict[str, bytes], key: str, where: str) -> Sample:
    try:
        meta = json.loads(members[META])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: sample {key} has broken JSON: {error}") from error
    if not isinstance(meta, dict):
        raise DataError(f"{where}: sample {key}: its JSON is no object")
    arrays = {
        name: load_array(members[name], f"{where}: {key}.{name}")
        for name in (TIMES, STATE, ACTION, JPEGS_AT)
        if name in members
    }
    times = arrays[TIMES]
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise DataError(f"{where}: {key}.{TIMES} is no list of ascending times")
    for name in (STATE, ACTION):
        if name in arrays and (arrays[name].ndim != 2 or len(arrays[name]) != len(times)):
            raise DataError(f"{where}: {key}.{name} is {arrays[name].shape}, but there are {len(times)} frames")
    places, jpegs = arrays.get(JPEGS_AT), members.get(JPEGS, b"")
    if places is not None:
        fault = check_jpegs(jpegs, places)
        if not fault and len(places) != len(times) + 1:
            fault = f"{len(places) - 1} frames, but there are {len(times)} times"
        if fault:
            raise DataError(f"{where}: {key}.{JPEGS}: {fault}")
    return Sample(key, meta, times, members.get(VIDEO, b""), arrays.get(STATE), arrays.get(ACTION), jpegs, places)
