"""What is worked out once and kept on the local disk: results under a digest of all they depend on.

Nothing here decides what comes out; any file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.errors import PyramidError
from pyramid.shards.cache import cache_folder


def cached_table(kind: str, digest: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Returns a table kept under a digest, or makes and keeps it; a cache that cannot be written is done without."""
    return _cached(cache_folder() / kind / f"{digest}.parquet", parquet.read, parquet.write, make)


def cached_json(kind: str, digest: str, make: Callable[[], Any]) -> Any:
    """The same for plain data."""
    return _cached(cache_folder() / kind / f"{digest}.json", files.read_json, files.write_json, make)


def _cached(path: Path, read: Callable[..., Any], write: Callable[..., Any], make: Callable[[], Any]) -> Any:
    with contextlib.suppress(PyramidError, OSError):
        if path.exists():
            return read(path)
    made = make()
    with contextlib.suppress(PyramidError, OSError):
        files.make_dirs(path.parent)
        write(path, made)
    return made
