"""What belongs to a training pair besides its frames: instruction, actions and states measured, boxes.

Which episodes lend their actions is a pure function of the seed and their keys. Shapes: B batch, A widest action or
state, M text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lam.config import LAMConfig
from lam.facts import ModelFacts, Statistics, statistics_of
from lam.pairs import Measured, Pair, label_pairs
from lam.text import TextEmbedder
from pyramid import parquet
from pyramid.errors import ConfigError, DataError
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames, cuts_of

__all__ = [
    "Boxes",
    "Lenders",
    "PairSignals",
    "action_statistics",
    "labelled_clips",
    "mean_action",
    "state_statistics",
]

_STATE_CLIPS = 64
"""Clips that the statistics of proprioception are taken from."""
_KEPT_CLIPS = 4096
"""Clips whose arrays are kept in memory."""
_COLUMNS = ("key", "frame", "x0", "y0", "x1", "y1")


def labelled_clips(clips: ClipFrames, share: float, seed: int) -> list[int]:
    """Returns the clips whose actions training may see: ``share`` of those that have any, at least one."""
    able = [i for i, row in enumerate(clips.rows) if row["action_dim"]]
    able.sort(key=lambda i: (rng(seed, "labelled", str(clips.rows[i]["key"])).random(), i))
    return sorted(able[: math.ceil(share * len(able))])


class Lenders:
    """The pairs whose action training may see: of a few clips all, or a few of all clips.

    Args:
        clips: the training clips.
        config: the model's config; it says how many, and the seed says which.
    """

    def __init__(self, clips: ClipFrames, config: LAMConfig) -> None:
        objectives, self._seed = config.objectives, config.trainer.seed
        by_pair = objectives.action_unit == "pairs"
        self._share = objectives.action_share if by_pair else 1.0
        self._keys = [str(row["key"]) for row in clips.rows]
        self.clips = labelled_clips(clips, 1.0 if by_pair else objectives.action_share, self._seed)
        """Clips that have any."""
        self._able = frozenset(self.clips)

    def lends(self, clip: int, pair: Pair) -> bool:
        """Whether a pair of a clip is one of them; its first frame decides."""
        if clip not in self._able or self._share == 1:
            return clip in self._able
        return bool(rng(self._seed, "labelled", self._keys[clip], pair.first).random() < self._share)


def mean_action(action: NDArray[np.float32] | None, pair: Pair) -> NDArray[np.float32] | None:
    """Returns the mean of the actions float32 [T, D] applied from the first frame up to the second; None if unknown."""
    mean = None if action is None else action[pair.first : pair.second].mean(0)
    return mean if mean is not None and np.isfinite(mean).all() else None


def action_statistics(clips: ClipFrames, lenders: Lenders, gap_s: float) -> Statistics:
    """Returns the statistics of the mean action over the gap, from the labelled pairs alone."""
    rows: dict[str, list[NDArray[np.float32]]] = {}
    for index in lenders.clips:
        sample = clips.sample(index)
        pairs = label_pairs(sample.times_s, gap_s, None, cuts_of(sample))
        means = [mean_action(sample.action, pair) for pair in pairs if lenders.lends(index, pair)]
        known = [mean for mean in means if mean is not None]
        if known:
            rows.setdefault(str(sample.meta["embodiment"]), []).append(np.stack(known))
    return statistics_of(rows)


def state_statistics(clips: ClipFrames, seed: int) -> Statistics:
    """Returns the statistics of proprioception over some of the clips that have it."""
    able = [i for i, row in enumerate(clips.rows) if row["state_dim"]]
    rows: dict[str, list[NDArray[np.float32]]] = {}
    for place in sorted(rng(seed, "state-clips").permutation(len(able))[:_STATE_CLIPS]):
        sample = clips.sample(able[place])
        if sample.state is not None:
            rows.setdefault(str(sample.meta["embodiment"]), []).append(sample.state)
    return statistics_of(rows)


class Boxes:
    """Boxes of frames, from a Parquet table of any detector; shares of the sides.

    Args:
        path: the table, see `lam.config.ObjectiveConfig.focus_boxes`.
    """

    def __init__(self, path: str) -> None:
        table: pa.Table = parquet.read(path)
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise DataError(f"'{path}' has no column {', '.join(missing)}; boxes need {', '.join(_COLUMNS)}")
        columns = [table[name].to_pylist() for name in _COLUMNS]
        self._boxes: dict[tuple[str, int], list[list[float]]] = {}
        for key, frame, *box in zip(*columns, strict=True):
            self._boxes.setdefault((key, frame), []).append(box)

    def around(self, key: str, pair: Pair) -> list[float]:
        """Returns the smallest box around all boxes of both frames; NaN if there is none."""
        found = [box for frame in pair[:2] for box in self._boxes.get((key, frame), [])]
        if not found:
            return [math.nan] * 4
        x0, y0, x1, y1 = zip(*found, strict=True)
        return [min(x0), min(y0), max(x1), max(y1)]


class _Arrays(NamedTuple):
    embodiment: str
    action: NDArray[np.float32] | None
    state: NDArray[np.float32] | None


class PairSignals:
    """Fills a batch of pairs with what the config asks for.

    Args:
        clips: the training clips.
        config: the model's config.
        facts: what it is built from.
        text: the text model; None without instructions.
    """

    def __init__(self, clips: ClipFrames, config: LAMConfig, facts: ModelFacts, text: TextEmbedder | None) -> None:
        self.clips, self.facts, self.text = clips, facts, text
        objectives = config.objectives
        self.lenders = Lenders(clips, config) if facts.actions else None
        self.labelled = self.lenders.clips if self.lenders else []
        self.labelled_rows = objectives.action_rows if self.labelled else 0
        self.boxes = Boxes(objectives.focus_boxes) if objectives.focus_boxes else None
        self._kept: dict[int, _Arrays] = {}

    def lends(self, clip: int, pair: Pair) -> bool:
        """Whether training may see the action of a pair of a clip."""
        return self.lenders is not None and self.lenders.lends(clip, pair)

    def of(self, drawn: Sequence[tuple[int, Pair]]) -> dict[str, Any]:
        """Returns the fields of `lam.pairs.PairBatch` for pairs, as (clip, pair) each; on the CPU."""
        fields: dict[str, Any] = {}
        if self.text is not None:
            fields["text"], fields["text_mask"] = self.text.embed([self.clips.rows[i]["text"] or "" for i, _ in drawn])
        if self.boxes is not None:
            boxes = [self.boxes.around(str(self.clips.rows[i]["key"]), pair) for i, pair in drawn]
            fields["boxes"] = torch.tensor(boxes, dtype=torch.float32)
        if self.facts.bodies:
            names = [self.facts.bodies.index(str(self.clips.rows[i]["embodiment"])) for i, _ in drawn]
            fields["body"] = torch.tensor(names)
        if self.facts.actions:
            rows = [mean_action(self._arrays(i).action, pair) if self.lends(i, pair) else None for i, pair in drawn]
            fields["action"] = self._measured(drawn, rows, self.facts.actions)
        if self.facts.states:
            states = [self._arrays(i).state for i, _ in drawn]
            for name, end in (("state", "first"), ("later", "second")):
                rows = [
                    None if s is None else s[getattr(pair, end)] for s, (_, pair) in zip(states, drawn, strict=True)
                ]
                fields[name] = self._measured(drawn, rows, self.facts.states)
        return fields

    def _measured(
        self, drawn: Sequence[tuple[int, Pair]], rows: Sequence[NDArray[np.float32] | None], statistics: Statistics
    ) -> Measured:
        names = sorted(statistics)
        width = max(len(one["mean"]) for one in statistics.values())
        values, known = torch.zeros(len(rows), width), torch.zeros(len(rows), dtype=torch.bool)
        embodiment = torch.zeros(len(rows), dtype=torch.int64)
        for place, ((index, _), row) in enumerate(zip(drawn, rows, strict=True)):
            name = self._arrays(index).embodiment if row is not None else ""
            if row is not None and name in statistics and np.isfinite(row).all():
                if len(row) != len(statistics[name]["mean"]):
                    raise ConfigError(f"clips of embodiment '{name}' differ in the number of their dimensions")
                values[place, : len(row)] = torch.tensor(row, dtype=torch.float32)
                known[place], embodiment[place] = True, names.index(name)
        return Measured(values, embodiment, known)

    def _arrays(self, clip: int) -> _Arrays:
        if clip not in self._kept:
            sample = self.clips.sample(clip)
            found = _Arrays(str(sample.meta["embodiment"]), sample.action, sample.state)
            if len(self._kept) >= _KEPT_CLIPS:
                return found
            self._kept[clip] = found
        return self._kept[clip]
