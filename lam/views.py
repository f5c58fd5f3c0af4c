"""What networks are given: views of a frame and the context of a pair; and patches of maps.

Shapes: B batch, S image side, F feature width, G grid side, L = G * G patches, P patch side, M text tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyramid.nn.embodiment import bucket_sinusoid

__all__ = ["Context", "GapEmbedding", "Spec", "View", "from_patches", "to_patches"]

Spec = tuple[int, int]
"""Number and width of the tokens of one bottleneck."""


class View(NamedTuple):
    """One frame of each pair."""

    pixels: Tensor
    """float32 [B, 3, S, S] in [0, 1]."""
    features: Tensor | None = None
    """float32 [B, F, G, G], see `lam.features`; None where the target is pixels."""


class Context(NamedTuple):
    """What else both networks may know; nothing here comes from a frame."""

    gap_s: Tensor | None = None
    """float32 [B], seconds between the frames."""
    text: Tensor | None = None
    """float32 [B, M, W], what a frozen text model says of the instruction, see `lam.text`."""
    text_mask: Tensor | None = None
    """bool [B, M], True = a word."""


class GapEmbedding(nn.Module):
    """A pair's gap as a vector; sinusoids of its hundredths of a second, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, context: Context) -> Tensor:
        """Returns float32 [B, W].

        Raises:
            ValueError: the pair's gap is not given.
        """
        if context.gap_s is None:
            raise ValueError("this model was built with gap_embedding: give the gap of every pair")
        return self.mlp(bucket_sinusoid(context.gap_s * 100, self.width))  # type: ignore[no-any-return]


def to_patches(x: Tensor, side: int) -> Tensor:
    """Cuts maps float [B, C, G * P, G * P] into patches, float [B, G * G, C * P * P], row by row."""
    return nn.functional.unfold(x, side, stride=side).transpose(1, 2)


def from_patches(x: Tensor, side: int) -> Tensor:
    """Puts patches float [B, G * G, C * P * P] together to float [B, C, G * P, G * P]: the inverse of `to_patches`."""
    whole = side * round(x.shape[1] ** 0.5)
    return torch.nn.functional.fold(x.transpose(1, 2), (whole, whole), side, stride=side)
