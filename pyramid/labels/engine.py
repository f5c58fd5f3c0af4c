"""The verb ``label``: plans a unit for each shard and labeler, runs those without a receipt, writes a table for each.

Planning is in `pyramid.labels.plan`, running in `pyramid.labels.run`, the places where units run in `executors`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyramid import files, receipts
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError, InterruptedJobError, PyramidError, nearest
from pyramid.jobs import count_reasons
from pyramid.labels.config import LabelConfig
from pyramid.labels.executors import Executor, InlineExecutor
from pyramid.labels.plan import Plan, Run, look_up
from pyramid.labels.protocol import Labeler, load_labeler
from pyramid.labels.result import LabelResult
from pyramid.labels.run import Job, seal_loose, todo_count
from pyramid.labels.station import Spec, Station
from pyramid.labels.table import check_schema
from pyramid.labels.watch import Watch

__all__ = ["LabelConfig", "LabelResult", "label"]

EXECUTORS = ("local", "ray")
_PROBE_CLIPS = 2


def label(
    shards: str,
    *,
    labeler: str | Sequence[str],
    model: str | Sequence[str] = "",
    out: str | None = None,
    config: LabelConfig | str | Mapping[str, Any] | None = None,
    executor: str = "local",
    workers: int = 1,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> LabelResult:
    """Labels every clip of a shard folder.

    Args:
        shards: the shard folder.
        labeler: names of installed labelers, such as lam or idm; several share one pass of decoding.
        model: each labeler's model folder, in the same order; left out where no labeler reads one.
        out: folder of the label run, of several labelers that of their runs; by default labels/LABELER in the shards.
        config: a preset, a YAML file or options.
        executor: local (processes of this machine) or ray (actors of a Ray cluster); the tables are the same.
        workers: processes or actors, on a CPU each with a model of its own; the tables do not depend on it.
        limit: label the first shards only.
        resume: keep tables that are done; False labels all again.
        retry_quarantined: try again the shards in which something was set aside.
        dry_run: plan, time a probe, write nothing.
        options: fields of `LabelConfig`.

    Raises:
        DataError: no shards, no model, or a labeler without the columns that all tables have.
        InterruptedJobError: Ctrl-C or SIGTERM; what is done stays done.
    """
    start = time.monotonic()
    cfg = resolve(LabelConfig, config, **options)
    if executor not in EXECUTORS:
        raise ConfigError(f"no executor '{executor}'{nearest(executor, EXECUTORS)}; there are {', '.join(EXECUTORS)}")
    names = _as_list(labeler)
    models = _as_list(model) if model else [""] * len(names)
    outs = _outs(shards, names, models, out)
    plan = Plan.open(shards, limit)
    if cfg.cache_mb * 2**20 < 2 * workers * plan.largest_bytes():
        cfg = dataclasses.replace(cfg, cache_mb=0)  # Copies would push each other out before they are read.
    inline = executor == "local" and cfg.layout(workers) == (["cpu"], 0) and cfg.unit_timeout_s is None
    # With processes of their own the models are described here and run there.
    device = cfg.devices[0] if inline or dry_run else "cpu"
    labelers = [load_labeler(name, path, device) for name, path in zip(names, models, strict=True)]
    runs = _runs(names, models, outs, labelers, cfg)
    for run in runs:
        look_up(plan, run, resume=resume, retry_quarantined=retry_quarantined)
    spec = Spec.of(plan.folder, runs, cfg)
    if dry_run:
        return _dry_run(plan, runs, Station(spec, labelers))
    place = InlineExecutor(Station(spec, labelers)) if inline else None
    del labelers
    frames = _execute(plan, runs, cfg, place, spec=spec, executor=executor, workers=workers)
    return _result(runs, len(plan), frames, time.monotonic() - start)


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _outs(shards: str, names: Sequence[str], models: Sequence[str], out: str | None) -> list[str]:
    """Returns the run folder of each labeler."""
    if not names or len(names) != len(models):
        raise ConfigError(f"{len(names)} labelers need as many models, in the same order; got {len(models)}")
    if len(set(names)) != len(names):
        raise ConfigError(
            f"labeler '{max(names, key=list(names).count)}' stands twice; label with each model on its own"
        )
    if out is not None and len(names) == 1:
        return [out]
    root = out or files.join(shards, "labels")
    return [files.join(root, name) for name in names]


def _runs(
    names: Sequence[str], models: Sequence[str], outs: Sequence[str], labelers: Sequence[Labeler], config: LabelConfig
) -> list[Run]:
    decisive = {"autocast": config.autocast, "compile": config.compile}
    options = {name: value for name, value in decisive.items() if value not in ("off", False)}
    runs = []
    for name, model, out, labeler in zip(names, models, outs, labelers, strict=True):
        check_schema(labeler.schema(), name)
        runs.append(Run.of(labeler, name=name, model=model, out=out, options=options))
    return runs


def _execute(
    plan: Plan,
    runs: Sequence[Run],
    config: LabelConfig,
    place: Executor | None,
    *,
    spec: Spec,
    executor: str,
    workers: int,
) -> int:
    """Runs what is not done; returns the frames of the shards labelled."""
    for run in runs:
        files.make_dirs(run.out)
        for folder in (run.out, files.join(run.out, receipts.RECEIPTS)):
            files.remove_temporaries(folder)
        seal_loose(run.out)
    n_units = todo_count(plan, runs)
    if not n_units:
        return 0
    place = place or _executor(executor, spec, min(workers, n_units))
    watch = Watch(runs, n_units)
    label = " ".join(run.name for run in runs)
    try:
        with _told(watch, label, place):
            facts = {"shards": len(plan), "units": len(plan) * len(runs), "todo": n_units}
            watch.job("job_started", **facts, executor=executor, workers=workers)
            # On other machines it would mostly be the wrong one that has fetched a shard.
            near = files.is_remote(plan.folder) and (executor == "local" or not config.ray.address)
            Job(plan, runs, place, config, watch, ahead=workers if near else 0).go()
            watch.job("job_finished", frames=watch.frames)
    finally:
        watch.close()
    return watch.frames


def _executor(name: str, spec: Spec, workers: int) -> Executor:
    if name == "ray":
        from pyramid.labels.executors.ray import RayExecutor

        return RayExecutor(spec, workers)
    from pyramid.labels.executors.local import LocalExecutor

    return LocalExecutor(spec, workers)


@contextlib.contextmanager
def _told(watch: Watch, label: str, place: Executor) -> Iterator[None]:
    """Ends the executor however the job ends, and notes how; Ctrl-C drops the units in hand."""

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # Signals can be caught in the main thread only; elsewhere a job simply has no handler of its own.
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ValueError):
            before = signal.signal(signal.SIGTERM, stop)
            stack.callback(signal.signal, signal.SIGTERM, before)
        try:
            yield
            place.close()
        except KeyboardInterrupt as error:
            place.close(kill=True)
            with contextlib.suppress(PyramidError):
                watch.job("interrupted")
            text = "those in hand were dropped; run the same command again to go on where it stopped"
            raise InterruptedJobError(f"{label}: stopped at {watch.told}, {text}") from error
        except BaseException as error:
            place.close(kill=True)
            with contextlib.suppress(PyramidError):
                watch.job("job_failed", error=str(error))
            raise


def _result(runs: Sequence[Run], n_shards: int, frames: int, seconds: float) -> LabelResult:
    items = [item for run in runs for item in run.items()]
    clips = sum(run.clips for run in runs)
    if items and not clips:
        raise DataError(f"none of the clips could be labelled: {items[0].detail}")
    return LabelResult(
        labeler=", ".join(run.name for run in runs),
        clips=clips,
        rows=sum(run.rows for run in runs),
        shards=n_shards * len(runs),
        skipped_done=sum(run.skipped for run in runs),
        quarantined=count_reasons(items),
        seconds=round(seconds, 3),
        frames_per_s=round(frames / max(seconds, 1e-9), 1),
        out=", ".join(run.out for run in runs),
        items=items,
        runs={
            run.name: {
                "out": run.out,
                "clips": run.clips,
                "rows": run.rows,
                "shards": n_shards,
                "skipped_done": run.skipped,
                "quarantined": count_reasons(list(run.items())),
            }
            for run in runs
        },
    )


def _dry_run(plan: Plan, runs: Sequence[Run], station: Station) -> LabelResult:
    """Labels a few clips of the first shard that is to be done, for the time it takes."""
    todo = [tuple(place for place, run in enumerate(runs) if not run.done[n]) for n in range(len(plan))]
    seconds = 0.0
    first = next((number for number, places in enumerate(todo) if places), None)
    if first is not None:
        task = plan.task(first, todo[first])
        start = time.monotonic()
        n_clips = station.probe(task, _PROBE_CLIPS)
        frames = task.frames * n_clips / len(task.rows)
        pace = (time.monotonic() - start) / max(frames * len(task.labelers), 1)
        seconds = pace * sum(shard.frames * len(places) for shard, places in zip(plan.shards, todo, strict=True))
    n_todo = sum(map(len, todo))
    return LabelResult(
        labeler=", ".join(run.name for run in runs),
        clips=sum(shard.count * len(places) for shard, places in zip(plan.shards, todo, strict=True)),
        rows=0,
        shards=n_todo,
        skipped_done=len(plan) * len(runs) - n_todo,
        quarantined={},
        seconds=round(seconds, 3),
        frames_per_s=0.0,
    )
