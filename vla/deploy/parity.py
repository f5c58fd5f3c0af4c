"""Proof that exported graphs answer as PyTorch does: the same seeded observations through both, every output compared.

What to do about a difference is `vla.deploy.export`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from pyramid import files
from pyramid.rng import rng
from vla.deploy.spec import SYSTEM_2
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


@dataclass(frozen=True)
class SeededObservation:
    """Random but repeatable inputs of both graphs."""

    system2: tuple[Tensor, ...]
    """Images uint8 [B, V, H, W, 3], text ids int64 [B, T], text mask bool [B, T]."""
    system1: tuple[Tensor, ...]
    """Noise float32 [B, N, D] and, for an embodiment with state, normalised state float32 [B, S]."""


def seeded_observation(policy: Policy, embodiment: str, seed: int, *, batch: int = 1) -> SeededObservation:
    """Draws an observation: coloured blocks with pixel noise, a text of random length, a normal state and noise."""
    body, size = policy.processor.body(embodiment).embodiment.network, policy.config.backbone
    draw = rng(seed, "seeded observation")
    blocks = draw.integers(0, 256, (batch, size.n_views, 4, 4, 3))
    tile = -(-size.image_size_px // 4)
    images = blocks.repeat(tile, 2).repeat(tile, 3)[:, :, : size.image_size_px, : size.image_size_px]
    images = np.clip(images + draw.normal(0, 20, images.shape), 0, 255).astype(np.uint8)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", np.uint8)
    lengths = draw.integers(0, size.max_text_tokens, batch)
    texts = [bytes(draw.choice(letters, n)).decode() for n in lengths]
    noise = torch.from_numpy(draw.standard_normal((batch, body.horizon, body.action_dim), dtype=np.float32))
    state = torch.from_numpy(draw.standard_normal((batch, body.state_dim), dtype=np.float32))
    system1 = (noise, state) if body.state_dim else (noise,)
    return SeededObservation((torch.from_numpy(images), *policy.processor.text(texts)), system1)


@torch.no_grad()
def measure_parity(
    policy: Policy, embodiment: str, graphs: Sequence[Graph], folder: str, *, observations: int, seed: int, limit: float
) -> ParityReport:
    """Runs every graph in PyTorch and from its file in ONNX Runtime (CPU) on seeded observations.

    System 1 is given the context that PyTorch computed, so that each graph's error is its own. Every tenth observation
    comes in a batch of three, the others alone.
    """
    sessions = {g.name: _session(files.join(folder, f"{g.name}.onnx")) for g in graphs}
    error, size = {g.name: 0.0 for g in graphs}, {g.name: 0.0 for g in graphs}
    for index in range(observations):
        seen = seeded_observation(policy, embodiment, seed + index, batch=3 if index % 10 == 9 else 1)
        context: tuple[Tensor, ...] = ()
        for graph in graphs:
            inputs = seen.system2 if graph.name == SYSTEM_2 else (*context, *seen.system1)
            expected = graph.module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            context = expected if graph.name == SYSTEM_2 else context
            feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
            for want, got in zip(expected, sessions[graph.name].run(None, feed), strict=True):
                reference = want.numpy().astype(np.float64)
                error[graph.name] = _worst(error[graph.name], got.astype(np.float64) - reference)
                size[graph.name] = _worst(size[graph.name], reference)
    return ParityReport(error, observations, seed, limit, size)


def _worst(so_far: float, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    if values.size and not np.isfinite(values).all():
        return float("inf")
    return max(so_far, float(np.abs(values).max(initial=0.0)))


def _session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
