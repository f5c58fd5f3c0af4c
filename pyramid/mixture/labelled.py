"""The label runs of a source: which rows may be drawn, known at the start, and their values, read shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.errors import DataError
from pyramid.labels.table import LabelRun
from pyramid.mixture.cache import cached_table
from pyramid.mixture.index import ClipIndex, named
from pyramid.mixture.spec import FilterSpec
from pyramid.shards.layout import table_name
from pyramid.shards.reader import ShardSet

COLUMN = {"pseudo": "action", "latent": "latent"}
_KEPT_TABLES = 64
_NEEDS = {
    "max_action_std": "action_std",
    "min_votes": "n_votes",
    "min_recon_gain": "recon_gain",
    "without_flags": "flags",
}


_Table = tuple[NDArray[np.float32], NDArray[np.bool_], list[str], dict[str, NDArray[Any]]]


class Labels:
    """The labels of a source's clips.

    Args:
        name: the source's, for messages.
        clips: its clips.
        runs: folder of the label run of each of its shard folders.
        use: ``pseudo`` or ``latent``.
        spec: which rows may be drawn.

    Raises:
        DataError: a run that is not there, labels other shards, lacks a column, or has no row left.
    """

    def __init__(self, name: str, clips: ClipIndex, runs: Sequence[str], *, use: str, spec: FilterSpec) -> None:
        self.name, self.clips, self.runs, self.use, self.spec = name, clips, list(runs), use, spec
        scans = [self._scan(part, shards) for part, shards in enumerate(clips.shard_sets)]
        self.metadata: dict[str, Any] = scans[0][1]
        """What the labeler says of itself."""
        self.digest = files.digest([digest for _, _, digest in scans])
        """Digest of the labels and of which of them are drawn."""
        self._join([table for table, _, _ in scans])
        self._table = lru_cache(maxsize=_KEPT_TABLES)(self._read_table)

    def __getstate__(self) -> dict[str, Any]:
        """Goes to another process without the tables it holds."""
        return {key: value for key, value in vars(self).items() if key != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over what `__getstate__` gave."""
        vars(self).update(state)
        self._table = lru_cache(maxsize=_KEPT_TABLES)(self._read_table)

    def _scan(self, part: int, shards: ShardSet) -> tuple[pa.Table, dict[str, Any], str]:
        run, there = self.runs[part], files.entries(self.runs[part])
        names = [table_name(shard) for shard in shards.shards]
        for name, shard in zip(names, shards.shards, strict=True):
            if name not in there:
                raise DataError(f"source '{self.name}': '{run}' has no labels for {shard}; run 'pyramid label' again")
        metadata = parquet.metadata(files.join(run, names[0]))
        self._check_columns(files.join(run, names[0]))
        bounds = [[n, getattr(self.spec, n)] for n in self.spec.label_bounds()]
        held = [[n, there[n].size, there[n].tag or _stamp(files.join(run, n))] for n in names]
        made_of = [shards.digest, metadata.get("labeler_digest", ""), str(bounds), self.use]
        table = cached_table("labels", files.digest([*made_of, held]), lambda: self._scan_all(run, shards))
        # What they hold, not when they were written: a copy of the folder is the same run.
        return table, metadata, files.digest([*made_of, table.schema.metadata[b"content"].decode()])

    def _check_columns(self, path: str) -> None:
        columns = parquet.column_names(path)
        needed = [COLUMN[self.use], *(["codes"] if self.use == "latent" else [])]
        needed += [_NEEDS[bound] for bound in self.spec.label_bounds()]
        for column in needed:
            if column not in columns:
                raise DataError(f"source '{self.name}': '{path}' has no column '{column}' for use: {self.use}")

    def _scan_all(self, run: str, shards: ShardSet) -> pa.Table:
        """Returns of every label: row of its clip in the index, row in its table, frame, whether it is drawn.

        The table's metadata has a digest of all values.
        """
        parts, content = [], hashlib.sha256()
        with named(f"source '{self.name}'"):
            opened = LabelRun.open(run, shards)
        keys = dict(zip(shards.index["key"].to_pylist(), range(len(shards)), strict=True))
        frames = shards.index["frames"].to_numpy()
        for shard in shards.shards:
            table = opened.table(shard)
            clip = np.array([keys.get(key, -1) for key in table["key"].to_pylist()], np.int64)
            frame = table["frame"].to_numpy().astype(np.int32)
            if len(table) and not table["gap_s"][0].as_py() > 0:
                raise DataError(
                    f"source '{self.name}': '{run}' has a gap_s of {table['gap_s'][0].as_py()}; label again"
                )
            wrong = (clip >= 0) & ((frame < 0) | (frame >= frames[clip]))
            if wrong.any():
                key = table["key"][int(np.flatnonzero(wrong)[0])].as_py()
                raise DataError(f"source '{self.name}': '{run}' labels frames that clip {key} does not have")
            where = f"source '{self.name}', '{files.join(run, table_name(shard))}'"
            ok = _passes(table, self.spec)
            values = matrix(table[COLUMN[self.use]], f"{where}, column '{COLUMN[self.use]}'")
            for array in (clip, frame, ok, values):
                content.update(array.tobytes())
            row = np.arange(len(table), dtype=np.int32)
            parts.append(pa.table({"clip": clip, "row": row, "frame": frame, "ok": ok}).filter(pa.array(clip >= 0)))
        return pa.concat_tables(parts).replace_schema_metadata({"content": content.hexdigest()})

    def _join(self, scans: Sequence[pa.Table]) -> None:
        """Lays out the labels of the clips one after the other: the steps at which a chunk may start."""
        first, rows, frames, sizes, steps = np.zeros(len(self.clips), np.int64), [], [], [], []
        base = 0
        for part, scan in enumerate(scans):
            clip = scan["clip"].to_numpy()
            order = np.argsort(clip, kind="stable")
            clip, ok = clip[order], scan["ok"].to_numpy(zero_copy_only=False)[order]
            mine = np.flatnonzero(self.clips.part == part)
            start = np.searchsorted(clip, self.clips.number[mine], side="left")
            end = np.searchsorted(clip, self.clips.number[mine], side="right")
            first[mine] = base + start
            running = np.concatenate([[0], np.cumsum(ok)])
            sizes.append(running[end] - running[start])
            drawn = np.concatenate(
                [np.flatnonzero(ok[a:b]) for a, b in zip(start, end, strict=True)] or [np.zeros(0, np.int64)]
            )
            steps.append(drawn.astype(np.int32))
            rows.append(scan["row"].to_numpy()[order])
            frames.append(scan["frame"].to_numpy()[order])
            base += len(clip)
        self.sizes = np.concatenate(sizes).astype(np.int64)
        """int64 [clips]: labels of each clip that may be drawn."""
        self._steps = np.concatenate(steps)
        self._first_step = np.cumsum(self.sizes) - self.sizes
        self._first_row, self._rows, self._frames = first, np.concatenate(rows), np.concatenate(frames)
        if not self.sizes.sum():
            bounds = ", ".join(f"{n}: {getattr(self.spec, n):g}" for n in self.spec.label_bounds())
            left = (
                f"its filter ({bounds}) leaves none of the {base} labels"
                if bounds and base
                else "no label of its clips"
            )
            raise DataError(f"source '{self.name}': {left} in '{self.runs[0]}'")

    def frame(self, clip: int, item: int) -> int:
        """Returns the frame of a clip's ``item``-th label that may be drawn."""
        return int(self._frames[self._first_row[clip] + self._steps[self._first_step[clip] + item]])

    def values(self, clip: int, item: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns the values of up to ``n`` labels from a clip's ``item``-th on [m, D], and which of them pass [m]."""
        table, same = self._rows_of(clip, item, n)
        return table[0][same], table[1][same]

    def quality(self, clip: int, item: int, n: int) -> dict[str, NDArray[Any]]:
        """Returns what the labeler says of the same labels besides their values, as far as its tables have it.

        ``action_std`` float32 [m, D] in physical units, ``recon_gain`` float32 [m], ``codes`` int64 [m, C].
        """
        table, same = self._rows_of(clip, item, n)
        return {name: column[same] for name, column in table[3].items()}

    def _rows_of(self, clip: int, item: int, n: int) -> tuple[_Table, list[int]]:
        table, key = (
            self._table(int(self.clips.part[clip]), self.clips.table["shard"][clip].as_py()),
            self.clips.key(clip),
        )
        start = int(self._rows[self._first_row[clip] + self._steps[self._first_step[clip] + item]])
        same = [i for i in range(start, min(start + n, len(table[0]))) if table[2][i] == key]
        if not same or same[0] != start:
            raise DataError(f"source '{self.name}': labels of clip {key} changed during the run in '{self.runs[0]}'")
        return table, same

    def _read_table(self, part: int, shard: str) -> _Table:
        path = files.join(self.runs[part], table_name(shard))
        table = parquet.read(path)
        values, passes = matrix(table[COLUMN[self.use]], f"'{path}'"), _passes(table, self.spec)
        return values, passes, table["key"].to_pylist(), _quality(table, self.use, f"'{path}'")

    def first_table(self) -> pa.Table:
        """Returns a table that holds labels, from which widths and the gap are told."""
        clip = int(np.flatnonzero(self.sizes)[0])
        shard = self.clips.table["shard"][clip].as_py()
        return parquet.read(files.join(self.runs[int(self.clips.part[clip])], table_name(shard)))


def _stamp(path: str) -> str:
    """Returns what tells that a local file was written again, even with as many bytes."""
    facts = Path(path).stat()
    return f"{facts.st_mtime_ns}-{facts.st_ino}"


def _quality(table: pa.Table, use: str, where: str) -> dict[str, NDArray[Any]]:
    """Returns the columns that say how good labels are, and the codes of latent actions; what is null is not there."""
    there = [n for n in table.column_names if not table[n].null_count]
    if use == "pseudo":
        return {"action_std": matrix(table["action_std"], where)} if "action_std" in there else {}
    found: dict[str, NDArray[Any]] = {}
    if "recon_gain" in there:
        found["recon_gain"] = table["recon_gain"].to_numpy().astype(np.float32)
    if "codes" in there:
        found["codes"] = matrix(table["codes"], where).astype(np.int64)
    return found


def _passes(table: pa.Table, spec: FilterSpec) -> NDArray[np.bool_]:
    """Returns which rows of a label table a filter lets through."""
    ok = np.ones(len(table), bool)
    for bound in spec.label_bounds():
        column, limit = table[_NEEDS[bound]], getattr(spec, bound)
        if bound == "max_action_std":
            ok &= matrix(column, "action_std").max(1) <= limit
        elif bound == "without_flags":
            ok &= (column.to_numpy().astype(np.int64) & limit) == 0
        else:
            # What is missing passes no bound: as a float it is not a number.
            ok &= pc.cast(column, pa.float64()).to_numpy() >= limit
    return ok


def matrix(column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
    """Returns a column of lists as float32 [N, D]; refuses lists of different lengths and what is not finite."""
    array = column.combine_chunks()
    flat: NDArray[np.float32] = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(array) == 0:
        return np.zeros((0, 1), np.float32)
    if not len(flat) or len(flat) % len(array) or not np.isfinite(flat).all():
        raise DataError(f"{where}: no values, rows of different lengths, or values that are not finite")
    return flat.reshape(len(array), -1)
