"""Parquet files: written with provenance beside the schema, read under a bound of memory whatever the file claims.

What the columns mean is left to the rooms above.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyramid import files
from pyramid.errors import DataError, UnsafeInputError

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA_KEY = b"latent_pyramid"
_PIECE_ROWS = 16_384
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}
"""Bytes that a value of Parquet's types takes in memory, texts without their letters."""


def write(path: files.Location, table: pa.Table, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes an Arrow table as zstd Parquet, atomically, with ``metadata`` as JSON beside the schema."""
    import pyarrow.parquet as pq

    if metadata is not None:
        kept = table.schema.metadata or {}
        table = table.replace_schema_metadata({**kept, _METADATA_KEY: files.canonical_json(metadata).encode()})
    with files.atomic_write(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def write_groups(
    path: files.Location, schema: pa.Schema, tables: Iterable[pa.Table], metadata: Callable[[], Mapping[str, Any]]
) -> None:
    """Writes tables one after the other as row groups of one zstd Parquet file, atomically, holding one at a time.

    ``metadata`` is asked when all tables are written, so it may tell of them. Types must be Parquet's own.
    """
    with group_writer(path, schema, metadata) as write_group:
        for table in tables:
            write_group(table)


@contextlib.contextmanager
def group_writer(
    path: files.Location, schema: pa.Schema, metadata: Callable[[], Mapping[str, Any]]
) -> Iterator[Callable[[pa.Table], None]]:
    """Does what `write_groups` does for tables that come one by one: yields a function that takes the next."""
    import pyarrow.parquet as pq

    # A stored Arrow schema would hide what is added to the metadata at the end from its readers.
    options = {"compression": "zstd", "store_schema": False}
    with files.atomic_write(path) as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        yield writer.write_table
        writer.add_key_value_metadata({_METADATA_KEY: files.canonical_json(metadata()).encode()})


def iter_batches(
    path: files.Location,
    schema: pa.Schema,
    *,
    optional: Collection[str] = (),
    rows: int = _PIECE_ROWS,
    max_bytes: int = 2**30,
    max_total_bytes: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the columns of ``schema`` in batches of ``rows``, cast to its types; one batch is in memory at a time.

    Args:
        path: the file.
        schema: columns wanted, with their types.
        optional: columns of ``schema`` that may be missing.
        rows: rows in a batch, all but the last.
        max_bytes: what one batch may take, bytes.
        max_total_bytes: what all batches together may take; None for any.

    Raises:
        DataError: no Parquet file, without one of the columns, or with one of another kind.
        UnsafeInputError: a batch or the whole would fill the memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(path) as stream:
        try:
            texts = [column.path for column in pq.ParquetFile(stream).schema if column.physical_type == "BYTE_ARRAY"]
            stream.seek(0)
            file = pq.ParquetFile(stream, read_dictionary=texts)
            there = file.schema_arrow.names
            missing = [name for name in schema.names if name not in there and name not in optional]
            if missing:
                raise DataError(f"'{path}' has no column {', '.join(missing)}; it has {', '.join(there)}")
            wanted = pa.schema([field for field in schema if field.name in there])
            total = 0
            for piece in file.iter_batches(batch_size=rows, columns=wanted.names):
                size = sum(_memory_bytes(column) for column in piece.columns)
                _refuse_large(size, path, max_bytes)
                total += size
                _refuse_large(total, path, total if max_total_bytes is None else max_total_bytes)
                piece.validate(full=True)
                yield piece.select(wanted.names).cast(wanted)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"'{path}' is not a readable Parquet file: {error}") from error


def write_tables(
    path: files.Location, tables: Iterable[pa.Table], schema: pa.Schema, *, compression: str = "snappy"
) -> None:
    """Writes tables of one schema into one Parquet file, atomically, each as a row group (or more) of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.atomic_write(path) as stream, pq.ParquetWriter(stream, schema, compression=compression) as writer:
        for table in tables:
            try:
                writer.write_table(table.cast(schema))
            except (pa.ArrowException, ValueError) as error:
                raise DataError(f"'{path}': a part has other columns than the rest: {error}") from error


def read(
    path: files.Location,
    columns: Sequence[str] | None = None,
    *,
    optional: Collection[str] = (),
    rows: tuple[int, int] | None = None,
    max_bytes: int = files.MAX_READ_BYTES,
) -> pa.Table:
    """Reads a Parquet file after making sure that it unpacks to at most ``max_bytes``.

    Args:
        path: the file.
        columns: those wanted; None reads all.
        optional: those of ``columns`` that may be missing.
        rows: first row and number of rows wanted; only the row groups that hold them are read. None reads all.
        max_bytes: most memory that it may take.

    Raises:
        DataError: no Parquet file, or without one of ``columns`` or all of ``rows``.
        UnsafeInputError: a file that would fill the memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(path) as stream:
        try:
            plain = pq.ParquetFile(stream)
            missing = sorted(set(columns or ()) - set(plain.schema_arrow.names) - set(optional))
            if missing:
                known = ", ".join(plain.schema_arrow.names)
                raise DataError(f"'{path}' has no column {', '.join(missing)}; it has {known}")
            names = [name for name in columns or plain.schema_arrow.names if name in plain.schema_arrow.names]
            # Texts stay in their dictionary until it is known how large they are without it.
            texts = [column.path for column in plain.schema if column.physical_type == "BYTE_ARRAY"]
            stream.seek(0)
            packed = _read_bounded(pq.ParquetFile(stream, read_dictionary=texts), names, path, max_bytes, rows)
            table = packed.cast(pa.schema([plain.schema_arrow.field(name) for name in names]))
            table.validate(full=True)
            return table.replace_schema_metadata(plain.schema_arrow.metadata)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"'{path}' is not a readable Parquet file: {error}") from error


def _read_bounded(
    file: Any, names: list[str], path: files.Location, max_bytes: int, rows: tuple[int, int] | None
) -> pa.Table:
    """Reads columns piece by piece, and stops when they take more memory than they may.

    The footer does not tell: a dictionary or a run-length code makes gigabytes of a few bytes. Its entries for single
    columns are not asked, since pyarrow dies over damaged ones.
    """
    import pyarrow as pa

    numbers, skipped = _row_groups(file, path, rows)
    groups = [file.metadata.row_group(i) for i in numbers]
    told = sum(group.total_byte_size for group in groups)
    flat = sum(_WIDTHS.get(c.physical_type, 0) for c in file.schema if c.max_repetition_level == 0 and c.path in names)
    _refuse_large(max(told, flat * sum(group.num_rows for group in groups)), path, max_bytes)
    pieces, total = [], 0
    # Each group by itself: lists of texts in a dictionary are not read across two.
    batches = (file.iter_batches(batch_size=_PIECE_ROWS, columns=names, row_groups=[number]) for number in numbers)
    for piece in itertools.chain.from_iterable(batches):
        total += sum(_memory_bytes(column) for column in piece.columns)
        _refuse_large(total, path, max_bytes)
        pieces.append(piece)
    schema = pieces[0].schema if pieces else file.schema_arrow
    table = pa.Table.from_batches(pieces, schema) if pieces else schema.empty_table()
    if rows is not None:
        table = table.slice(skipped, rows[1])
    return table.select(names)


def _row_groups(file: Any, path: files.Location, rows: tuple[int, int] | None) -> tuple[list[int], int]:
    """Returns the row groups that hold ``rows``, and how many rows of them stand before the first one wanted."""
    if rows is None:
        return list(range(file.metadata.num_row_groups)), 0
    first, count = rows
    if first < 0 or count < 1 or first + count > file.metadata.num_rows:
        n = file.metadata.num_rows
        raise DataError(f"'{path}' has {n} rows; rows {first} .. {first + count - 1} are not there")
    numbers: list[int] = []
    skipped = start = 0
    for number in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(number).num_rows
        if start < first + count and end > first:
            skipped = skipped if numbers else first - start
            numbers.append(number)
        start = end
    return numbers, skipped


def _refuse_large(n_bytes: int, path: files.Location, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise UnsafeInputError(f"'{path}' unpacks to {n_bytes} bytes, more than the {max_bytes} allowed here")


def _memory_bytes(column: pa.Array) -> int:
    """Returns how many bytes a column takes once its texts stand in every row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        return sum(_memory_bytes(part) for part in column.flatten())
    if pa.types.is_nested(column.type):
        return 4 * len(column) + _memory_bytes(column.flatten())
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary.cast(pa.large_binary()))
        return 4 * len(column) + (pc.sum(lengths.take(column.indices)).as_py() or 0)
    return int(column.nbytes)


def column_names(path: files.Location) -> list[str]:
    """Returns the names of a file's columns without reading them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(path) as stream:
        try:
            return [str(name) for name in pq.read_schema(stream).names]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' is not a readable Parquet file: {error}") from error


def metadata(path: files.Location) -> dict[str, Any]:
    """Returns the metadata that `write` put into a file; empty for a stranger's file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with files.open_read(path) as stream:
        try:
            raw = (pq.read_schema(stream).metadata or {}).get(_METADATA_KEY, b"{}")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"'{path}' is not a readable Parquet file: {error}") from error
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}': its metadata is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}
