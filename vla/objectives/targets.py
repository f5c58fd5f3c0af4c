"""What a future observation is embedded as: pooled vision tokens, or queries that were taught to know actions.

Targets are never reached by the gradient of the alignment; how a policy is aligned with them is `vla.objectives.flare`.

Shapes: B batch, V views, N tokens per view, C their width, M future tokens, W width of a learned target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pyramid.errors import ConfigError
from pyramid.nn.attention import Attention, FeedForward, SelfAttentionStack
from pyramid.types import Embodiment
from vla.action_head import build_action_head
from vla.backbone import Backbone
from vla.config import HeadConfig
from vla.objectives.config import FlareConfig

__all__ = ["ActionAware", "FutureEncoder", "Tower", "pool"]


class Tower(nn.Module):
    """The vision part of a backbone as it was when training began; it never moves.

    A backbone whose vision part stands still anyway is used as it is, without a copy.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        moves = any(p.requires_grad for p in backbone.parameters())
        # The language layers are no part of it.
        kept = copy.deepcopy(backbone, {id(backbone.layers): nn.ModuleList()}) if moves else backbone
        kept = kept.requires_grad_(False).eval() if moves else kept
        self.copied = kept if moves else None
        """The copy, part of this module's state."""
        self._kept = (kept,)  # In a tuple: a backbone that is shared is no part of this module.

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Returns the tokens of views uint8 [B, V, H, W, 3], float32 [B, V, N, C]."""
        (kept,) = self._kept if self.copied is None else (self.copied,)
        tokens = kept.view_tokens(kept.pixels(images))[0]
        return tokens.reshape(*images.shape[:2], *tokens.shape[1:]).float()

    def train(self, mode: bool = True) -> Tower:
        """Stays in evaluation mode."""
        return super().train(False)


def pool(tokens: Tensor, grid: int) -> Tensor:
    """Averages each view's square of tokens [B, V, N, C] to ``grid`` by ``grid``; returns [B, V grid^2, C].

    Raises:
        ConfigError: the tokens are no square, or fewer than that.
    """
    side = math.isqrt(tokens.shape[2])
    if side**2 != tokens.shape[2] or side < grid:
        raise ConfigError(
            f"objectives.flare.grid is {grid}, but a view has {tokens.shape[2]} tokens; "
            "take a smaller grid, or target: qformer"
        )
    batch, views, _, width = tokens.shape
    square = tokens.flatten(0, 1).transpose(1, 2).reshape(batch * views, width, side, side)
    pooled = nn.functional.adaptive_avg_pool2d(square, grid)
    return pooled.flatten(2).transpose(1, 2).reshape(batch, views * grid**2, width)


class FutureEncoder(nn.Module):
    """Self-attention over vision tokens, then learned queries that attend to them (a Q-former, arXiv 2301.12597).

    Args:
        config: sizes.
        width: width of the vision tokens.
        queries: M.
    """

    def __init__(self, config: FlareConfig, width: int, queries: int) -> None:
        super().__init__()
        inner = config.qformer_width
        self.norm_in = nn.LayerNorm(width)
        self.inward = nn.Linear(width, inner)
        self.mixer = SelfAttentionStack(inner, config.qformer_heads, config.qformer_layers)
        self.queries = nn.Parameter(torch.randn(queries, inner) * 0.02)
        self.query_norm, self.key_norm, self.feed_norm = (nn.LayerNorm(inner) for _ in range(3))
        self.attention = Attention(inner, config.qformer_heads)
        self.feed_forward = FeedForward(inner)
        self.norm_out = nn.LayerNorm(inner)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps vision tokens float [B, L, C] to float [B, M, W]."""
        seen = self.key_norm(self.mixer(self.inward(self.norm_in(tokens))))
        queries = self.queries.expand(len(tokens), -1, -1)
        queries = queries + self.attention(self.query_norm(queries), self.attention.project(seen))
        return self.norm_out(queries + self.feed_forward(self.feed_norm(queries)))  # type: ignore[no-any-return]


class ActionAware(nn.Module):
    """An encoder that learns to tell the actions from what is seen now, and its moving average: the target.

    Only the actions teach the encoder. The average follows it, once a step.

    Args:
        config: sizes and decay.
        width: width of the vision tokens.
        queries: M.
        bodies: whose actions teach it.
        horizon: longest action chunk.
    """

    def __init__(
        self, config: FlareConfig, width: int, queries: int, bodies: Mapping[str, Embodiment], horizon: int
    ) -> None:
        super().__init__()
        self.decay = config.qformer_decay
        self.online = FutureEncoder(config, width, queries)
        head = HeadConfig(
            width=config.qformer_width,
            hidden=config.qformer_width,
            heads=config.qformer_heads,
            layers=config.qformer_action_layers,
            max_horizon=horizon,
        )
        self.teacher = build_action_head(head, config.qformer_width, bodies)
        self.average = copy.deepcopy(self.online).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the encoder."""
        for mean, new in zip(self.average.parameters(), self.online.parameters(), strict=True):
            mean.lerp_(new, 1 - self.decay)
