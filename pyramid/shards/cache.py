"""Copies of remote shards on the local disk, bounded, fetched before they are read.

Nothing here decides what comes out; any file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyramid import files
from pyramid.errors import DataError, OutputError, PyramidError

_PIECE_BYTES = 8 * 2**20
_STALE_S = 3600.0


def cache_folder() -> Path:
    """Returns where results are kept: ``latent-pyramid`` in the user's cache folder (``XDG_CACHE_HOME``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent-pyramid"


class ShardCache:
    """Copies of remote shards on the local disk, the least recently used dropped first; read ahead in one thread.

    Args:
        max_mb: bound of all copies, MiB.
        folder: where they lie; processes may share it.
    """

    def __init__(self, max_mb: int, folder: Path | None = None) -> None:
        self.max_bytes, self.folder = max_mb * 2**20, folder or cache_folder() / "shards"
        self._under_way: dict[str, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to another process without its thread."""
        return (ShardCache, (self.max_bytes // 2**20, self.folder))

    def read(self, url: str, sha256: str, size: int, offset: int, length: int) -> bytes:
        """Reads a range of a shard through its copy, which is fetched if it is not there.

        Args:
            url: the shard.
            sha256: its digest, which names the copy.
            size: its size, bytes.
            offset: start of the range, bytes.
            length: length of the range, bytes.
        """
        copy = self.folder / f"{sha256}.tar"
        if size > self.max_bytes:
            return files.read_range(url, offset, length)
        self._wait(sha256)
        for _ in range(2):
            if not copy.exists():
                self._fetch(url, copy, size)
            # Another process may drop the copy between the two lines.
            with contextlib.suppress(PyramidError, OSError):
                os.utime(copy)
                return files.read_range(copy, offset, length)
        return files.read_range(url, offset, length)

    def copy(self, url: str, sha256: str, size: int) -> Path | None:
        """Returns the copy of a shard, fetched if it is not there; None where it does not fit or cannot be written.

        Raises:
            UnreachableError: the store does not answer.
        """
        copy = self.folder / f"{sha256}.tar"
        if size > self.max_bytes:
            return None
        self._wait(sha256)
        try:
            if not copy.exists():
                self._fetch(url, copy, size)
            os.utime(copy)
        except (OutputError, DataError, OSError):
            return None
        return copy

    def drop(self, sha256: str) -> None:
        """Removes a copy that will not be read again."""
        with contextlib.suppress(OSError):
            (self.folder / f"{sha256}.tar").unlink(missing_ok=True)

    def ahead(self, shards: Iterable[tuple[str, str, int]]) -> None:
        """Begins to fetch shards ``(url, sha256, size)`` that will be read soon, as far as they fit."""
        room = self.max_bytes // 2
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="shards-ahead")
        for url, sha256, size in shards:
            room -= size
            copy = self.folder / f"{sha256}.tar"
            if room < 0:
                break
            if not copy.exists() and sha256 not in self._under_way:
                self._under_way[sha256] = self._pool.submit(self._fetch, url, copy, size)

    def _wait(self, sha256: str) -> None:
        waiting = self._under_way.pop(sha256, None)
        if waiting is not None:
            # What failed in the thread is tried again, and told, by whoever needs it.
            with contextlib.suppress(PyramidError, OSError):
                waiting.result()

    def _fetch(self, url: str, copy: Path, size: int) -> None:
        files.make_dirs(self.folder)
        self._make_room(size)
        with files.atomic_write(copy) as out, files.open_read(url) as stream:
            while piece := stream.read(_PIECE_BYTES):
                out.write(piece)

    def _make_room(self, size: int) -> None:
        held = []
        for path in self.folder.glob(f"{files.TEMPORARY_PREFIX}*"):
            with contextlib.suppress(OSError):  # A process that was killed has left it.
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):
                held.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(n for _, n, _ in held)
        for _, n, path in sorted(held):
            if total + size <= self.max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= n
