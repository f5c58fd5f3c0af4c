"""The three ways to an answer: regression over a design of runs, Re-Mix, successive halving.

Each gives one mixture with a range for every share; that it is better is for the confirming runs to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyramid.errors import DataError
from pyramid.mixture.tune.config import TuneConfig
from pyramid.mixture.tune.design import Shares, design, named, rounded
from pyramid.mixture.tune.fit import fit_all, objective, predicted
from pyramid.mixture.tune.proxy import ProxyRun
from pyramid.mixture.tune.runs import Losses, Runner, run_seed


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a method proposes."""

    shares: Shares
    """[K], sum 1."""
    low: Shares
    """[K]: lower ends of the shares' ranges."""
    high: Shares
    """[K]: upper ends."""
    range_is: str
    """What the ranges are."""
    best_seen: dict[str, float] | None = None
    """The tried mixture with the lowest objective."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The method's own findings; plain data."""


@dataclass(frozen=True)
class Task:
    """What is to be tuned."""

    config: TuneConfig
    """Whole config."""
    runner: Runner
    """Runs proxies."""
    amounts: Mapping[str, float]
    """Training samples by source."""
    file: Mapping[str, float]
    """Shares of the mixture file by source."""

    @property
    def sources(self) -> list[str]:
        """Names in the order of all rows of shares."""
        return list(self.amounts)

    def design(self) -> tuple[list[str], Shares]:
        """Returns the mixtures to try."""
        return design(self.amounts, self.file, self.config.design, self.config.seed)

    def design_runs(self) -> list[tuple[str, ProxyRun]]:
        """Returns the runs of the design, each with a seed of its own."""
        names, rows = self.design()
        budget = self.config.budget
        return [
            (
                name,
                ProxyRun(weights=named(self.sources, row), budget=budget, seed=run_seed(self.config, "design", n)),
            )
            for n, (name, row) in enumerate(zip(names, rows, strict=True))
        ]


def regress(task: Task) -> Answer:
    """Trains a proxy on each mixture of the design, predicts the loss of all others, and proposes the best.

    RegMix (arXiv 2407.01492), but with a regressor per target, picked by cross-validation.

    Raises:
        DataError: too few runs are left to fit anything.
    """
    config, asked = task.config, task.design_runs()
    found = task.runner.losses("design", asked)
    kept = [(run, losses) for (_, run), losses in zip(asked, found, strict=True) if losses is not None]
    if len(kept) < len(task.sources) + 2:
        raise DataError(f"only {len(kept)} proxy runs gave a loss; make at least {len(task.sources) + 2}")
    x = np.array([[run.weights[name] for name in task.sources] for run, _ in kept])
    losses = {target: np.array([given[target] for _, given in kept]) for target in kept[0][1]}
    choices, ensemble, best = fit_all(config, x, losses)
    scores = objective(config, losses)
    level, low, high = config.regress.level, *_ends(config.regress.level)
    gains = {}
    for name, shares in {"uniform": np.full(len(task.sources), 1 / len(task.sources)), **_file_row(task)}.items():
        gain = np.subtract(*predicted(config, ensemble, np.stack([shares, best.shares])).T)
        gains[name] = [float(gain.mean()), *map(float, np.quantile(gain, [low, high]))]
    return Answer(
        shares=best.shares,
        low=best.low,
        high=best.high,
        range_is=f"{level:.0%} interval over {config.regress.bootstrap} resampled fits",
        best_seen=kept[int(np.argmin(scores))][0].weights,
        facts={
            "regressors": {target: {"law": c.law, "errors": c.errors} for target, c in choices.items()},
            "picked": best.picked,
            "predicted_loss": list(best.loss),
            "predicted_gain": gains,
            "held_out": {t: [[float(v) for v in losses[t]], c.held_out] for t, c in choices.items()},
        },
    )


