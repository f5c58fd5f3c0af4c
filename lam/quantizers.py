"""Quantisers between the encoder and the forward model, all behind one small interface.

The algorithms are vector-quantize-pytorch's; this file sets the options that keep a small codebook alive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, VectorQuantize

from lam.config import QuantizerConfig

__all__ = ["Continuous", "FiniteScalar", "MovingAverageVQ", "Quantized", "Quantizer", "build_quantizer"]


class Quantized(NamedTuple):
    """What a quantiser makes of a latent."""

    z: Tensor
    """float32 [B, N, D]: what the forward model sees; gradients pass straight through to the encoder."""
    codes: Tensor | None
    """int64 [B, N], in [0, n_codes); None for a continuous bottleneck."""
    loss: Tensor
    """float32 []: the quantiser's own weighted loss; 0 where it has none, and in eval mode."""


class Quantizer(nn.Module):
    """A bottleneck of ``n_codes`` codes per token (0: continuous). Runs in float32 whatever the autocast."""

    n_codes: int

    def forward(self, e: Tensor) -> Quantized:
        """Quantises the pre-quantisation latent ``e``, float [B, N, D]."""
        with torch.autocast(e.device.type, enabled=False):
            return self.quantize(e.float())

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]; the part that subclasses write."""
        return Quantized(e, None, e.new_zeros(()))


class Continuous(Quantizer):
    """No quantisation: the upper bound of what a probe finds (as in LAOM, arXiv 2502.00379)."""

    n_codes = 0


class MovingAverageVQ(Quantizer):
    """One codebook for all tokens, moved by averages of its hits (van den Oord et al., 2017, appendix A.1).

    Codes start at k-means centres of the first batch, and one that is hit too seldom is drawn anew from the current
    batch for the whole run. The rotation trick is off: it costs reconstruction with a slow decay.

    Args:
        config: codebook options.
        vectors_per_step: latent tokens in one training batch; the library counts dead codes in hits per batch.
    """

    def __init__(self, config: QuantizerConfig, vectors_per_step: int) -> None:
        super().__init__()
        self.n_codes = config.codebook_size
        self.vq = VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            commitment_weight=config.commitment,
            kmeans_init=True,
            threshold_ema_dead_code=config.dead_code_share * vectors_per_step / config.codebook_size,
            rotation_trick=False,
        )

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]; moves the codebook in training mode."""
        z, codes, loss = self.vq(e)
        return Quantized(z, codes, loss.reshape(()))


class FiniteScalar(Quantizer):
    """Rounding of a few bounded numbers (FSQ, arXiv 2309.15505); no loss and no state, so no code can die."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.n_codes = config.n_codes
        self.fsq = FSQ(list(config.levels), dim=config.code_dim)

    def quantize(self, e: Tensor) -> Quantized:
        """Quantises float32 [B, N, D]."""
        z, codes = self.fsq(e)
        return Quantized(z, codes.long(), e.new_zeros(()))


def build_quantizer(config: QuantizerConfig, vectors_per_step: int) -> Quantizer:
    """Builds the quantiser that ``config.kind`` names.

    Args:
        config: quantiser options.
        vectors_per_step: batch size times tokens of a training step.
    """
    if config.kind == "none":
        return Continuous()
    return FiniteScalar(config) if config.kind == "fsq" else MovingAverageVQ(config, vectors_per_step)
