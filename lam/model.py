"""The latent-action model: an encoder of frame pairs, a quantiser, and a forward model of one frame and the tokens.

Which pairs it sees is left to `lam.pairs`, what it minimises to `lam.losses`. Shapes: B batch, N tokens, D code width,
S image side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lam.config import ModelConfig, QuantizerConfig
from lam.quantizers import Quantized, build_quantizer

__all__ = ["LatentActionModel", "Output", "build_model"]


class Output(NamedTuple):
    """One pass over a batch of pairs."""

    latent: Tensor
    """float32 [B, N, D], before quantisation."""
    quantized: Quantized
    """What the bottleneck let through."""
    residual: Tensor
    """float32 [B, 3, S, S]: predicted change from the first frame to the second, in [0, 1] units of intensity."""


class LatentActionModel(nn.Module):
    """What changed between two frames, as N small tokens, and the second frame predicted from the first and them.

    Args:
        model: network sizes.
        quantizer: bottleneck.
        vectors_per_step: batch size times tokens of a training step (for the dead-code threshold).
    """

    def __init__(self, model: ModelConfig, quantizer: QuantizerConfig, vectors_per_step: int) -> None:
        super().__init__()
        self.quantizer = build_quantizer(quantizer, vectors_per_step)
        self.encoder = PairEncoder(model, self.quantizer.input_dim)
        self.decoder = ForwardModel(model, quantizer.dim)
        self.to(memory_format=torch.channels_last)  # 1.3 times faster on a CPU

    def forward(self, first: Tensor, second: Tensor) -> Output:
        """Encodes and predicts pairs; ``first`` and ``second`` are float32 [B, 3, S, S] in [0, 1]."""
        latent = self.encode(first, second)
        quantized = self.quantizer(latent)
        return Output(quantized.latent, quantized, self.predict(first, quantized.z))

    def encode(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns what the quantiser takes, float32 [B, N, input_dim], of pairs float32 [B, 3, S, S] in [0, 1]."""
        return self.encoder(first, second)  # type: ignore[no-any-return]

    def predict(self, first: Tensor, z: Tensor) -> Tensor:
        """Returns the predicted change, float32 [B, 3, S, S], from first frames and tokens float32 [B, N, D] alone."""
        return self.decoder(first, z)  # type: ignore[no-any-return]


class PairEncoder(nn.Module):
    """CNN on both frames and their difference; the difference input is what lets a small network train."""

    def __init__(self, config: ModelConfig, code_dim: int) -> None:
        super().__init__()
        fine, middle, coarse = config.encoder_widths
        self.shape = (config.n_tokens, code_dim)
        self.body = nn.Sequential(
            _conv(9, fine, kernel=5, stride=2),
            _conv(fine, middle, stride=2),
            _Residual(middle),
            _conv(middle, coarse, stride=2),
            _Residual(coarse),
        )
        cells = (config.image_size_px // 8) ** 2
        self.head = nn.Linear(coarse * cells, config.n_tokens * code_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = torch.cat([first - 0.5, second - 0.5, second - first], dim=1).contiguous(memory_format=torch.channels_last)
        return self.head(self.body(x).flatten(1)).float().unflatten(1, self.shape)  # type: ignore[no-any-return]


class ForwardModel(nn.Module):
    """U-Net on the first frame, steered by the tokens through FiLM (arXiv 1709.07871) alone.

    FiLM acts on all places alike, so tokens must say how to move what the first frame shows. Given a map of places
    too, they paint the second frame wherever it differs: better pictures (3 dB on moving discs) of which a linear probe
    reads no action at all (R2 -.1 instead of .8 with a continuous bottleneck, -.1 instead of .6 with 8 codes).

    Its inputs are the first frame and the tokens, so nothing of the second frame can reach it past the bottleneck. The
    last convolution starts at zero: an untrained model predicts "no change", the copy of the first frame.
    """

    def __init__(self, config: ModelConfig, code_dim: int) -> None:
        super().__init__()
        fine, middle, coarse = config.decoder_widths
        tokens = config.n_tokens * code_dim
        self.down_fine = _conv(12, fine)
        self.down_middle = _conv(fine, middle, stride=2)
        self.down_coarse = _conv(middle, coarse, stride=2)
        self.bottom = nn.ModuleList([_FiLM(coarse, coarse, tokens), _FiLM(coarse, coarse, tokens)])
        self.up_middle = _FiLM(coarse + middle, middle, tokens)
        self.up_fine = _FiLM(middle + fine, fine, tokens)
        self.out = nn.Conv2d(fine, 12, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, first: Tensor, z: Tensor) -> Tensor:
        code = z.flatten(1)
        x = nn.functional.pixel_unshuffle(first - 0.5, 2).contiguous(memory_format=torch.channels_last)
        fine = self.down_fine(x)
        middle = self.down_middle(fine)
        x = self.down_coarse(middle)
        for block in self.bottom:
            x = block(x, code)
        x = self.up_middle(torch.cat([_twice(x), middle], dim=1), code)
        x = self.up_fine(torch.cat([_twice(x), fine], dim=1), code)
        return nn.functional.pixel_shuffle(self.out(x), 2).float()


class _FiLM(nn.Module):
    """Convolution whose normalised channels are scaled and shifted by the code."""

    def __init__(self, d_in: int, d_out: int, d_code: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, 3, padding=1)
        self.norm = nn.GroupNorm(8, d_out)
        self.film = nn.Linear(d_code, 2 * d_out)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code)[:, :, None, None].chunk(2, dim=1)
        return nn.functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.body(x))


def _conv(d_in: int, d_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, padding=kernel // 2), nn.GroupNorm(8, d_out), nn.SiLU())


def _twice(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def build_model(model: ModelConfig, quantizer: QuantizerConfig, *, batch_size: int) -> LatentActionModel:
    """Builds the untrained model; ``batch_size`` (pairs per training step) scales the dead-code threshold."""
    return LatentActionModel(model, quantizer, vectors_per_step=batch_size * model.n_tokens)
