"""What a proxy is, and how one is found by name: through the entry-point group ``pyramid.proxies``.

A proxy trains something small on given weights and says how well it does on held-out data; which weights are tried is
left to the methods beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, nearest

ENTRY_POINT_GROUP = "pyramid.proxies"

Rule = Callable[[Mapping[str, NDArray[np.float64]]], Mapping[str, float]]
"""Takes the excess losses of a batch, float64 [n] by source, and returns the weight of each source in the next step."""


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """How much training data a source holds."""

    items: int
    """Training samples."""
    hours: float
    """Length, hours."""


@dataclass(frozen=True, kw_only=True)
class ProxyRun:
    """One small training run; its losses are a pure function of this and of the proxy's digest."""

    weights: dict[str, float]
    """Share of each source in the training samples, >= 0; they sum to 1."""
    budget: int
    """Optimiser steps, or whatever else the proxy counts its training in, >= 1."""
    seed: int
    """Decides initial weights, order of data and noise."""
    fractions: dict[str, float] = field(default_factory=dict)
    """Share of a source's own training data that may be seen, in (0, 1]; a source that is not named shows all of it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


@runtime_checkable
class Proxy(Protocol):
    """Anything that can be trained on a mixture in little time."""

    name: str
    """Such as ``vla``."""

    def digest(self) -> str:
        """Returns the digest of all that decides a run's losses but the run itself: data, config, code version."""
        ...

    def sizes(self) -> dict[str, SourceSize]:
        """Returns the sources that may be weighted, with their sizes, in the order of the mixture file."""
        ...

    def targets(self) -> list[str]:
        """Returns the names of the held-out losses that a run gives."""
        ...

    def run(self, run: ProxyRun) -> dict[str, float]:
        """Trains from scratch and returns the held-out loss of each target; lower is better."""
        ...


@runtime_checkable
class ReweightedProxy(Proxy, Protocol):
    """A proxy whose source weights may change at every step, against a reference model: what Re-Mix needs."""

    def reference(self, run: ProxyRun) -> Any:
        """Trains the reference model and returns it; only `train_reweighted` looks inside."""
        ...

    def train_reweighted(self, reference: Any, rule: Rule, *, budget: int, seed: int) -> None:
        """Trains a fresh model for ``budget`` steps under weights that ``rule`` sets.

        Each step draws equally many samples of every source, gives ``rule`` the losses of the model less those of the
        reference on the same samples (and the same noise), and minimises the weighted sum of the sources' mean losses.
        """
        ...


def proxy_names() -> list[str]:
    """Returns the names of all installed proxies."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def load_proxy(name: str, mixture: str, config: str = "") -> Proxy:
    """Loads an installed proxy by name.

    Args:
        name: an entry point of the group ``pyramid.proxies``: a function ``load(mixture, config) -> Proxy``.
        mixture: the mixture file.
        config: preset or YAML file of the proxy's own; empty leaves it to the proxy.

    Raises:
        ConfigError: no such proxy; the installed ones are named.
    """
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        raise ConfigError(f"no proxy '{name}'{nearest(name, found)}; installed: {', '.join(sorted(found)) or 'none'}")
    load = cast("Callable[[str, str], Proxy]", found[name].load())
    return load(mixture, config)
