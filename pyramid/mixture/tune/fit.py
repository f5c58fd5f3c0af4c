"""From measured runs to a predicted best mixture: a regressor per target by cross-validation, resampled for intervals.

Running proxies is left to `runs`, what is done with the answer to `regress`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError
from pyramid.mixture.tune.config import LAW_NAMES, DesignConfig, LawName, TuneConfig
from pyramid.mixture.tune.design import Shares, capped, rounded, within
from pyramid.mixture.tune.laws import LAWS, Array, Fit
from pyramid.rng import rng

_REFINED = 400
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which regressor predicts a target, and how well."""

    law: LawName
    """The regressor with the smallest error on held-out runs."""
    errors: dict[LawName, float]
    """Error of each regressor on runs that it had not seen, see `miss`."""
    held_out: list[float]
    """The chosen one's prediction of each run, made without that run."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The mixture that is predicted to be best, with what is unsure about it."""

    shares: Shares
    """[K], sum 1: where the mean over all resampled fits is lowest."""
    low: Shares
    """[K]: lower ends of the intervals of the shares."""
    high: Shares
    """[K]: upper ends."""
    loss: tuple[float, float, float]
    """Predicted objective there: mean, lower and upper end."""
    picked: dict[str, dict[str, int]]
    """How often each regressor was chosen for each target, over the resampled fits."""


Ensemble = list[dict[str, Fit]]
"""One dictionary of fits by target for each resampling."""


def objective(config: TuneConfig, losses: Mapping[str, Any]) -> Any:
    """Returns what is to be made small: the weighted mean or the worst of the losses (floats, or arrays) by target."""
    weights = config.targets or dict.fromkeys(losses, 1.0)
    kept = {name: weight for name, weight in weights.items() if weight > 0}
    values = np.stack([np.asarray(losses[name], np.float64) for name in kept])
    if config.objective == "worst":
        return values.max(0)
    return np.tensordot(np.array(list(kept.values())) / sum(kept.values()), values, 1)


def _fitted(law: LawName, x: Array, y: Array, start: Any = None) -> Fit | None:
    try:
        return LAWS[law](x, y, start)
    except (ValueError, np.linalg.LinAlgError):
        return None  # This law does not take these numbers; another will.


def miss(guess: Array, y: Array) -> float:
    """Returns the root mean square of the relative errors where all losses are above 0, else of the plain ones.

    What matters is the shape around the best mixtures; plain errors would be ruled by the worst ones.
    """
    return float(np.sqrt(np.mean(((guess - y) / (y if y.min() > 0 else 1.0)) ** 2)))


def choose(laws: Sequence[LawName], x: Array, y: Array, *, folds: int, seed: int) -> Choice:
    """Picks the regressor of one target by k-fold cross-validation.

    Args:
        laws: candidates.
        x: mixtures [N, K].
        y: losses [N].
        folds: parts; at most N.
        seed: decides which run is in which part.

    Raises:
        DataError: none of the laws can be fitted to these runs.
    """
    part = rng(seed, "tune", "folds").permutation(len(y)) % min(folds, len(y))
    guesses: dict[LawName, Array] = {}
    for law in laws:
        guess = np.full(len(y), np.nan)
        for fold in range(min(folds, len(y))):
            test = part == fold
            fit = _fitted(law, x[~test], y[~test])
            if fit is not None:
                guess[test] = fit.predict(x[test])
        if np.isfinite(guess).all():
            guesses[law] = guess
    if not guesses:
        raise DataError(f"none of {', '.join(laws)} can be fitted to {len(y)} runs; make more, or allow other laws")
    errors = {law: miss(guess, y) for law, guess in guesses.items()}
    best = min(errors, key=lambda law: errors[law])
    return Choice(law=best, errors=errors, held_out=[float(v) for v in guesses[best]])


def resample(
    config: TuneConfig, x: Array, losses: Mapping[str, Array], laws: Mapping[str, Sequence[LawName]]
) -> tuple[Ensemble, dict[str, dict[str, int]]]:
    """Fits every target again to resampled runs; each time the regressor is picked by the runs left out.

    So the spread of the ensemble holds both what the runs' noise and what the choice of a regressor leave open.
    """
    starts = {
        (t, law): fit.start for t, y in losses.items() for law in laws[t] if (fit := _fitted(law, x, y)) is not None
    }
    ensemble: Ensemble = []
    picked: dict[str, dict[str, int]] = {t: {} for t in losses}
    for number in range(config.regress.bootstrap):
        rows, out = _resampled_rows(config.seed, number, len(x))
        fits = {}
        for target, y in losses.items():
            tried = {
                law: fit for law in laws[target] if (fit := _fitted(law, x[rows], y[rows], starts.get((target, law))))
            }
            if not tried:
                raise DataError(f"target '{target}': no regressor can be fitted to {len(x)} runs; make more")
            errors = {law: miss(fit.predict(x[out]), y[out]) for law, fit in tried.items()}
            best = min(errors, key=lambda law: errors[law])
            fits[target] = tried[best]
            picked[target][best] = picked[target].get(best, 0) + 1
        ensemble.append(fits)
    return ensemble, picked


