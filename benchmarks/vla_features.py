"""Training a policy's head on a frozen backbone: with features kept beside the shards, and without.

Without, a step decodes pictures and runs the backbone: sample by sample, so that the weights are the same bits as with
kept features (a CPU's way), and for comparison all samples of a batch at once. With, neither happens, or (for targets
that look at pictures) decoding alone. The losses of all ways are compared before anything is printed. Reading and the
passes are timed apart, in this process; filling is timed by itself and told in epochs of what it saves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mixture import small_shards

from pyramid.config import dump_yaml, resolve
from pyramid.progress import format_bytes
from pyramid.rng import torch_generator
from pyramid.table import format_table
from vla.config import VLAConfig
from vla.features import encode
from vla.train import build_module, open_features, open_stream

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "larger": {
        "policy.backbone.vision_width": 256,
        "policy.backbone.vision_layers": 6,
        "policy.backbone.text_width": 256,
        "policy.backbone.tap_layer": 6,
    },
}
WAYS = ("nothing kept, one by one", "nothing kept, batches", "kept, pictures too", "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=4, help="of 4 clips each")
    parser.add_argument("--frames", type=int, default=48, help="of a clip")
    parser.add_argument("--side-px", type=int, default=128, help="of the packed frames")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = small_shards(Path(folder, "a"), arguments.shards, side=arguments.side_px, frames=arguments.frames)
        tiers = {"top": {"weight": 1, "sources": {"robot": {"shards": shards, "use": "action"}}}}
        mixture = Path(folder, "mix.yaml")
        mixture.write_text(dump_yaml({"tiers": tiers}))
        steps = arguments.shards * 4 * arguments.frames // arguments.batch_size
        for name in arguments.sizes:
            compare(str(mixture), name, arguments.batch_size, steps)


def compare(mixture: str, name: str, batch_size: int, steps: int) -> None:
    """Prints what an epoch costs in each way."""
    fill_s, told = fill(mixture, config(name, batch_size))
    found = {way: epoch(mixture, config(name, batch_size, kept=way.startswith("kept")), way, steps) for way in WAYS}
    base = found[WAYS[0]]
    for way, (_, _, losses) in found.items():
        assert torch.allclose(losses, base[2], rtol=1e-5), way
        assert way == WAYS[1] or torch.equal(losses, base[2]), way
    rows = []
    for way, (read, passes, _) in found.items():
        ratios = [f"{(sum(found[other][:2])) / (read + passes):.1f}" for other in WAYS[:2]]
        rows.append([way, f"{read / steps:.4f}", f"{passes / steps:.4f}", f"{(read + passes) / steps:.4f}", *ratios])
    print(f"{name}: {told}, filled in within {fill_s:.1f} CPU-s; an epoch is {steps} steps of {batch_size}")
    head = ["way", "reading, CPU-s", "passes, CPU-s", "step, CPU-s", "times one by one", "times batches"]
    print(format_table(head, rows))
    saved = sum(found[WAYS[1]][:2]) - sum(found["kept"][:2])
    print(f"filling is paid back after {fill_s / saved:.1f} epochs of what batches cost\n")


def config(name: str, batch_size: int, *, kept: bool = True) -> VLAConfig:
    frozen = {"policy.backbone.frozen": True, "policy.backbone.cache_features": kept}
    return resolve(VLAConfig, "vla/tiny", **{"trainer.batch_size": batch_size, **frozen, **SIZES[name]})


def fill(mixture: str, chosen: VLAConfig) -> tuple[float, str]:
    """Returns the processor time of filling, and what was filled in."""
    stream = open_stream(mixture, chosen)
    features = open_features(stream, build_module(stream, chosen).model, chosen)
    assert features is not None
    plan = features.plan()
    start = time.process_time()
    features.fill(plan)
    return time.process_time() - start, f"{plan.frames} frames, {format_bytes(plan.bytes)} of features"


def epoch(mixture: str, chosen: VLAConfig, way: str, steps: int) -> tuple[float, float, torch.Tensor]:
    """Returns processor seconds of reading and of the passes of an epoch, after a pass that does not count; losses."""
    stream = open_stream(mixture, chosen)
    module = build_module(stream, chosen).train()
    module.loss(stream.batch(0), torch_generator(0, "noise", 0))[0].backward()
    module.zero_grad()
    stream = open_stream(mixture, chosen)  # Nothing is decoded yet.
    features = open_features(stream, module.model, chosen)
    if features is not None:
        features.kept.pictures = way == "kept, pictures too"
    read = passes = 0.0
    losses = []
    with one_by_one(way == "nothing kept, one by one"):
        for step in range(steps):
            start = time.process_time()
            batch = stream.batch(step)
            middle = time.process_time()
            loss, _ = module.loss(batch, torch_generator(0, "noise", step))
            loss.backward()
            module.zero_grad()
            losses.append(loss.detach())
            read, passes = read + middle - start, passes + time.process_time() - middle
    return read, passes, torch.stack(losses)


@contextmanager
def one_by_one(really: bool) -> Iterator[None]:
    """Sends samples through a frozen backbone one by one though nothing is to be kept."""
    before = encode._alone
    if really:
        encode._alone = lambda *_: True
    try:
        yield
    finally:
        encode._alone = before


if __name__ == "__main__":
    main()
