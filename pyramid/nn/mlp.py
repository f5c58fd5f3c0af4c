"""A trunk without attention: what the views say, and the state, is added to every token; tokens do not see each other.

It takes the place of the transformer of `pyramid.nn.dit` where a small policy learns one task from little data.

Shapes: B batch, N tokens (the state's first), L context tokens, C their width, W width of the tokens, O that of what
comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyramid.nn.attention import KeyValue
from pyramid.nn.dit import DiTConfig, TimeEmbedding

__all__ = ["MLPTrunk"]


class MLPTrunk(nn.Module):
    """Perceptrons with the interface of `DiT`; words of the context and masks count nothing.

    Args:
        config: sizes; heads, interleaving and dropout do not apply.
        spans: where in the context the views' tokens stand, first position and the one past the last for each.

    Raises:
        ValueError: no views.
    """

    def __init__(self, config: DiTConfig, spans: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        if not spans:
            raise ValueError("a trunk of perceptrons needs to know where in the context views stand")
        self.config, self.spans = config, tuple(spans)
        width, tokens = config.width, sum(stop - start for start, stop in spans)
        # A short way from the views to the actions: each further layer without a norm costs precision.
        self.views = nn.Linear(tokens * config.context_width, width)
        self.state = nn.Linear(width, width)
        self.time_embedding = TimeEmbedding(width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.layers))
        self.out = nn.Linear(width, config.out_width)

    def project_context(self, context: Tensor) -> list[KeyValue]:
        """Return what the views say, float [B, W], as the only pair's key and value; the context is [B, L, C]."""
        seen = torch.cat([context[:, start:stop] for start, stop in self.spans], dim=1)
        said = self.views(seen.flatten(1))
        return [(said, said)]

    def forward(
        self,
        x: Tensor,
        bucket: Tensor,
        context: Sequence[KeyValue],
        context_mask: Tensor | Sequence[Tensor] | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Map tokens float [B, N, W], time buckets int64 [B] and what `project_context` returned to float [B, N, O]."""
        shared = context[0][0] + self.state(x[:, 0]) + self.time_embedding(bucket)
        x = x + shared[:, None]
        for block in self.blocks:
            x = block(x)
        said: Tensor = self.out(nn.functional.relu(x))
        return said


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.outer(nn.functional.relu(self.inner(nn.functional.relu(x))))
        return x + said
