"""What codebooks share: which codes are dead, what takes their place, and the same on every rank.

Used by `lam.quantizers`. The library's own codebooks look for other ranks when they are built, which is before a
trainer has started them; `synchronise` makes up for it. Shapes: K codes, D width, P tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from vector_quantize_pytorch.vector_quantize_pytorch import batched_sample_vectors, sample_vectors_distributed

__all__ = ["HitCounter", "all_mean", "draw_rows", "synchronise", "world_size"]

_HITS_TO_TELL = 4
"""Hits that a code at the limit has in what `HitCounter` remembers; by chance it has none in one case of 55."""


def world_size() -> int:
    """Returns the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def synchronise(codebook: Any) -> None:
    """Lets a codebook of vector-quantize-pytorch count, start and replace its codes over all ranks, if there are any.

    The library decides it once, when the codebook is built, and remembers; a Lightning trainer connects its processes
    later than that. Without it, replaced codes differ from rank to rank.
    """
    connected = world_size() > 1
    reduce: Callable[..., Any] = distributed.all_reduce if connected else _nothing
    sample = sample_vectors_distributed if connected else batched_sample_vectors
    codebook.use_ddp = connected
    codebook.all_reduce_fn = codebook.kmeans_all_reduce_fn = reduce
    codebook.sample_fn = codebook.replace_sample_fn = sample


def _nothing(*_: Any, **__: Any) -> None:
    return None


def all_mean(x: Tensor) -> Tensor:
    """Returns the mean of ``x`` over all ranks, with a gradient."""
    if world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x) / world_size()  # type: ignore[no-any-return, no-untyped-call]


def draw_rows(e: Tensor, count: int) -> Tensor:
    """Returns ``count`` random rows of the batch of all ranks, equal on every rank.

    Args:
        e: float [P, D], this rank's rows.
        count: rows wanted.

    Returns:
        float [count, D].
    """
    mine = e[torch.randint(len(e), (count,), device=e.device)].contiguous()
    if world_size() == 1:
        return mine
    ranks = [torch.empty_like(mine) for _ in range(world_size())]
    distributed.all_gather(ranks, mine)
    rows = torch.arange(count, device=e.device)
    return torch.stack(ranks)[rows % len(ranks), rows]


class HitCounter(nn.Module):
    """Moving average of how often each code is hit, over all ranks; a part of the model's state.

    It remembers as many tokens as tell a dead code from a seldom one, however many steps these are: a code that is no
    longer hit is found dead within three times as many, in a short run of large batches too.

    Args:
        n_codes: codes counted.
        dead_share: a code below this share of the uniform rate is dead, in [0, 1).
        tokens_per_step: tokens in one training batch, over all ranks.
    """

    hits: Tensor

    def __init__(self, n_codes: int, dead_share: float, tokens_per_step: int) -> None:
        super().__init__()
        self.dead_share = dead_share
        self.weight = min(1.0, tokens_per_step * dead_share / (_HITS_TO_TELL * n_codes))
        self.register_buffer("hits", torch.full((n_codes,), 1 / n_codes))

    @torch.no_grad()
    def dead(self, codes: Tensor) -> Tensor:
        """Counts a batch of codes, int64 of any shape, and returns which codes are dead, bool [K].

        A code that is dead starts over at the uniform rate: its replacement gets time to be hit.
        """
        counts = torch.bincount(codes.flatten(), minlength=len(self.hits)).to(self.hits)
        if world_size() > 1:
            distributed.all_reduce(counts)
        self.hits.lerp_(counts / counts.sum(), self.weight)
        dead = self.hits < self.dead_share / len(self.hits)
        self.hits[dead] = 1 / len(self.hits)
        return dead
