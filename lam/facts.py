"""What a model is built from besides its config: other models' descriptions and statistics of the training data.

Plain data, saved with the model, so that it is built again without the data and without those models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ModelFacts", "Statistics", "statistics_of"]

Statistics = dict[str, dict[str, list[float]]]
"""``mean`` and ``std`` of each dimension, by embodiment."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the config alone does not say; empty for a plain model of pixels."""

    vision: dict[str, Any] = field(default_factory=dict)
    """Hugging Face config of the frozen vision model; empty without one."""
    text_dim: int = 0
    """Width of the text model's tokens; 0 without instructions."""
    stage1: dict[str, Any] = field(default_factory=dict)
    """``quantizer`` (its config) and ``n_tokens`` of the model of the first stage; empty without one."""
    bodies: list[str] = field(default_factory=list)
    """Embodiments of the training clips, for objectives that compare them; empty without any."""
    actions: Statistics = field(default_factory=dict)
    """Statistics of the mean action over a gap, for embodiments with labelled pairs."""
    states: Statistics = field(default_factory=dict)
    """Statistics of proprioception, for embodiments that have it."""


def statistics_of(rows: Mapping[str, list[NDArray[np.float32]]]) -> Statistics:
    """Returns mean and standard deviation (1 where constant) of arrays [T, D] by embodiment."""
    found: Statistics = {}
    for name in sorted(rows):
        whole = np.concatenate(rows[name]).astype(np.float64)
        whole = whole[np.isfinite(whole).all(1)]
        if len(whole):
            std = whole.std(0)
            found[name] = {"mean": whole.mean(0).tolist(), "std": np.where(std > 1e-8, std, 1.0).tolist()}
    return found
