"""What is worked out once and kept on the local disk: results under a digest of all they depend on.

Nothing here decides what comes out; any file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.errors import PyramidError
from pyramid.shards.cache import cache_folder


def cached_table(kind: str, digest: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Returns a table kept under a digest, or makes and keeps it; a cache that cannot be written is done without."""
    path = cache_folder() / kind / f"{digest}.parquet"
    with contextlib.suppress(PyramidError, OSError):
        if path.exists():
            return parquet.read(path)
    table = make()
    with contextlib.suppress(PyramidError, OSError):
        files.make_dirs(path.parent)
        parquet.write(path, table)
    return table


def cached_json(kind: str, digest: str, make: Callable[[], Any]) -> Any:
    """The same for plain data."""
    path = cache_folder() / kind / f"{digest}.json"
    with contextlib.suppress(PyramidError, OSError):
        if path.exists():
            return files.read_json(path)
    data = make()
    with contextlib.suppress(PyramidError, OSError):
        files.make_dirs(path.parent)
        files.write_json(path, data)
    return data
