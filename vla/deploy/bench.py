"""The verb `bench`: how long an exported policy takes to answer on this machine; torch only to compare with.

It times and prints; comparing with limits or other systems is left to `benchmarks/`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError
from pyramid.rng import rng
from vla.deploy.runtime import PolicyRuntime, choose_providers
from vla.deploy.spec import SYSTEM_1, SYSTEM_2

if TYPE_CHECKING:
    from vla.policy import Policy

__all__ = ["BenchResult", "PlanResult", "bench"]

_Act = Callable[[dict[str, Any], int], NDArray[np.float32]]
END_TO_END = "end_to_end"
"""From an observation in memory to actions in physical units: checks, tokenizer, both graphs, normalisers."""


@dataclass(frozen=True)
class BenchResult:
    """Latency of a deploy folder, batch 1."""

    folder: str
    """The deploy folder."""
    p50_ms: dict[str, float]
    """Median in milliseconds, per graph and end to end."""
    p99_ms: dict[str, float]
    """99th percentile in milliseconds, per graph and end to end."""
    provider: str
    """ONNX Runtime execution provider."""
    threads: int
    """Threads within an operator; 0 = ONNX Runtime's own choice."""
    runs: int
    """Timed calls."""
    max_difference: float | None = None
    """Largest difference of the actions to the checkpoint's, physical units; None without a checkpoint."""

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {self.p50_ms[name]:.2f} / {self.p99_ms[name]:.2f} ms" for name in self.p50_ms)
        return (
            f"{self.folder} on {self.provider}, {self.threads or 'default'} threads, p50 / p99 of {self.runs}: {rows}"
        )


@dataclass(frozen=True)
class PlanResult:
    """Estimates of a deploy folder's latency on chips that are not at hand; nothing was run."""

    folder: str
    """The deploy folder."""
    estimated_ms: dict[str, dict[str, float]]
    """Chip -> graph, and `end_to_end`, -> milliseconds in fp16, batch 1. Estimates, see `vla.deploy.plan`."""

    def __repr__(self) -> str:
        rows = ", ".join(f"{chip} {ms['end_to_end']:.3g} ms" for chip, ms in self.estimated_ms.items())
        return f"{self.folder}, estimated end to end (fp16, batch 1; not measured): {rows}"


def bench(
    folder: str,
    *,
    runs: int = 100,
    warmup: int = 10,
    threads: int = 0,
    seed: int = 0,
    provider: str = "cpu",
    checkpoint: str | None = None,
    compiled: bool = False,
    plan: bool = False,
) -> BenchResult | PlanResult:
    """Times an exported policy on a random observation, or estimates its latency on robots' chips.

    Args:
        folder: what `export` wrote.
        runs: timed calls, >= 1.
        warmup: calls before them that do not count, >= 0.
        threads: threads within an operator; 0 leaves ONNX Runtime's own choice.
        seed: decides the observation.
        provider: where graphs run: cpu, cuda, tensorrt, or auto for the fastest that is there.
        checkpoint: model folder that the folder was exported from, timed in turn in PyTorch (rows `pytorch` and, with
            `compiled`, `torch_compile`, end to end); needs torch and as many threads as given, at least one.
        compiled: also time the checkpoint through torch.compile, which takes minutes to prepare.
        plan: run nothing; estimate from operations and bytes for Jetson Orin and Thor, RTX 4090 and H100.

    Raises:
        ConfigError: an option out of range, or no policy in the folder.
    """
    if runs < 1 or warmup < 0 or threads < 0:
        raise ConfigError(f"bench needs runs >= 1, warmup >= 0 and threads >= 0, got {runs}, {warmup} and {threads}")
    if plan:
        from vla.deploy.plan import estimate

        return PlanResult(folder, estimate(folder))
    if (checkpoint is None and compiled) or (checkpoint is not None and threads < 1):
        raise ConfigError("compiled needs a checkpoint, and a checkpoint needs --threads, so that both get as many")
    runtime = PolicyRuntime.load(folder, threads=threads, providers=choose_providers(provider))
    observation = _observation(runtime, seed)
    peers = _peers(checkpoint, runtime, threads, compiled=compiled) if checkpoint is not None else {}
    seconds: dict[str, list[float]] = {name: [] for name in (SYSTEM_2, SYSTEM_1, END_TO_END, *peers)}
    difference = 0.0 if peers else None
    for run in range(warmup + runs):
        start = time.perf_counter()
        answer = runtime.act(observation, seed=run)
        spent = {END_TO_END: time.perf_counter() - start, **runtime.seconds}
        for name, act in peers.items():  # in turn, so that a busy machine weighs on all alike
            start = time.perf_counter()
            other = act(observation, run)
            spent[name] = time.perf_counter() - start
            difference = max(difference or 0.0, float(np.abs(other - answer).max()))
        if run >= warmup:
            for name, values in seconds.items():
                values.append(spent[name])
    p50, p99 = ({n: float(np.percentile(v, q)) * 1e3 for n, v in seconds.items()} for q in (50, 99))
    return BenchResult(folder, p50, p99, runtime.provider, threads, runs, difference)


def _peers(checkpoint: str, runtime: PolicyRuntime, threads: int, *, compiled: bool) -> dict[str, _Act]:
    """Returns the checkpoint's ways of acting in PyTorch."""
    import torch

    from vla.policy import Policy

    torch.set_num_threads(threads)
    found: dict[str, _Act] = {}
    for name in ("pytorch", "torch_compile")[: 1 + compiled]:
        policy = Policy.from_pretrained(checkpoint).float()
        if name == "torch_compile":
            policy.backbone.compile()
            policy.head.dit.compile()
        found[name] = _asking(policy, runtime.embodiment.name)
    return found


def _asking(policy: Policy, body: str) -> _Act:
    return lambda observation, seed: policy.act(observation, embodiment=body, seed=seed)


def _observation(runtime: PolicyRuntime, seed: int) -> dict[str, Any]:
    blank, draw = runtime.blank(), rng(seed, "bench")
    images = draw.integers(0, 256, blank["images"].shape, dtype=np.uint8)
    return {**blank, "images": images, "text": "do the task"}
