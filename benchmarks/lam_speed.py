"""Speed of the latent-action model against LAPA's and UniVLA's published layouts in plain PyTorch, and its own matmuls.

On a GPU the published sizes are taken as they are, in bfloat16; on a CPU their widths and depths are divided, in
float32. Runs alternate; a figure is the median over runs, in CPU seconds (on a GPU seconds). The limit is the time of
the products and convolutions of one step alone, each run again on tensors of its own shape.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lam_peers import LAPA, UniVLA
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from lam.config import LAMConfig
from lam.facts import ModelFacts
from lam.features import FrozenFeatures
from lam.label import LAMLabeler
from lam.model import build_model
from lam.pairs import PairBatch
from lam.train import LAMModule
from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.labels.config import LabelConfig
from pyramid.labels.plan import Plan, Run
from pyramid.labels.station import Spec, Station
from pyramid.nn.checkpoint import save_model
from pyramid.table import format_table

Work = Callable[[], object]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LABEL_BATCH = 32
"""Pairs of a pass when labelling, whatever is asked for."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


@dataclass(frozen=True)
class Subject:
    """One size: our model, and the published layout of the same size."""

    ours: LAMModule
    peer: nn.Module
    batch: PairBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    whole = DEVICE == "cuda"
    parser.add_argument("--sizes", nargs="*", default=["lapa", "univla"], choices=["lapa", "univla"], help="or none")
    parser.add_argument("--width-divisor", type=int, default=1 if whole else 4)
    parser.add_argument("--depth-divisor", type=int, default=1 if whole else 4)
    parser.add_argument("--batch-size", type=int, default=64 if whole else 4)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-labels", action="store_true", help="leave out decoding against the model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, depth, batch_size = arguments.width_divisor, arguments.depth_divisor, arguments.batch_size
    print(f"{DEVICE}; widths / {width}, depths / {depth}, {batch_size} pairs")
    for name in arguments.sizes:
        subject = SUBJECTS[name](width, depth, batch_size)
        print(f"\n{name}\n" + format_table(HEAD, compare(subject, arguments.runs)), flush=True)
    if not arguments.no_labels:
        with tempfile.TemporaryDirectory() as folder:
            head = ["lam/tiny, labelling", "CPU ms a frame", "share of the whole"]
            print("\n" + format_table(head, labelling(Path(folder), arguments.runs)))


HEAD = ["what", "parameters, M", "GFLOP a pair", "pairs / s", "ratio to the peer", "share of its matmul limit"]


def lapa(width: int, depth: int, batch_size: int) -> Subject:
    config = sized("lam/paper-lapa", width, depth, batch_size)
    m, q = config.model, config.quantizer
    peer = LAPA(
        side=m.image_size_px,
        patch=m.patch_px,
        width=m.width,
        heads=m.heads,
        depth=m.encoder_depth,
        codes=(q.codebook_size, q.dim, m.n_tokens),
    )
    return subject_of(config, ModelFacts(), peer)


def univla(width: int, depth: int, batch_size: int) -> Subject:
    from transformers import Dinov2WithRegistersConfig

    config = sized("lam/paper-univla-stage1", width, depth, batch_size, **{"text.text_model": ""})
    m, q = config.model, config.quantizer
    vision = Dinov2WithRegistersConfig(
        hidden_size=m.width, num_hidden_layers=12 // depth, num_attention_heads=m.heads, image_size=224, patch_size=14
    ).to_dict()
    seen = FrozenFeatures.described_by(vision, config.target, m.image_size_px)
    peer = UniVLA(
        seen,
        feature_dim=seen.dim,
        places=seen.grid**2,
        width=m.width,
        heads=m.heads,
        depth=m.encoder_depth,
        codes=(q.codebook_size, q.dim, m.n_tokens),
    )
    return subject_of(config, ModelFacts(vision=vision), peer)


SUBJECTS = {"lapa": lapa, "univla": univla}


def sized(preset: str, width: int, depth: int, batch_size: int, **options: Any) -> LAMConfig:
    """A published preset with its width, heads and depths divided; heads keep their width."""
    config = resolve(LAMConfig, preset, **{**options, "trainer.batch_size": batch_size, "trainer.devices": 1})
    m = config.model
    smaller = replace(
        m,
        width=m.width // width,
        heads=m.heads // width,
        encoder_depth=m.encoder_depth // depth,
        decoder_depth=m.decoder_depth // depth,
    )
    return replace(config, model=smaller)


def subject_of(config: LAMConfig, facts: ModelFacts, peer: nn.Module) -> Subject:
    side, count = config.model.image_size_px, config.trainer.batch_size
    first, second = (torch.randint(256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE) for _ in range(2))
    ones = torch.ones(count, device=DEVICE)
    batch = PairBatch(first, second, ones, ones, ones)
    module = LAMModule(build_model(config, facts), config.trainer).to(DEVICE).train()
    return Subject(module, peer.to(DEVICE).train(), batch)


