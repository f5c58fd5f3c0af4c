"""What a latent-action model sees and predicts, as one picture to look at while it trains.

Shapes: B batch, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lam.model import LatentActionModel
from lam.pairs import PairBatch
from lam.prepare import prepare
from lam.views import Context, View

__all__ = ["contact_sheet"]

_COLUMNS = 8


def contact_sheet(model: LatentActionModel, batch: PairBatch) -> Tensor:
    """Returns four rows, a column per pair: first frame, second, prediction, and the same tokens on another's frame.

    A model of features shows no predicted pixels: bright is where its prediction is off, on a scale where the error of
    predicting no change is white; its last row has the neighbour's tokens on the pair's own frame.

    Args:
        model: the model, in eval mode.
        batch: pairs; the first eight are shown.

    Returns:
        float32 [3, 4 * S, columns * S] in [0, 1].
    """
    frames = prepare(model.config.objectives, batch.first[:_COLUMNS], batch.second[:_COLUMNS])
    told = (batch.gap_s, batch.text, batch.text_mask)
    context = Context(*(None if part is None else part[:_COLUMNS] for part in told))
    first, second = model.look(frames.first), model.look(frames.second)
    tokens = model.tokens(first, second, context)
    z, background = tokens.quantized.z, tokens.background
    own, _ = model.predict(first, z, context, background)
    if first.features is None:
        other = View(frames.first.roll(1, 0))
        moved, _ = model.predict(other, z, context, background)
        rows = [frames.first, frames.second, frames.first + own, other.pixels + moved]
    else:
        swapped, _ = model.predict(first, z.roll(1, 0), context, background)
        change = model.target(second) - model.target(first)
        rows = [frames.first, frames.second, *(_errors(part, change, frames.first) for part in (own, swapped))]
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).clamp(0, 1)


def _errors(predicted: Tensor, change: Tensor, like: Tensor) -> Tensor:
    """Squared error of each patch over the pair's mean squared change, as grey pictures of the frames' size."""
    error = (predicted - change).square().mean(1, keepdim=True)
    error = error / change.square().mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return torch.nn.functional.interpolate(error, like.shape[-1], mode="nearest").expand_as(like)
