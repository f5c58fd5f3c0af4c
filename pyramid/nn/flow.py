"""Flow matching over action chunks as the GR00T heads do it: noise to action along straight lines.

Pure functions with explicit generators; the network that predicts the velocity, and normalisation, are the caller's.

Convention (GR00T N1, arXiv 2503.14734, released code): time 0 is noise, time 1 is the action,
``x_t = (1 - t) eps + t a`` and the target velocity is ``v = a - eps``.

Shapes: B batch, T steps of the chunk, D action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "TimeRule",
    "euler_sample",
    "interpolate",
    "masked_error",
    "masked_mean",
    "sample_time",
    "step_bucket",
    "time_bucket",
]

TimeRule = Literal["n1", "n1_6", "mean", "median"]
"""How the Beta sample u becomes a time: "n1" (N1, N1.5, the IDM) ``(s - u) / s``; "n1_6" (N1.6, N1.7) ``(1 - u) s``.
"mean" and "median" are always 0, and the caller has zeros for noise: one Euler step then leads to the mean or the
median action, by regression."""

REGRESSION: tuple[TimeRule, ...] = ("mean", "median")
"""The rules that are regression."""
_NEAR = 0.2
"""Error below which the median's loss is squared, in normalised units."""
TIME_BUCKETS = 1000
"""Number of buckets that the flow time is cut into before a network sees it."""


def sample_time(
    batch: int, generator: torch.Generator, *, rule: TimeRule = "n1_6", alpha: float = 1.5, scale: float = 0.999
) -> Tensor:
    """Draw flow times with most of their mass at the noisy end.

    ``u ~ Beta(alpha, 1)`` is drawn through its inverse cumulative distribution ``U^(1 / alpha)``, which is exact and
    takes an explicit generator (`torch.distributions` knows only the global one).

    Args:
        batch: number of times, B.
        generator: the only source of randomness; its device is the device of the result.
        rule: see `TimeRule`. "n1" reaches slightly below 0 (-0.001); `time_bucket` clamps.
        alpha: first parameter of the Beta distribution, > 0.
        scale: s in the rules, in (0, 1].

    Returns:
        float32 [B].
    """
    if rule in REGRESSION:
        return torch.zeros(batch, device=generator.device)
    u = torch.rand(batch, generator=generator, device=generator.device) ** (1.0 / alpha)
    return (scale - u) / scale if rule == "n1" else (1.0 - u) * scale


def time_bucket(time: Tensor, *, clamp: bool = True) -> Tensor:
    """Cut flow times, float [B], into buckets, int64 [B] from 0 to 999; times outside [0, 1) go to the end buckets.

    The published heads do not `clamp`: the rule of N1 reaches bucket -1.
    """
    bucket = (time * TIME_BUCKETS).long()
    return bucket.clamp(0, TIME_BUCKETS - 1) if clamp else bucket


def step_bucket(step: int, steps: int, *, published: bool = False) -> int:
    """Return the bucket of an Euler step, from 0; the published heads round through floats (569 for step 57 of 100)."""
    return int(step / float(steps) * TIME_BUCKETS) if published else step * TIME_BUCKETS // steps


def interpolate(action: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return the point on the line from noise to action, and the velocity along it.

    Args:
        action: float [B, T, D], normalised.
        noise: float [B, T, D].
        time: float [B].

    Returns:
        ``x_t`` and ``v = action - noise``, float [B, T, D] each.
    """
    t = time[:, None, None]
    return (1.0 - t) * noise + t * action, action - noise


def masked_error(predicted: Tensor, target: Tensor, mask: Tensor, *, rule: TimeRule = "n1_6") -> tuple[Tensor, Tensor]:
    """Return per-sample sums of errors and of counted elements, float [B] each.

    Args:
        predicted: float [B, T, D].
        target: float [B, T, D].
        mask: bool (or 0/1 float) [B, T, D]; what is False counts nowhere.
        rule: errors are squared, but for "median": absolute, and near 0 as `torch.nn.functional.smooth_l1_loss` has it.
    """
    weight = mask.to(predicted.dtype)
    if rule == "median":
        error = torch.nn.functional.smooth_l1_loss(predicted, target, reduction="none", beta=_NEAR)
    else:
        error = (predicted - target).square()
    return (error * weight).sum((1, 2)), weight.sum((1, 2))


def masked_mean(predicted: Tensor, target: Tensor, mask: Tensor, eps: float = 0.0) -> Tensor:
    """Mean squared error over the elements of a whole batch that the mask keeps (the loss of the published heads).

    Args:
        predicted: float [B, T, D].
        target: float [B, T, D].
        mask: bool (or 0/1 float) [B, T, D].
        eps: added to the count: 0 in N1 and N1.5, 1e-6 in N1.6 and N1.7.

    Returns:
        float [].
    """
    error, count = masked_error(predicted, target, mask)
    return error.sum() / (count.sum() + eps)


def euler_sample(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, *, published: bool = False
) -> Tensor:
    """Integrate the velocity from noise to an action with equal Euler steps.

    Args:
        velocity: maps ``(x float [B, T, D], bucket int64 [B])`` to a velocity float [B, T, D].
        noise: float [B, T, D], where the path starts.
        steps: number of steps K, >= 1; buckets are 0, 1000 / K, 2 * 1000 / K, ...
        published: round as the published heads do: ``x + (1 / K) v``, and see `step_bucket`.

    Returns:
        float [B, T, D], normalised actions.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    x = noise
    for step in range(steps):
        index = step_bucket(step, steps, published=published)
        v = velocity(x, torch.full((noise.shape[0],), index, dtype=torch.int64, device=noise.device))
        x = x + (1.0 / steps) * v if published else x + v / steps
    return x
