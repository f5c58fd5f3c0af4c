"""The clip manifest: one Parquet file, a row per clip, written and read without ever holding all of it.

Where clips come from is left to the corpora beside this file.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from pyramid import files, parquet
from pyramid.corpora.columns import Row, rows_of, suspects
from pyramid.errors import DataError
from pyramid.types import Clip

_FLOATS = {"start_s", "end_s", "source_hz"}
_COUNTS = {"first_row", "n_rows"}
_TYPES = dict.fromkeys(_FLOATS, pa.float64()) | dict.fromkeys(_COUNTS, pa.int64())
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Clip.columns()])
OPTIONAL = ("person", "verb", "noun", "extra", "first_row", "n_rows")
"""Columns that a manifest may lack."""
_NULLABLE = ("source_hz", *_COUNTS)
_ABSENT = {field.name: field.default for field in fields(Clip) if field.name in OPTIONAL}
GROUP_ROWS = 16_384
"""Clips in a row group, and in memory at a time."""
_IDS = pa.schema([("clip_id", pa.string())])


class ContentDigest:
    """What `files.digest` gives for the list of the contents of clips, of which none is kept."""

    def __init__(self) -> None:
        self._hash, self._separator = hashlib.sha256(b"["), b""

    def add(self, *contents: str) -> None:
        """Takes the contents of the next clips in."""
        if contents:
            self._hash.update(self._separator + files.canonical_json(contents).encode()[1:-1])
            self._separator = b","

    def hexdigest(self) -> str:
        """Returns the digest of the clips so far."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def write_manifest(
    path: str, clips: Iterable[Clip], metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
) -> None:
    """Writes clips in the order given, as they come, with provenance as the file's metadata.

    A function for ``metadata`` is called when the last clip is written.
    """
    told = metadata if callable(metadata) else lambda: metadata
    parquet.write_groups(path, SCHEMA, _tables(iter(clips)), told)


def _tables(clips: Iterator[Clip]) -> Iterator[pa.Table]:
    while group := list(itertools.islice(clips, GROUP_ROWS)):
        yield pa.table({name: [getattr(clip, name) for clip in group] for name in SCHEMA.names}, schema=SCHEMA)


def iter_manifest(path: str, batch: int = GROUP_ROWS) -> Iterator[Clip]:
    """Yields the clips of a manifest, whoever wrote it, with ``batch`` of them in memory at a time.

    That no id stands twice is made sure first, in 8 bytes a clip.

    Raises:
        DataError: a missing column, a value that is no clip, or one id twice; the row is named.
    """
    return _iter(path, batch, None)


def iter_rows(path: str, batch: int = GROUP_ROWS, *, again: bool = False) -> Iterator[Row]:
    """Yields what `iter_manifest` does as plain data, ``vars`` of each clip, in a third of the time.

    That no id stands twice is not made sure ``again`` by who has read the file before.

    Raises:
        DataError: as `iter_manifest`.
    """
    number = 0
    for piece in _pieces(path, batch, None, again=again):
        rows = rows_of(piece, _ABSENT)
        for place in suspects(piece, rows, _NULLABLE):
            to_clip(rows[place], f"'{path}', row {number + place}")
        yield from rows
        number += len(rows)


def read_manifest(path: str) -> list[Clip]:
    """Reads a whole clip manifest, whoever wrote it; `iter_manifest` reads one that is larger than the memory.

    Raises:
        DataError: a missing column, a value that is no clip, or one id twice; the row is named.
    """
    return list(_iter(path, GROUP_ROWS, files.MAX_READ_BYTES))


def _iter(path: str, batch: int, max_total_bytes: int | None) -> Iterator[Clip]:
    number = 0
    for piece in _pieces(path, batch, max_total_bytes):
        for row in rows_of(piece, _ABSENT):
            yield to_clip(row, f"'{path}', row {number}")
            number += 1


def _pieces(path: str, batch: int, max_total_bytes: int | None, *, again: bool = False) -> Iterator[pa.RecordBatch]:
    if not files.exists(path):
        raise DataError(f"no clip manifest '{path}'; make one: pyramid scan folder VIDEOS --out {path}")
    if not again:
        refuse_repeated_ids(path)
    yield from parquet.iter_batches(path, SCHEMA, optional=OPTIONAL, rows=batch, max_total_bytes=max_total_bytes)


def to_clip(row: Mapping[str, Any], where: str) -> Clip:
    """Returns the clip of a manifest's row; refuses what is none, naming ``where``."""
    empty = [name for name, value in row.items() if value is None and name not in _NULLABLE]
    if empty:
        raise DataError(f"{where}: {', '.join(empty)} is null")
    try:
        return Clip(**row)
    except (DataError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error


def _ids(path: str) -> Iterator[list[str]]:
    for piece in parquet.iter_batches(path, _IDS):
        yield piece.column(0).to_numpy(zero_copy_only=False).tolist()


def refuse_repeated_ids(path: str) -> None:
    """Refuses a manifest in which one id stands twice.

    It compares 64-bit hashes, and the ids themselves only where two hashes are equal.
    """
    hashes, next_check = array("q"), 4 * GROUP_ROWS
    for ids in _ids(path):
        hashes.extend(map(hash, ids))
        # A file of few bytes can repeat itself for ever; it is found out before the list is twice as long.
        if len(hashes) >= next_check:
            _compare(path, hashes)
            next_check *= 2
    _compare(path, hashes)


def _compare(path: str, hashes: array[int]) -> None:
    # The same memory, sorted in place: their order means nothing.
    ordered = np.asarray(hashes)
    ordered.sort()
    twins = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    for number, clip_id in enumerate(itertools.chain.from_iterable(_ids(path)) if twins else ()):
        if hash(clip_id) in twins:
            if clip_id in seen:
                raise DataError(f"'{path}', row {number}: the clip id '{clip_id}' stands twice")
            seen.add(clip_id)
