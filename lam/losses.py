"""The loss of the latent-action model: error of the predicted change, in units of the change itself, and further terms.

Every term carries a gradient; which pairs count how much is decided by `lam.pairs`, which places by `lam.prepare`.
Shapes: B batch, C channels, H side of the target's map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lam.model import LatentActionModel, Output
from lam.pairs import PairBatch

__all__ = ["code_usage", "lam_loss", "measured_terms", "relative_error"]


def relative_error(predicted: Tensor, target: Tensor, weight: Tensor, focus: Tensor | None = None) -> Tensor:
    """Weighted squared error of a predicted change over that of predicting none: 1 is a copy, 0 is perfect.

    The scale keeps this term and the quantiser's comparable on dark and bright, slow and fast video alike.

    Args:
        predicted: float [B, C, H, H], predicted change.
        target: float [B, C, H, H], true change, same shape.
        weight: float [B], >= 0.
        focus: float [B, 1, H, H], weight of each place, >= 0; None counts all alike.

    Returns:
        float32 [], >= 0.
    """
    places = 1.0 if focus is None else focus
    error = ((predicted.float() - target).square() * places).flatten(1).mean(1)
    copy = (target.square() * places).flatten(1).mean(1)
    return (error * weight).sum() / ((copy * weight).sum() + 1e-6)


def lam_loss(output: Output, change: Tensor, weight: Tensor, focus: Tensor | None = None) -> dict[str, Tensor]:
    """Returns the terms of the loss that every model has, each a float32 []; their sum is what training minimises.

    Args:
        output: the model's pass over the pairs.
        change: float32 [B, C, H, H], true change of the target.
        weight: float32 [B], weight of each pair, >= 0.
        focus: float32 [B, 1, H, H], weight of each place.
    """
    terms = {"prediction": relative_error(output.change, change, weight, focus)}
    if output.tokens.loss.requires_grad:
        terms["quantizer"] = output.tokens.loss
    return terms


def measured_terms(model: LatentActionModel, output: Output, batch: PairBatch) -> dict[str, Tensor]:
    """Returns the weighted terms that need what a robot measured: ``action``, ``proprio``; none if no row has it."""
    objectives, terms = model.config.objectives, {}
    if model.action_head is not None and batch.action is not None:
        rows = batch.action.known
        if rows.any():
            values = batch.action.values[rows], batch.action.embodiment[rows]
            terms["action"] = objectives.action_weight * model.action_head(output.latent[rows], *values)
    if model.proprio_head is not None and batch.state is not None and batch.later is not None:
        rows = batch.state.known
        if rows.any():
            z, names = output.tokens.quantized.z[rows], batch.state.embodiment[rows]
            states = batch.state.values[rows], batch.later.values[rows]
            terms["proprio"] = objectives.proprio_weight * model.proprio_head(z, *states, names)
    return terms


def code_usage(codes: Tensor, n_codes: int) -> dict[str, float]:
    """Returns the ``perplexity`` (mean over positions) and ``usage`` (share of codes hit) of codes int64 [B, N]."""
    hits = torch.stack([torch.bincount(column, minlength=n_codes) for column in codes.T]).double()
    p = hits / hits.sum(1, keepdim=True)
    perplexity = torch.exp(-torch.special.xlogy(p, p).sum(1)).mean()
    return {"perplexity": float(perplexity), "usage": float((hits.sum(0) > 0).double().mean())}
