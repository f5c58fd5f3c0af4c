"""The log of what a training run was given: position, source and key of every sample, exact across stops and resumes.

One Parquet file for the steps between two checkpoints, written before the later one. What follows the checkpoint that a
run goes on from is forgotten and written again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.errors import DataError

FOLDER = "drawn"
_COLUMNS = ("position", "source", "key", "replaced")


class DrawnLog:
    """Writes the log of one run.

    Args:
        out: the model folder.
        mixture: the mixture file that is trained on.
        digest: digest of the mixture and its data.
        batch_size: samples of a step.
    """

    def __init__(self, out: str, *, mixture: str, digest: str, batch_size: int) -> None:
        self.folder = files.join(out, FOLDER)
        # Relative, so that a folder that holds both can be moved.
        near = not files.is_remote(mixture) and not files.is_remote(out)
        place = os.path.relpath(mixture, out) if near else mixture
        self._facts = {"mixture": place, "mixture_digest": digest, "batch_size": batch_size}
        self._first = self._next = self._rank = 0
        self._rows: list[dict[str, Any]] = []

    def begin(self, step: int, rank: int = 0) -> None:
        """Forgets what this rank wrote of ``step`` and after."""
        self._first = self._next = step
        self._rank, self._rows = rank, []
        for name in _names(self.folder):
            first, writer = map(int, name.removesuffix(".parquet").split("-"))
            if writer == rank and first >= step:
                files.remove(files.join(self.folder, name))

    def add(self, step: int, batch: Any) -> None:
        """Takes in the batch of a step: groups as in `pyramid.mixture.batch`."""
        self._next = step + 1
        for group in batch:
            replaced = group.replaced or (False,) * len(group.key)
            rows = zip(group.position.tolist(), group.source, group.key, replaced, strict=True)
            self._rows += [dict(zip(_COLUMNS, row, strict=True)) for row in rows]

    def flush(self) -> None:
        """Writes the steps since the last time."""
        if not self._rows:
            return
        self._rows.sort(key=lambda row: int(row["position"]))
        table = pa.Table.from_pylist(self._rows)
        files.make_dirs(self.folder)
        parquet.write(files.join(self.folder, f"{self._first:012d}-{self._rank:05d}.parquet"), table, self._facts)
        self._first, self._rows = self._next, []


@dataclass(frozen=True)
class DrawnSamples:
    """What a run was given, read back."""

    mixture: str
    """The mixture file."""
    digest: str
    """Digest of the mixture and its data."""
    position: NDArray[np.int64]
    """int64 [N]: places in the global order."""
    source: NDArray[Any]
    """[N]: names of the sources."""
    key: NDArray[Any]
    """[N]: keys of the clips."""
    replaced: NDArray[np.bool_]
    """bool [N]: whether the sample stood in for one that could not be read."""


def read_drawn(run: str) -> DrawnSamples:
    """Reads the log of a model folder.

    Raises:
        DataError: there is none, or its files are of several runs.
    """
    folder = files.join(run, FOLDER)
    names = _names(folder)
    if not names:
        raise DataError(f"'{run}' has no log of drawn samples ({FOLDER}/); 'pyramid train vla' writes one")
    facts = [parquet.metadata(files.join(folder, name)) for name in names]
    if any(f.get("mixture_digest") != facts[0].get("mixture_digest") for f in facts):
        raise DataError(f"'{folder}' holds the logs of several mixtures; start over with --no-resume")
    table = pa.concat_tables([parquet.read(files.join(folder, name), list(_COLUMNS)) for name in names])
    table = table.sort_by("position")
    columns = {name: table[name].to_numpy() for name in _COLUMNS}
    place = str(facts[0]["mixture"])
    mixture = place if files.is_remote(place) else os.path.normpath(Path(run, place))
    return DrawnSamples(mixture=mixture, digest=str(facts[0]["mixture_digest"]), **columns)


def _names(folder: str) -> list[str]:
    return [name for name in files.listdir(folder) if name.endswith(".parquet")]
