"""The verb ``mix tune``: chooses a mixture's weights by small training runs, and says how sure it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pyramid import files
from pyramid.config import resolve
from pyramid.errors import ConfigError, nearest
from pyramid.jobs import Quarantined, count_reasons
from pyramid.mixture.spec import MixtureSpec, read_mixture
from pyramid.mixture.tune.cluster import check_executor, joined
from pyramid.mixture.tune.config import TuneConfig
from pyramid.mixture.tune.confirm import Arm, Curve, confirm, confirm_runs, scaling, scaling_runs
from pyramid.mixture.tune.confirm import arms as compared_arms
from pyramid.mixture.tune.design import caps
from pyramid.mixture.tune.laws import require_libraries
from pyramid.mixture.tune.methods import METHODS, Answer, Task, rungs_left
from pyramid.mixture.tune.outputs import REPORT, write_mixture, write_plots, write_table
from pyramid.mixture.tune.proxy import ProxyRun, ReweightedProxy
from pyramid.mixture.tune.runs import Runner, cached_proxy
from pyramid.progress import format_seconds, say
from pyramid.table import format_table

_PROBE_S = 5.0
"""How long the runs of a probe may grow, seconds."""


@dataclass(frozen=True, kw_only=True)
class MixTuneResult:
    """Which weights were found, and what speaks for them."""

    method: str
    """How they were found."""
    runs: int
    """Proxy runs in all; on a dry run those still to be done."""
    skipped_done: int
    """Runs that a former call had finished."""
    seconds: float
    """Wall time of this call; on a dry run the estimate."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source in the method's answer."""
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Range of each share."""
    interval_is: str = ""
    """What the ranges are."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """The answer and the mixtures that it was compared with on fresh seeds, by name."""
    chosen: str = ""
    """The arm with the lowest objective on the fresh seeds; its weights stand in ``tuned.yaml``."""
    proven: bool = False
    """Whether the tuned weights were chosen, and beat the file's own by more than the seeds' noise (90 % interval)."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Loss against hours, by source."""
    more_of: str = ""
    """The source of which more is predicted to help most; empty without curves."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The method's own findings."""
    quarantined: dict[str, int] = field(default_factory=dict)
    """Runs set aside, by reason."""
    out: str = ""
    """The folder; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The runs set aside."""

    def __repr__(self) -> str:
        if not self.out:
            left = format_seconds(self.seconds)
            return f"mix tune ({self.method}): {self.runs} proxy runs to do, {self.skipped_done} done, about {left}"
        shares = [
            [n, f"{w:.1%}", f"{lo:.1%} .. {hi:.1%}"] for n, w in self.weights.items() for lo, hi in [self.interval[n]]
        ]
        arms = [[n, a.objective, a.sd, *(f"{v:+.3g}" for v in a.gain)] for n, a in self.arms.items()]
        sure = "" if self.proven else " (not told apart from the file's own weights)"
        lines = [
            format_table(["source", "share", "range"], shares),
            f"range: {self.interval_is}",
            format_table(["on fresh seeds", "objective", "sd", "gain of tuned", "from", "to"], arms),
            *_curve_lines(self.curves, self.more_of),
            f"chosen: {self.chosen}{sure}; {self.runs} runs, {self.skipped_done} found done -> {self.out}",
        ]
        return "\n".join(lines)


def _curve_lines(curves: Mapping[str, Curve], more_of: str) -> list[str]:
    if not curves:
        return []
    rows = [[name, c.hours, *(f"{v:+.3g}" for v in c.gain)] for name, c in curves.items()]
    mean, low, high = curves[more_of].gain
    sure = "" if low > 0 else "; the interval holds 0, so nothing is sure"
    return [
        format_table(["more of", "hours now", "objective falls by", "from", "to"], rows),
        f"more of '{more_of}' is predicted to help most: {mean:.3g} ({low:.3g} .. {high:.3g}){sure}",
    ]


