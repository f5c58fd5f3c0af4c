"""Real-time chunking: the next chunk is sampled so that it goes on where the one under way will have got to.

Pure functions; which steps are under way, and when a chunk is asked for, is the caller's.

Shapes: B batch, T steps of the chunk, K steps that both chunks plan, D action dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyramid.errors import ConfigError
from pyramid.nn.flow import step_bucket

__all__ = ["RealTimeChunk", "realtime_sample"]

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RealTimeChunk:
    """What the previous chunk planned for the time of the next one, and how strongly it binds."""

    previous: Tensor
    """float [B, K, D], normalised: its row 0 is for the same moment as row 0 of the new chunk; 1 <= K <= T."""
    frozen: int
    """Steps that are executed while the new chunk is computed, 0 to K: they stay as they are."""
    rule: Literal["line", "published", "guided"] = "line"
    """How the steps between `frozen` and K are bound; see `realtime_sample`."""
    ramp_rate: float = 6.0
    """How fast the binding fades over those steps ("line", "published"), > 0; 6 in N1.7."""
    max_weight: float = 5.0
    """Largest guidance weight ("guided"), > 0; 5 in arXiv 2506.07339."""


def realtime_sample(velocity: Velocity, noise: Tensor, steps: int, chunk: RealTimeChunk) -> Tensor:
    """Integrates the velocity from noise to an action that agrees with the previous chunk.

    - "line": along the straight line from its noise to the previous action, a bound step gets the line's own velocity,
      a free one the network's, and between them a mixture that fades. What the network sees of a bound step is thus
      what it saw in training at that time.
    - "published" (N1.6, N1.7): bound steps start at the previous action instead of noise, and the velocity is scaled by
      0 where frozen and by a ramp that rises to 1.
    - "guided" (arXiv 2506.07339): the velocity is pulled towards chunks whose predicted end agrees with the previous
      one, through the network's gradient; the pull fades exponentially.

    Args:
        velocity: maps ``(x float [B, T, D], bucket int64 [B])`` to a velocity float [B, T, D].
        noise: float [B, T, D], where the path starts.
        steps: number of Euler steps, >= 1.
        chunk: the previous chunk.

    Returns:
        float [B, T, D], normalised actions; in "line" and "published" the first `frozen` steps are the previous ones.

    Raises:
        ConfigError: the previous chunk does not fit.
    """
    overlap = chunk.previous.shape[1]
    if chunk.previous.shape[::2] != noise.shape[::2] or not 1 <= overlap <= noise.shape[1]:
        have, want = list(chunk.previous.shape), list(noise.shape)
        raise ConfigError(f"the previous chunk must be [B, 1 to T, D] of {want}, got {have}")
    if not 0 <= chunk.frozen <= overlap or min(chunk.ramp_rate, chunk.max_weight) <= 0:
        raise ConfigError(f"frozen must be 0 to {overlap}, ramp_rate and max_weight > 0, got {chunk.frozen}")
    planned = torch.cat([chunk.previous, torch.zeros_like(noise[:, overlap:])], dim=1)
    free = _free(noise.shape[1], overlap, chunk).to(noise)[None, :, None]
    bound = (torch.arange(noise.shape[1], device=noise.device) < overlap)[None, :, None]
    x = torch.where(bound, planned, noise) if chunk.rule == "published" else noise
    for step in range(steps):
        index = step_bucket(step, steps, published=chunk.rule == "published")
        bucket = torch.full((noise.shape[0],), index, dtype=torch.int64, device=noise.device)
        if chunk.rule == "guided":
            v, pull = _pulled(_at(velocity, bucket), x, (planned, 1.0 - free), step / steps)
            x = x + (v + _strength(step / steps, chunk.max_weight) * pull) / steps
        else:
            line = (1.0 - free) * (planned - noise) if chunk.rule == "line" else 0.0
            x = x + (free * velocity(x, bucket) + line) / steps
    kept = torch.arange(noise.shape[1], device=noise.device) < (0 if chunk.rule == "guided" else chunk.frozen)
    return torch.where(kept[None, :, None], planned, x)


def _free(length: int, overlap: int, chunk: RealTimeChunk) -> Tensor:
    """Returns how free each step is, float32 [T]: 0 while frozen, 1 after the overlap, rising in between."""
    between = overlap - chunk.frozen
    if chunk.rule == "guided":
        # Equation 5 of arXiv 2506.07339.
        c = (between - torch.arange(between, dtype=torch.float32)) / (between + 1)
        ramp = 1.0 - c * torch.expm1(c) / (math.e - 1.0)
    else:
        rise = 1.0 - torch.exp(-chunk.ramp_rate * torch.linspace(0.0, 1.0, between + 2))
        ramp = (rise / rise[-1].clamp_min(1e-8))[1:-1]
    return torch.cat([torch.zeros(chunk.frozen), ramp, torch.ones(length - overlap)])


def _at(velocity: Velocity, bucket: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: velocity(x, bucket)


def _pulled(
    velocity: Callable[[Tensor], Tensor], x: Tensor, goal: tuple[Tensor, Tensor], time: float
) -> tuple[Tensor, Tensor]:
    """Returns the velocity, and the direction in which `x` brings the predicted end closer to the weighted goal."""
    planned, weight = goal
    with torch.enable_grad():
        start = x.detach().requires_grad_(True)
        v = velocity(start)
        end = start + (1.0 - time) * v
        error = ((planned - end) * weight).detach()
        (pull,) = torch.autograd.grad(end, start, grad_outputs=error)
    return v.detach(), pull


def _strength(time: float, most: float) -> float:
    """Returns the weight of the guidance (equations 2 and 4 of arXiv 2506.07339)."""
    spread = (1.0 - time) ** 2 / (time**2 + (1.0 - time) ** 2)
    return most if time == 0 else min(most, (1.0 - time) / (time * spread))
