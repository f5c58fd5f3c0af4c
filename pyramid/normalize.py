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

NormalizerKind = Literal["q01_q99", "min_max", "mean_std", "identity", "binary", "mixed"]
_TINY = 1e-6
"""Relative to the values' size: a narrower spread counts as constant."""


@dataclass(frozen=True)
class Normalizer:
    """``normalised = (x - center) / scale`` over the last axis; invertible where ``clip`` does not bite.

    With numbers of their own for each chunk step, ``center`` and ``scale`` are [T, D], over the last two axes.
    """

    kind: NormalizerKind
    """How it was fitted; ``mixed``: dimension by dimension."""
    center: NDArray[np.float32]
    """float32 [D] or [T, D], physical units."""
    scale: NDArray[np.float32]
    """The same shape, physical units; 0 marks a constant dimension, which normalises to 0."""
    clip: bool | tuple[bool, ...] = False
    """Whether normalised values are limited to [-1, 1]; of a mixed one, for each dimension."""
    switches: tuple[int, ...] = ()
    """Dimensions that are on or off: they normalise to 1 or -1, and come back as one of their two values."""
    bounded: bool | tuple[bool, ...] = False
    """Whether values are limited to [-1, 1] on the way back, too, as in GR00T N1.7; of a mixed one, by dimension."""
    halves: tuple[int, ...] = ()
    """Dimensions that are 1 above one half and else 0, either way (``binary`` of GR00T N1 and N1.5)."""

    @property
    def width(self) -> int:
        """Number of dimensions D."""
        return int(self.center.shape[-1])

    @property
    def steps(self) -> int:
        """Chunk steps T that have numbers of their own; 0 when all steps share them."""
        return len(self.center) if self.center.ndim == 2 else 0

    @property
    def clipped(self) -> NDArray[np.bool_]:
        """Bool [D]: dimensions that are limited to [-1, 1]."""
        return np.broadcast_to(np.asarray(self.clip, bool), (self.width,))

    @property
    def bounds(self) -> NDArray[np.bool_]:
        """Bool [D]: dimensions that are limited to [-1, 1] on the way back."""
        return np.broadcast_to(np.asarray(self.bounded, bool), (self.width,))

    @property
    def halved(self) -> NDArray[np.bool_]:
        """Bool [D]: dimensions that are 1 above one half and else 0."""
        return np.isin(np.arange(self.width), self.halves)

    @property
    def switched(self) -> NDArray[np.bool_]:
        """Bool [D]: dimensions that are on or off."""
        return np.isin(np.arange(self.width), self.switches)

    def normalize(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Maps physical units [..., D] (with steps [..., T, D]) to normalised float32 of the same shape."""
        self._check(x)
        scale = np.where(self.scale == 0, 1, self.scale)
        out = np.where(self.scale == 0, 0, (np.asarray(x, np.float32) - self.center) / scale)
        out = np.where(self.clipped, np.clip(out, -1, 1), out)
        return self._halved(self._sided(out)).astype(np.float32)

    def denormalize(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Maps normalised values [..., D] (with steps [..., T, D]) back to physical units, float32, the same shape."""
        self._check(x)
        out = np.asarray(x, np.float32)
        out = np.where(self.bounds, np.clip(out, -1, 1), out)
        return self._halved(self._sided(out) * self.scale + self.center).astype(np.float32)

    def _halved(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.where(self.halved, x > 0.5, x) if self.halves else x

    def _sided(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.where(self.switched & (self.scale != 0), np.where(x < 0, -1, 1), x) if self.switches else x

    def _check(self, x: NDArray[Any]) -> None:
        if np.shape(x)[-self.center.ndim :] != self.center.shape:
            steps = f" for each of {self.steps} steps" if self.steps else ""
            raise DataError(f"the normaliser has {self.width} dimensions{steps}, the values have shape {np.shape(x)}")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "kind": self.kind,
            "center": self.center.astype(float).tolist(),
            "scale": self.scale.astype(float).tolist(),
            "clip": _plain(self.clip),
            **({"switches": list(self.switches)} if self.switches else {}),
            **({"bounded": _plain(self.bounded)} if np.any(self.bounded) else {}),
            **({"halves": list(self.halves)} if self.halves else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalizer:
        """Reads what `to_dict` wrote; refuses lengths that differ and numbers that are not finite."""
        center, scale = np.asarray(data["center"], np.float32), np.asarray(data["scale"], np.float32)
        if (
            center.shape != scale.shape
            or center.ndim not in (1, 2)
            or not np.isfinite(center).all()
            or not np.isfinite(scale).all()
        ):
            raise DataError(
                f"a normaliser needs two equal lists of finite numbers, got {center.shape} and {scale.shape}"
            )
        if data["kind"] not in get_args(NormalizerKind):
            raise DataError(f"unknown normaliser kind '{data['kind']}'")
        clip, bounded, width = data["clip"], data.get("bounded", False), center.shape[-1]
        switches, halves = (tuple(int(d) for d in data.get(name, ())) for name in ("switches", "halves"))
        wrong = any(isinstance(one, list) and len(one) != width for one in (clip, bounded))
        if wrong or any(not 0 <= d < width for d in (*switches, *halves)):
            raise DataError(
                f"a normaliser of {width} dimensions cannot have clip {clip}, switches {switches}, bounded {bounded} "
                f"and halves {halves}"
            )
        return cls(data["kind"], center, scale, _each(clip), switches, _each(bounded), halves)


def _plain(flags: bool | tuple[bool, ...]) -> bool | list[bool]:
    return flags if isinstance(flags, bool) else list(flags)


def _each(flags: Any) -> bool | tuple[bool, ...]:
    return tuple(bool(one) for one in flags) if isinstance(flags, list) else bool(flags)


def fit_normalizer(values: NDArray[Any], kind: NormalizerKind) -> Normalizer:
    """Fits a normaliser to ``values`` [N, D] in physical units.

    ``q01_q99`` and ``min_max`` map that range to [-1, 1] (quantiles clip), ``mean_std`` to zero mean and unit spread;
    ``binary`` maps the two ends to -1 and 1, and what is between to the nearer one.

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
    return Normalizer(
        kind,
        center.astype(np.float32),
        np.where(is_spread(center, scale), scale, 0).astype(np.float32),
        clip=kind == "q01_q99",
        switches=tuple(range(center.shape[-1])) if kind == "binary" else (),
    )


def is_spread(center: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether values about ``center`` differ by more than rounding, bool of the same shape."""
    return np.asarray(scale > _TINY * np.maximum(1.0, np.abs(center)))


def _center_and_scale(x: NDArray[np.float64], kind: NormalizerKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if kind == "identity":
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    if kind == "mean_std":
        return x.mean(0), x.std(0)
    if kind not in ("q01_q99", "min_max", "binary"):
        raise ConfigError(f"unknown normaliser kind '{kind}'; known: {', '.join(get_args(NormalizerKind))}")
    low, high = np.quantile(x, (0.01, 0.99) if kind == "q01_q99" else (0.0, 1.0), axis=0)
    return (low + high) / 2, (high - low) / 2
