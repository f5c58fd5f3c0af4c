"""What the inverse dynamics model is worth on robot episodes: Meta-World with and without noise, or a LeRobot data set.

Half of the episodes train and the other half test; of a data set that is given, the last one tests, or each in turn.
The mean action stands beside every figure.
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

HEADER = [
    "task",
    "noise",
    "seed",
    "R2",
    "R2, 4-step means",
    "R2, no votes",
    "spread ratio",
    "lag",
    "coverage",
    "error share",
]
"""The last: mean squared error of labels as a share of that of the mean action."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for data, shards and models, which are kept; default: none is")
    parser.add_argument("--tasks", nargs="*", default=["push-v3"], help="of Meta-World")
    parser.add_argument("--noises", nargs="*", type=float, default=[0.0, 0.3], help="on the expert's actions")
    parser.add_argument("--episodes", type=int, default=50, help="of each task; half of them train")
    parser.add_argument("--lerobot", help="a LeRobot data set with modality.json, in place of Meta-World")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of training; one row each")
    parser.add_argument("--held-out", nargs="*", type=int, default=[-1], help="episodes of --lerobot that test in turn")
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
        for place in arguments.held_out:
            for seed in arguments.seeds:
                seeded = {**options, "trainer.seed": seed}
                real_robot(arguments.lerobot, arguments.out / f"without-{place}", arguments.preset, place, seeded)
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
            for seed in arguments.seeds:
                seeded = {**options, "trainer.seed": seed}
                measured = fit(folder, str(folder / "data" / "robot"), slice(1, None, 2), arguments.preset, seeded)
                rows.append([task, f"{noise:g}", str(seed), *figures(measured)])
                print(format_table(HEADER, rows), flush=True)


def real_robot(root: str, out: Path, preset: str, place: int, options: dict[str, Any]) -> None:
    measured = fit(out, root, slice(place, place + 1 or None), preset, {**options, "modality": [root]})
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
    print(format_table(HEADER, [[name, "-", str(options["trainer.seed"]), *figures(measured)]]))


def fit(folder: Path, root: str, held_out: slice, preset: str, options: dict[str, Any]) -> IDMEvaluation:
    """Packs, trains and measures; of the episodes in their order, those of the slice are held out."""
    model = f"model-{options.get('trainer.seed', 0)}"
    manifest, shards, model = (str(folder / name) for name in ("clips.parquet", "shards", model))
    scan("lerobot", root, out=manifest)
    clips = sorted(read_manifest(manifest), key=lambda clip: clip.clip_id)
    # A long episode is cut into several clips: all of them go to one side.
    tested = {*sorted({episode_of(clip.clip_id) for clip in clips})[held_out]}
    split = [replace(clip, split="val" if episode_of(clip.clip_id) in tested else "train") for clip in clips]
    write_manifest(manifest, split, {"benchmark": "idm_robots"})
    pack(manifest, out=shards)
    start = time.process_time()
    train_idm(shards, out=model, config=preset, **options)
    print(f"{folder.name}: trained in {time.process_time() - start:.0f} s of CPU time", flush=True)
    measured = evaluate_idm(shards, model=model, out=str(folder))
    print(measured, flush=True)
    return measured


def episode_of(clip_id: str) -> str:
    return clip_id.partition("#")[0]


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
