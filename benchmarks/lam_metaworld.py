"""Latent actions on Meta-World: what of the true action a model trained without actions holds, in two looks.

Simulates robot episodes and hand videos of the same tasks, trains `lam/tiny` in the variants below on both, measures it
on held-out episodes, and prints one table: R2 of the mean action (x, y, z, gripper). Needs the extra `sim`; a row takes
two to three minutes of one core. The second look, a floating hand instead of the robot, has its own episodes; their
actions are used to score, never to train.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from lam.evaluate import evaluate_lam
from lam.result import LAMEvaluation
from lam.train import train_lam
from pyramid import files, pack, scan
from pyramid.lerobot.write import EpisodeData, EpisodeWriter
from pyramid.sim import SimConfig, make_dataset
from pyramid.sim.env import MetaWorldEnv
from pyramid.sim.episodes import rollout_expert
from pyramid.sim.looks import apply_look
from pyramid.sim.plan import robot_layout
from pyramid.sim.render import Renderer
from pyramid.sim.tasks import instruction
from pyramid.table import format_table

ROBOT, HAND = "metaworld", "metaworld_hand"
SIZE_PX = 128
LABELLED = {"objectives.action_weight": 0.5, "objectives.action_unit": "pairs", "objectives.action_share": 0.025}
SHARED: dict[str, Any] = {
    "objectives.action_weight": 1.0,
    "quantizer.kind": "none",
    "quantizer.code_dim": 4,
    "model.encoder_sees": "edges",
    "objectives.body_critic": 0.05,
    "objectives.body_moments": 0.05,
    "objectives.body_cycle": 0.1,
    "objectives.window_share": 0.6,
    "trainer.batch_size": 48,
    "trainer.max_steps": 220,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tiny, 2.5 % labelled": LABELLED,
    "continuous": {"quantizer.kind": "none"},
    "continuous, 2.5 % labelled": {"quantizer.kind": "none", **LABELLED},
    "bodies share, 2.5 % labelled": {**LABELLED, **SHARED},
}
"""Options on top of the preset ``lam/tiny``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="folder for data, models and reports; kept, and gone on with")
    parser.add_argument("--robot", type=int, default=120, help="robot episodes, a fifth of them held out")
    parser.add_argument("--hand", type=int, default=48, help="hand videos to train on")
    parser.add_argument("--scored", type=int, default=18, help="hand episodes to score on")
    parser.add_argument("--sim-seed", type=int, default=0, help="which episodes; no two seeds share one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of the trainings")
    parser.add_argument("--variants", nargs="*", default=["tiny"], choices=list(VARIANTS))
    parser.add_argument("--data-only", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(arguments, arguments.out or folder)


def report(arguments: argparse.Namespace, out: str) -> None:
    sim = SimConfig(n_robot=arguments.robot, n_hand=arguments.hand, n_generated=0, seed=arguments.sim_seed)
    shards = make_shards(out, sim, arguments.scored)
    if arguments.data_only:
        return
    rows = []
    for name in arguments.variants:
        for seed in arguments.seeds:
            found = measure(out, shards, name, seed)
            rows.append({"variant": name, "seed": str(seed), **row_of(found)})
            print(rows[-1], flush=True)
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))


def make_shards(out: str, sim: SimConfig, n_scored: int) -> dict[str, str]:
    """Makes the three folders of shards once: robot episodes, hand videos, hand episodes with actions."""
    places = {name: files.join(out, "shards", name) for name in ("robot", "hand", "scored")}
    make_dataset(files.join(out, "data"), sim)
    scored = files.join(out, "data-scored")
    if not files.exists(files.join(scored, "meta", "info.json")):
        film_hands(scored, sim, n_scored)
    sources = {"robot": ("lerobot", files.join(out, "data", "robot"), ROBOT, 0.2)}
    sources["hand"] = ("folder", files.join(out, "data", "hand"), None, 0.0)
    sources["scored"] = ("lerobot", scored, HAND, 0.9)
    for name, (kind, root, body, val_share) in sources.items():
        manifest = files.join(out, "clips", f"{name}.parquet")
        told = {} if body is None else {"embodiment": body}
        scan(kind, root, out=manifest, val_share=val_share, **told)
        pack(manifest, out=places[name], size_px=SIZE_PX)
    return places


def film_hands(out: str, sim: SimConfig, count: int) -> None:
    """Writes hand episodes with their states and actions, in a part of the seeds that no other episode has."""
    writer = EpisodeWriter(out, robot_layout(sim), [instruction(task) for task in sim.tasks])
    first_frame, index = 0, 0
    for number, task in enumerate(sim.tasks):
        env = MetaWorldEnv(task)
        apply_look(env.model, "hand")
        with Renderer(env.model, size_px=sim.size_px, camera=sim.camera, fovy_deg=sim.fovy_deg) as renderer:
            seed = 10**6 * (number + 1 + len(sim.tasks) * sim.seed)
            for _ in range(count // len(sim.tasks)):
                episode = None
                while episode is None or not episode.success:
                    seed += 1
                    episode = rollout_expert(env, seed=seed, action_noise=sim.action_noise, renderer=renderer)
                data = EpisodeData(
                    state=episode.state,
                    action=episode.action,
                    frames={sim.camera.lower(): episode.frames},
                    task=episode.instruction,
                )
                writer.write(index, data, first_frame=first_frame)
                index, first_frame = index + 1, first_frame + len(episode)
        env.close()
    writer.finish(index)


def measure(out: str, shards: dict[str, str], name: str, seed: int) -> LAMEvaluation:
    """Trains one variant with one seed on both looks and measures it on held-out episodes of both."""
    folder = files.join(out, "models", f"{name.replace(' ', '-').replace(',', '')}-{seed}")
    options = {**VARIANTS[name], "trainer.seed": seed}
    train_lam([shards["robot"], shards["hand"]], out=folder, config="lam/tiny", **options)
    return evaluate_lam([shards["robot"], shards["scored"]], model=folder, out=folder, n_pairs=1500, seed=seed)


def row_of(found: LAMEvaluation) -> dict[str, str]:
    probe = found.probes[ROBOT]
    crossed = next(t for t in found.transfers if (t.fitted_on, t.scored_on) == (ROBOT, HAND))
    return {
        "ridge": show(probe.linear, probe.per_dimension),
        "MLP": show(probe.mlp, probe.mlp_per_dimension),
        "codes": show(probe.codes, probe.codes_per_dimension or []),
        "robot -> hand": show(crossed.linear, crossed.per_dimension),
        "same, MLP": show(crossed.mlp, crossed.mlp_per_dimension),
        "copy gap": f"{found.copy_gap:.1f}",
        "shuffle gap": f"{found.shuffle_gap:.1f}",
        "leakage": "-" if found.leakage is None else f"{found.leakage:.2f}",
        "verdict": found.verdict,
    }


def show(mean: float | None, scores: list[float | None]) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f} ({' '.join('-' if s is None else f'{s:.2f}' for s in scores)})"


if __name__ == "__main__":
    main()