def compare(subject: Subject, runs: int) -> list[list[object]]:
    """Times training steps and labels of both, and of the products of ours alone."""
    ours, peer, batch = subject.ours, subject.peer, subject.batch
    rows = torch.arange(LABEL_BATCH, device=DEVICE) % len(batch.first)
    whole = PairBatch(*(column[rows] for column in batch[:5]))
    works: dict[str, tuple[Work, Work]] = {
        "training step": (
            trained(ours, lambda: ours.loss(batch, torch.Generator())[0]),
            trained(peer, lambda: peer.loss(*pixels_of(batch))),
        ),
        "labels": (labelled(ours, whole), without_gradient(lambda: peer.label(*pixels_of(whole)))),
    }
    rows: list[list[object]] = []
    for name, (own, other) in works.items():
        for module in (ours, peer):
            module.train(name != "labels")
        own(), other()
        count = LABEL_BATCH if name == "labels" else len(batch.first)
        (replay, own_flops), (_, other_flops) = products_of(own), products_of(other)
        flops = [done / count / 1e9 for done in (own_flops, other_flops)]
        times = [[seconds(work) for work in (own, other, replay)] for _ in range(runs)]
        a, b, limit = (statistics.median(column) for column in zip(*times, strict=True))
        ratio, share = (statistics.median(run[i] / run[0] for run in times) for i in (1, 2))
        rows.append([f"{name}, ours", parameters(ours.model), flops[0], count / a, ratio, share])
        rows.append([f"{name}, plain PyTorch", parameters(peer), flops[1], count / b, 1.0, "-"])
        rows.append([f"{name}, products of ours alone", "-", "-", count / limit, "-", 1.0])
    return rows


def pixels_of(batch: PairBatch) -> list[Tensor]:
    return [frames.float() / 255 for frames in (batch.first, batch.second)]


def trained(module: nn.Module, loss: Callable[[], Tensor]) -> Work:
    """A whole step: loss, gradients, clipping, AdamW, which is fused for both."""
    parts = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parts, lr=1e-5, fused=True)

    def step() -> None:
        with autocast():
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def labelled(module: LAMModule, batch: PairBatch) -> Work:
    from lam.run import run_pairs
    from lam.views import Context

    def label() -> None:
        with autocast():
            run_pairs(module.model, batch.first, batch.second, context=Context(batch.gap_s))

    return label


def without_gradient(work: Work) -> Work:
    def run() -> None:
        with torch.inference_mode(), autocast():
            work()

    return run


def autocast() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if DEVICE == "cuda" else contextlib.nullcontext()


def seconds(work: Work) -> float:
    """Time of one run: CPU seconds, on a GPU seconds until it has finished."""
    if DEVICE == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def parameters(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6


def products_of(work: Work) -> tuple[Work, int]:
    """Returns the products and convolutions of some work alone, on tensors of the same shapes, and their operations."""
    torch.backends.mha.set_fastpath_enabled(False)  # else a layer of the peer is one operation that cannot be counted
    with Products() as found:
        work()
    torch.backends.mha.set_fastpath_enabled(True)

    def run() -> None:
        with torch.no_grad():
            for product, inputs in found.calls:
                product(*inputs)

    return run, found.flops


class Products(TorchDispatchMode):
    """Notes the products of what runs under it; attention counts as the products it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., object], Sequence[Any]]] = []
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in PRODUCTS and (parts := self._taken_apart(func, args, kwargs or {})) is not NotImplemented:
            return parts
        if name in PRODUCTS and not kwargs:
            self.calls.append((func, tree_map_only(Tensor, fresh, args)))
        elif "scaled_dot_product" in name:
            backward = "backward" in name
            query, key, value = (fresh(x) for x in args[backward : backward + 3])
            weights = fresh(query @ key.transpose(-1, -2))
            pair = [(torch.matmul, (query, key.transpose(-1, -2))), (torch.matmul, (weights, value))]
            self.calls += 2 * pair if backward else pair
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def _taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation as what it is composed of; in inference mode linear layers and attention come whole."""
        with self:
            return func.decompose(*args, **kwargs)


def fresh(x: Tensor) -> Tensor:
    like = torch.empty_like(x.detach())
    return like.normal_() if like.is_floating_point() else like.zero_()


def labelling(folder: Path, runs: int) -> list[list[object]]:
    """Labels clips of the preset ``tiny``: decoding alone, the model alone, both, and the model fed by a decoder."""
    from mixture import small_shards

    shards = small_shards(folder / "shards", 4, clips=8)
    config = resolve(LAMConfig, "lam/tiny", **{"pairs.gap_s": 0.5})
    model = build_model(config)
    nn.init.normal_(model.quantizer.vq._codebook.embed)  # type: ignore[union-attr, arg-type]
    save_model(str(folder / "model"), kind="lam", config=to_dict(config), module=model, provenance={})
    labeler = LAMLabeler(model, config, "0" * 64)
    run = Run.of(labeler, name="lam", model=str(folder / "model"), out=str(folder / "out"), options={})
    files.make_dirs(run.out)
    plan = Plan.open(shards)
    tasks = [plan.task(number, (0,)) for number in range(len(plan))]
    frames = sum(task.frames for task in tasks)
    samples = samples_of(shards)
    ready = [labeler.prepare(sample) for sample in samples]
    spec = Spec.of(plan.folder, [run], LabelConfig())
    alone, fed = Station(spec, [labeler]), Station(replace(spec, decoders=1), [labeler])
    works: dict[str, Work] = {
        "decoding alone": lambda: [labeler.prepare(sample) for sample in samples],
        "the model alone": lambda: [labeler.label(ready[i : i + 8]) for i in range(0, len(ready), 8)],
        "both in one process, to the table": lambda: [alone.label(task) for task in tasks],
        "the model's process, another one decodes": lambda: [fed.label(task) for task in tasks],
    }
    for work in works.values():
        work()
    times = [[process_seconds(work) for work in works.values()] for _ in range(runs)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return [[name, 1e3 * t / frames, t / medians[2]] for name, t in zip(works, medians, strict=True)]


def process_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def samples_of(shards: str) -> list[Any]:
    from pyramid.shards.reader import ShardSet

    opened = ShardSet.open(shards)
    return [opened.read(i) for i in range(len(opened))]


if __name__ == "__main__":
    main()
