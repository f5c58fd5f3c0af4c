"""Foreseeing (FLARE) on a Meta-World pyramid: does it help to learn from clips without actions?

Simulates robot episodes and hand videos. A few robot episodes have actions; the others and the hands are videos alone.
Every variant sees the same robot samples with actions in the same order, those with foreseeing as many videos besides;
sizes are the same. Prints the flow-matching loss and the action error on held-out robot episodes. Needs the extra
`sim`; a run takes about a minute of one free core.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from typing import Any

import pyarrow as pa
import torch

from pyramid import files, pack, parquet, scan
from pyramid.config import dump_yaml, resolve
from pyramid.mixture.batch import open_mixture
from pyramid.mixture.spec import read_mixture
from pyramid.rng import torch_generator
from pyramid.shards.reader import ShardSet
from pyramid.sim import SimConfig, make_dataset
from pyramid.table import format_table
from vla.config import VLAConfig
from vla.evaluate import evaluate_batches
from vla.objectives.total import batch_loss
from vla.policy import Policy
from vla.train import train_vla

SIZE_PX, GRID, HORIZON, HZ = 32, 2, 16, 80
BATCH = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"objectives.flare.weight": 0.0},
    "pooled": {"objectives.flare.weight": 0.2},
    "qformer": {"objectives.flare.weight": 0.2, "objectives.flare.target": "qformer"},
}
POLICY: dict[str, Any] = {
    "policy.backbone": {
        "image_size_px": SIZE_PX,
        "vision_width": 64,
        "vision_layers": 1,
        "text_width": 64,
        "tap_layer": 1,
    },
    "policy.head": {"width": 64, "hidden": 64, "future_tokens": GRID**2},
    "trainer.lr": 2e-3,
    "objectives.flare.grid": GRID,
    "objectives.flare.layer": 3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder for data and models; kept, and gone on with")
    parser.add_argument("--robot", type=int, default=60, help="robot episodes, a fifth of them held out")
    parser.add_argument("--hand", type=int, default=24, help="hand videos")
    parser.add_argument("--labelled", type=int, default=6, help="robot episodes that have actions")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report(arguments, arguments.out or folder)


def report(arguments: argparse.Namespace, out: str) -> None:
    shards = make_shards(out, SimConfig(n_robot=arguments.robot, n_hand=arguments.hand, n_generated=0, size_px=64))
    table = split_robot(out, shards["robot"], arguments.labelled)
    rows = []
    for seed in arguments.seeds:
        for name in arguments.variants:
            found = measure(out, mixture(out, shards, table, name, seed), name, seed, arguments.steps)
            rows.append({"variant": name, "seed": str(seed), **found})
            print(rows[-1], flush=True)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))


def make_shards(out: str, sim: SimConfig) -> dict[str, str]:
    make_dataset(files.join(out, "data"), sim)
    places = {}
    for name, kind, told in (("robot", "lerobot", {"embodiment": "metaworld"}), ("hand", "folder", {})):
        manifest, places[name] = files.join(out, "clips", f"{name}.parquet"), files.join(out, "shards", name)
        scan(kind, files.join(out, "data", name), out=manifest, val_share=0.2, **told)
        pack(manifest, out=places[name], size_px=64)
    return places


def split_robot(out: str, shards: str, labelled: int) -> str:
    """Writes which training episodes have actions; returns the table of scores."""
    index = ShardSet.open(shards).index
    train = [
        key for key, split in zip(*(index[c].to_pylist() for c in ("key", "split")), strict=True) if split == "train"
    ]
    has = {key: float(place < labelled) for place, key in enumerate(train)}
    keys = index["key"].to_pylist()
    path = files.join(out, f"labelled-{labelled}.parquet")
    parquet.write(path, pa.table({"key": keys, "labelled": [has.get(key, 1.0) for key in keys]}))
    return path


def mixture(out: str, shards: dict[str, str], table: str, name: str, seed: int) -> str:
    """Writes a mixture: half of the samples without actions, or none; the others are the same."""
    robot = {"shards": shards["robot"], "use": "action", "filter": {"scores": {"path": table, "min": {"labelled": 1}}}}
    unseen = {"path": table, "max": {"labelled": 0}}
    videos = {
        "robot_video": {"shards": shards["robot"], "use": "video", "weight": 2, "filter": {"scores": unseen}},
        "hand": {"shards": shards["hand"], "use": "video", "weight": 1},
    }
    base = {"base": {"weight": 1, "sources": videos}} if name != "none" else {}
    tiers = {**base, "top": {"weight": 1, "sources": {"robot": robot}}}
    path = files.join(out, f"mixture-{name}-{seed}.yaml")
    files.write_bytes(
        path, dump_yaml({"tiers": tiers, "horizon": HORIZON, "future_s": HORIZON / HZ, "seed": seed}).encode()
    )
    return path


def measure(out: str, path: str, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains a variant on its mixture file and measures it on the robot episodes held out."""
    folder = files.join(out, "models", f"{name}-{seed}-{steps}")
    options = {
        **POLICY,
        **VARIANTS[name],
        "trainer.seed": seed,
        "trainer.max_steps": steps,
        "trainer.batch_size": BATCH if name == "none" else 2 * BATCH,
    }
    train_vla(path, out=folder, config=resolve(VLAConfig, "vla/tiny", **options))
    top = read_mixture(path).tiers["top"]
    held = open_mixture(replace(read_mixture(path), tiers={"top": top}), batch_size=64, image_size=SIZE_PX, split="val")
    batches = [held.batch(step) for step in range(6)]
    policy = Policy.from_pretrained(folder)
    with torch.no_grad():
        losses = [float(batch_loss(policy, b, torch_generator(0, "held out", n))[0]) for n, b in enumerate(batches)]
    score = evaluate_batches(policy, batches)["metaworld"]
    return {
        "held-out loss": f"{sum(losses) / len(losses):.4f}",
        "mean error": f"{score.mae:.4f}",
        "of the mean action": f"{score.baseline_mae:.4f}",
        "R2": f"{score.r2:.3f}",
    }


if __name__ == "__main__":
    main()
