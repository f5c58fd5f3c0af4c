"""Post-training: how many steps a policy needs on new data, begun from a trained one and begun from scratch.

Simulates Meta-World robot episodes, trains a policy on the tasks reach and button-press, and then, with that and with
fresh weights, on the push episodes of the same robot. Prints the steps until the mean error on held-out ones is
below multiples of that of the mean action. Needs the extra `sim`.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vla_flare import HORIZON, POLICY, SIZE_PX, make_shards

from pyramid import files
from pyramid.config import dump_yaml, resolve
from pyramid.mixture.batch import open_mixture
from pyramid.sim import SimConfig
from pyramid.table import format_table
from vla.config import VLAConfig
from vla.train import train_vla

BODY, EVERY, BATCH = "metaworld", 10, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder for data and models; kept, and gone on with")
    parser.add_argument("--robot", type=int, default=60, help="robot episodes over three tasks, a fifth held out")
    parser.add_argument("--before", type=int, default=200, help="steps of the training before")
    parser.add_argument("--steps", type=int, default=120, help="steps on the new data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.3, 1.0, 0.8], help="of the mean action's error")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report(arguments, arguments.out or folder)


def report(arguments: argparse.Namespace, out: str) -> None:
    sim = SimConfig(n_robot=arguments.robot, n_hand=24, n_generated=0, size_px=64)
    shards = make_shards(out, sim)["robot"]
    old, new = mixture(out, shards, "^(move|press)", "old"), mixture(out, shards, "^push", "new")
    mean = mean_error(new)
    rows = []
    for seed in arguments.seeds:
        before = files.join(out, "models", f"before-{seed}")
        train_vla(old, out=before, config=config(seed, arguments.before))
        for name, begun in (("scratch", None), ("post-trained", before)):
            folder = files.join(out, "models", f"{name}-{seed}")
            told = {"tune.validation": {"every": EVERY, "batches": 4}}
            plan = config(seed, arguments.steps, **told)
            train_vla(new, out=folder, config=plan, init_from=begun, statistics="checkpoint" if begun else "same")
            curve = errors(folder)
            reached = {f"{s:g} of {mean:.3f}": first_below(curve, s * mean) for s in arguments.shares}
            rows.append({"begun": name, "seed": str(seed), **reached, "best error": f"{min(curve.values()):.4f}"})
            print(rows[-1], curve, flush=True)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))


def config(seed: int, steps: int, **told: Any) -> VLAConfig:
    options = {"trainer.seed": seed, "trainer.max_steps": steps, "trainer.batch_size": BATCH, **told}
    return resolve(VLAConfig, "vla/tiny", **{**POLICY, "policy.head.future_tokens": 0, **options})


def mixture(out: str, shards: str, text: str, name: str) -> str:
    """Writes a mixture of the episodes whose instruction begins with some words."""
    robot = {"shards": shards, "use": "action", "embodiment": BODY, "filter": {"text": text}}
    path = files.join(out, f"post-{name}.yaml")
    spec = {"tiers": {"top": {"weight": 1, "sources": {"robot": robot}}}, "horizon": HORIZON}
    files.write_bytes(path, dump_yaml(spec).encode())
    return path


def mean_error(path: str) -> float:
    """Returns the error of the mean action on the held-out samples that trainings are measured on."""
    held = open_mixture(path, batch_size=BATCH, image_size=SIZE_PX, split="val")
    groups = [group for step in range(4) for group in held.batch(step)]
    action, mask = (torch.cat([getattr(group, name) for group in groups]) for name in ("action", "mask"))
    mean = (action * mask).sum((0, 1)) / mask.sum((0, 1))
    return float(((action - mean).abs() * mask).sum() / mask.sum())


def errors(folder: str) -> dict[int, float]:
    """Returns the held-out error by step, as TensorBoard was told."""
    log = EventAccumulator(files.join(folder, "logs")).Reload()
    return {event.step: event.value for event in log.Scalars(f"val/mae_{BODY}")}


def first_below(curve: dict[int, float], bound: float) -> str:
    return next((str(step) for step, error in sorted(curve.items()) if error < bound), "-")


if __name__ == "__main__":
    main()
