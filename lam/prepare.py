"""From decoded pairs to what a model is given: frames in [0, 1], camera motion taken back, the weight of each place.

The same for training, labels and evaluation, but for the weights of places, which only training uses.
Shapes: B batch, S image side, H side of the target's map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lam.camera import global_motion, moved_back
from lam.config import ObjectiveConfig

__all__ = ["Frames", "focus_of", "prepare", "to_map"]


class Frames(NamedTuple):
    """Both frames of pairs, ready to be looked at."""

    first: Tensor
    """float32 [B, 3, S, S] in [0, 1]."""
    second: Tensor
    """float32 [B, 3, S, S] in [0, 1], moved back where the camera is compensated."""
    valid: Tensor | None
    """float32 [B, 1, S, S]: 1 where the second frame shows what was in view, else 0; None: everywhere."""


def prepare(config: ObjectiveConfig, first: Tensor, second: Tensor) -> Frames:
    """Returns the frames of pairs uint8 [B, 3, S, S]."""
    a, b = first.float() / 255, second.float() / 255
    if config.camera == "kept":
        return Frames(a, b, None)
    return Frames(a, *moved_back(b, global_motion(first, second)))


def focus_of(config: ObjectiveConfig, frames: Frames, boxes: Tensor | None) -> Tensor | None:
    """Returns the weight of each place in the loss, float32 [B, 1, S, S] in [0, 1]; None for all alike.

    Args:
        config: where the focus lies.
        frames: the frames of the pairs.
        boxes: float32 [B, 4], x0, y0, x1, y1 as shares of the sides; a row of NaN has no box and counts everywhere.
    """
    inside = None
    if config.focus == "motion":
        inside = _moving(frames)
    elif config.focus == "boxes" and boxes is not None:
        inside = _boxed(boxes, frames.first.shape[-1])
    if inside is None:
        return frames.valid
    weight = config.focus_floor + (1 - config.focus_floor) * inside
    return weight if frames.valid is None else weight * frames.valid


def _moving(frames: Frames) -> Tensor:
    """Local motion as a share of the picture's largest: |difference|, blurred over an eighth of the side."""
    moved = (frames.second - frames.first).abs().mean(1, keepdim=True)
    if frames.valid is not None:
        moved = moved * frames.valid
    radius = max(moved.shape[-1] // 16, 1)
    blurred = torch.nn.functional.avg_pool2d(moved, 2 * radius + 1, 1, radius, count_include_pad=False)
    return blurred / blurred.amax((2, 3), keepdim=True).clamp(min=1e-6)


def _boxed(boxes: Tensor, side: int) -> Tensor:
    line = (torch.arange(side, device=boxes.device) + 0.5) / side
    x0, y0, x1, y1 = (boxes[:, i, None] for i in range(4))
    across, down = (line >= x0) & (line < x1), (line >= y0) & (line < y1)
    none = boxes.isnan().any(1)[:, None, None]
    return (down[:, :, None] & across[:, None, :] | none).float()[:, None]


def to_map(places: Tensor | None, side: int) -> Tensor | None:
    """Averages weights of places float [B, 1, S, S] to the side of a target's map, float [B, 1, H, H]."""
    return None if places is None else torch.nn.functional.adaptive_avg_pool2d(places, side)
