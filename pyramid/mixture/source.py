"""One source of a mixture, opened: its items, their pictures, their actions, its statistics.

Which item comes when is left to `pyramid.mixture.schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import DataError
from pyramid.labels.table import LabelRun
from pyramid.mixture.spec import MixtureSpec
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import ShardSet
from pyramid.types import Embodiment, Split

_LABEL_COLUMN = {"pseudo": "action", "latent": "latent"}


@dataclass(frozen=True)
class Chunk:
    """What one item teaches."""

    action: NDArray[np.float32]
    """float32 [H, D], physical units; rows past the end are 0."""
    mask: NDArray[np.bool_]
    """bool [H]: False past the end of the clip."""
    state: NDArray[np.float32]
    """float32 [S], physical units; S = 0 without proprioception."""


class Source:
    """A shard folder seen in one way: measured actions, pseudo-actions or latent actions.

    An item is a time step of a clip at which a chunk of actions starts.

    Raises:
        DataError: no clips of the split, no actions, or labels that do not fit the shards; the source is named.
    """

    def __init__(
        self, name: str, tier: str, mixture: MixtureSpec, *, split: Split, cache_mb: int, size_px: int
    ) -> None:
        spec = mixture.tiers[tier].sources[name]
        self.name, self.tier, self.spec = name, tier, spec
        self.shards = ShardSet.open(mixture.path(spec.shards))
        self.rows = [i for i, row in enumerate(self.shards.rows) if row["split"] == split]
        if not self.rows:
            raise DataError(f"source '{name}': no clip of split '{split}' in '{self.shards.folder}'")
        self.frames = ClipFrames([(self.shards, i) for i in self.rows], size_px=size_px, cache_mb=cache_mb)
        self.labels = LabelRun.open(mixture.path(spec.labels), self.shards) if spec.labels else None
        # Per clip: the frame and the values of each step at which a chunk may start.
        self._steps: list[NDArray[np.int32]]
        self._values: list[NDArray[np.float32]]
        self._states: list[NDArray[np.float32]]
        if self.labels is None:
            self._read_actions()
        else:
            self._read_labels(self.labels)
        sizes = [len(steps) for steps in self._steps]
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if not self._first[-1]:
            raise DataError(f"source '{name}': none of its {len(self.rows)} clips holds an action to learn from")
        self.embodiment = self._embodiment(mixture.horizon)

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def digest(self) -> str:
        """Digest of the clips and labels."""
        labels = str(self.labels.metadata.get("labeler_digest", "")) if self.labels else ""
        return files.digest([self.shards.digest, labels])

    @property
    def n_frames(self) -> int:
        """Frames in all clips of the split."""
        return sum(self.shards.rows[i]["frames"] for i in self.rows)

    @property
    def hours(self) -> float:
        """Length of all clips of the split."""
        return float(sum(self.shards.rows[i]["duration_s"] for i in self.rows)) / 3600

    def _read_actions(self) -> None:
        kept = [i for i in self.rows if self.shards.rows[i]["action_dim"]]
        if not kept:
            raise DataError(f"source '{self.name}': no clip in '{self.shards.folder}' has measured actions")
        samples = {i: self.shards.read(i) for i in kept}
        width = {s.action.shape[1] for s in samples.values() if s.action is not None}
        if len(width) > 1:
            raise DataError(f"source '{self.name}': actions of {sorted(width)} dimensions in one shard folder")
        empty = np.zeros((0, 0), np.float32)
        self._values = [_array(samples[i].action) if i in samples else empty for i in self.rows]
        self._states = [_array(samples[i].state) if i in samples else empty for i in self.rows]
        self._steps = [np.arange(len(values), dtype=np.int32) for values in self._values]

    def _read_labels(self, run: LabelRun) -> None:
        column = _LABEL_COLUMN[self.spec.use]
        tables = pa.concat_tables([run.table(shard) for shard in self.shards.shards])
        needed = [column, "codes"] if self.spec.use == "latent" else [column]
        if missing := [name for name in needed if name not in tables.column_names]:
            use = self.spec.use
            raise DataError(f"source '{self.name}': '{run.folder}' has no column '{missing[0]}' for use: {use}")
        keys = tables["key"].to_pylist()
        frames = tables["frame"].to_numpy().astype(np.int32)
        values = _matrix(tables[column], f"source '{self.name}', column '{column}'")
        self.gap_s = float(tables["gap_s"][0].as_py()) if len(keys) else 0.0
        self._tokens = 1
        if self.spec.use == "latent" and len(keys):
            # A token may have several codes, or none: the labeler says how many tokens there are.
            self._tokens = int(run.metadata.get("config", {}).get("n_tokens") or len(tables["codes"][0].as_py() or [1]))
        spans = _spans(keys)
        none = (0, 0)
        span = [spans.get(self.shards.rows[i]["key"], none) for i in self.rows]
        if keys and not self.gap_s > 0:
            raise DataError(f"source '{self.name}': '{run.folder}' has a gap_s of {self.gap_s}; label again")
        for i, (a, b) in zip(self.rows, span, strict=True):
            if b > a and not 0 <= frames[a:b].min() <= frames[a:b].max() < self.shards.rows[i]["frames"]:
                key = self.shards.rows[i]["key"]
                raise DataError(f"source '{self.name}': '{run.folder}' labels frames that clip {key} does not have")
        self._steps = [frames[a:b] for a, b in span]
        self._values = [values[a:b] for a, b in span]
        self._states = [np.zeros((b - a, 0), np.float32) for a, b in span]

    def _embodiment(self, horizon: int) -> Embodiment:
        bodies = sorted({self.shards.rows[i]["embodiment"] for i in self.rows})
        suffix = "" if self.spec.use == "action" else f"_{self.spec.use}"
        name = self.spec.embodiment or "_".join(bodies) + suffix
        width = next(values.shape[1] for values in self._values if len(values))
        if self.spec.use == "latent":
            return Embodiment(
                name=name,
                state_dim=0,
                action_dim=width // self._tokens,
                horizon=self._tokens,
                rate_hz=1 / self.gap_s,
                label="latent",
            )
        state = next(states.shape[1] for states in self._states if len(states))
        rates = sorted({self.shards.rows[i]["rate_hz"] for i in self.rows})
        # Pseudo-actions come at the rate of the model that made them.
        rate = rates[0] if self.labels is None else self._label_rate(rates[0])
        if self.labels is None and len(rates) > 1:
            raise DataError(f"source '{self.name}': actions at {rates[0]} and {rates[-1]} Hz in one shard folder")
        label = "action" if self.labels is None else "pseudo"
        return Embodiment(
            name=name,
            state_dim=state,
            action_dim=width,
            horizon=horizon,
            rate_hz=rate,
            label=label,  # type: ignore[arg-type]
        )

    def _label_rate(self, default: float) -> float:
        assert self.labels is not None  # noqa: S101
        return float(self.labels.metadata.get("config", {}).get("rate_hz", default))

    def locate(self, item: int) -> tuple[int, int]:
        """Returns an item's clip (number among the split's clips) and its step in that clip."""
        clip = int(np.searchsorted(self._first, item, side="right")) - 1
        return clip, item - int(self._first[clip])

    def row(self, clip: int) -> dict[str, Any]:
        """Returns the index row of a clip."""
        return self.shards.rows[self.rows[clip]]

    def image(self, clip: int, step: int) -> NDArray[np.uint8]:
        """Returns the frame at which a chunk starts, uint8 [H, W, 3], RGB."""
        pixels = self.frames.frames(clip, [int(self._steps[clip][step])])[0]
        return np.asarray(pixels.permute(1, 2, 0).numpy())

    def chunk(self, clip: int, step: int) -> Chunk:
        """Returns what is to be learned at a step."""
        body = self.embodiment
        values = self._values[clip]
        if body.label == "latent":
            latent = values[step].reshape(body.horizon, body.action_dim)
            return Chunk(latent, np.ones(body.horizon, bool), self._states[clip][step])
        rows = values[step : step + body.horizon]
        action = np.zeros((body.horizon, body.action_dim), np.float32)
        action[: len(rows)] = rows
        return Chunk(action, np.arange(body.horizon) < len(rows), self._states[clip][step])

    @cached_property
    def action_rows(self) -> NDArray[np.float32]:
        """All actions, float32 [N, D], for statistics; the tokens of latent actions count as rows."""
        rows = np.concatenate([values for values in self._values if len(values)])
        return rows.reshape(-1, self.embodiment.action_dim)

    @cached_property
    def state_rows(self) -> NDArray[np.float32]:
        """All states, float32 [N, S]."""
        return np.concatenate([states for states in self._states if len(states)])


def _array(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32) if values is None else np.asarray(values, np.float32)


def _matrix(column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
    array = column.combine_chunks()
    flat: NDArray[np.float32] = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    if len(array) == 0:
        return np.zeros((0, 1), np.float32)
    if len(flat) % len(array) or not np.isfinite(flat).all():
        raise DataError(f"{where}: rows of different lengths, or values that are not finite")
    matrix: NDArray[np.float32] = flat.reshape(len(array), -1)
    return matrix


def _spans(keys: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Returns first and last row of each key; the rows of a key stand together."""
    spans: dict[str, tuple[int, int]] = {}
    for i, key in enumerate(keys):
        start, _ = spans.get(key, (i, i))
        spans[key] = (start, i + 1)
    return spans


def statistics(sources: Sequence[Source]) -> dict[str, dict[str, Normalizer]]:
    """Fits the normalisers of every embodiment on all of its sources' rows, pooled.

    Actions and states are mapped by their 1 % and 99 % quantiles, latent actions to zero mean and unit spread.

    Raises:
        DataError: two sources of one embodiment differ in sizes.
    """
    found: dict[str, dict[str, Normalizer]] = {}
    for name in dict.fromkeys(source.embodiment.name for source in sources):
        members = [source for source in sources if source.embodiment.name == name]
        first = members[0].embodiment
        for source in members[1:]:
            if source.embodiment != first:
                raise DataError(
                    f"embodiment '{name}': source '{members[0].name}' says {first.to_dict()}, "
                    f"source '{source.name}' says {source.embodiment.to_dict()}; give them different embodiments"
                )
        kind = "mean_std" if first.label == "latent" else "q01_q99"
        found[name] = {"action": fit_normalizer(np.concatenate([s.action_rows for s in members]), kind)}  # type: ignore[arg-type]
        if first.state_dim:
            found[name]["state"] = fit_normalizer(np.concatenate([s.state_rows for s in members]), "q01_q99")
    return found
