"""The motion of a whole picture, and a second frame with it taken back.

Shapes: B batch, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["global_motion", "moved_back"]

_SURE = 0.75
"""A shift leaves less than this share of the median error. Noise alone is blurred by a shift of half a pixel both
ways, which takes a fifth off the difference of two frames: sqrt((1 + 1/4) / 2) is .79."""


def moved_back(second: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Moves pictures back by the camera's motion, so that a still background stands where it stood.

    Args:
        second: float32 [B, C, S, S].
        shift: float32 [B, 2], pixels (x, y), see `global_motion`.

    Returns:
        The pictures (bilinear; edges repeated) and which places were in the frame, float32 [B, 1, S, S] of 0 and 1.
    """
    side = second.shape[-1]
    line = torch.arange(side, device=second.device, dtype=torch.float32)
    x = (line + shift[:, 0, None])[:, None, :].expand(-1, side, -1)
    y = (line + shift[:, 1, None])[:, :, None].expand(-1, -1, side)
    grid = (2 * torch.stack([x, y], dim=-1) + 1) / side - 1
    moved = torch.nn.functional.grid_sample(second, grid, padding_mode="border", align_corners=False)
    inside = ((x > -0.5) & (x < side - 0.5) & (y > -0.5) & (y < side - 0.5)).float()[:, None]
    still = (shift == 0).all(1)[:, None, None, None]
    return torch.where(still, second, moved), inside


def global_motion(first: Tensor, second: Tensor) -> Tensor:
    """Returns the motion of the whole picture by phase correlation (Kuglin and Hines, 1975), good to about .1 pixel.

    A large object that moves before a still background also gives a peak, and so does noise in a picture with little
    to see; a shift counts only if the median pixel fits clearly better with it, sub-pixel part included, than without.

    Args:
        first: uint8 [B, 3, S, S].
        second: uint8 [B, 3, S, S].

    Returns:
        float32 [B, 2], pixels (x, y) that the second picture's content lies to the right of and below the first's.
    """
    side = first.shape[-1]
    a, b = (frames.float().mean(1) / 255 for frames in (first, second))
    spectrum = torch.fft.fft2(_windowed(b)) * torch.fft.fft2(_windowed(a)).conj()
    peak = torch.fft.ifft2(spectrum / (spectrum.abs() + 1e-6)).real
    row, column = torch.unravel_index(peak.flatten(1).argmax(1), (side, side))
    y = _wrapped(row, side) + _vertex(*(_at(peak, row + step, column) for step in (-1, 0, 1)))
    x = _wrapped(column, side) + _vertex(*(_at(peak, row, column + step) for step in (-1, 0, 1)))
    shift = torch.stack([x, y], dim=1)
    sure = _median_error(*moved_back(b[:, None], shift), a) < _SURE * (b - a).abs().flatten(1).median(dim=1).values
    return torch.where(sure[:, None], shift, 0.0)


def _windowed(gray: Tensor) -> Tensor:
    # Without a window the borders of the picture, which stay in place, correlate best.
    window = torch.hann_window(gray.shape[-1], periodic=False, device=gray.device)
    return (gray - gray.mean((1, 2), keepdim=True)) * window[:, None] * window


def _median_error(moved: Tensor, inside: Tensor, target: Tensor) -> Tensor:
    error = (moved[:, 0] - target).abs().masked_fill(inside[:, 0] == 0, torch.nan)
    return error.flatten(1).nanmedian(dim=1).values.nan_to_num(torch.inf)  # a shift by the whole picture leaves none


def _at(peak: Tensor, row: Tensor, column: Tensor) -> Tensor:
    side = peak.shape[-1]
    return peak[torch.arange(len(peak), device=peak.device), row % side, column % side]


def _wrapped(index: Tensor, side: int) -> Tensor:
    return torch.where(index > side // 2, index - side, index).float()


def _vertex(before: Tensor, at: Tensor, after: Tensor) -> Tensor:
    curvature = before - 2 * at + after
    return torch.where(curvature < -1e-9, 0.5 * (before - after) / curvature.clamp(max=-1e-9), 0.0)
