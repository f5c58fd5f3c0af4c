"""What the inverse dynamics model is worth on robot episodes: Meta-World with and without noise, or a LeRobot data set.

Half of the episodes train and the other half test; of a data set that is given, the last one tests. The mean action
stands beside every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from idm.evaluate import IDMEvaluation, evaluate_idm
from idm.train import train_idm
from pyramid.corpora.manifest import read_manifest, write_manifest
from pyramid.corpora.scan import scan
from pyramid.shards.pack import pack
from pyramid.sim import SimConfig, make_dataset
from pyramid.table import format_table

HEADER = ["task", "noise", "R2", "R2, 4-step means", "R2, no votes", "spread ratio", "lag", "coverage", "error share"]
"""The last: mean squared error of labels as a share of that of the mean action."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for data, shards and models, which are kept; default: none is")
    parser.add_argument("--tasks", nargs="*", default=["push-v3"], help="of Meta-World")
    parser.add_argument("--noises", nargs="*", type=float, default=[0.0, 0.3], help="on the expert's actions")
    parser.add_argument("--episodes", type=int, default=50, help="of each task; half of them train")
    parser.add_argument("--lerobot", help="a LeRobot data set with modality.json, in place of Meta-World")
    parser.add_argument("--steps", type=int, help="training steps, in place of the preset's")
    parser.add_argument("--preset", default="idm/tiny")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="further options of the model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.out = arguments.out or Path(folder)
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    options: dict[str, Any] = {
        key: json.loads(value) for key, value in (entry.split("=", 1) for entry in arguments.set)
    }
    options |= {"trainer.max_steps": arguments.steps} if arguments.steps else {}
    if arguments.lerobot:
        real_robot(arguments.lerobot, arguments.out, arguments.preset, options)
    else:
        simulated(arguments, options)


def simulated(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    rows = []
    for task in arguments.tasks:
        for noise in arguments.noises:
            folder = arguments.out / f"{task}-{noise:g}"
            wanted = SimConfig(
                tasks=(task,), n_hand=0, n_generated=0, n_robot=arguments.episodes, action_noise=noise, seed=2000
            )
            make_dataset(str(folder / "data"), wanted)
            measured = fit(folder, str(folder / "data" / "robot"), 2, arguments.preset, options)
            rows.append([task, f"{noise:g}", *figures(measured)])
            print(format_table(HEADER, rows), flush=True)


def real_robot(root: str, out: Path, preset: str, options: dict[str, Any]) -> None:
    measured = fit(out, root, 0, preset, {**options, "modality": [root]})
    (name,) = measured.groups
    rows = [
        [
            group,
            "-" if one.r2 is None else f"{one.r2:.2f}",
            f"{one.rmse:.4f}",
            f"{one.baseline_rmse:.4f}",
            "-" if one.std_ratio is None else f"{one.std_ratio:.2f}",
            "-" if one.coverage is None else f"{one.coverage:.2f}",
        ]
        for group, one in measured.groups[name].items()
    ]
    print(format_table(["group", "R2", "RMSE", "RMSE of the mean action", "spread ratio", "coverage"], rows))
    print(format_table(HEADER, [[name, "-", *figures(measured)]]))


def fit(folder: Path, root: str, every: int, preset: str, options: dict[str, Any]) -> IDMEvaluation:
    """Packs, trains and measures; every n-th episode is held out, or with 0 the last."""
    manifest, shards, model = (str(folder / name) for name in ("clips.parquet", "shards", "model"))
    scan("lerobot", root, out=manifest)
    clips = sorted(read_manifest(manifest), key=lambda clip: clip.clip_id)
    held_out = range(1, len(clips), every) if every else [len(clips) - 1]
    split = [replace(clip, split="val" if place in held_out else "train") for place, clip in enumerate(clips)]
    write_manifest(manifest, split, {"benchmark": "idm_robots"})
    pack(manifest, out=shards)
    start = time.process_time()
    train_idm(shards, out=model, config=preset, **options)
    print(f"{folder.name}: trained in {time.process_time() - start:.0f} s of CPU time", flush=True)
    measured = evaluate_idm(shards, model=model, out=str(folder))
    print(measured, flush=True)
    return measured


def figures(measured: IDMEvaluation) -> list[str]:
    scores = (measured.r2, measured.r2_means, measured.r2_unvoted)
    ratios = [ratio for own in measured.std_ratio.values() for ratio in own if ratio is not None]
    return [
        *("-" if score.mean is None else f"{score.mean:.3f}" for score in scores),
        f"{min(ratios):.2f} .. {max(ratios):.2f}",
        str(measured.lag),
        f"{measured.coverage:.2f}",
        f"{measured.error / measured.baseline_error:.3f}",
    ]


if __name__ == "__main__":
    main()
