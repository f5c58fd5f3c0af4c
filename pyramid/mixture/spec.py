"""The mixture file: tiers, sources, weights; checked when it is read, before anything is opened.

What the shares mean for the order of samples is left to `pyramid.mixture.schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pyramid import files
from pyramid.config import from_dict, load_config_file
from pyramid.errors import ConfigError, nearest
from pyramid.types import NAME_PATTERN, TIERS

Use = Literal["action", "pseudo", "latent"]


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One shard folder, seen in one way."""

    shards: str
    """Shard folder; relative to the mixture file."""
    use: Use
    """What is learned from it: measured actions, an IDM's pseudo-actions, or a LAM's latent actions."""
    labels: str = ""
    """Folder of the label run for pseudo and latent; relative to the mixture file."""
    weight: float = 1.0
    """Share within its tier, relative to the tier's other sources."""
    embodiment: str = ""
    """Slot of the policy, [a-z0-9_]+; empty takes the clips' own, with _pseudo or _latent."""

    def __post_init__(self) -> None:
        """Refuses weights that are no shares, and labels that do not go with the use."""
        _check_weight(self.weight)
        if (self.use == "action") != (self.labels == ""):
            raise ValueError(f"use: {self.use} goes {'without' if self.use == 'action' else 'with'} a label run")
        if self.embodiment and not NAME_PATTERN.fullmatch(self.embodiment):
            raise ValueError(f"embodiment '{self.embodiment}': use a-z, 0-9 and _")


@dataclass(frozen=True, kw_only=True)
class TierSpec:
    """One level of the pyramid."""

    weight: float
    """Share of the whole, relative to the other tiers."""
    sources: dict[str, SourceSpec]
    """Sources by name."""

    def __post_init__(self) -> None:
        """Refuses weights that are no shares."""
        _check_weight(self.weight)
        if not self.sources or not any(source.weight > 0 for source in self.sources.values()):
            raise ValueError("a tier needs a source with a weight above 0")


@dataclass(frozen=True, kw_only=True)
class MixtureSpec:
    """A data pyramid."""

    tiers: dict[str, TierSpec]
    """Levels by name: base, middle, top."""
    unit: Literal["samples"] = "samples"
    """What the weights count: training samples."""
    horizon: int = 8
    """Steps of an action chunk."""
    seed: int = 0
    """Decides the order within each source."""
    cache_mb: int = 512
    """Bound of the decoded frames kept in memory, MiB, over all sources."""
    folder: str = field(default="", metadata={"internal": True})
    """Where the file lies; set when it is read."""

    def __post_init__(self) -> None:
        """Refuses tiers that are none, and names that stand twice."""
        for name in self.tiers:
            if name not in TIERS:
                raise ValueError(f"unknown tier '{name}'{nearest(name, TIERS)}; known: {', '.join(TIERS)}")
        if not any(tier.weight > 0 for tier in self.tiers.values()):
            raise ValueError("a mixture needs a tier with a weight above 0")
        names = [name for tier in self.tiers.values() for name in tier.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the source '{twice[0]}' stands in two tiers; names are unique in a mixture")
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")

    def sources(self) -> Iterator[tuple[str, str, SourceSpec]]:
        """Yields ``(tier, name, source)`` of all sources with a share, base first."""
        for tier in TIERS:
            if tier in self.tiers and self.tiers[tier].weight > 0:
                for name, source in self.tiers[tier].sources.items():
                    if source.weight > 0:
                        yield tier, name, source

    def shares(self) -> dict[str, Fraction]:
        """Returns each source's exact share of all samples; they sum to 1."""
        tiers = {t: Fraction(str(s.weight)) for t, s in self.tiers.items()}
        total = sum(tiers.values())
        shares = {}
        for tier, name, source in self.sources():
            inner = sum(Fraction(str(s.weight)) for s in self.tiers[tier].sources.values())
            shares[name] = tiers[tier] / total * Fraction(str(source.weight)) / inner
        return shares

    def path(self, place: str) -> str:
        """Returns a path of the mixture file, taken relative to the file."""
        if files.is_remote(place) or Path(place).is_absolute() or not self.folder:
            return place
        return files.join(self.folder, place)


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"a weight must be a finite number, at least 0, got {weight}")


def read_mixture(path: str) -> MixtureSpec:
    """Reads a mixture file.

    Raises:
        ConfigError: not there, not YAML, an unknown key, or weights that make no mixture.
    """
    data, origin = load_config_file(path)
    if "folder" in data:
        raise ConfigError(f"{origin}: unknown key 'folder'")
    if "tiers" not in data:
        raise ConfigError(f"{origin}: a mixture needs 'tiers' with base, middle or top")
    folder = origin.rpartition("/")[0] or "."
    return from_dict(MixtureSpec, {**data, "folder": folder}, origin)


def with_weights(spec: MixtureSpec, weights: Mapping[str, float]) -> MixtureSpec:
    """Returns the mixture with other shares; every source stays in its tier.

    Args:
        spec: a mixture.
        weights: weight of each source relative to all others, of any tier; a source that is not named gets none.

    Raises:
        ConfigError: a name that no source has, or weights that make no mixture.
    """
    known = [name for tier in spec.tiers.values() for name in tier.sources]
    if unknown := [name for name in weights if name not in known]:
        raise ConfigError(f"no source '{unknown[0]}'{nearest(unknown[0], known)}; sources: {', '.join(known)}")
    tiers = {}
    try:
        for name, tier in spec.tiers.items():
            own = {source: weights.get(source, 0.0) for source in tier.sources}
            total = float(sum(Fraction(str(weight)) for weight in own.values()))
            # A level without any share keeps its sources in the file: their weights then say nothing.
            sources = {n: replace(s, weight=own[n] if total else 1.0) for n, s in tier.sources.items()}
            tiers[name] = replace(tier, weight=total, sources=sources)
        return replace(spec, tiers=tiers)
    except ValueError as error:
        raise ConfigError(f"these weights make no mixture: {error}") from error


def describe(spec: MixtureSpec) -> dict[str, Any]:
    """Returns what of a spec decides the batches, without where the file lies."""
    from pyramid.config import to_dict

    data = to_dict(spec)
    return {key: value for key, value in data.items() if key not in ("folder", "cache_mb")}
