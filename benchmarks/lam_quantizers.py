"""Every quantiser of the latent-action model on Meta-World episodes, same budget, several seeds, one table.

Actions are used to score only. Needs the extra `sim`. Data, models and results stay in the folder, so a run that was
stopped goes on; a row takes about 15 seconds of one core for each seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam import metrics
from lam.config import CODE_DIMS, LAMConfig
from lam.pairs import PairSampler
from lam.probes import ProbeData, mlp_probe, ridge_probe
from lam.run import load_model, run_pairs
from lam.signals import mean_action
from lam.train import train_lam
from pyramid import files, pack, scan
from pyramid.config import resolve
from pyramid.shards.frames import ClipFrames
from pyramid.sim import SimConfig, make_dataset
from pyramid.table import format_table
from pyramid.types import Split

Result = dict[str, float | None]
BUDGET: dict[str, Any] = {
    "pairs.gap_s": 0.2,
    "objectives.focus": "motion",
    "trainer.max_steps": 100,
    "trainer.batch_size": 24,
    "trainer.threads": 1,
}
"""What all kinds share, on top of the preset ``lam/tiny``."""
SHOWN = {
    "perplexity_min": 1, "perplexity_mean": 1, "usage": 2, "copy_gap": 2, "shuffle_gap": 2, "leakage": 2,
    "static_fraction": 2, "latent_ridge": 2, "latent_mlp": 2, "codes_ridge": 2, "codes_mlp": 2,
}  # fmt: skip
"""Columns and their decimals."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="lam-quantizers", help="folder for data, models and results")
    parser.add_argument("--episodes", type=int, default=48, help="robot episodes, a fifth of them held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kinds", nargs="+", default=list(CODE_DIMS), choices=list(CODE_DIMS))
    parser.add_argument("--pairs", type=int, default=384, help="pairs measured of each split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = make_shards(arguments.out, arguments.episodes)
    fitted, held = (draw_pairs(shards, split, arguments.pairs) for split in ("train", "val"))
    found: dict[str, list[Result]] = {kind: [] for kind in arguments.kinds}
    for seed in arguments.seeds:  # all kinds of one seed first: a run that is cut short still compares
        for kind in arguments.kinds:
            found[kind].append(result(arguments.out, kind, seed, fitted, held))
            print(kind, seed, found[kind][-1], flush=True)
    print(format_table(["kind", "bits", *SHOWN], [row(kind, results) for kind, results in found.items()]))


def make_shards(out: str, n_episodes: int) -> str:
    """Makes the shards once: robot episodes of the simulator's three default tasks."""
    shards, manifest = files.join(out, "shards"), files.join(out, "clips.parquet")
    make_dataset(files.join(out, "data"), SimConfig(n_robot=n_episodes, n_hand=0, n_generated=0))
    scan("lerobot", files.join(out, "data", "robot"), out=manifest, val_share=0.2, embodiment="metaworld")
    pack(manifest, out=shards, size_px=64)
    return shards


def result(out: str, kind: str, seed: int, fitted: Pairs, held: Pairs) -> Result:
    """Trains and measures one model, or reads what a former run found."""
    options = {**BUDGET, "quantizer.kind": kind, "quantizer.code_dim": None, "trainer.seed": seed}
    path = files.join(out, "results", f"{kind}-{seed}-{files.digest([options, len(held.clip)])[:12]}.json")
    if not files.exists(path):
        model = files.join(out, "models", f"{kind}-{seed}-{files.digest(options)[:12]}")
        start = time.process_time()
        train_lam(files.join(out, "shards"), out=model, config="lam/tiny", **options)
        spent = time.process_time() - start
        files.make_dirs(files.join(out, "results"))
        files.write_json(path, {**measure(model, fitted, held), "train_cpu_s": round(spent, 1)})
    return dict(files.read_json(path))


class Pairs(NamedTuple):
    """Pairs of one split, the same for every model."""

    first: Tensor
    """uint8 [P, 3, S, S]."""
    second: Tensor
    """uint8 [P, 3, S, S]."""
    action: NDArray[np.float32]
    """float32 [P, 4]: mean action over the gap."""
    clip: NDArray[np.int64]
    """int64 [P]: number of the clip."""


def measure(model: str, fitted: Pairs, held: Pairs) -> Result:
    """Returns the columns of one model: probes fitted on training episodes, everything scored on others."""
    network = load_model(model)[0]
    rows = run_pairs(network, held.first, held.second)
    other = metrics.partners(held.clip)
    foreign = held.clip != held.clip[other]
    with torch.inference_mode():
        z = network.quantizer(torch.from_numpy(rows.latent)).z
    swapped = run_pairs(network, held.first, held.second, z[other])
    unrelated = run_pairs(network, held.first[foreign], held.second[other][foreign])
    found: Result = {
        "copy_gap": metrics.psnr_gap(rows.error, rows.copy_error),
        "shuffle_gap": metrics.psnr_gap(rows.error, swapped.error),
        "leakage": metrics.leakage(rows.error, rows.copy_error, unrelated.error, unrelated.copy_error),
    }
    seen = run_pairs(network, fitted.first, fitted.second)
    found |= probed("latent", flat(seen.latent), flat(rows.latent), fitted, held)
    if rows.codes is None or seen.codes is None:
        return found
    perplexity = metrics.perplexity(rows.codes, network.quantizer.n_codes)
    still = run_pairs(network, held.first, held.first).codes
    eye = np.eye(network.quantizer.n_codes, dtype=np.float32)
    return found | {
        "perplexity_min": min(perplexity),
        "perplexity_mean": statistics.mean(perplexity),
        "usage": float(eye[rows.codes].any(0).mean()),
        "static_fraction": None if still is None else metrics.static_fraction(still),
        **probed("codes", flat(eye[seen.codes]), flat(eye[rows.codes]), fitted, held),
    }


def probed(name: str, x: NDArray[np.float32], new: NDArray[np.float32], fitted: Pairs, held: Pairs) -> Result:
    """Returns the mean R2 over the action's dimensions of a ridge and of an MLP."""
    sides = ProbeData(x, fitted.action, fitted.clip), ProbeData(new, held.action, held.clip)
    scores = {"ridge": ridge_probe(*sides), "mlp": mlp_probe(*sides)}
    return {f"{name}_{kind}": statistics.mean(r2 for r2 in found if r2 is not None) for kind, found in scores.items()}


def flat(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x.reshape(len(x), -1)


def draw_pairs(shards: str, split: Split, n_pairs: int) -> Pairs:
    """Draws a fixed list of pairs with the gap of the labels, in the order of their clips."""
    config = resolve(LAMConfig, "lam/tiny", **BUDGET)
    policy = replace(config.pairs, jitter=0.0, static_policy="kept")
    clips = ClipFrames.open(shards, split=split, size_px=config.model.image_size_px, cache_mb=policy.cache_mb)
    sampler = PairSampler(clips, policy, seed=0, batch_size=1)
    drawn = sorted((sampler.draw("measure", split, i) for i in range(n_pairs)), key=lambda one: one[:2])
    first, second = (torch.stack(frames) for frames in zip(*(frames for _, _, frames in drawn), strict=True))
    means = [mean_action(clips.sample(clip).action, pair) for clip, pair, _ in drawn]
    actions = np.stack([mean for mean in means if mean is not None])  # every episode of the simulator has actions
    return Pairs(first, second, actions, np.array([clip for clip, _, _ in drawn], np.int64))


def row(kind: str, results: list[Result]) -> list[str]:
    """Returns the means over the seeds, and the lowest and the highest where they differ."""
    config = LAMConfig().quantizer
    config = replace(config, kind=kind)  # type: ignore[arg-type]
    bits = 4 * config.codes_per_token * math.log2(config.n_codes) if config.n_codes else None
    return [kind, "-" if bits is None else f"{bits:.0f}", *(cell(results, name, n) for name, n in SHOWN.items())]


def cell(results: list[Result], name: str, decimals: int) -> str:
    values = [value for found in results if (value := found.get(name)) is not None]
    if not values:
        return "-"
    low, high, mean = (f"{value:.{decimals}f}" for value in (min(values), max(values), statistics.mean(values)))
    return mean if low == high else f"{mean} ({low}..{high})"


if __name__ == "__main__":
    main()
