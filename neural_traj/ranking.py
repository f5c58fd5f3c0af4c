"""Judged clips against each other: copies of one another, an order from good to bad, the best of several of one task.

What a single clip is like is left to `scores` and `verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_traj.verdict import JudgeConfig, strain
from pyramid.video.filters import to_luma

_SIDE, _MOMENTS = 8, 8
KEEP, DROP = "keep", "drop"


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns what a clip looks like at eight moments, float32 [8, 8, 8] grey levels; alike for a copy.

    Args:
        pixels: uint8 [T, H, W, 3], H and W at least 8; what is over a multiple of 8 is left out.
    """
    moments = np.linspace(0, len(pixels) - 1, _MOMENTS).round().astype(int)
    luma = to_luma(pixels[moments])
    luma = luma[:, : luma.shape[1] // _SIDE * _SIDE, : luma.shape[2] // _SIDE * _SIDE]
    blocks = luma.reshape(_MOMENTS, _SIDE, luma.shape[1] // _SIDE, _SIDE, luma.shape[2] // _SIDE)
    return np.asarray(blocks.mean((2, 4)), np.float32)


def find_copies(thumbnails: Sequence[NDArray[np.float32]], most: float) -> dict[int, int]:
    """Returns for each copy the first clip that it is a copy of: no block of it differs by more than ``most`` levels.

    Means of copies are as near to each other as their blocks, so only clips of nearly equal means are compared.
    """
    means = np.array([one.mean() for one in thumbnails])
    order = np.argsort(means, kind="stable")
    twins: dict[int, int] = {}
    for place, number in enumerate(order.tolist()):
        for other in order[place + 1 :].tolist():
            if means[other] - means[number] > most:
                break
            if np.abs(thumbnails[other] - thumbnails[number]).max() <= most:
                first, second = sorted((number, other))
                twins[second] = min(first, twins.get(second, first))
    return twins


def drop_copies(rows: list[dict[str, Any]], thumbnails: Sequence[NDArray[np.float32]], most: float) -> None:
    """Sets ``duplicate_of`` of copies, and drops those that nothing else speaks against."""
    copies = find_copies(thumbnails, most) if most > 0 else {}
    for number, row in enumerate(rows):
        row["duplicate_of"] = rows[copies[number]]["item"] if number in copies else ""
        if row["duplicate_of"] and row["verdict"] == KEEP:
            row["verdict"], row["reason"] = DROP, f"duplicate of {row['duplicate_of']}"


def rank(rows: list[dict[str, Any]], config: JudgeConfig) -> None:
    """Sets ``rank``, 1 for the best: clips to keep before the others, the less strained before the more.

    With marks for instruction and physics, the better mark counts before the strain.
    """
    order = sorted(range(len(rows)), key=lambda number: (*_badness(rows[number], config), rows[number]["item"]))
    for place, number in enumerate(order):
        rows[number]["rank"] = place + 1


def _badness(row: Mapping[str, Any], config: JudgeConfig) -> tuple[Any, ...]:
    marks = [row.get(name) for name in ("follows", "physics")]
    told = [mark for mark in marks if mark is not None and not math.isnan(mark)]
    # Copies are as good as what they are copies of; damage and frozen pictures come last of all.
    place = 0 if row["verdict"] == KEEP else 1 if row["duplicate_of"] or row["reason"].startswith("not_best") else 2
    return place, -(sum(told) / len(told)) if told else 0.0, strain(row, config)


def keep_best(rows: list[dict[str, Any]], n: int) -> None:
    """Drops all but the ``n`` best of the kept clips of each instruction; needs `rank`, then to be made anew."""
    if n < 1:
        return
    taken: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        if row["verdict"] != KEEP or not row["text"]:
            continue
        taken[row["text"]] = taken.get(row["text"], 0) + 1
        if taken[row["text"]] > n:
            row["verdict"], row["reason"] = DROP, f"not_best ({taken[row['text']]} > {n} of this instruction)"
