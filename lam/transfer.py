"""Tokens moved to other frames: is the change they describe a change there too, and is it the same one?

Pictures of it are left to `lam.sheets`. Shapes: P pairs, N tokens, D token width, S image side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lam import metrics
from lam.held_out import Pairs, pick_context
from lam.model import LatentActionModel
from lam.prepare import prepare
from lam.run import Rows, run_pairs
from lam.views import Context

__all__ = ["cycle_measures", "predict_frames", "predicts_pixels", "swapped_measures", "tokens_of"]

_BATCH = 32


@torch.inference_mode()
def tokens_of(network: LatentActionModel, rows: Rows) -> Tensor:
    """Returns the quantised tokens of rows, float32 [P, N, D], on the CPU."""
    device = next(network.parameters()).device
    return network.quantizer(torch.from_numpy(rows.latent).to(device)).z.cpu()  # type: ignore[no-any-return]


def predicts_pixels(network: LatentActionModel) -> bool:
    """Whether the model predicts frames that can be looked at and encoded again."""
    return network.config.target.kind == "pixels"


@torch.inference_mode()
def predict_frames(network: LatentActionModel, pairs: Pairs, z: Tensor) -> Tensor:
    """Returns the frames that follow the first frames of pairs when tokens ``z`` act there.

    Args:
        network: a model of pixels.
        pairs: the pairs; of their second frames only camera motion and the tokens of a first stage are used, if any.
        z: float32 [P, N, D].

    Returns:
        uint8 [P, 3, S, S].
    """
    device, found = next(network.parameters()).device, []
    for start in range(0, len(z), _BATCH):
        part = slice(start, start + _BATCH)
        context = Context(*(None if c is None else c.to(device) for c in pick_context(pairs.context, part)))
        objectives = network.config.objectives
        frames = prepare(objectives, pairs.first[part].to(device), pairs.second[part].to(device))
        first = network.look(frames.first)
        background = None
        if network.background is not None:
            background = network.tokens(first, network.look(frames.second), context).background
        change, _ = network.predict(first, z[part].to(device), context, background)
        found.append(((frames.first + change).clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return torch.cat(found)


def swapped_measures(network: LatentActionModel, rows: Rows, held: Pairs) -> dict[str, Any]:
    """Returns ``shuffle_gap``, dB, ``leakage`` and ``image_r2`` of pairs that were run.

    The last is how much of a latent stays when another clip's frame takes the place of the first: all of it, near 1,
    and the latent is a picture of the second frame; none of it, and leakage only says that scenes are alike.
    """
    partner = metrics.partners(held.clip)
    swapped = run_pairs(network, held.first, held.second, tokens_of(network, rows)[partner], held.context)
    foreign = held.clip != held.clip[partner]
    theirs = pick_context(held.context, foreign)
    unrelated = run_pairs(network, held.first[foreign], held.second[partner][foreign], context=theirs)
    image = None
    if foreign.any():
        count = int(foreign.sum())
        own, other = rows.latent[partner][foreign], unrelated.latent
        image = metrics.explained(own.reshape(count, -1), other.reshape(count, -1))
    return {
        "shuffle_gap": metrics.psnr_gap(rows.error, swapped.error),
        "leakage": metrics.leakage(rows.error, rows.copy_error, unrelated.error, unrelated.copy_error),
        "image_r2": image,
    }


def cycle_measures(network: LatentActionModel, rows: Rows, held: Pairs) -> dict[str, Any]:
    """Moves tokens to a frame of another clip, encodes what comes out, and compares with the tokens sent.

    Returns:
        ``cycle_r2``: R2 of the latent that comes back, 1 is the same one; ``cycle_codes``: share of codes that come
        back; ``cycle_chance``: the same for codes of two pairs that have nothing to do with each other. None where the
        model predicts features or has no codes.
    """
    empty: dict[str, Any] = dict.fromkeys(("cycle_r2", "cycle_codes", "cycle_chance"))
    if not predicts_pixels(network):
        return empty
    donor = metrics.partners(held.clip)
    arrived = predict_frames(network, held, tokens_of(network, rows)[donor])
    back = run_pairs(network, held.first, arrived, context=held.context)
    sent = rows.latent[donor].reshape(len(donor), -1)
    found = {**empty, "cycle_r2": metrics.explained(sent, back.latent.reshape(len(donor), -1))}
    if rows.codes is not None and back.codes is not None:
        found["cycle_codes"] = float(np.mean(rows.codes[donor] == back.codes))
        found["cycle_chance"] = float(np.mean(rows.codes[donor] == rows.codes))
    return found
