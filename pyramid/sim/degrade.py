"""Spoils rendered clips in the ways of a video model: flicker, colour drift, softness, ghosts, grain.

Finding such damage in clips is left to `neural_traj.judge`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyramid.sim.config import DegradeConfig


def degrade(frames: NDArray[np.uint8], generator: np.random.Generator, config: DegradeConfig) -> NDArray[np.uint8]:
    """Returns a clip that looks generated.

    Args:
        frames: uint8 [T, H, W, 3], RGB.
        generator: keyed; the same generator state spoils the same way.
        config: how much of each.

    Returns:
        uint8 [T, H, W, 3].
    """
    n = len(frames)
    gains = 1 + generator.normal(0, config.flicker, (n, 1))
    drift = generator.uniform(-config.drift, config.drift, (1, 3)) * np.linspace(0, 1, n)[:, None]
    spoilt = np.empty_like(frames)
    before: NDArray[np.float32] | None = None
    for t, picture in enumerate(frames):
        soft = box_blur(picture.astype(np.float32), config.blur_px)
        seen = soft if before is None else (1 - config.ghost) * soft + config.ghost * before
        before = seen
        grain = generator.standard_normal(picture.shape, np.float32) * config.noise
        coloured = seen * (gains[t] + drift[t]).astype(np.float32) + grain
        spoilt[t] = np.clip(np.rint(coloured), 0, 255).astype(np.uint8)
    return spoilt


def box_blur(picture: NDArray[np.float32], radius_px: int) -> NDArray[np.float32]:
    """Averages over squares of ``2 * radius_px + 1`` pixels, the border repeated; float32 [H, W, C]."""
    width = 2 * radius_px + 1
    if width == 1:
        return picture
    padded = np.pad(picture, ((radius_px, radius_px), (radius_px, radius_px), (0, 0)), mode="edge")
    height, breadth = picture.shape[:2]
    rows = sum((padded[i : i + height] for i in range(1, width)), padded[:height])
    total = sum((rows[:, i : i + breadth] for i in range(1, width)), rows[:, :breadth])
    return (total / np.float32(width * width)).astype(np.float32)
