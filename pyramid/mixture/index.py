"""The clips of a source: the indexes of its shard folders, filtered; no shard is opened for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.mixture.spec import FilterSpec, ScoresSpec
from pyramid.shards.reader import ShardSet
from pyramid.types import Split


class ClipIndex:
    """The clips of a source that its filter leaves, in the order of the folders and their shards.

    Args:
        name: the source's, for messages.
        folders: shard folders.
        spec: the filter.
        split: the split that is asked for.
        with_actions: only clips with measured actions.
        opened: shard folders that were opened and checked before, by place; new ones are added.
        scores: the filter's table of scores; empty without one.

    Raises:
        DataError: no clip is left, or a shard is missing or has another size than the index says; both are named.
    """

    def __init__(
        self,
        name: str,
        folders: Sequence[str],
        spec: FilterSpec,
        *,
        split: Split,
        with_actions: bool,
        opened: dict[str, ShardSet],
        scores: str = "",
    ) -> None:
        for folder in folders:
            if folder not in opened:
                with named(f"source '{name}'"):
                    opened[folder] = ShardSet.open(folder)
                check_shards(opened[folder], f"source '{name}'")
        self.shard_sets = [opened[folder] for folder in folders]
        wanted = spec.split if spec.split and split == "train" else split
        spoken_for = scored(scores, spec.scores, f"source '{name}'") if scores else None
        tables, self.part, self.number = [], np.zeros(0, np.int32), np.zeros(0, np.int64)
        for part, shards in enumerate(self.shard_sets):
            conditions = _conditions(shards.index, spec, wanted, with_actions)
            if spoken_for is not None:
                either = [pc.is_in(shards.index[column], spoken_for) for column in ("key", "clip_id")]
                conditions.append((f"that '{spec.scores.path}' speaks for", pc.or_(*either)))
            kept = np.flatnonzero(_mask(name, shards, conditions))
            tables.append(shards.index.take(pa.array(kept)))
            self.part = np.concatenate([self.part, np.full(len(kept), part, np.int32)])
            self.number = np.concatenate([self.number, kept])
        self.table: pa.Table = pa.concat_tables(tables).combine_chunks()
        """One row per clip; columns as in the index."""
        # One column is looked up in about a hundredth of the time of a row.
        self._keys, self._texts = (_whole(self.table[name]) for name in ("key", "text"))

    def __len__(self) -> int:
        return len(self.part)

    def row(self, clip: int) -> dict[str, Any]:
        """Returns the index row of a clip."""
        return dict(self.table.slice(clip, 1).to_pylist()[0])

    def key(self, clip: int) -> str:
        """Returns the key of a clip."""
        return str(self._keys[clip].as_py())

    def text(self, clip: int) -> str:
        """Returns the instruction of a clip; empty without one."""
        return str(self._texts[clip].as_py() or "")

    def column(self, name: str) -> NDArray[Any]:
        """Returns a column of numbers, one per clip."""
        return np.asarray(self.table[name].to_numpy())

    def distinct(self, name: str) -> list[Any]:
        """Returns the distinct values of a column, sorted."""
        return sorted(self.table[name].unique().to_pylist())

    def shard_numbers(self) -> NDArray[np.int64]:
        """Returns for each clip the number of its shard among those that hold a clip, ascending."""
        names = pc.dictionary_encode(self.table["shard"]).combine_chunks().indices.to_numpy()
        new = (np.diff(names) != 0) | (np.diff(self.part) != 0)
        return np.concatenate([[0], np.cumsum(new)]).astype(np.int64)


@contextlib.contextmanager
def named(who: str) -> Iterator[None]:
    """Says who is refused where what is called knows only the file."""
    try:
        yield
    except DataError as error:
        raise type(error)(f"{who}: {error}") from error


def _whole(column: pa.ChunkedArray) -> Any:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else whole.chunk(0)


def check_shards(shards: ShardSet, who: str) -> None:
    """Refuses shards that are gone or of another size than their index says.

    Raises:
        DataError: the first of them is named.
    """
    there = files.entries(shards.folder)
    for name, size in _shard_sizes(shards.index):
        if name not in there:
            raise DataError(
                f"{who}: the shard '{files.join(shards.folder, name)}' is not there; restore it, or pack again"
            )
        if there[name].size != size:
            raise DataError(
                f"{who}: the shard '{files.join(shards.folder, name)}' has {there[name].size} bytes, its index says "
                f"{size}; run 'pyramid verify {shards.folder} --quarantine'"
            )


def _shard_sizes(index: pa.Table) -> Iterator[tuple[str, int]]:
    """Yields each shard's name and size once, twice where the index says two.

    Not by ``group_by``: that imports pandas, which takes longer than the rest.
    """
    names = pc.dictionary_encode(_whole(index["shard"]))
    both = np.stack([np.asarray(names.indices), index["shard_bytes"].to_numpy()])
    new = np.flatnonzero(np.concatenate([[len(index) > 0], (np.diff(both) != 0).any(0)]))
    yield from zip(index["shard"].take(pa.array(new)).to_pylist(), both[1, new].tolist(), strict=True)


def scored(path: str, spec: ScoresSpec, who: str) -> pa.Array:
    """Returns the names of the clips that a table of scores speaks for.

    Raises:
        DataError: the table is not there, or lacks a column.
    """
    table = parquet.read(path)
    names = [name for name in ("item", "key", "clip_id") if name in table.column_names]
    wanted = [*names[:1], *spec.min, *spec.max, *(["verdict"] if spec.verdict else [])]
    missing = [name for name in wanted if name not in table.column_names] if names else ["item"]
    if missing:
        raise DataError(f"{who}: '{path}' has no column '{missing[0]}'; it has {', '.join(table.column_names)}")
    kept = np.ones(len(table), bool)
    for column, bound, passes in (
        *((c, b, pc.greater_equal) for c, b in spec.min.items()),
        *((c, b, pc.less_equal) for c, b in spec.max.items()),
        *([("verdict", spec.verdict, pc.equal)] if spec.verdict else []),
    ):
        kept &= np.asarray(pc.fill_null(passes(table[column], bound), False))
    return table[names[0]].filter(pa.array(kept)).combine_chunks()


def _mask(name: str, shards: ShardSet, conditions: Sequence[tuple[str, Any]]) -> NDArray[np.bool_]:
    """Returns which rows of an index are kept; the first condition that leaves nothing is named."""
    kept = np.ones(len(shards), bool)
    for what, condition in conditions:
        kept &= np.asarray(pc.fill_null(condition, False))
        if not kept.any():
            raise DataError(f"source '{name}': no clip {what} in '{shards.folder}'{_there(shards.index, what)}")
    return kept


def _conditions(index: pa.Table, spec: FilterSpec, split: str, with_actions: bool) -> list[tuple[str, Any]]:
    found = [(f"of split '{split}'", pc.equal(index["split"], split))]
    if with_actions:
        found.append(("has measured actions", pc.greater(index["action_dim"], 0)))
    if spec.embodiment:
        found.append((f"of embodiment '{spec.embodiment}'", pc.equal(index["embodiment"], spec.embodiment)))
    if spec.has_text:
        found.append(("with a text", pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(index["text"])), 0)))
    if spec.text:
        found.append((f"whose text holds '{spec.text}'", pc.match_substring_regex(index["text"], spec.text)))
    for column, most in (("static_share", spec.max_static_share), ("camera_px", spec.max_camera_px)):
        if np.isfinite(most):
            found.append((f"with {column} up to {most:g}", pc.less_equal(index[column], most)))
    if spec.without_notes:
        barred = set(spec.without_notes)
        free = [not barred & set(notes or ()) for notes in index["notes"].to_pylist()]
        found.append((f"without the notes {', '.join(sorted(barred))}", pa.array(free)))
    return found


def _there(index: pa.Table, what: str) -> str:
    for column in ("split", "embodiment"):
        if what.startswith(f"of {column}"):
            return f"; it has {', '.join(sorted(str(v) for v in index[column].unique().to_pylist()))}"
    return ""
