"""What `pyramid mix tune` leaves in its folder: the table of runs, the plots, and a mixture file to use.

The numbers are the methods'; the JSON result is written by the verb.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyramid import files, parquet
from pyramid.config import dump_yaml, to_dict
from pyramid.mixture.spec import FilterSpec, MixtureSpec, with_weights
from pyramid.mixture.tune.confirm import Arm, Curve
from pyramid.mixture.tune.methods import Answer

TABLE, MIXTURE, REPORT = "runs.parquet", "tuned.yaml", "tune.json"


def write_table(folder: str, rows: Sequence[Mapping[str, Any]], sources: Sequence[str], targets: Sequence[str]) -> None:
    """Writes the table of all runs: what each was for, its mixture, budget and seed, its held-out losses.

    Columns are ``phase``, ``mixture``, ``budget``, ``seed``, ``share/SOURCE``, ``fraction/SOURCE``, ``loss/TARGET``
    and ``objective``; a run that was set aside has null losses.
    """
    import pyarrow as pa

    table: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("phase", "mixture", "budget", "seed")}
    for name in sources:
        table[f"share/{name}"] = [float(row["weights"][name]) for row in rows]
        table[f"fraction/{name}"] = [float(row["fractions"].get(name, 1.0)) for row in rows]
    for name in targets:
        table[f"loss/{name}"] = [None if row["losses"] is None else row["losses"][name] for row in rows]
    table["objective"] = [None if row["losses"] is None else row["objective"] for row in rows]
    kinds = {"phase": pa.string(), "mixture": pa.string(), "budget": pa.int64(), "seed": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in table])
    parquet.write(files.join(folder, TABLE), pa.table(table, schema=schema))


def write_mixture(folder: str, spec: MixtureSpec, weights: Mapping[str, float], note: str) -> str:
    """Writes the mixture with new weights as a file of its own, whose paths hold from where it lies; returns where."""
    tuned = replace(with_weights(spec, weights), max_epochs=spec.max_epochs, budget_samples=spec.budget_samples)
    tiers = {
        name: replace(
            tier,
            sources={
                n: replace(
                    s,
                    shards=_moved(spec, s.shards, folder),
                    labels=_moved(spec, s.labels, folder),
                    filter=_filter_moved(spec, s.filter, folder),
                )
                for n, s in tier.sources.items()
            },
        )
        for name, tier in tuned.tiers.items()
    }
    data = to_dict(replace(tuned, tiers=tiers))
    data.pop("folder")
    path = files.join(folder, MIXTURE)
    files.write_text(path, "".join(f"# {line}\n" for line in note.splitlines()) + dump_yaml(data))
    return path


def _filter_moved(spec: MixtureSpec, kept: FilterSpec, folder: str) -> FilterSpec:
    return replace(kept, scores=replace(kept.scores, path=_moved(spec, kept.scores.path, folder)))


def _moved(spec: MixtureSpec, place: Any, folder: str) -> Any:
    """Returns a path, or each of several, as it is written in a file in ``folder``; an empty one stays empty."""
    if not isinstance(place, str):
        return [_moved(spec, one, folder) for one in place]
    there = spec.path(place)
    if not place or files.is_remote(there) or Path(place).is_absolute():
        return place and there
    return str(Path(there).resolve()) if files.is_remote(folder) else os.path.relpath(there, folder)


def write_plots(
    folder: str, answer: Answer, arms: Mapping[str, Arm], curves: Mapping[str, Curve], sources: Sequence[str]
) -> list[str]:
    """Writes the plots that the method's findings allow; returns their names."""
    drawn = {"weights.png": _weights(answer, arms, sources), "confirm.png": _confirm(arms)}
    if "held_out" in answer.facts:
        drawn["prediction.png"] = _held_out(answer)
    if "trace" in answer.facts:
        drawn["trace.png"] = _trace(answer, sources)
    if "rungs" in answer.facts:
        drawn["rungs.png"] = _rungs(answer)
    if curves:
        drawn["scaling.png"] = _curves(curves)
    for name, figure in drawn.items():
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
        files.write_bytes(files.join(folder, name), data.getvalue())
    return sorted(drawn)


def _figure(columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 4.2 * columns), 4.2), layout="constrained")
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _weights(answer: Answer, arms: Mapping[str, Arm], sources: Sequence[str]) -> Any:
    figure, (axis,) = _figure()
    place = np.arange(len(sources))
    # A range need not hold the answer: bars cannot point inwards.
    ends = np.maximum([answer.shares - answer.low, answer.high - answer.shares], 0)
    axis.bar(place, answer.shares, yerr=ends, color="tab:blue", capsize=4, label="tuned")
    for name, mark in {"uniform": "_", "size": "s", "file": "x"}.items():
        if name in arms:
            axis.plot(place, [arms[name].weights[s] for s in sources], mark, color="black", label=name, mfc="none")
    axis.set_xticks(place, sources, rotation=20)
    axis.set_ylabel("share of the samples")
    axis.set_title(f"bars: {answer.range_is}", fontsize=9)
    axis.legend()
    return figure


def _confirm(arms: Mapping[str, Arm]) -> Any:
    figure, (axis,) = _figure()
    axis.bar(list(arms), [a.objective for a in arms.values()], yerr=[a.sd for a in arms.values()], capsize=4)
    axis.set_ylabel("held-out objective, fresh seeds (bars: sd)")
    return figure


def _held_out(answer: Answer) -> Any:
    found = answer.facts["held_out"]
    figure, axes = _figure(len(found))
    for axis, (target, (measured, guessed)) in zip(axes, found.items(), strict=True):
        axis.plot(measured, guessed, "o", ms=4)
        ends = [min(measured), max(measured)]
        axis.plot(ends, ends, color="grey", lw=1)
        axis.set(xlabel="measured loss", ylabel="predicted without that run")
        axis.set_title(f"{target}: {answer.facts['regressors'][target]['law']}", fontsize=9)
    return figure


def _trace(answer: Answer, sources: Sequence[str]) -> Any:
    figure, (axis,) = _figure()
    trace = np.array(answer.facts["trace"])
    axis.plot(trace[:, 0], trace[:, 1:], label=list(sources))
    axis.set(xlabel="step", ylabel="weight (first repetition)")
    axis.legend()
    return figure


def _rungs(answer: Answer) -> Any:
    figure, (axis,) = _figure()
    for rung in answer.facts["rungs"]:
        kept = [v for v in rung["objective"] if v is not None]
        axis.plot([rung["budget"]] * len(kept), kept, "o", color="tab:blue", alpha=0.6)
    axis.set(xlabel="budget", ylabel="held-out objective", xscale="log")
    return figure


def _curves(curves: Mapping[str, Curve]) -> Any:
    figure, (axis,) = _figure()
    for name, curve in curves.items():
        hours = np.array([h for h, _ in curve.points])
        (line,) = axis.plot(hours, [loss for _, loss in curve.points], "o", ms=4)
        along = np.geomspace(hours.min(), 2 * hours.max(), 50)
        axis.plot(along, curve.intercept + curve.slope * np.log(along), color=line.get_color(), label=name)
    axis.set(xlabel="hours of the source", ylabel="held-out objective", xscale="log")
    axis.legend()
    return figure
