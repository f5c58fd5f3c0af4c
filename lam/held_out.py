"""The pairs that an evaluation looks at, with what is known about them: clip, embodiment, action, verb.

What is measured on them is left to `lam.evaluate`. Shapes: P pairs, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam.config import LAMConfig
from lam.model import LatentActionModel
from lam.pairs import PairSampler
from lam.run import Rows, pair_context, run_pairs
from lam.signals import mean_action
from lam.views import Context
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import ShardSet
from pyramid.types import Split

__all__ = ["Pairs", "collect", "has_split", "pick_context", "run"]


class Pairs(NamedTuple):
    """P pairs in the order of their clips."""

    clip: NDArray[np.int64]
    """int64 [P]: number of each pair's clip."""
    first: Tensor
    """uint8 [P, 3, S, S]."""
    second: Tensor
    """uint8 [P, 3, S, S]."""
    context: Context
    """Gap and instruction of each."""
    embodiments: list[str]
    """Whose body each pair shows."""
    actions: list[NDArray[np.float32] | None]
    """float32 [D]: mean action over the gap; None where no action was measured."""
    verbs: list[str]
    """What is done in the clip; empty where the corpus does not say."""


def has_split(shards: str | Sequence[str], split: Split) -> bool:
    """Returns whether any of the folders has a clip of the split."""
    folders = [shards] if isinstance(shards, str) else shards
    return any(row["split"] == split for folder in folders for row in ShardSet.open(folder).rows)


def collect(shards: str | Sequence[str], split: Split, config: LAMConfig, n_pairs: int, seed: int) -> Pairs:
    """Draws a fixed list of pairs: those of a label table, so every pair has the same gap and still ones count too.

    Raises:
        DataError: no clip of the split, or none as long as the gap.
    """
    clips = ClipFrames.open(shards, split=split, size_px=config.model.image_size_px, cache_mb=config.pairs.cache_mb)
    policy = replace(config.pairs, jitter=0.0, static_policy="kept")
    sampler = PairSampler(clips, policy, seed=seed, batch_size=1)
    drawn = sorted((sampler.draw("evaluate", split, i) for i in range(n_pairs)), key=lambda item: item[:2])
    metas = [(clips.sample(index), pair) for index, pair, _ in drawn]
    first, second = (torch.stack(frames) for frames in zip(*(frames for _, _, frames in drawn), strict=True))
    texts = [clips.rows[index]["text"] or "" for index, _, _ in drawn]
    return Pairs(
        clip=np.array([index for index, _, _ in drawn], np.int64),
        first=first,
        second=second,
        context=pair_context(config, [pair.gap_s for _, pair, _ in drawn], texts),
        embodiments=[str(sample.meta["embodiment"]) for sample, _ in metas],
        actions=[mean_action(sample.action, pair) for sample, pair in metas],
        verbs=[str(sample.meta.get("verb") or "") for sample, _ in metas],
    )


def run(network: LatentActionModel, pairs: Pairs) -> Rows:
    """Returns what the model says of pairs."""
    return run_pairs(network, pairs.first, pairs.second, context=pairs.context)


def pick_context(context: Context, places: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Context:
    """Returns the context of some of the pairs."""
    wanted = places if isinstance(places, slice) else torch.from_numpy(places)
    return Context(*(None if part is None else part[wanted] for part in context))
