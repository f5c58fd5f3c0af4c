"""Checks of label tables: what a labeler hands over, and what a table on disk must be to be joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pyramid import files, parquet
from pyramid.errors import DataError, SkipItemError
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.shards.layout import table_name
from pyramid.shards.reader import Sample, ShardSet

EMPTY = b"empty"
"""Key in the metadata of a column that a labeler leaves null in every row; its value says why."""


def check_schema(schema: pa.Schema, labeler: str) -> None:
    """Refuses a labeler whose tables lack one of the columns that all tables have."""
    for name, kind in BASE_FIELDS:
        if name not in schema.names or schema.field(name).type != kind:
            raise DataError(f"labeler '{labeler}': its tables need a column '{name}' of type {kind}")


def check_labels(tables: Sequence[pa.Table], samples: Sequence[Sample], schema: pa.Schema, labeler: str) -> None:
    """Refuses labels that are not the samples' own, not in order of time, or not numbers.

    Raises:
        SkipItemError: ``bad_labels``; the sample and the column are named.
    """
    if len(tables) != len(samples):
        raise SkipItemError("bad_labels", f"labeler '{labeler}' gave {len(tables)} tables for {len(samples)} clips")
    for table, sample in zip(tables, samples, strict=True):
        fault = _fault(table, sample, schema)
        if fault:
            raise SkipItemError("bad_labels", f"labeler '{labeler}', clip {sample.key}: {fault}")


def _fault(table: pa.Table, sample: Sample, schema: pa.Schema) -> str:
    if not table.schema.equals(schema, check_metadata=False):
        return f"columns {table.schema.names} instead of {schema.names}, or of other types"
    if table.num_rows == 0:
        return ""
    if pc.unique(table["key"]).to_pylist() != [sample.key]:
        return "rows with another clip's key"
    times = table["t_s"].to_numpy()
    if (np.diff(times) <= 0).any():
        return "rows that are not in order of time"
    frames = table["frame"].to_numpy()
    if frames.min() < 0 or frames.max() >= len(sample):
        return f"frame {frames.max()} of a clip with {len(sample)} frames"
    names = [
        field.name for field in schema if not (_may_be_empty(field) and table[field.name].null_count == len(table))
    ]
    return next((f"column '{name}' holds NaN, infinity or nothing" for name in names if _not_finite(table[name])), "")


def _may_be_empty(field: pa.Field) -> bool:
    """Whether the labeler says of a column that it holds nothing in any row, such as codes without a codebook."""
    return EMPTY in (field.metadata or {})


def _not_finite(column: pa.ChunkedArray) -> bool:
    array = column.combine_chunks()
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            return True
        array = array.flatten()
    if array.null_count:
        return True
    return pa.types.is_floating(array.type) and not bool(np.isfinite(array.to_numpy(zero_copy_only=False)).all())


class LabelRun:
    """The label tables of one run over one shard folder."""

    def __init__(self, folder: str, shards: ShardSet, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.shards = shards
        self.metadata = metadata
        """What the labeler says of itself, from the first table."""

    @classmethod
    def open(cls, folder: str, shards: ShardSet) -> LabelRun:
        """Opens a run.

        Raises:
            DataError: a shard has no table, or a table was made for other shards.
        """
        metadata: dict[str, Any] = {}
        there = files.entries(folder)
        for shard in shards.shards:
            path = files.join(folder, table_name(shard))
            if table_name(shard) not in there:
                raise DataError(f"'{folder}' has no labels for {shard}; run 'pyramid label' again")
            found = parquet.metadata(path)
            if found.get("index_digest") != shards.shard_digest(shard):
                raise DataError(f"'{path}' labels other shards than those in '{shards.folder}' now; label again")
            metadata = metadata or found
            if found.get("labeler_digest") != metadata.get("labeler_digest"):
                raise DataError(f"'{folder}' mixes labels of two models; label again into a new folder")
        return cls(folder, shards, metadata)

    def table(self, shard: str) -> pa.Table:
        """Reads the table of one shard."""
        return parquet.read(files.join(self.folder, table_name(shard)))
