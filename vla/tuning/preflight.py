"""What a training will cost, said before it begins: parameters, memory by part, time of a step and of all steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyramid.progress import format_bytes, format_seconds
from pyramid.rng import torch_generator
from pyramid.training import StepModule, probe_step_s

__all__ = ["Preflight", "preflight"]


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Cost of a training on one device."""

    trained: dict[str, int]
    """Parameters that train, by part."""
    frozen: dict[str, int]
    """Parameters that stand still, by part."""
    memory_bytes: dict[str, int]
    """Estimate by part: weights, gradients, optimiser, average, activations. What kernels need in passing is not in."""
    step_s: float
    """Seconds of a step on this machine: reading its batches in this process, passes and backward passes."""
    total_s: float
    """Seconds of all steps."""

    def lines(self) -> list[str]:
        """Returns it for a person to read."""
        parts = {name: (self.trained.get(name, 0), self.frozen.get(name, 0)) for name in self.trained | self.frozen}
        counts = [f"{name} {a:,} trained" + (f" + {b:,} frozen" if b else "") for name, (a, b) in parts.items()]
        memory = ", ".join(f"{name} {format_bytes(n)}" for name, n in self.memory_bytes.items() if n)
        return [
            f"parameters: {'; '.join(counts)}",
            f"memory: {format_bytes(sum(self.memory_bytes.values()))} ({memory})",
            f"time: {self.step_s:.3g} s a step, {format_seconds(self.total_s)} in all",
        ]


def preflight(
    module: StepModule, batch_at: Callable[[int], Any], parts: Mapping[str, nn.Module], *, n: int = 1
) -> Preflight:
    """Measures passes on the first batch; weights and random state are left as they were.

    Activations are what the batch's graph keeps for the backward pass, counted once for each storage.

    Args:
        module: what is to be trained.
        batch_at: the batch of a step.
        parts: what to count parameters by.
        n: passes that are timed.
    """
    config = module.trainer_config
    start = time.perf_counter()
    batch = batch_at(0)
    read_s = time.perf_counter() - start
    with torch.random.fork_rng(devices=[]):
        kept = _activation_bytes(module, batch)
        pass_s = probe_step_s(module, lambda step: batch, n=n)
    step_s = config.accumulate * (pass_s + read_s)
    module.zero_grad(set_to_none=True)
    trained = {name: _count(part, trains=True) for name, part in parts.items()}
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    moving = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return Preflight(
        trained=trained,
        frozen={name: _count(part, trains=False) for name, part in parts.items()},
        memory_bytes={
            "weights": weights,
            "gradients": moving,
            "optimiser": 2 * moving,
            "average": weights if config.ema_decay else 0,
            "activations": kept,
        },
        step_s=step_s,
        total_s=step_s * config.max_steps,
    )


def _count(part: nn.Module, *, trains: bool) -> int:
    return sum(p.numel() for p in part.parameters() if p.requires_grad == trains)


def _activation_bytes(module: StepModule, batch: Any) -> int:
    """Returns the bytes that a pass keeps for its backward pass, without the weights themselves."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = module.loss(batch, torch_generator(module.trainer_config.seed, "noise", 0))
    total = sum(held.values())
    del loss
    return total
