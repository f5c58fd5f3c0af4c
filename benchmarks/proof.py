"""Does the pyramid teach a robot? Policies from few demonstrations, alone and with videos, tried in closed loop.

Every arm goes through the verbs of the toolkit (scan, pack, train, label, mixtures) and takes the same number of
updates; demonstrations come in disjoint subsets, starts are fresh. Each stage is found done when the command is given
again: it goes on where it was stopped. Needs the extras ``sim`` and ``tune`` (for the plot).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proofs.arms import ARMS, HAND_ALONE, LABELS, OF_DEMONSTRATIONS, OF_HANDS, OF_ROBOT, STAGES
from proofs.cells import Task, run_cell, run_drawing, run_labels
from proofs.config import ProofConfig
from proofs.corpus import PARTS, corpus_of, pack_corpus
from proofs.quality import probe_quality, pseudo_quality, true_actions
from proofs.table import ALL, HEADER, REPEATED_HEADER, plot, repeated, rows, summary

from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.jobs import pending, run_job
from pyramid.sim.config import CONTROL_HZ
from pyramid.table import format_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="proof/cpu", help="preset or YAML file")
    parser.add_argument("--out", required=True, help="folder for data, models and tries; kept, and gone on with")
    parser.add_argument("--results", help="JSON file to write; default: OUT/results.json")
    parser.add_argument("--plot", help="PNG file to draw; default: OUT/results.png")
    parser.add_argument("--workers", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), help="instead of the config's")
    parser.add_argument("--tasks", nargs="*", help="instead of the config's")
    parser.add_argument("--seed", type=int, help="instead of the config's: settings are chosen on other seeds")
    parser.add_argument("--against", help="JSON file of a former run: tells which arms came out again")
    parser.add_argument("--report", action="store_true", help="tell what is done, and do nothing more")
    arguments = parser.parse_args()
    told = {name: getattr(arguments, name) for name in ("arms", "tasks", "seed")}
    chosen = {name: value for name, value in told.items() if value is not None}
    former: dict[str, Any] = {}
    if arguments.against:
        try:
            former = json.loads(Path(arguments.against).read_text())["tasks"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"--against: '{arguments.against}' holds no results of this benchmark ({error})")
    config = resolve(ProofConfig, arguments.config, **chosen, **({"elsewhere": ()} if arguments.arms else {}))
    results = run(arguments.out, config, workers=arguments.workers, report=arguments.report)
    files.write_json(arguments.results or str(Path(arguments.out, "results.json")), results)
    plot(results["tasks"], arguments.plot or str(Path(arguments.out, "results.png")))
    print(format_table(HEADER, rows(results["tasks"])))
    if former:
        print(format_table(REPEATED_HEADER, repeated(results["tasks"], former)))


def run(out: str, config: ProofConfig, *, workers: int, report: bool = False) -> dict[str, Any]:
    """Makes the data, trains and tries every cell (with ``report`` those that are done), and returns what was found."""
    start = time.monotonic()
    folder = files.join(out, "results")
    labels, tasks = wanted(out, config)
    if report:
        labels, tasks = (_done(pieces, folder) for pieces in (labels, tasks))
    else:
        make_data(out, config, workers=workers)
    for stage in STAGES:
        units = [one.unit() for one in labels if one.piece in stage]
        run_job(units, run_labels, folder=folder, label="labels", unit_name="runs", workers=workers)
    job = run_job([t.unit() for t in tasks], run_cell, folder=folder, label="proof", unit_name="cells", workers=workers)
    cells = {(t.task, t.piece, t.subset): o.facts["solved"] for t, o in zip(tasks, job.outcomes, strict=True)}
    found = summary(cells, config.tasks, config.arms)
    quality = {
        task: _quality(out, config, task, [(one.piece, one.subset) for one in labels if one.task == task])
        for task in config.tasks
        if any(one.task == task and one.piece in OF_ROBOT for one in labels)
    }
    return {
        "arms": found[ALL if len(config.tasks) > 1 else config.tasks[0]],
        "tasks": found,
        "labels": quality,
        "seed": config.seed,
        "config": to_dict(config),
        "policy": to_dict(config.policy_config()),
        "commit": _commit(),
        "command": " ".join(["python", *sys.argv]),
        "seconds": round(time.monotonic() - start),
    }


def make_data(out: str, config: ProofConfig, *, workers: int) -> None:
    """Draws and packs what is not there yet."""
    folder = files.join(out, "results")
    drawn = {
        task: [part for part in PARTS if part != "hand" or (config.n_hand and {*config.arms_of(task)} & {*OF_HANDS})]
        for task in config.tasks
    }
    parts = [Task(out=out, config=config, task=t, piece=part, subset=0) for t in config.tasks for part in drawn[t]]
    run_job([t.unit() for t in parts], run_drawing, folder=folder, label="data", unit_name="parts", workers=workers)
    for task in config.tasks:
        pack_corpus(files.join(out, task), task, config, drawn[task])


def wanted(out: str, config: ProofConfig) -> tuple[list[Task], list[Task]]:
    """Returns the label models and the cells of a proof: arms in their order, then what hands have more subsets for."""
    places = []
    for task in config.tasks:
        arms = config.arms_of(task)
        alone = [arm for arm in arms if arm in HAND_ALONE] if {*HAND_ALONE[1:]} & {*arms} else []
        places += [(task, arm, subset) for arm in arms for subset in range(config.subsets)]
        places += [(task, arm, subset) for arm in alone for subset in range(config.subsets, config.hand_subsets)]
    # A label model of videos alone is the same for all subsets.
    needed = {
        (task, kind, subset if kind in OF_DEMONSTRATIONS else 0)
        for task, arm, subset in places
        for kind in LABELS.get(arm, ())
    }
    labels, tasks = (
        [Task(out=out, config=config, task=task, piece=arm, subset=subset) for task, arm, subset in chosen]
        # The longest first: latent-action models of videos.
        for chosen in (sorted(needed, key=lambda one: (one[1] in OF_DEMONSTRATIONS, *one)), places)
    )
    return labels, tasks


def _done(pieces: Sequence[Task], folder: str) -> list[Task]:
    missing = {unit.name for unit in pending([piece.unit() for piece in pieces], folder=folder)}
    return [piece for piece in pieces if piece.unit().name not in missing]


def _quality(out: str, config: ProofConfig, task: str, made: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Returns how good the labels of the robot's videos are; of hands nobody kept the actions."""
    corpus = corpus_of(files.join(out, task), config)
    truth = true_actions(corpus)
    own = OF_DEMONSTRATIONS
    runs = {f"{kind}-{subset}" if kind in own else kind: kind for kind, subset in made if kind in OF_ROBOT}
    return {
        name: pseudo_quality(run, truth) if kind in own else probe_quality(run, truth, CONTROL_HZ)
        for name, kind in sorted(runs.items())
        for run in [files.join(corpus.videos, "labels", name)]
    }


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()


if __name__ == "__main__":
    main()
