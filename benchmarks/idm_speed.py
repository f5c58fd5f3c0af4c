"""Labelled frames per second of the inverse dynamics model's flow head: context once per window, against once per step.

GR00T-Dreams encodes the context anew in each of its 16 denoising steps, in windows of two frames that start at each
frame and are run one by one. Ours looks at each frame once per clip, encodes the context once per window and runs
windows together, those of several clips too (``--clips``), as the label engine does. Same network, same weights, same
noise, equal labels: the largest difference is printed.
Beside it the regressor of the same size, and, with ``--models``, what both heads' labels are worth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from idm.config import HeadConfig, IDMConfig, ModelConfig, VisionConfig, WindowConfig
from idm.evaluate import evaluate_idm
from idm.heads import FlowHead
from idm.model import InverseDynamicsModel
from idm.predict import ClipInput, predict_clips
from idm.train import build_module
from idm.windows import vote, window_starts
from pyramid.rng import rng
from pyramid.table import format_table

NAME = "robot"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=80, help="of a clip")
    parser.add_argument("--clips", type=int, default=1, help="labelled together; the other ways take one by one")
    parser.add_argument("--width", type=int, default=128, help="of the tower and the heads; the release has 1,024")
    parser.add_argument("--layers", type=int, default=6, help="of the tower; the release has 24")
    parser.add_argument("--size", type=int, default=128, help="side of the frames, pixels; the release has 256")
    parser.add_argument("--dim", type=int, default=7, help="of the actions")
    parser.add_argument("--runs", type=int, default=3, help="of each way, in turn; medians count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=[], metavar="MODEL=SHARDS", help="trained models to measure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    flow, regressor = (network(kind, arguments) for kind in ("flow", "regressor"))
    shape = (arguments.clips, arguments.frames, 3, arguments.size, arguments.size)
    clips = torch.from_numpy(rng(0, "benchmark").integers(0, 256, shape, dtype=np.uint8))
    ways: dict[str, Callable[[], np.ndarray]] = {
        "GR00T-Dreams' way, all of the context in each step": lambda: theirs(flow, clips, tower_each_step=True),
        "the same, the tower once per window": lambda: theirs(flow, clips, tower_each_step=False),
        "ours, flow head": lambda: ours(flow, clips),
        "ours, regressor": lambda: ours(regressor, clips),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels = {}
    for _ in range(arguments.runs):
        for name, way in ways.items():
            start = time.process_time()
            labels[name] = way()
            seconds[name].append(time.process_time() - start)
    reference = labels["ours, flow head"]
    base = statistics.median(next(iter(seconds.values())))
    rows = [
        [
            name,
            f"{len(reference) / statistics.median(taken):.1f}",
            f"{base / statistics.median(taken):.1f}",
            "-" if "regressor" in name else f"{np.abs(labels[name] - reference).max():.1e}",
        ]
        for name, taken in seconds.items()
    ]
    print(format_table(["way", "labelled frames / CPU-s", "times as fast", "largest difference of labels"], rows))
    measure_models(arguments.models)


def network(kind: str, arguments: argparse.Namespace) -> InverseDynamicsModel:
    """Builds GR00T-Dreams' network, scaled: proportions and counts of blocks of the head are the release's."""
    width = arguments.width
    vision = VisionConfig(
        kind="siglip", width=width, layers=arguments.layers, heads=width // 64 or 1, mlp_width=4 * width, patch_px=16
    )
    head = HeadConfig(kind=kind, width=width, heads=max(width // 64, 1), samples=1, hidden=width, auxiliary=0.0)
    config = IDMConfig(
        windows=WindowConfig(horizon=16, frames=(0, 16), votes="uniform"),
        model=ModelConfig(image_size_px=arguments.size, vision=vision, head=head),
    )
    return build_module(config, {NAME: (arguments.dim, 0)}).model.eval()


def ours(model: InverseDynamicsModel, clips: Tensor) -> np.ndarray:
    inputs = [ClipInput(frames, [(0, len(frames))]) for frames in clips]
    return np.concatenate([found.mean for found in predict_clips(model, inputs, model.config.windows, NAME)])


def theirs(model: InverseDynamicsModel, clips: Tensor, *, tower_each_step: bool) -> np.ndarray:
    return np.concatenate([their_clip(model, frames, tower_each_step=tower_each_step) for frames in clips])


@torch.inference_mode()
def their_clip(model: InverseDynamicsModel, frames: Tensor, *, tower_each_step: bool) -> np.ndarray:
    head = model.head
    assert isinstance(head, FlowHead)
    chunks = {}
    for start in window_starts(len(frames), head.horizon):
        pair, present = frames[[start, start + head.horizon]], torch.ones(1, 2)
        looked = model.look(pair)[None]
        x = model.noise(0, NAME, torch.zeros(1))
        for step in range(head.sample_steps):
            if tower_each_step and step:
                looked = model.look(pair)[None]
            context = head.encode(model.context(looked, present, None, NAME)[0])
            bucket = torch.full((1,), step * 1000 // head.sample_steps)
            x = x + head.velocity(x, bucket, context, NAME) / head.sample_steps
        chunks[start] = x[0].numpy()
    return vote(chunks, len(frames), np.ones((head.horizon, 1))).mean


def measure_models(models: Sequence[str]) -> None:
    """Prints error and speed of trained models side by side."""
    rows = []
    for entry in models:
        model, _, shards = entry.partition("=")
        start = time.process_time()
        found = evaluate_idm(shards, model=model)
        taken = time.process_time() - start
        rows.append(
            [
                model,
                f"{found.r2.mean:.3f}",
                f"{found.error:.4f}",
                f"{found.baseline_error:.4f}",
                f"{found.steps / taken:.0f}",
            ]
        )
    if rows:
        print(format_table(["model", "R2", "error", "mean action", "steps / CPU-s, decoding included"], rows))


if __name__ == "__main__":
    main()