def _ends(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _file_row(task: Task) -> dict[str, Shares]:
    return {"file": np.array([task.file[name] for name in task.sources], np.float64)}


def dro(task: Task) -> Answer:
    """Trains under group DRO against a reference model, some times over, and proposes the averaged weights."""
    units = task.runner.dro_units(task.amounts, task.file)
    facts = [outcome.facts for outcome in task.runner.outcomes("dro", units) if not outcome.quarantined]
    if not facts:
        raise DataError("every repetition of Re-Mix was set aside; lower the proxy's learning rate")
    weights = np.array([[f["weights"][name] for name in task.sources] for f in facts])
    drift = max(f["drift"] for f in facts)
    return Answer(
        shares=rounded(weights.mean(0)),
        low=np.clip(weights.min(0) - drift, 0, 1),
        high=np.clip(weights.max(0) + drift, 0, 1),
        range_is=f"range over {len(facts)} repetitions, widened by the late drift",
        facts={"drift": drift, "trace": facts[0]["trace"], "repetitions": [f["weights"] for f in facts]},
    )


def rungs(config: TuneConfig, candidates: int) -> list[tuple[int, int]]:
    """Returns (candidates, budget) of each rung; the last has the whole budget."""
    factor, n = config.halving.factor, config.halving.rungs
    return [
        (max(math.ceil(candidates / factor**level), 1), max(config.budget // factor ** (n - 1 - level), 1))
        for level in range(n)
    ]


def halving(task: Task) -> Answer:
    """Trains all candidates a little, and the better ones more, from the start each time.

    Rungs are restarted, not resumed: a run's learning rate falls to zero over its own budget, so that a run cut short
    says nothing about a longer one. Within a rung all candidates share their seeds, so that they meet the same luck.
    """
    config, history = task.config, []
    alive = _candidates(task)
    for level, (count, budget) in enumerate(rungs(config, len(alive))):
        alive = alive[:count]
        found = task.runner.losses(f"rung {level}", _rung(task, alive, level, budget))
        alive, means = _ranked(task, alive, found)
        history.append({"budget": budget, "names": [n for n, _ in alive], "objective": _finite(means)})
    last = np.stack([row for _, row in alive])
    return Answer(
        shares=last[0],
        low=last.min(0),
        high=last.max(0),
        range_is=f"range over the {len(last)} mixtures of the last rung",
        best_seen=named(task.sources, last[0]),
        facts={"rungs": history},
    )


def _ranked(
    task: Task, alive: list[tuple[str, Shares]], losses: Sequence[Losses | None]
) -> tuple[list[tuple[str, Shares]], Shares]:
    """Returns candidates from the best to the worst, and their objectives."""
    scores = [math.inf if found is None else float(objective(task.config, found)) for found in losses]
    means = np.array(scores).reshape(len(alive), -1).mean(1)
    order = np.argsort(means, kind="stable")
    return [alive[i] for i in order], means[order]


def _candidates(task: Task) -> list[tuple[str, Shares]]:
    names, rows = task.design()
    return list(zip(names, rows, strict=True))


def _rung(task: Task, alive: Sequence[tuple[str, Shares]], level: int, budget: int) -> list[tuple[str, ProxyRun]]:
    """Returns the runs of a rung: every candidate on the same seeds."""
    return [
        (
            name,
            ProxyRun(weights=named(task.sources, row), budget=budget, seed=run_seed(task.config, f"rung {level}", s)),
        )
        for name, row in alive
        for s in range(task.config.halving.seeds)
    ]


def rungs_left(task: Task, *, resume: bool) -> tuple[list[int], int]:
    """Returns the budgets of the runs of halving that are left, and how many are done.

    Who goes on to a rung is known once all runs of the rung before are done; of later rungs all are left.
    """
    alive, config = _candidates(task), task.config
    plan, left, done = rungs(config, len(alive)), list[int](), 0
    for level, (count, budget) in enumerate(plan):
        n = count * config.halving.seeds
        if left or (level and not resume):
            left += [budget] * n
            continue
        asked = _rung(task, alive[:count], level, budget)
        todo = task.runner.todo([task.runner.unit(run) for _, run in asked]) if resume else n
        done += n - todo
        left += [budget] * todo
        if not todo:
            alive, _ = _ranked(task, alive[:count], task.runner.losses(f"rung {level}", asked))
    return left, done


def _finite(values: Any) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


METHODS = {"regress": regress, "dro": dro, "halving": halving}