def _resampled_rows(seed: int, number: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the rows of a bootstrap draw, and which rows it left out (at least two)."""
    generator = rng(seed, "tune", "bootstrap", number)
    while True:
        rows = np.sort(generator.integers(0, n, n))
        out = ~np.isin(np.arange(n), rows)
        if out.sum() >= 2:
            return rows, out


def predicted(config: TuneConfig, ensemble: Ensemble, shares: Array) -> Array:
    """Returns the objective that each fit of the ensemble predicts for mixtures [N, K]; [B, N]."""
    return np.stack([objective(config, {t: fit.predict(shares) for t, fit in fits.items()}) for fits in ensemble])


def best_mixture(config: TuneConfig, ensemble: Ensemble, x: Array, picked: dict[str, dict[str, int]]) -> Prediction:
    """Returns where the ensemble's mean is lowest, and how far the single fits' own best mixtures lie around it."""
    level = config.regress.level
    pool = np.concatenate([x[within(x, config.design)], _pool(config, x.shape[1])])
    shares = rounded(_search(config, ensemble, pool, key="all"))
    own = np.stack([_search(config, [fits], pool, key=f"one {i}") for i, fits in enumerate(ensemble)])
    low, high = np.quantile(own, [(1 - level) / 2, (1 + level) / 2], axis=0)
    losses = predicted(config, ensemble, shares[None])[:, 0]
    ends = np.quantile(losses, [(1 - level) / 2, (1 + level) / 2])
    return Prediction(
        shares=shares,
        low=np.minimum(low, shares),
        high=np.maximum(high, shares),
        loss=(float(losses.mean()), float(ends[0]), float(ends[1])),
        picked=picked,
    )


def _pool(config: TuneConfig, n_sources: int) -> Array:
    """Returns mixtures from all over the simplex that keep the bounds."""
    generator = rng(config.seed, "tune", "pool")
    wide = generator.dirichlet(np.ones(n_sources), config.regress.pool)
    # Equal shares keep any bounds that some mixture keeps: pulled towards them, a draw comes inside.
    pull = generator.random((config.regress.pool, 1)) if _bounded(config.design) else np.zeros((config.regress.pool, 1))
    pool = np.concatenate([wide * (1 - pull) + pull / n_sources, np.full((1, n_sources), 1 / n_sources)])
    pool = capped(pool, config.design)
    return np.asarray(pool[within(pool, config.design)], np.float64)


def _bounded(config: DesignConfig) -> bool:
    return config.min_share > 0 or config.max_share < 1


def _search(config: TuneConfig, ensemble: Ensemble, pool: Array, *, key: str) -> Shares:
    """Finds the mixture with the lowest mean prediction: a pool, then draws ever closer around the best so far."""
    best = pool[int(np.argmin(predicted(config, ensemble, pool).mean(0)))]
    for turn in range(_ROUNDS):
        generator = rng(config.seed, "tune", "search", key, turn)
        near = capped(generator.dirichlet(np.maximum(best, 1e-3) * 30 * 5**turn + 1e-3, _REFINED), config.design)
        near = np.concatenate([best[None], near[within(near, config.design)]])
        best = near[int(np.argmin(predicted(config, ensemble, near).mean(0)))]
    return np.asarray(best, np.float64)


def fit_all(
    config: TuneConfig, x: Array, losses: Mapping[str, Array]
) -> tuple[dict[str, Choice], Ensemble, Prediction]:
    """Picks a regressor for each target, resamples them, and finds the best mixture.

    Args:
        config: whole config.
        x: mixtures [N, K].
        losses: held-out losses [N] by target; those that the objective leaves out are not fitted.
    """
    kept = {t: losses[t] for t in config.targets or losses if not config.targets or config.targets[t] > 0}
    laws = [law for law in LAW_NAMES if law in config.regress.laws]
    folds, seed = config.regress.folds, config.seed
    choices = {t: choose(laws, x, y, folds=folds, seed=seed) for t, y in kept.items()}
    ensemble, picked = resample(config, x, kept, {t: list(c.errors) for t, c in choices.items()})
    return choices, ensemble, best_mixture(config, ensemble, x, picked)
