"""Reads samples one after the other with few requests: a stretch of a shard at a time, in bounded memory.

Where a sample lies and whether it is what the index says is left to `pyramid.shards.reader`.
"""

from __future__ import annotations

from pyramid import files
from pyramid.errors import DataError

WINDOW_BYTES = 32 * 2**20
"""What is held of a remote shard at a time; a larger sample is held alone."""


class ReadAhead:
    """Ranges of files, asked for in about ascending order; local files are read as asked.

    Args:
        window_bytes: what is held in memory, and read by one request.
    """

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.window_bytes = window_bytes
        self._path, self._start, self._held = "", 0, b""

    def read(self, path: str, offset: int, size: int, end: int) -> bytes:
        """Reads a range; what follows it up to ``end``, the last byte that will be asked for, is read along.

        Raises:
            DataError: the file ends before the range does.
        """
        if not files.is_remote(path):
            return files.read_range(path, offset, size)
        if path != self._path or not self._start <= offset <= offset + size <= self._start + len(self._held):
            self._path, self._held = "", b""  # Not both at once: that would be twice the memory.
            try:
                held = files.read_range(path, offset, max(size, min(self.window_bytes, end - offset)))
            except DataError:  # A file that was cut may still hold this one.
                return files.read_range(path, offset, size)
            self._path, self._start, self._held = path, offset, held
        return self._held[offset - self._start :][:size]
