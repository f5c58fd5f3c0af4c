"""Edges in place of colours: what an encoder may see so that bodies of other colours look alike to it.

Shapes: B batch, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["edges"]

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_REACH = 16
"""Contrast is compared within a square that reaches a sixteenth of the side to each hand."""
_FAINT = 0.05
"""Edges much below this step in grey stay faint, however even their surroundings are."""
_STRONGEST = 2.0


def edges(pixels: Tensor) -> Tensor:
    """Returns how strong the edges of frames are for where they stand; which side is darker has no say.

    Args:
        pixels: float32 [B, 3, S, S] in [0, 1].

    Returns:
        float32 [B, 1, S, S] in [0, 2]; about 0.5 where edges are as strong as around them.
    """
    grey = nn.functional.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey.new_tensor(_SOBEL)[None, None] / 4
    slopes = nn.functional.conv2d(grey, torch.cat([across, across.transpose(2, 3)]))
    strength = (slopes.square().sum(1, keepdim=True) + 1e-6).sqrt()
    reach = max(pixels.shape[-1] // _REACH, 1)
    around = nn.functional.avg_pool2d(strength, 2 * reach + 1, 1, reach, count_include_pad=False)
    return (strength / (2 * around + _FAINT)).clamp(max=_STRONGEST)
