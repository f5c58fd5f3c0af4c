"""Proxy runs as units of a job: each done once, under the digest of what decides it, whoever asks and whenever.

What is run is decided by the methods; the table of all runs is this file's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from pyramid import files
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Quarantined, Unit, pending, run_job
from pyramid.mixture.tune.cluster import on_ray
from pyramid.mixture.tune.config import DROConfig, TuneConfig
from pyramid.mixture.tune.design import named, prior_shares
from pyramid.mixture.tune.dro import average_weights
from pyramid.mixture.tune.fit import objective
from pyramid.mixture.tune.proxy import Proxy, ProxyRun, ReweightedProxy, load_proxy
from pyramid.receipts import RECEIPTS
from pyramid.rng import seed_of

FORMAT_VERSION = 1
Losses = dict[str, float]


@lru_cache(maxsize=2)
def cached_proxy(name: str, mixture: str, config: str) -> Proxy:
    """Loads a proxy once per process."""
    return load_proxy(name, mixture, config)


def run_seed(config: TuneConfig, phase: str, number: int) -> int:
    """Returns the seed of a run, below 2**31; phases never share seeds."""
    return seed_of(config.seed, "tune", phase, number) % 2**31


def proxy_unit(task: Mapping[str, Any]) -> Outcome:
    """Does one unit; runs in a worker.

    Raises:
        SkipItemError: a loss that is missing or not finite; the run is set aside and no mean is spoiled.
    """
    proxy = cached_proxy(task["proxy"], task["mixture"], task["config"])
    run = ProxyRun(**task["run"])
    if task["kind"] == "dro":
        if not isinstance(proxy, ReweightedProxy):
            raise ConfigError(f"the proxy '{proxy.name}' cannot be reweighted while it trains; choose another method")
        prior = np.array([task["prior"][name] for name in run.weights])
        return Outcome(facts=average_weights(proxy, run, DROConfig(**task["dro"]), prior))
    losses = proxy.run(run)
    for target in proxy.targets():
        if not math.isfinite(losses.get(target, math.nan)):
            raise SkipItemError(
                "diverged", f"run {run.seed} on {run.weights}: no finite loss of '{target}'; lower the learning rate"
            )
    return Outcome(facts={"losses": {target: float(losses[target]) for target in proxy.targets()}})


@dataclass
class Runner:
    """Runs proxies and keeps the table of what they gave."""

    config: TuneConfig
    """Whole config."""
    mixture: str
    """The mixture file."""
    folder: str
    """Where receipts lie."""
    workers: int = 1
    """Processes, each with a proxy of its own; no result depends on it."""
    executor: str = "local"
    """``local`` or ``ray``."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One for each run asked for, in order."""
    aside: dict[str, Quarantined] = field(default_factory=dict)
    """Units that were set aside, by name."""
    units: set[str] = field(default_factory=set)
    """Names of all units asked for."""
    skipped_done: int = 0
    """Units that a former call had finished."""

    @property
    def proxy(self) -> Proxy:
        """The proxy, loaded."""
        return cached_proxy(self.config.proxy, self.mixture, self.config.proxy_config)

    def forget(self) -> None:
        """Removes all receipts, so that every run is done again."""
        for name in files.listdir(files.join(self.folder, RECEIPTS)):
            files.remove(files.join(self.folder, RECEIPTS, name))

    def unit(self, run: ProxyRun, kind: str = "run", **more: Any) -> Unit:
        """Returns the unit of a run; equal runs are one unit."""
        # All of a source is how it is seen anyway.
        part = {name: share for name, share in run.fractions.items() if share < 1}
        said = {"kind": kind, "run": {**run.to_dict(), "fractions": part}, **more}
        digest = files.digest([FORMAT_VERSION, self.proxy.digest(), said])
        place = {"proxy": self.config.proxy, "mixture": self.mixture, "config": self.config.proxy_config}
        return Unit(name=f"{kind}-{digest[:16]}", digest=digest, task={**place, **said}, amount=float(run.budget))

    def outcomes(self, label: str, units: Sequence[Unit]) -> list[Outcome]:
        """Does units, each once, and returns their outcomes in the order given."""
        plan = list({unit.name: unit for unit in units}.values())
        report = self._done(plan, f"tune: {label}")
        fresh = {unit.name for unit in plan} - self.units
        self.skipped_done += max(report.skipped_done - (len(plan) - len(fresh)), 0)
        self.units |= fresh
        found = dict(zip([unit.name for unit in plan], report.outcomes, strict=True))
        self.aside |= {name: outcome.quarantined[0] for name, outcome in found.items() if outcome.quarantined}
        return [found[unit.name] for unit in units]

    def _done(self, plan: Sequence[Unit], label: str) -> JobReport:
        if self.executor == "ray":
            units, collect = on_ray(plan, proxy_unit, folder=self.folder)
            return run_job(units, collect, folder=self.folder, label=label, unit_name="steps")
        return run_job(plan, proxy_unit, folder=self.folder, label=label, workers=self.workers, unit_name="steps")

    def losses(self, phase: str, asked: Sequence[tuple[str, ProxyRun]]) -> list[Losses | None]:
        """Trains proxies and notes them in the table.

        Args:
            phase: what they are for.
            asked: a mixture's name and the run, for each.

        Returns:
            Held-out losses by target; None for a run that was set aside.

        Raises:
            DataError: all of them were set aside.
        """
        outcomes = self.outcomes(phase, [self.unit(run) for _, run in asked])
        found = [outcome.facts.get("losses") for outcome in outcomes]
        if not any(found):
            raise DataError(f"{phase}: every proxy run was set aside: {outcomes[0].quarantined[0].detail}")
        for (name, run), losses in zip(asked, found, strict=True):
            score = math.nan if losses is None else float(objective(self.config, losses))
            self.rows.append({"phase": phase, "mixture": name, **run.to_dict(), "losses": losses, "objective": score})
        return found

    def todo(self, units: Sequence[Unit]) -> int:
        """Returns how many of the units have no receipt yet."""
        return sum(1 for _ in pending(list({unit.name: unit for unit in units}.values()), folder=self.folder))

    def dro_units(self, amounts: Mapping[str, float], file: Mapping[str, float]) -> list[Unit]:
        """Returns the repetitions of Re-Mix."""
        dro = self.config.dro
        prior = prior_shares(dro.prior, amounts, file)
        floored = np.maximum(prior, dro.reference_floor)
        weights = named(list(amounts), floored / floored.sum())
        options = {**vars(dro), "seeds": 1}  # How often it is repeated decides no repetition.
        plain = dict(zip(amounts, map(float, prior), strict=True))
        return [
            self.unit(
                ProxyRun(weights=weights, budget=self.config.budget, seed=run_seed(self.config, "dro", n)),
                "dro",
                dro=options,
                prior=plain,
            )
            for n in range(dro.seeds)
        ]
