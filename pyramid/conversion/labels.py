"""Label tables as columns of an episode: one value per frame, missing where a frame has no label.

A label never takes the place of a measured action: its column has a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import ConfigError, DataError, SkipItemError, nearest
from pyramid.labels.table import LabelRun
from pyramid.shards.reader import ShardSet

_LATENT = {
    "latent": "latent",
    "codes": "codes",
    "recon_gain": "latent_recon_gain",
    "gap_s": "latent_gap_s",
    "flags": "latent_flags",
}
_PSEUDO = {
    "action": "pseudo_action",
    "action_std": "pseudo_action_std",
    "n_votes": "pseudo_action_votes",
    "gap_s": "pseudo_action_gap_s",
    "flags": "pseudo_action_flags",
}


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """One column of label tables and what becomes of it."""

    run: str
    """Folder of the label run."""
    source: str
    """Its name in the label tables."""
    name: str
    """Its name in the data set."""
    dim: int
    """Numbers per frame; 0 for a plain number."""
    labels: str
    """Digest of the labeler that made it."""


def label_columns(shards: ShardSet, runs: str) -> tuple[LabelColumn, ...]:
    """Finds the columns that label runs add.

    Args:
        shards: the shards they label.
        runs: names of runs in the folder ``labels`` of the shards, or paths, separated by commas; empty takes all in
            ``labels``, ``none`` takes none.

    Raises:
        ConfigError: no such run, or two runs that give the same column.
        DataError: tables that do not belong to these shards.
    """
    columns: list[LabelColumn] = []
    for folder in _folders(shards, runs):
        run = LabelRun.open(folder, shards)
        table = next((t for t in map(run.table, shards.shards) if t.num_rows), run.table(shards.shards[0]))
        found = [n for kind in (_LATENT, _PSEUDO) if next(iter(kind)) in table.column_names for n in kind.items()]
        if not found:
            raise DataError(f"'{folder}' holds neither latent nor action labels; leave it out with --labels")
        for source, name in found:
            if source not in table.column_names:
                continue
            twin = next((column.run for column in columns if column.name == name), None)
            if twin is not None:
                raise ConfigError(f"'{twin}' and '{folder}' both give the column '{name}'; choose one with --labels")
            made = str(run.metadata.get("labeler_digest", ""))
            dim = _dimension(table[source])
            columns.append(LabelColumn(run=folder, source=source, name=name, dim=dim, labels=made))
    return tuple(columns)


def _folders(shards: ShardSet, runs: str) -> list[str]:
    home = files.join(shards.folder, "labels")
    there = files.listdir(home)
    if not runs:
        return [files.join(home, name) for name in there if files.is_dir(files.join(home, name))]
    folders = []
    for name in [part.strip() for part in runs.split(",") if part.strip() and runs != "none"]:
        folder = files.join(home, name) if name in there else name
        if not files.is_dir(folder):
            known = ", ".join(there) or "none"
            raise ConfigError(f"no label run '{name}' in '{home}'{nearest(name, there)}; there are: {known}")
        folders.append(folder)
    return folders


def _dimension(column: pa.ChunkedArray) -> int:
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    return len(column[0].as_py()) if pa.types.is_list(column.type) and len(column) else 0


@lru_cache(maxsize=4)
def _table(folder: str, run: str, shard: str) -> pa.Table:
    return LabelRun.open(run, ShardSet.open(folder)).table(shard)


def labels_of(folder: str, shard: str, key: str, n_frames: int, column: LabelColumn) -> NDArray[np.float32]:
    """Returns one label column of one clip, a row per frame, NaN where a frame has no label.

    Codes and votes come as float32, too, which holds them exactly: LeRobot's readers know no missing whole number.

    Returns:
        float32 [T] or [T, D].

    Raises:
        SkipItemError: ``bad_labels``: frames that the clip does not have, or vectors of another length.
    """
    table = _table(folder, column.run, shard)
    table = table.filter(pc.equal(table["key"], key))
    values = np.full((n_frames, column.dim) if column.dim else n_frames, np.nan, np.float32)
    frames = table["frame"].to_numpy()
    rows: list[Any] = table[column.source].to_pylist()
    whole = len(set(frames.tolist())) == len(frames) and all(0 <= frame < n_frames for frame in frames)
    if not whole or any(len(row or []) != column.dim for row in rows if column.dim):
        detail = f"{column.run}: the labels '{column.source}' of clip {key} do not fit its {n_frames} frames"
        raise SkipItemError("bad_labels", detail)
    if rows:
        values[frames] = np.asarray(rows, np.float32)
    return values
