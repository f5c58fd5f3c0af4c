"""Proof that exported graphs answer as PyTorch does: the same seeded observations through both, every output compared.

What to do about a difference is `vla.deploy.export`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyramid import files
from pyramid.nn.flow import TIME_BUCKETS
from pyramid.progress import Progress
from pyramid.rng import rng
from vla.deploy.runtime import open_session
from vla.deploy.spec import SYSTEM_1_CONTEXT, SYSTEM_1_STEP, SYSTEM_2
from vla.policy import Policy

if TYPE_CHECKING:
    from vla.deploy.graphs import Graph

__all__ = ["PARITY_FILE", "ParityReport", "SeededObservation", "measure_parity", "seeded_observation"]

PARITY_FILE = "parity.json"


@dataclass(frozen=True)
class ParityReport:
    """How far ONNX Runtime is from PyTorch."""

    max_abs_error: dict[str, float]
    """Name of the graph -> largest absolute difference over all observations and outputs."""
    observations: int
    """Observations compared."""
    seed: int
    """They are a function of it."""
    limit: float
    """Largest difference allowed."""
    max_abs_output: dict[str, float]
    """Name of the graph -> largest absolute value that PyTorch gave, to judge the error by."""
    reduced: dict[str, Any] | None = None
    """``precision`` and ``max_abs_error`` per graph after the graphs were given fewer bits; None when they were not."""


@dataclass(frozen=True)
class SeededObservation:
    """Random but repeatable inputs of both graphs."""

    system2: tuple[Tensor, ...]
    """Images uint8 [B, V, H, W, 3], text ids int64 [B, T], text mask bool [B, T]."""
    system1: tuple[Tensor, ...]
    """Noise float32 [B, N, D] and, for an embodiment with state, normalised state float32 [B, S] or [B, H, S]."""
    bucket: Tensor
    """Time buckets int64 [B], for a single denoising step."""

    def inputs(self, graph: str, context: Sequence[Tensor], key_values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns a graph's inputs; ``context`` and ``key_values`` are what the graphs before it gave."""
        if graph == SYSTEM_2:
            return self.system2
        if graph == SYSTEM_1_CONTEXT:
            return tuple(context)
        if graph == SYSTEM_1_STEP:
            return (self.system1[0], self.bucket, context[1], *self.system1[1:], *key_values)
        return (*context, *self.system1)


def seeded_observation(
    policy: Policy, embodiment: str, seed: int, *, batch: int = 1, trim: bool = False
) -> SeededObservation:
    """Draws an observation: coloured blocks with pixel noise, a text of random length, a normal state and noise.

    With `trim` the text is as long as its tokens are, instead of padded.
    """
    body, size = policy.processor.body(embodiment).embodiment.network, policy.config.backbone
    draw = rng(seed, "seeded observation")
    blocks = draw.integers(0, 256, (batch, size.n_views, 4, 4, 3))
    tile = -(-size.image_size_px // 4)
    images = blocks.repeat(tile, 2).repeat(tile, 3)[:, :, : size.image_size_px, : size.image_size_px]
    images = np.clip(images + draw.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", np.uint8)
    around = len(policy.processor.tokenizer.encode("").ids)  # what the tokenizer itself says, such as a chat's words
    lengths = draw.integers(0, max(size.max_text_tokens - around, 0) + 1, batch)
    texts = [bytes(draw.choice(letters, n)).decode() for n in lengths]
    noise = torch.from_numpy(draw.standard_normal((batch, body.horizon, body.action_dim), dtype=np.float32))
    state = torch.from_numpy(draw.standard_normal((batch, *body.state_shape), dtype=np.float32))
    system1 = (noise, state) if body.state_dim else (noise,)
    bucket = torch.from_numpy(draw.integers(0, TIME_BUCKETS, batch))
    text = policy.processor.text(texts, trim=trim)
    return SeededObservation((torch.from_numpy(images), *text), system1, bucket)


@torch.no_grad()
def measure_parity(
    policy: Policy,
    embodiment: str,
    graphs: Sequence[Graph],
    folder: str,
    *,
    observations: int,
    seed: int,
    limit: float,
    precision: str = "fp32",
) -> ParityReport:
    """Runs every graph in PyTorch and from its file in ONNX Runtime (CPU) on seeded observations.

    Each graph is given what PyTorch computed before it, so that its error is its own. Every tenth observation comes in
    a batch of three, the others alone; where the batch is not dynamic, all have the size that it was exported with.
    """
    axes = {name for graph in graphs for axis in graph.axes for name in axis.values()}
    sessions = {g.name: open_session(files.join(folder, f"{g.name}.onnx"), precision=precision) for g in graphs}
    error, size = {g.name: 0.0 for g in graphs}, {g.name: 0.0 for g in graphs}
    for index in _numbers(observations, precision):
        seen = seeded_observation(
            policy, embodiment, seed + index, batch=_batch(index, axes, graphs), trim="text" in axes
        )
        context: tuple[Tensor, ...] = ()
        key_values: tuple[Tensor, ...] = ()
        for graph in graphs:
            inputs = seen.inputs(graph.name, context, key_values)
            expected = graph.module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            context = expected if graph.name == SYSTEM_2 else context
            key_values = expected if graph.name == SYSTEM_1_CONTEXT else key_values
            taken = {i.name for i in sessions[graph.name].get_inputs()}  # an input may be of no use to the graph
            feed = {name: t.numpy() for name, t in zip(graph.inputs, inputs, strict=True) if name in taken}
            for want, got in zip(expected, sessions[graph.name].run(None, feed), strict=True):
                reference = want.numpy().astype(np.float64)
                error[graph.name] = _worst(error[graph.name], got.astype(np.float64) - reference)
                size[graph.name] = _worst(size[graph.name], reference)
    return ParityReport(error, observations, seed, limit, size)


def _numbers(observations: int, precision: str) -> Iterator[int]:
    with Progress(f"export: parity {precision}", observations) as progress:
        for index in range(observations):
            yield index
            progress.add()


def _batch(index: int, axes: Collection[str], graphs: Sequence[Graph]) -> int:
    if "batch" not in axes:
        return len(graphs[0].example[0])
    return 3 if index % 10 == 9 else 1


def _worst(so_far: float, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    if values.size and not np.isfinite(values).all():
        return float("inf")
    return max(so_far, float(np.abs(values).max(initial=0.0)))
