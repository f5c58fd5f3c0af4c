"""After the answer: runs on fresh seeds against the mixtures one would have taken anyway, and curves over hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyramid.errors import DataError
from pyramid.mixture.tune.design import Shares, capped, named, prior_shares, rounded
from pyramid.mixture.tune.fit import objective
from pyramid.mixture.tune.methods import Answer, Task
from pyramid.mixture.tune.proxy import ProxyRun, SourceSize
from pyramid.mixture.tune.runs import run_seed

LEVEL = 0.9
"""Nominal coverage of the intervals here."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One mixture in the confirming comparison."""

    weights: dict[str, float]
    """Share of each source."""
    objective: float
    """Mean over the seeds."""
    sd: float
    """Spread over the seeds."""
    losses: dict[str, float]
    """Mean held-out loss of each target."""
    gain: tuple[float, float, float]
    """How much lower the tuned mixture's objective is on the same seeds: mean, lower and upper end (t interval)."""


def mean_interval(values: Any) -> tuple[float, float, float]:
    """Returns the mean of at least two values and its 90 % t interval."""
    from scipy import stats

    given = np.asarray(values, np.float64)
    mean = float(given.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(given) - 1) * given.std(ddof=1) / np.sqrt(len(given)))
    return mean, mean - half, mean + half


def arms(task: Task, answer: Answer) -> dict[str, dict[str, float]]:
    """Returns the mixtures that are compared: tuned, uniform, by size, the file's own, and the best one tried."""
    design = task.config.design
    found = {"tuned": named(task.sources, rounded(capped(answer.shares, design)))}
    for kind in ("uniform", "size", "file"):
        found[kind] = named(task.sources, rounded(capped(prior_shares(kind, task.amounts, task.file), design)))
    return found | ({"best_seen": answer.best_seen} if answer.best_seen else {})


def confirm_runs(task: Task, compared: Mapping[str, dict[str, float]]) -> list[tuple[str, ProxyRun]]:
    """Returns the runs of all arms, arm after arm, on the same fresh seeds."""
    config = task.config
    seeds = [run_seed(config, "confirm", n) for n in range(config.confirm_seeds)]
    return [
        (name, ProxyRun(weights=weights, budget=config.budget, seed=seed))
        for name, weights in compared.items()
        for seed in seeds
    ]


def confirm(task: Task, answer: Answer) -> dict[str, Arm]:
    """Trains every arm on the same fresh seeds.

    Raises:
        DataError: fewer than two seeds on which the tuned mixture gave a loss.
    """
    config, compared = task.config, arms(task, answer)
    seeds = range(config.confirm_seeds)
    losses = task.runner.losses("confirm", confirm_runs(task, compared))
    by_arm = {name: losses[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(compared)}
    found = {}
    for name, given in by_arm.items():
        pairs = [(a, b) for a, b in zip(given, by_arm["tuned"], strict=True) if a is not None and b is not None]
        if len(pairs) < 2 and name == "tuned":
            raise DataError("the tuned mixture gave a loss on fewer than two fresh seeds; raise confirm_seeds")
        if len(pairs) > 1:
            own = np.array([objective(config, a) for a, _ in pairs])
            gain = own - np.array([objective(config, b) for _, b in pairs])
            found[name] = Arm(
                weights=compared[name],
                objective=float(own.mean()),
                sd=float(own.std(ddof=1)),
                losses={t: float(np.mean([a[t] for a, _ in pairs])) for t in pairs[0][0]},
                gain=mean_interval(gain),
            )
    return found


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Held-out loss against the hours of one source, all else unchanged: ``loss = a + b ln(hours)``."""

    hours: float
    """What there is of the source now."""
    intercept: float
    """a."""
    slope: float
    """b; below 0 where more data helps."""
    gain: tuple[float, float, float]
    """By how much the objective falls with ``factor`` times the hours: predicted, lower and upper end."""
    points: list[tuple[float, float]]
    """Hours and objective of the runs."""


def fit_curve(points: list[tuple[float, float]], hours: float, factor: float) -> Curve:
    """Fits the log-linear curve by least squares; log-linear scaling is what EgoScale (arXiv 2602.16710) reports.

    Args:
        points: hours and objective of at least three runs, at two or more different hours.
        hours: what there is now.
        factor: how many times as much the prediction is for.
    """
    from scipy import stats

    x, y = np.log([h for h, _ in points]), np.array([loss for _, loss in points])
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(len(points) - 2, 1)) * fit.stderr)
    step = float(np.log(factor))
    slope, intercept = float(fit.slope), float(fit.intercept)
    gain = (-slope * step, (-slope - half) * step, (-slope + half) * step)
    return Curve(hours=hours, intercept=intercept, slope=slope, gain=gain, points=points)


def scaling_runs(task: Task, shares: Shares) -> list[tuple[str, ProxyRun]]:
    """Returns the runs on parts of each source that has a share."""
    config = task.config
    weights, parts = named(task.sources, shares), sorted(set(config.scaling.fractions))
    return [
        (
            f"{source} x {part:g}",
            ProxyRun(
                weights=weights,
                budget=config.budget,
                seed=run_seed(config, "scaling", n),
                fractions={source: part} if part < 1 else {},
            ),
        )
        for source in task.sources
        if weights[source] > 0
        for part in parts
        for n in range(config.scaling.seeds)
    ]


def scaling(task: Task, shares: Shares, sizes: Mapping[str, SourceSize]) -> dict[str, Curve]:
    """Trains on parts of each source in turn, at the chosen weights, and fits a curve for each source with a share."""
    config, asked = task.config, scaling_runs(task, shares)
    if not asked:
        return {}
    losses = task.runner.losses("scaling", asked)
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, _), given in zip(asked, losses, strict=True):
        source, _, part = name.rpartition(" x ")
        if given is not None:
            points.setdefault(source, []).append((sizes[source].hours * float(part), float(objective(config, given))))
    return {
        source: fit_curve(there, sizes[source].hours, config.scaling.factor)
        for source, there in points.items()
        if len(there) > 2 and len({hours for hours, _ in there}) > 1
    }
