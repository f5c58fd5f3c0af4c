"""The loss of the latent-action model: error of the predicted change, in units of the change itself.

Every term carries a gradient; which pairs count how much is decided by `lam.pairs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lam.model import Output

__all__ = ["code_usage", "lam_loss", "relative_error"]


def relative_error(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted squared error of a predicted change over that of predicting none: 1 is a copy, 0 is perfect.

    The scale keeps this term and the quantiser's comparable on dark and bright, slow and fast video alike.

    Args:
        predicted: float [B, ...], predicted change.
        target: float [B, ...], true change, same shape.
        weight: float [B], >= 0.

    Returns:
        float32 [], >= 0.
    """
    error = (predicted.float() - target).square().flatten(1).mean(1)
    copy = target.square().flatten(1).mean(1)
    return (error * weight).sum() / ((copy * weight).sum() + 1e-6)


def lam_loss(output: Output, first: Tensor, second: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Returns the terms of the loss, each a float32 []; their sum is what training minimises.

    Args:
        output: the model's pass over the pairs.
        first: float32 [B, 3, S, S] in [0, 1].
        second: float32 [B, 3, S, S] in [0, 1].
        weight: float32 [B], weight of each pair, >= 0.
    """
    terms = {"prediction": relative_error(output.residual, second - first, weight)}
    if output.quantized.loss.requires_grad:
        terms["quantizer"] = output.quantized.loss
    return terms


def code_usage(codes: Tensor, n_codes: int) -> dict[str, float]:
    """Returns the ``perplexity`` (mean over positions) and ``usage`` (share of codes hit) of codes int64 [B, N]."""
    hits = torch.stack([torch.bincount(column, minlength=n_codes) for column in codes.T]).double()
    p = hits / hits.sum(1, keepdim=True)
    perplexity = torch.exp(-torch.special.xlogy(p, p).sum(1)).mean()
    return {"perplexity": float(perplexity), "usage": float((hits.sum(0) > 0).double().mean())}
