"""The index of a shard folder while it is packed: rows are written in groups as shards are done, none is kept.

What the columns mean is left to `pyramid.shards.layout`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.config import provenance
from pyramid.errors import DataError
from pyramid.jobs import Outcome, Quarantined
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.shards.options import PackConfig

GROUP_ROWS = 16_384
"""Rows in a group of the index, and in memory at a time."""
MAX_LISTED = 10_000
"""Clips set aside that are listed one by one; their counts are always whole."""


class PackIndex:
    """Takes the outcomes of shards in their order; a context whose end writes the index, unless by an error.

    Args:
        folder: the shard folder.
        config: how it is packed.
        contents: digest of the clips' contents.
    """

    def __init__(self, folder: str, config: PackConfig, contents: str) -> None:
        self.path, self.config, self.contents = files.join(folder, INDEX_FILE), config, contents
        self.clips = self.frames = self.shards = self.bytes = 0
        self.reasons: Counter[str] = Counter()
        """Clips set aside, by reason."""
        self.aside: list[Quarantined] = []
        """The first of them."""
        self._rows: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()
        self._write: Callable[[pa.Table], None] | None = None

    def add(self, outcome: Outcome) -> None:
        """Takes the rows of a shard, and what was set aside for it."""
        rows = outcome.facts.get("rows", [])
        self.clips += len(rows)
        self.frames += sum(row["frames"] for row in rows)
        self.shards += bool(rows)
        self.bytes += rows[0]["shard_bytes"] if rows else 0
        self.reasons.update(item.reason for item in outcome.quarantined)
        self.aside += outcome.quarantined[: MAX_LISTED - len(self.aside)]
        self._rows += rows
        while len(self._rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._write is None:
            self._write = self._stack.enter_context(parquet.group_writer(self.path, INDEX_SCHEMA, self._metadata))
        group, self._rows = self._rows[:GROUP_ROWS], self._rows[GROUP_ROWS:]
        self._write(pa.Table.from_pylist(group, schema=INDEX_SCHEMA))

    def _metadata(self) -> dict[str, Any]:
        source = provenance(config=self.config, inputs={"clips": self.contents})
        counts = dict(sorted(self.reasons.items()))
        return {**source, "quarantined": [vars(item) for item in self.aside], "quarantined_counts": counts}

    def __enter__(self) -> PackIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if not self.clips:
                details = "; ".join(item.detail for item in self.aside[:3])
                raise DataError(f"none of {sum(self.reasons.values())} clips could be packed: {details}")
            if self._rows:
                self._flush()
