"""Convolutions that the encoder and the forward model share."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FiLM", "Residual", "conv", "twice"]


class FiLM(nn.Module):
    """Convolution whose normalised channels are scaled and shifted by a code (arXiv 1709.07871)."""

    def __init__(self, d_in: int, d_out: int, d_code: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, 3, padding=1)
        self.norm = nn.GroupNorm(8, d_out)
        self.film = nn.Linear(d_code, 2 * d_out)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Maps float [B, d_in, H, W] and the code float [B, d_code] to float [B, d_out, H, W]."""
        scale, shift = self.film(code)[:, :, None, None].chunk(2, dim=1)
        return nn.functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


class Residual(nn.Module):
    """Two convolutions beside a skip; float [B, width, H, W] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps float [B, width, H, W] to the same."""
        return nn.functional.silu(x + self.body(x))


def conv(d_in: int, d_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Returns a convolution with group norm and SiLU; ``d_out`` is a multiple of 8."""
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, padding=kernel // 2), nn.GroupNorm(8, d_out), nn.SiLU())


def twice(x: Tensor) -> Tensor:
    """Doubles the sides of a map float [B, C, H, W]."""
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")
