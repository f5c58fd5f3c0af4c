"""The clip manifest: one Parquet file, a row per clip.

Where clips come from is left to the corpora beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.types import Clip

_FLOATS = {"start_s", "end_s", "source_hz"}
_COUNTS = {"first_row", "n_rows"}
_TYPES = dict.fromkeys(_FLOATS, pa.float64()) | dict.fromkeys(_COUNTS, pa.int64())
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in Clip.columns()])


def write_manifest(path: str, clips: Sequence[Clip], metadata: dict[str, Any]) -> None:
    """Writes clips in the order given, with provenance as the file's metadata."""
    rows = [{name: getattr(clip, name) for name in Clip.columns()} for clip in clips]
    parquet.write(path, pa.Table.from_pylist(rows, schema=SCHEMA), metadata)


def read_manifest(path: str) -> list[Clip]:
    """Reads a clip manifest, whoever wrote it.

    Raises:
        DataError: a missing column, a value that is no clip, or one id twice; the row is named.
    """
    if not files.exists(path):
        raise DataError(f"no clip manifest '{path}'; make one: pyramid scan folder VIDEOS --out {path}")
    table = parquet.read(path, Clip.columns())
    clips: list[Clip] = []
    seen: set[str] = set()
    for number, row in enumerate(table.to_pylist()):
        try:
            clip = Clip(**{name: row[name] for name in Clip.columns()})
        except (DataError, TypeError) as error:
            raise DataError(f"'{path}', row {number}: {error}") from error
        if clip.clip_id in seen:
            raise DataError(f"'{path}', row {number}: the clip id '{clip.clip_id}' stands twice")
        seen.add(clip.clip_id)
        clips.append(clip)
    return clips
