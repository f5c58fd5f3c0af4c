"""How good the labels of videos are, against the true actions that the simulator knows and no model was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from proofs.corpus import Corpus

from lam.probes import ProbeData, r2_score, ridge_probe
from pyramid import files
from pyramid.shards.reader import ShardSet

STEPS = 4
"""Labels and actions are compared as means over so many steps: single steps are mostly noise of the expert."""
_HELD = 5
"""Every so manieth clip is held out from the probe."""

Array = NDArray[np.float64]


def true_actions(corpus: Corpus) -> dict[str, Array]:
    """Returns the true actions of each robot video, float64 [T, 4], by the key of its sample without any."""
    known = {_episode(row): row["key"] for row in ShardSet.open(corpus.videos).rows}
    shards = ShardSet.open(corpus.true)
    found = {}
    for number, row in enumerate(shards.rows):
        action = shards.read(number).action
        if action is not None and _episode(row) in known:
            found[known[_episode(row)]] = action.astype(np.float64)
    return found


def pseudo_quality(labels: str, truth: Mapping[str, Array]) -> dict[str, list[float | None]]:
    """Returns R2 and the ratio of spreads of pseudo-actions, a number for each dimension."""
    pairs = []
    for key, rows in _tables(labels, ("key", "frame", "action")):
        said, meant = np.stack(rows["action"]), truth[key][rows["frame"]]
        n = len(said) // STEPS * STEPS
        pairs.append([part[:n].reshape(-1, STEPS, part.shape[1]).mean(1) for part in (said, meant)])
    said, meant = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return {"r2": _rounded(r2_score(meant, said)), "std_ratio": (said.std(0) / meant.std(0)).round(4).tolist()}


def probe_quality(labels: str, truth: Mapping[str, Array], rate_hz: float) -> dict[str, list[float | None]]:
    """Returns R2 of a ridge probe from latents to the mean action over their gap, on clips that it did not see."""
    parts = []
    for number, (key, rows) in enumerate(_tables(labels, ("key", "frame", "gap_s", "latent"))):
        steps = np.maximum(np.rint(rows["gap_s"] * rate_hz).astype(int), 1)
        spans = zip(rows["frame"], rows["frame"] + steps, strict=True)
        means = np.stack([truth[key][first:stop].mean(0) for first, stop in spans])
        parts.append(ProbeData(np.stack(rows["latent"]), means, np.full(len(means), number)))
    held, fitted = parts[::_HELD], [part for number, part in enumerate(parts) if number % _HELD]
    return {"probe_r2": _rounded(ridge_probe(_joined(fitted), _joined(held)))}


def _joined(parts: Sequence[ProbeData]) -> ProbeData:
    return ProbeData(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _episode(row: Mapping[str, Any]) -> str:
    return PurePosixPath(str(row["clip_id"]).partition("#")[0]).name


def _tables(labels: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of each clip of a label run, in order of frames."""
    for name in files.listdir(labels):
        if not name.endswith(".parquet"):
            continue
        table = pq.read_table(files.join(labels, name), columns=list(columns)).to_pandas()
        for key, rows in table.groupby("key"):
            ordered = rows.sort_values("frame")
            yield str(key), {column: ordered[column].to_numpy() for column in columns}


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 4) for value in values]
