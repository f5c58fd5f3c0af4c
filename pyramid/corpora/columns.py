"""Rows of a clip manifest, made and checked by the column: ten million of them as objects would take minutes.

What makes a row wrong is left to `pyramid.types.Clip`; here only what is surely right is let through without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid.types import NAME_PATTERN, TIERS

Row = dict[str, Any]
"""One clip by column, as ``vars`` of a `Clip` would give it."""


def rows_of(piece: pa.RecordBatch, absent: Mapping[str, Any]) -> list[Row]:
    """Returns a batch's rows as plain data; ``absent`` gives the values of columns that the file lacks."""
    n, columns = piece.num_rows, {name: _values(piece.column(name)) for name in piece.schema.names}
    lacking = {name: [value] * n for name, value in absent.items() if name not in columns}
    every = {**columns, **lacking}
    return [dict(zip(every, cells, strict=True)) for cells in zip(*every.values(), strict=True)]


def _values(column: pa.Array) -> list[Any]:
    if column.null_count == len(column):
        return [None] * len(column)
    # Through numpy, since pyarrow makes an object of its own for each value first.
    return list(column.to_pylist() if column.null_count else column.to_numpy(zero_copy_only=False).tolist())


def suspects(piece: pa.RecordBatch, rows: list[Row], nullable: tuple[str, ...]) -> list[int]:
    """Returns the rows of a batch, by place, that `Clip` has to judge: those with extra data, and all if one is odd."""
    if not _sound(piece, nullable):
        return list(range(len(rows)))
    return [place for place, row in enumerate(rows) if row["extra"]]


def _sound(piece: pa.RecordBatch, nullable: tuple[str, ...]) -> bool:
    there = piece.schema.names
    if any(piece.column(name).null_count for name in there if name not in nullable):
        return False
    names = {name for which in ("corpus", "embodiment") for name in pc.unique(piece.column(which)).to_pylist()}
    if not all(map(NAME_PATTERN.fullmatch, names)) or not set(pc.unique(piece.column("tier")).to_pylist()) <= {*TIERS}:
        return False
    if any(piece.column(name).null_count < piece.num_rows for name in ("first_row", "n_rows") if name in there):
        return _rows_sound(piece, there)
    return _times_sound(piece)


def _rows_sound(piece: pa.RecordBatch, there: list[str]) -> bool:
    if not {"first_row", "n_rows"} <= set(there):
        return False
    first, count = piece.column("first_row"), piece.column("n_rows")
    if first.null_count or count.null_count or pc.any(pc.equal(piece.column("episode"), "")).as_py():
        return False
    return bool((_numbers(first) >= 0).all() and (_numbers(count) >= 1).all()) and _times_sound(piece)


def _times_sound(piece: pa.RecordBatch) -> bool:
    start, end = _numbers(piece.column("start_s")), _numbers(piece.column("end_s"))
    rates = _numbers(piece.column("source_hz").drop_null())
    times = np.isfinite(start).all() and np.isfinite(end).all() and (start >= 0).all() and (start < end).all()
    return bool(times and np.isfinite(rates).all() and (rates > 0).all())


def _numbers(column: pa.Array) -> NDArray[Any]:
    return np.asarray(column.to_numpy(zero_copy_only=False))
