"""Which context tokens are views: a mask from their places, without transformers.

The places themselves are `vla.backbones.layout`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["image_mask"]


def image_mask(spans: Iterable[tuple[int, int]], mask: Tensor) -> Tensor:
    """Returns bool [B, L], True where a view's token is; `mask`: the context's, bool [B, L]."""
    position = torch.arange(mask.shape[1], device=mask.device)
    inside = torch.zeros_like(position, dtype=torch.bool)
    for start, stop in spans:
        inside = inside | ((position >= start) & (position < stop))
    return inside.expand_as(mask)
