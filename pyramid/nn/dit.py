"""The diffusion transformer of the GR00T heads: blocks that alternate cross- and self-attention, told the flow time.

It maps tokens to tokens; what the tokens mean (state, action, queries) and their positions are the caller's.

Shapes: B batch, N tokens, L context tokens, W width, C context width, O output width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyramid.nn.attention import Attention, FeedForward, KeyValue

__all__ = ["DiT", "DiTBlock", "DiTConfig", "TimeEmbedding", "build_dit"]

TIME_FREQUENCIES = 256
"""Number of sinusoids that encode the flow time (128 cosines, then 128 sines)."""


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a diffusion transformer."""

    width: int = 128
    """Width of the tokens inside, a multiple of `heads`."""
    layers: int = 4
    """Number of blocks, >= 1: even ones (0, 2, ...) attend to the context, odd ones as `interleave` says."""
    heads: int = 4
    """Attention heads."""
    interleave: bool = True
    """Odd blocks attend to the tokens themselves; else every block attends to the context."""
    context_width: int = 128
    """Width of the context tokens."""
    out_width: int = 128
    """Width of the tokens that come out."""
    dropout: float = 0.0
    """Dropout of attention weights, of each block's attention and of its feed-forward, in [0, 1)."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.context_width, self.out_width) < 1:
            raise ValueError(f"sizes must be at least 1, got {self}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


def build_dit(config: DiTConfig) -> DiT:
    """Build a diffusion transformer with fresh weights."""
    return DiT(config)


class TimeEmbedding(nn.Module):
    """256 sinusoids of the time bucket, then a two-layer MLP.

    The sinusoids are ``[cos(f_k b) ; sin(f_k b)]`` with ``f_k = 10000^(-k / 127)``, k = 0..127: the published heads use
    the diffusers embedding with flip_sin_to_cos and a frequency shift of 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(TIME_FREQUENCIES, width)
        self.second = nn.Linear(width, width)

    def forward(self, bucket: Tensor) -> Tensor:
        """Map time buckets int64 [B], 0 to 999, to float [B, W]."""
        half = TIME_FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=bucket.device)
        angle = bucket.float()[:, None] * torch.exp(index * (-math.log(10000.0) / (half - 1)))[None, :]
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.first.weight.dtype)
        return self.second(nn.functional.silu(self.first(waves)))  # type: ignore[no-any-return]


class DiTBlock(nn.Module):
    """Attention after a layer norm that the time scales and shifts (no gate), then a feed-forward after a plain one.

    Args:
        config: sizes.
        cross: attend to the context instead of to the tokens themselves.
    """

    def __init__(self, config: DiTConfig, *, cross: bool) -> None:
        super().__init__()
        self.cross = cross
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-5, elementwise_affine=False)
        context_width = config.context_width if cross else None
        self.attention = Attention(config.width, config.heads, context_width, config.dropout)
        self.attention_dropout = nn.Dropout(config.dropout)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=1e-5, elementwise_affine=False)
        self.feed_forward = FeedForward(config.width, config.dropout)

    def forward(self, x: Tensor, time: Tensor, key_value: KeyValue | None, mask: Tensor | None) -> Tensor:
        """Apply the block.

        Args:
            x: float [B, N, W].
            time: SiLU of the time embedding, float [B, W].
            key_value: the context's keys and values for a cross block; None for a self block.
            mask: bool [B, L] of the context or [B, N] of the tokens, True = may be attended; None = everything.

        Returns:
            float [B, N, W].
        """
        scale, shift = self.modulation(time)[:, None, :].chunk(2, dim=-1)
        normed = self.attention_norm(x) * (1.0 + scale) + shift
        x = x + self.attention_dropout(self.attention(normed, key_value, mask))
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Diffusion transformer with interleaved cross- and self-attention (GR00T N1 to N1.7, arXiv 2503.14734).

    The context's keys and values do not depend on the flow time: compute them once with `project_context` and reuse
    them in every denoising step.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embedding = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(
            DiTBlock(config, cross=i % 2 == 0 or not config.interleave) for i in range(config.layers)
        )
        self.out_modulation = nn.Linear(config.width, 2 * config.width)
        self.out_norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.out = nn.Linear(config.width, config.out_width)

    def project_context(self, context: Tensor) -> list[KeyValue]:
        """Return the keys and values of context tokens, float [B, L, C], one pair per cross block in block order."""
        return [block.attention.project(context) for block in self._cross_blocks()]

    def forward(
        self,
        x: Tensor,
        bucket: Tensor,
        context: Sequence[KeyValue],
        context_mask: Tensor | Sequence[Tensor] | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Map noisy tokens to output tokens.

        Args:
            x: float [B, N, W].
            bucket: time buckets int64 [B], 0 to 999.
            context: what `project_context` returned.
            context_mask: bool [B, L], True = may be attended. A sequence gives every cross block a mask of its own
                (alternating text and image attention). None = everything.
            token_mask: bool [B, N] for the self blocks; None = everything.

        Returns:
            float [B, N, O].
        """
        time = nn.functional.silu(self.time_embedding(bucket))
        shared = context_mask is None or isinstance(context_mask, Tensor)
        masks = [context_mask] * len(context) if shared else list(context_mask)  # type: ignore[arg-type]
        pairs = iter(zip(context, masks, strict=True))
        for block in self.blocks:
            key_value, mask = next(pairs) if block.cross else (None, token_mask)
            x = block(x, time, key_value, mask)
        shift, scale = self.out_modulation(time)[:, None, :].chunk(2, dim=-1)
        return self.out(self.out_norm(x) * (1.0 + scale) + shift)  # type: ignore[no-any-return]

    def _cross_blocks(self) -> list[DiTBlock]:
        return [block for block in self.blocks if isinstance(block, DiTBlock) and block.cross]
