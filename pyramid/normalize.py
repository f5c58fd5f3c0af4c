"""Normalisers between physical units and the range a network works in, in numpy alone: they also run on a robot.

Which data they are fitted on is left to whoever owns the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, DataError

NormalizerKind = Literal["q01_q99", "min_max", "mean_std", "identity"]
_TINY = 1e-6
"""Relative to the values' size: a narrower spread counts as constant."""


@dataclass(frozen=True)
class Normalizer:
    """``normalised = (x - center) / scale`` over the last axis; invertible where ``clip`` does not bite."""

    kind: NormalizerKind
    """How it was fitted."""
    center: NDArray[np.float32]
    """float32 [D], physical units."""
    scale: NDArray[np.float32]
    """float32 [D], physical units; 0 marks a constant dimension, which normalises to 0."""
    clip: bool = False
    """Whether normalised values are limited to [-1, 1]."""

    def normalize(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Maps physical units [..., D] to normalised float32 [..., D]."""
        self._check(x)
        scale = np.where(self.scale == 0, 1, self.scale)
        out = np.where(self.scale == 0, 0, (np.asarray(x, np.float32) - self.center) / scale)
        return (np.clip(out, -1, 1) if self.clip else out).astype(np.float32)

    def denormalize(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Maps normalised values [..., D] back to physical units, float32 [..., D]."""
        self._check(x)
        return (np.asarray(x, np.float32) * self.scale + self.center).astype(np.float32)

    def _check(self, x: NDArray[Any]) -> None:
        if np.shape(x)[-1:] != self.center.shape:
            raise DataError(f"the normaliser has {len(self.center)} dimensions, the values have shape {np.shape(x)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "kind": self.kind,
            "center": [float(v) for v in self.center],
            "scale": [float(v) for v in self.scale],
            "clip": self.clip,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalizer:
        """Reads what `to_dict` wrote; refuses lengths that differ and numbers that are not finite."""
        center, scale = np.asarray(data["center"], np.float32), np.asarray(data["scale"], np.float32)
        if (
            center.shape != scale.shape
            or center.ndim != 1
            or not np.isfinite(center).all()
            or not np.isfinite(scale).all()
        ):
            raise DataError(
                f"a normaliser needs two equal lists of finite numbers, got {center.shape} and {scale.shape}"
            )
        if data["kind"] not in get_args(NormalizerKind):
            raise DataError(f"unknown normaliser kind '{data['kind']}'")
        return cls(data["kind"], center, scale, bool(data["clip"]))


def fit_normalizer(values: NDArray[Any], kind: NormalizerKind) -> Normalizer:
    """Fits a normaliser to ``values`` [N, D] in physical units.

    ``q01_q99`` and ``min_max`` map that range to [-1, 1] (quantiles clip), ``mean_std`` to zero mean and unit spread.

    Raises:
        DataError: no rows, or a value that is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"statistics need values [N, D] with N > 0, got shape {x.shape}")
    if not np.isfinite(x).all():
        bad = sorted({int(d) for d in np.argwhere(~np.isfinite(x))[:, 1]})
        raise DataError(f"statistics over values that are not finite, in dimensions {bad}")
    return make_normalizer(kind, *_center_and_scale(x, kind))


def make_normalizer(kind: NormalizerKind, center: NDArray[np.float64], scale: NDArray[np.float64]) -> Normalizer:
    """Makes a normaliser of statistics [D], physical units; a spread that is only rounding counts as constant."""
    constant = scale <= _TINY * np.maximum(1.0, np.abs(center))
    return Normalizer(
        kind, center.astype(np.float32), np.where(constant, 0, scale).astype(np.float32), clip=kind == "q01_q99"
    )


def _center_and_scale(x: NDArray[np.float64], kind: NormalizerKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if kind == "identity":
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    if kind == "mean_std":
        return x.mean(0), x.std(0)
    if kind not in ("q01_q99", "min_max"):
        raise ConfigError(f"unknown normaliser kind '{kind}'; known: {', '.join(get_args(NormalizerKind))}")
    low, high = np.quantile(x, (0.01, 0.99) if kind == "q01_q99" else (0.0, 1.0), axis=0)
    return (low + high) / 2, (high - low) / 2
