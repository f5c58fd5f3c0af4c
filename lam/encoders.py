"""Inverse models: what the quantiser takes, from both frames of a pair.

Shapes: B batch, N tokens, D token width, W transformer width, L patches of a frame, T = 2 frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lam.config import ModelConfig
from lam.edges import edges
from lam.layers import Residual, conv
from lam.views import Context, GapEmbedding, Spec, View, to_patches
from pyramid.nn.attention import Attention, FeedForward

__all__ = ["CNNEncoder", "TransformerEncoder"]


class CNNEncoder(nn.Module):
    """CNN on both frames and their difference; the difference input is what lets a small network train.

    Args:
        config: sizes.
        specs: tokens wanted by each bottleneck.
    """

    def __init__(self, config: ModelConfig, specs: Sequence[Spec]) -> None:
        super().__init__()
        fine, middle, coarse = config.encoder_widths
        self.specs, self.sees = list(specs), config.encoder_sees
        self.body = nn.Sequential(
            conv(3 if self.sees == "edges" else 9, fine, kernel=5, stride=2),
            conv(fine, middle, stride=2),
            Residual(middle),
            conv(middle, coarse, stride=2),
            Residual(coarse),
        )
        cells = (config.image_size_px // 8) ** 2
        self.gap = GapEmbedding(coarse) if config.gap_embedding else None
        d_in = coarse * cells + (coarse if self.gap else 0)
        self.heads = nn.ModuleList(nn.Linear(d_in, count * width) for count, width in specs)

    def forward(self, first: View, second: View, context: Context) -> list[Tensor]:
        """Returns the tokens of each bottleneck, float32 [B, N, D]."""
        a, b = first.pixels, second.pixels
        if self.sees == "edges":
            a, b = edges(a), edges(b)
        x = torch.cat([a - 0.5, b - 0.5, b - a], dim=1).contiguous(memory_format=torch.channels_last)
        x = self.body(x).flatten(1)
        if self.gap is not None:
            x = torch.cat([x, self.gap(context)], dim=1)
        return [head(x).float().unflatten(1, spec) for head, spec in zip(self.heads, self.specs, strict=True)]


class TransformerEncoder(nn.Module):
    """Spatio-temporal transformer: patches of both frames and learned queries, read where the second frame is.

    Attention over time is causal, so what stands at the first frame knows nothing of the second (the layout of Genie,
    arXiv 2402.15391, and UniVLA, arXiv 2505.06111). Instructions stand beside the patches of each frame.

    Args:
        config: sizes.
        specs: tokens wanted by each bottleneck.
        feature_dim: width of the features it sees; 0 for pixels.
        grid: patches along a side.
        text_dim: width of the text tokens; 0 for none.
    """

    def __init__(self, config: ModelConfig, specs: Sequence[Spec], feature_dim: int, grid: int, text_dim: int) -> None:
        super().__init__()
        width = config.width
        self.specs, self.patch_px = list(specs), 0 if feature_dim else config.patch_px
        self.patches = nn.Linear(feature_dim or 3 * config.patch_px**2, width)
        self.text = nn.Linear(text_dim, width) if text_dim else None
        self.gap = GapEmbedding(width) if config.gap_embedding else None
        self.queries = nn.Parameter(torch.randn(sum(count for count, _ in specs), width) * 0.02)
        self.places = nn.Parameter(torch.randn(grid * grid, width) * 0.02)
        self.times = nn.Parameter(torch.randn(2, 1, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, dim) for _, dim in specs)

    def forward(self, first: View, second: View, context: Context) -> list[Tensor]:
        """Returns the tokens of each bottleneck, float32 [B, N, D]."""
        patches = torch.stack([self._patches(first), self._patches(second)], dim=1)
        extra = self.queries.expand(*patches.shape[:2], -1, -1)
        mask = None
        if self.text is not None:
            words, seen = _words(self.text, context)
            extra = torch.cat([extra, words[:, None].expand(-1, 2, -1, -1)], dim=2)
            others = seen.new_ones(len(seen), patches.shape[2] + len(self.queries))
            mask = torch.cat([others[:, : len(self.queries)], seen, others[:, len(self.queries) :]], dim=1)
            mask = mask.repeat_interleave(2, 0)
        x = torch.cat([extra, patches], dim=2) + self.times
        if self.gap is not None:
            x = x + self.gap(context)[:, None, None]
        for block in self.blocks[:-1]:
            x = block(x, mask)
        x = self.blocks[-1](x, mask, len(self.queries))
        tokens = self.norm(x[:, 1]).split([count for count, _ in self.specs], dim=1)
        return [head(part).float() for head, part in zip(self.heads, tokens, strict=True)]

    def _patches(self, view: View) -> Tensor:
        x = to_patches(view.pixels - 0.5, self.patch_px) if self.patch_px else _flat(view)
        return self.patches(x) + self.places  # type: ignore[no-any-return]


def _flat(view: View) -> Tensor:
    if view.features is None:
        raise ValueError("this model sees features: take the view from its `look`")
    return view.features.flatten(2).transpose(1, 2)


def _words(project: nn.Linear, context: Context) -> tuple[Tensor, Tensor]:
    if context.text is None or context.text_mask is None:
        raise ValueError("this model is conditioned on text: give the instruction of every pair")
    return project(context.text), context.text_mask


class _OverTime(Attention):
    """Causal attention of each place over two frames, written out: of two keys, the softmax is one sigmoid.

    The first frame sees itself alone, so it needs no query; keys matter by their difference alone, so they need no
    bias. Attention kernels spend a block of rows on each of the many sequences of two.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Maps float [B, 2, L, W] to the same."""
        query = self._heads(self.query(x[:, 1]))
        keys = self._heads(nn.functional.linear(x[:, 0] - x[:, 1], self.key.weight))
        before, now = self.value(x).unbind(1)
        share = torch.sigmoid((query * keys).sum(-1, keepdim=True) / query.shape[-1] ** 0.5)
        second = now + (share * self._heads(before - now)).flatten(-2)
        return self.out(torch.stack([before, second], dim=1))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)


class _Block(nn.Module):
    """Pre-norm attention within a frame, causal attention of each place over time, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.space_norm, self.time_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.space, self.time = Attention(width, heads), _OverTime(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor | None, n_read: int | None = None) -> Tensor:
        """Maps float [B, T, L, W] to the first ``n_read`` places, float [B, T, n_read, W]; None: to all.

        Args:
            x: the places.
            mask: bool [B * T, L], True = may be attended within a frame.
            n_read: places that anything is read from.
        """
        seen = self.space_norm(x).flatten(0, 1)
        within = self.space(seen[:, :n_read], self.space.project(seen), mask)
        x = x[:, :, :n_read] + within.unflatten(0, x.shape[:2])
        x = x + self.time(self.time_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]