def mix_tune(
    mixture: str,
    *,
    out: str | None = None,
    config: TuneConfig | str | Path | Mapping[str, Any] | None = None,
    workers: int = 1,
    executor: str = "local",
    resume: bool = True,
    dry_run: bool = False,
    **options: Any,
) -> MixTuneResult:
    """Chooses the weights of a mixture by training small proxies on other weights.

    Args:
        mixture: the mixture file; sources with a weight above 0 are weighed anew.
        out: folder for runs, table, plots, tuned.yaml; needed unless dry_run.
        config: a preset, a YAML file or options.
        workers: processes, each with a proxy of its own; the answer does not depend on it.
        executor: local or ray; ray uses the cluster at RAY_ADDRESS, or starts one with as many workers.
        resume: use runs that are done; False does all again.
        dry_run: count the runs and time a probe; write nothing.
        options: fields of `TuneConfig`.

    Raises:
        ConfigError: an option out of range, an unknown proxy or target, or fewer than two sources.
        MissingDependencyError: the extra ``tune`` is not installed.
        DataError: a source that cannot be read, or runs that all failed.
    """
    start, cfg = time.monotonic(), resolve(TuneConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the result goes: --out DIR")
    require_libraries(load=not dry_run)
    check_executor(executor)
    spec = read_mixture(mixture)
    cached_proxy.cache_clear()  # The files behind it may have changed since the last call.
    runner = Runner(cfg, mixture, out or "", workers, executor)
    sizes = runner.proxy.sizes()
    amounts = {name: float(size.items) for name, size in sizes.items()}
    cfg = replace(cfg, design=replace(cfg.design, max_shares=caps(spec, amounts, cfg.design.max_shares)))
    runner.config = cfg
    task = Task(cfg, runner, amounts, {name: float(share) for name, share in spec.shares().items()})
    _check(task)
    if dry_run:
        return _plan_only(task, resume=resume and out is not None)
    if not resume:
        runner.forget()
    with joined(executor, workers):
        answer = METHODS[cfg.method](task)
        arms = confirm(task, answer)
        curves = scaling(task, answer.shares, sizes)
    chosen = min(arms, key=lambda name: arms[name].objective)
    result = MixTuneResult(
        method=cfg.method,
        runs=len(runner.units),
        skipped_done=runner.skipped_done,
        seconds=round(time.monotonic() - start, 3),
        weights=arms["tuned"].weights,
        interval={n: (float(answer.low[i]), float(answer.high[i])) for i, n in enumerate(task.sources)},
        interval_is=answer.range_is,
        arms=arms,
        chosen=chosen,
        # The pairs are with the tuned mixture; another winner was not compared with the file's.
        proven=chosen == "tuned" and "file" in arms and arms["file"].gain[1] > 0,
        curves=curves,
        more_of=max(curves, key=lambda name: curves[name].gain[0]) if curves else "",
        facts=answer.facts,
        quarantined=count_reasons(list(runner.aside.values())),
        out=str(out),
        items=list(runner.aside.values()),
    )
    _write(task, spec, answer, result)
    return result


def _check(task: Task) -> None:
    """Refuses what no run could be made of, before any is paid for."""
    if task.sources != list(task.file):
        raise ConfigError(f"the proxy weighs {', '.join(task.sources)}, the mixture file {', '.join(task.file)}")
    task.design()
    targets = task.runner.proxy.targets()
    for name in task.config.targets:
        if name not in targets:
            raise ConfigError(f"no target '{name}'{nearest(name, targets)}; targets: {', '.join(targets)}")
    if task.config.method == "dro" and not isinstance(task.runner.proxy, ReweightedProxy):
        raise ConfigError(
            f"the proxy '{task.config.proxy}' cannot be reweighted while it trains; choose another method"
        )


def _write(task: Task, spec: MixtureSpec, answer: Answer, result: MixTuneResult) -> None:
    cfg = task.config
    write_table(result.out, task.runner.rows, task.sources, task.runner.proxy.targets())
    write_plots(result.out, answer, result.arms, result.curves, task.sources)
    told = "by more than the noise" if result.proven else "not told apart from those of the file it came from"
    note = (
        f"Weights chosen by `pyramid mix tune`: {result.chosen} of {', '.join(result.arms)}.\n"
        f"Method {cfg.method}, proxy {cfg.proxy}, budget {cfg.budget}, {result.runs} runs; better: {told}."
    )
    write_mixture(result.out, spec, result.arms[result.chosen].weights, note)
    # Times and what was found done differ between calls; what was found does not.
    kept = {k: v for k, v in asdict(result).items() if k not in ("seconds", "skipped_done", "out")}
    files.write_json(files.join(result.out, REPORT), kept)


def _plan_only(task: Task, *, resume: bool) -> MixTuneResult:
    """Counts runs and steps; two short probes tell what a run costs by itself and what a step costs."""
    cfg = task.config
    budgets, done = _method_left(task, resume=resume)
    if budgets or not resume:
        # Which mixtures are compared is not known yet: halving's answer is the best that was tried, Re-Mix tries none.
        arms = 5 if cfg.method == "regress" else 4
        later = arms * cfg.confirm_seeds + len(task.sources) * len(cfg.scaling.fractions) * cfg.scaling.seeds
        budgets += [cfg.budget] * later
    else:
        answer = METHODS[cfg.method](task)
        runs = [*confirm_runs(task, compared_arms(task, answer)), *scaling_runs(task, answer.shares)]
        units = {unit.name: unit for unit in (task.runner.unit(run) for _, run in runs)}
        todo = task.runner.todo(list(units.values()))
        budgets, done = [cfg.budget] * todo, done + len(units) - todo
    say(f"mix tune ({cfg.method}): {len(budgets)} proxy runs to do, {done} done; timing a short one ...")
    per_run, per_step = _probe(task, task.design_runs()[0][1]) if budgets else (0.0, 0.0)
    seconds = (len(budgets) * per_run + sum(budgets) * per_step) / max(task.runner.workers, 1)
    return MixTuneResult(method=cfg.method, runs=len(budgets), skipped_done=done, seconds=round(seconds, 3))


def _method_left(task: Task, *, resume: bool) -> tuple[list[int], int]:
    """Returns the budgets of the method's runs that are left, and how many are done."""
    cfg = task.config
    if cfg.method == "halving":
        return rungs_left(task, resume=resume)
    dro = cfg.method == "dro"
    units = (
        task.runner.dro_units(task.amounts, task.file) if dro else [task.runner.unit(r) for _, r in task.design_runs()]
    )
    todo = task.runner.todo(units) if resume else len(units)
    # Re-Mix trains a reference as well.
    return [(2 if dro else 1) * cfg.budget] * todo, len(units) - todo


def _probe(task: Task, run: ProxyRun) -> tuple[float, float]:
    """Returns seconds per run and seconds per step, from runs of one step and of a few more.

    The first run reads the data. The steps are doubled until they take a while or are a fifth of the budget: a slow
    proxy is asked for four steps in all, a fast one for enough of them to be timed.
    """
    proxy, most = task.runner.proxy, max(run.budget // 5, 2)

    def timed(budget: int) -> float:
        start = time.perf_counter()
        proxy.run(ProxyRun(weights=run.weights, budget=budget, seed=run.seed))
        return time.perf_counter() - start

    timed(1)
    one, steps = timed(1), 2
    more = timed(steps)
    while more < _PROBE_S and 2 * steps <= most:
        steps *= 2
        more = timed(steps)
    per_step = max(more - one, 0.0) / (steps - 1)
    return max(one - per_step, 0.0), per_step
