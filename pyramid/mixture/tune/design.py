"""Mixtures to try: fixed ones, and keyed Dirichlet draws around a prior; all exact to four digits.

A mixture here is a row of float64 shares in the order of the sources; what is trained on it is left to `runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, nearest
from pyramid.mixture.spec import MixtureSpec
from pyramid.mixture.tune.config import DesignConfig, Prior
from pyramid.rng import rng

Shares = NDArray[np.float64]
_DIGITS = 10_000
_TRIES = 10_000


def rounded(shares: Shares) -> Shares:
    """Returns shares [K] as multiples of 1/10000 that sum to exactly 1, by the largest remainder."""
    scaled = shares / shares.sum() * _DIGITS
    whole = np.floor(scaled + 1e-9)
    order = np.argsort(whole - scaled, kind="stable")
    whole[order[: round(_DIGITS - whole.sum())]] += 1
    return np.asarray(whole / _DIGITS, np.float64)


def caps(spec: MixtureSpec, items: Mapping[str, float], asked: Mapping[str, float]) -> dict[str, float]:
    """Returns the largest share of each source: what is asked for, and what ``max_epochs`` of the mixture file leaves.

    Raises:
        ConfigError: a source that the mixture does not have.
    """
    for name in asked:
        if name not in items:
            raise ConfigError(f"design.max_shares: no source '{name}'{nearest(name, list(items))}")
    if not spec.max_epochs and not asked:
        return {}
    left = {name: spec.max_epochs * n / spec.budget_samples if spec.max_epochs else 1.0 for name, n in items.items()}
    return {name: min(left[name], asked.get(name, 1.0), 1.0) for name in items}


def capped(shares: Shares, config: DesignConfig) -> Shares:
    """Lowers shares [..., K] that are above ``max_shares``; the others take over in proportion, as the loader does it.

    Raises:
        ConfigError: the caps leave room for no mixture.
    """
    # One share for each source, in the order of the sources: `caps` has seen to it.
    if not config.max_shares:
        return shares
    most = np.array(list(config.max_shares.values())) - 1 / _DIGITS  # Rounding may add as much.
    if most.sum() < 1:
        raise ConfigError(f"max_epochs and max_shares leave {most.sum():.1%} of the samples to draw; raise them")
    held, now = np.zeros(shares.shape, bool), shares
    for _ in range(shares.shape[-1]):
        held |= now > most
        rest = 1 - np.where(held, most, 0).sum(-1, keepdims=True)
        free = np.where(held, 0, np.maximum(shares, 1e-9))
        now = np.where(held, most, free / np.maximum(free.sum(-1, keepdims=True), 1e-300) * rest)
    return np.asarray(now, np.float64)


def named(sources: Sequence[str], shares: Shares) -> dict[str, float]:
    """Returns shares by source."""
    return {name: round(float(share), 4) for name, share in zip(sources, shares, strict=True)}


def prior_shares(prior: Prior, amounts: Mapping[str, float], file: Mapping[str, float]) -> Shares:
    """Returns the shares that a prior means, [K].

    Args:
        prior: which.
        amounts: training samples by source.
        file: shares of the mixture file by source.
    """
    given = {"file": file, "size": amounts, "uniform": dict.fromkeys(amounts, 1.0)}[prior]
    shares = np.array([given[name] for name in amounts], np.float64)
    return np.asarray(shares / shares.sum(), np.float64)


def n_runs(config: DesignConfig, n_sources: int) -> int:
    """Returns the size of a design: what was asked for, or 8 K up to 48, at least 3 K.

    Three runs a source were enough, and eight comfortable, in a re-analysis of RegMix's published runs (arXiv
    2407.01492) with per-target regressors.
    """
    return config.runs or max(3 * n_sources, min(8 * n_sources, 48))


def fixed_mixtures(amounts: Mapping[str, float], file: Mapping[str, float], config: DesignConfig) -> dict[str, Shares]:
    """Returns the mixtures that stand in every design, by name: uniform, by size, the file's, one lopsided a source."""
    n = len(amounts)
    found = {kind: prior_shares(kind, amounts, file) for kind in ("uniform", "size", "file")}
    for place, name in enumerate(amounts):
        corner = np.full(n, (1 - config.corner_share) / max(n - 1, 1))
        corner[place] = config.corner_share
        found[f"corner {name}"] = corner
    return {name: rounded(capped(shares, config)) for name, shares in found.items()}


def within(shares: Shares, config: DesignConfig) -> NDArray[np.bool_]:
    """Tells which mixtures [..., K] keep the bounds of the config."""
    slack = 1e-4
    inside = (shares >= config.min_share - slack) & (shares <= config.max_share + slack)
    return np.asarray(inside.all(-1))


def design(
    amounts: Mapping[str, float], file: Mapping[str, float], config: DesignConfig, seed: int
) -> tuple[list[str], NDArray[np.float64]]:
    """Returns the mixtures of a design: their names, and their shares [N, K].

    The draws follow RegMix (arXiv 2407.01492): Dirichlet around a tempered prior, with strengths spread evenly on a
    logarithmic scale. The n-th draw is a pure function of the seed and n.

    Raises:
        ConfigError: bounds that hardly any mixture keeps, or fewer than two sources.
    """
    n = len(amounts)
    if n < 2:
        raise ConfigError("a mixture of one source has nothing to tune; add a second source with a weight above 0")
    if not config.min_share <= 1 / n <= config.max_share:
        raise ConfigError(f"min_share {config.min_share} and max_share {config.max_share} admit no mixture of {n}")
    rows: dict[str, Shares] = {}
    for name, shares in fixed_mixtures(amounts, file, config).items():
        if within(shares, config) and not any(np.array_equal(shares, row) for row in rows.values()):
            rows[name] = shares
    wanted = n_runs(config, n)
    if len(rows) > wanted:
        raise ConfigError(
            f"a design of {wanted} runs has no room for its {len(rows)} fixed mixtures; raise design.runs"
        )
    centre = prior_shares(config.prior, amounts, file) ** config.temperature
    for number in range(wanted - len(rows)):
        low, high = np.log(config.strengths)
        strength = float(np.exp(rng(seed, "tune", "strength", number).uniform(low, high)))
        rows[f"draw {number}"] = _draw(centre / centre.sum() * n * strength, config, seed, number)
    return list(rows), np.stack(list(rows.values()))


def _draw(alpha: Shares, config: DesignConfig, seed: int, number: int) -> Shares:
    generator = rng(seed, "tune", "design", number)
    for _ in range(_TRIES):
        shares = rounded(capped(generator.dirichlet(alpha), config))
        if within(shares, config):
            return shares
    raise ConfigError("hardly any mixture keeps design.min_share and design.max_share; loosen them")
