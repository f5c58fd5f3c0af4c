"""The verb `bench`: how long an exported policy takes to answer on this machine; no torch.

It times and prints; comparing with limits or other systems is left to `benchmarks/`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyramid.errors import ConfigError
from pyramid.rng import rng
from vla.deploy.runtime import PolicyRuntime, choose_providers
from vla.deploy.spec import SYSTEM_1, SYSTEM_2

__all__ = ["BenchResult", "PlanResult", "bench"]

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
        plan: run nothing; estimate from operations and bytes for Jetson Orin and Thor, RTX 4090 and H100.

    Raises:
        ConfigError: an option out of range, or no policy in the folder.
    """
    if runs < 1 or warmup < 0 or threads < 0:
        raise ConfigError(f"bench needs runs >= 1, warmup >= 0 and threads >= 0, got {runs}, {warmup} and {threads}")
    if plan:
        from vla.deploy.plan import estimate

        return PlanResult(folder, estimate(folder))
    runtime = PolicyRuntime.load(folder, threads=threads, providers=choose_providers(provider))
    observation = _observation(runtime, seed)
    seconds: dict[str, list[float]] = {SYSTEM_2: [], SYSTEM_1: [], END_TO_END: []}
    for run in range(warmup + runs):
        start = time.perf_counter()
        runtime.act(observation, seed=run)
        total = time.perf_counter() - start
        if run >= warmup:
            for name, value in {**runtime.seconds, END_TO_END: total}.items():
                seconds[name].append(value)
    p50, p99 = ({n: float(np.percentile(v, q)) * 1e3 for n, v in seconds.items()} for q in (50, 99))
    return BenchResult(folder, p50, p99, runtime.provider, threads, runs)


def _observation(runtime: PolicyRuntime, seed: int) -> dict[str, Any]:
    spec, draw = runtime.spec, rng(seed, "bench")
    shape = (spec.n_views, spec.image_size_px, spec.image_size_px, 3)
    observation: dict[str, Any] = {"images": draw.integers(0, 256, shape, dtype=np.uint8), "text": "do the task"}
    if spec.state is not None:
        observation["state"] = spec.state.center
    return observation
