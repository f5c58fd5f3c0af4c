"""Latents that mean the same whatever body is seen: what training does so that a hand and a robot share them.

All of it is off unless a config asks for it; none of it needs an action. Shapes: B batch, N tokens, D token width,
S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lam.config import ObjectiveConfig
from lam.model import LatentActionModel, Output
from lam.views import Context, View

__all__ = ["body_terms", "windowed"]

_CYCLE_ROWS = 8
_NARROWEST, _WIDEST = 6, 2
"""A window reaches between a sixth and half of the side to each hand."""


def body_terms(
    model: LatentActionModel, output: Output, first: View, context: Context, body: Tensor
) -> dict[str, Tensor]:
    """Returns the weighted terms ``critic``, ``moments`` and ``cycle`` that the config asks for.

    Args:
        model: the model.
        output: its pass over the batch.
        first: first frames of the batch.
        context: gap and instruction of each pair.
        body: int64 [B], number of each pair's body.
    """
    objectives, terms = model.config.objectives, dict[str, Tensor]()
    latent = output.latent.flatten(1)
    if len(torch.unique(body)) < 2:
        return terms
    if model.critic is not None and objectives.body_critic:
        terms["critic"] = objectives.body_critic * model.critic(latent, body)
    if objectives.body_moments:
        terms["moments"] = objectives.body_moments * _moments(latent, body)
    if objectives.body_cycle:
        terms["cycle"] = objectives.body_cycle * _cycle(model, output, first, context, body)
    return terms


def _moments(latent: Tensor, body: Tensor) -> Tensor:
    """Squared difference of the means and covariances of the two commonest bodies (CORAL, arXiv 1607.01719)."""
    kinds, counts = torch.unique(body, return_counts=True)
    one, other = (latent[body == kinds[place]] for place in counts.argsort(descending=True, stable=True)[:2])
    scale = latent.detach().std(0).mean() + 1e-3
    if min(len(one), len(other)) < 2:
        return ((one.mean(0) - other.mean(0)) / scale).square().mean()
    spread = torch.cov(one.T) - torch.cov(other.T)
    return ((one.mean(0) - other.mean(0)) / scale).square().mean() + (spread / scale**2).square().mean()


def _cycle(model: LatentActionModel, output: Output, first: View, context: Context, body: Tensor) -> Tensor:
    """Sends tokens to a frame of another body and compares what comes back, in units of the latents' spread."""
    rows = torch.linspace(0, len(body) - 1, min(_CYCLE_ROWS, len(body)), device=body.device).round().long()
    donors = torch.stack([_next_other(body, int(row)) for row in rows])
    sent = output.latent[donors].detach()
    here = View(first.pixels[rows])
    there = Context(*(None if part is None else part[rows] for part in context))
    background = None if output.tokens.background is None else output.tokens.background[rows]
    change, _ = model.predict(here, output.tokens.quantized.z[donors].detach(), there, background)
    back = model.tokens(here, View(here.pixels + change), there).quantized.latent
    return (back - sent).square().mean() / (output.latent.detach().var(0).mean() + 1e-4)


def _next_other(body: Tensor, row: int) -> Tensor:
    order = (torch.arange(len(body), device=body.device) + row) % len(body)
    return order[(body[order] != body[row]).int().argmax()]


def windowed(
    config: ObjectiveConfig, first: Tensor, second: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns pairs of which some show but a window around a place that moves, the same in both frames; grey elsewhere.

    What is left is read as if it were all: so the encoder learns to tell the action from any part that moves, and not
    from the largest alone, which another body may lack.

    Args:
        config: share of the pairs.
        first: float32 [B, 3, S, S] in [0, 1].
        second: float32 [B, 3, S, S] in [0, 1].
        generator: draws windows, on the CPU.
    """
    count, side, cell = len(first), first.shape[-1], 4
    moved = nn.functional.avg_pool2d((second - first).abs().mean(1, keepdim=True), cell)[:, 0].cpu()
    place = torch.multinomial(moved.flatten(1) + 1e-4, 1, generator=generator)[:, 0]
    across = place % moved.shape[2] * cell + cell // 2
    down = place // moved.shape[2] * cell + cell // 2
    reach = torch.randint(side // _NARROWEST, side // _WIDEST, (2, count, 1), generator=generator)
    whole = torch.rand(count, generator=generator) >= config.window_share
    line = torch.arange(side)
    rows, columns = ((line - centre[:, None]).abs() < far for centre, far in zip((down, across), reach, strict=True))
    seen = rows[:, :, None] & columns[:, None, :] | whole[:, None, None]
    seen_B1SS = seen[:, None].to(first)
    return (first - 0.5) * seen_B1SS + 0.5, (second - 0.5) * seen_B1SS + 0.5
