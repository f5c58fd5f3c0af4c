"""Do steps with the same label look alike? Labels of an inverse dynamics model against a latent-action model's latents.

The latents come through the labeler protocol, so that any labeler that writes ``latent`` will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, SkipItemError
from pyramid.labels.protocol import Labeler
from pyramid.rng import rng
from pyramid.shards.reader import Sample

__all__ = ["Told", "cycle_score", "pairs_of"]

_MOST = 2000
"""Pairs of frames that are compared with each other."""
_SLACK_S = 1e-3

Array = NDArray[np.float64]


class Told(NamedTuple):
    """Pairs of frames of one clip: what was done between them, and what it looks like."""

    label: Array
    """float64 [P, D]: mean label between the frames, in units of the training actions' spread."""
    truth: Array
    """float64 [P, D]: mean true action, likewise."""
    latent: Array
    """float64 [P, Z]."""


def pairs_of(
    labeler: Labeler, sample: Sample, starts_s: Array, label: NDArray[np.floating], truth: NDArray[np.floating]
) -> Told | None:
    """Joins the actions of a clip with its latents; None if it has none.

    Args:
        labeler: writes ``latent``.
        sample: the clip.
        starts_s: float64 [P], ascending times at which the steps begin, seconds.
        label: float [P, D].
        truth: float [P, D].

    Raises:
        ConfigError: a labeler that writes no latents.
    """
    try:
        [table] = labeler.label([sample])
    except SkipItemError:
        return None
    if "latent" not in table.column_names:
        raise ConfigError(
            f"labeler '{labeler.name}' writes no latent actions; give the folder of a latent-action model"
        )
    latent = np.array([np.ravel(row) for row in table["latent"].to_pylist()], np.float64)
    rows = []
    for place, (t_s, gap_s) in enumerate(zip(table["t_s"].to_pylist(), table["gap_s"].to_pylist(), strict=True)):
        first, last = np.searchsorted(starts_s, [t_s - _SLACK_S, t_s + gap_s - _SLACK_S])
        if last > first and abs(starts_s[first] - t_s) <= _SLACK_S:
            rows.append((place, slice(int(first), int(last))))
    if not rows:
        return None
    means = [np.stack([x[span].mean(0, dtype=np.float64) for _, span in rows]) for x in (label, truth)]
    return Told(means[0], means[1], latent[[place for place, _ in rows]])


def cycle_score(clips: Sequence[Told]) -> dict[str, float] | None:
    """Returns how much nearer than chance the latents of like actions are, by labels and by true actions.

    For every pair of frames the one of another clip with the nearest action is found; the score is
    ``1 - mean |z - z_near|^2 / mean |z - z_other|^2`` with z the latents, standardised: 0 for actions that say nothing
    about looks. Labels as good as the truth score as high.

    Returns:
        ``label`` and ``truth``; None for fewer than two clips.
    """
    if len(clips) < 2:
        return None
    owner = np.concatenate([np.full(len(clip.latent), number) for number, clip in enumerate(clips)])
    chosen = np.sort(rng(0, "cycle").permutation(len(owner))[:_MOST])
    owner = owner[chosen]
    label, truth, latent = (np.concatenate(column)[chosen] for column in zip(*clips, strict=True))
    latent = (latent - latent.mean(0)) / np.maximum(latent.std(0), 1e-9)
    foreign = owner[:, None] != owner[None]
    apart = _distances(latent)
    chance = apart[foreign].mean()
    scores = {}
    for name, action in (("label", label), ("truth", truth)):
        near = np.where(foreign, _distances(action), np.inf).argmin(1)
        scores[name] = float(1 - apart[np.arange(len(near)), near].mean() / chance)
    return scores


def _distances(x: Array) -> Array:
    square = (x**2).sum(1)
    return np.asarray(np.maximum(square[:, None] + square[None] - 2 * x @ x.T, 0))
