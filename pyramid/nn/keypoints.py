"""Where things are: a few convolutions whose channels each say one point of a picture.

A spatial softmax turns each channel into the point where it is most active (Levine et al. 2016, arXiv 1504.00702). What
moves in a picture moves its points as far, wherever it is: a handful of demonstrations suffice to learn that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Keypoints", "multiplies_bfloat16"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Returns whether a device has units for bfloat16: GPUs are taken to have, of CPUs those with AMX do.

    Without them a CPU takes eight times as long for a convolution in bfloat16 as for one in float32 (measured on AVX2).
    """
    if device.type != "cpu":
        return True
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # Older PyTorch does not tell.
    return bool(tell().get("amx_bf16"))


class Keypoints(nn.Module):
    """Convolutions, and one point per channel of the last one.

    Args:
        widths: channels of each layer, at least one; those of the last are the points.
        stride: how many times smaller the last layer's grid is than the picture, a power of two; as many first layers
            as it takes halve it.
        side: height and width of pictures, a multiple of ``stride``.
        fast: whether convolutions of training run in bfloat16 where the device has units for it: a fifth of the time on
            a CPU with AMX. Elsewhere they run in float32.
    """

    def __init__(self, widths: Sequence[int], *, stride: int, side: int, fast: bool = False) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        layers: list[nn.Module] = []
        channels = 3
        for layer, out in enumerate(widths):
            kernel = 3 if layer else 5
            layers += [nn.Conv2d(channels, out, kernel, 2 if layer < halvings else 1, kernel // 2), nn.ReLU()]
            channels = out
        # The last one's values are logits. Channels last is how CPUs multiply convolutions fastest.
        self.convolutions = nn.Sequential(*layers[:-1]).to(memory_format=torch.channels_last)
        self.fast = fast
        # Flat at first, all points would lie in the middle for long.
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        line = torch.linspace(-1, 1, side // stride)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
        self.register_buffer("grid", grid, persistent=False)
        self.grid: Tensor

    def points(self, pixels: Tensor) -> Tensor:
        """Returns where each channel looks, y and x in [-1, 1], float [B, K, 2]; `pixels`: float [B, 3, S, S]."""
        with self.precision(pixels.device):
            found = self.convolutions(pixels.contiguous(memory_format=torch.channels_last))
        logits: Tensor = found.contiguous().flatten(2).float() * self.sharpness
        return logits.softmax(-1) @ self.grid

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Returns the context in which convolutions run on a device; one around it stays in force without ``fast``."""
        if self.fast and self.training and multiplies_bfloat16(device):
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()
