"""The inverse dynamics model: frames of a window in, the window's actions out, one output network per embodiment.

Which windows it sees is left to `idm.data`, joining its predictions to `idm.windows`. Shapes: B batch, K frames,
S image side, H horizon, D action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from idm.config import IDMConfig
from pyramid.nn.embodiment import EmbodimentMLP

__all__ = ["InverseDynamicsModel", "as_input", "augmented"]


class InverseDynamicsModel(nn.Module):
    """CNN on the frames of a window and their differences; no language, no state.

    Args:
        config: sizes of windows and network.
        action_dims: embodiment -> action dimension; each gets an output network of its own.
    """

    def __init__(self, config: IDMConfig, action_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.horizon, size = config.windows.horizon, config.model
        n_frames = len(config.windows.frames)
        fine, middle, coarse = size.widths
        self.body = nn.Sequential(
            _conv(6 * n_frames - 3, fine, kernel=5, stride=2),
            _conv(fine, middle, stride=2),
            _conv(middle, middle),
            _conv(middle, coarse, stride=2),
            _conv(coarse, coarse),
            nn.Flatten(),
            # Positions are kept: where something moves decides how large the action was.
            nn.Linear(coarse * (size.image_size_px // 8) ** 2, size.hidden),
            nn.SiLU(),
        )
        heads = {name: (size.hidden, self.horizon * dim) for name, dim in action_dims.items()}
        self.head = EmbodimentMLP(heads, size.hidden)
        self.spread = nn.ParameterDict(
            {f"for_{name}": nn.Parameter(torch.ones(2, dim), requires_grad=False) for name, dim in action_dims.items()}
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor, embodiment: str) -> Tensor:
        """Predicts the actions of windows of one embodiment.

        Args:
            frames: float32 [B, K, 3, S, S] in [0, 1], the frames that `WindowConfig.frames` names.
            embodiment: a declared embodiment.

        Returns:
            float32 [B, H, D], normalised units.
        """
        x = torch.cat([frames - 0.5, 2 * frames.diff(dim=1)], dim=1).flatten(1, 2)
        features = self.body(x.contiguous(memory_format=torch.channels_last))
        return self.head(features, embodiment).float().unflatten(1, (self.horizon, -1))  # type: ignore[no-any-return]

    def error_spread(self, embodiment: str) -> Tensor:
        """Returns the calibrated error of one embodiment, float32 [2, D], normalised units, > 0.

        Row 0: standard deviation of the error of a single vote. Row 1: of several joined votes, beyond their variance.
        """
        return self.spread[f"for_{embodiment}"]  # type: ignore[no-any-return]


def _conv(d_in: int, d_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(d_in, d_out, kernel, stride, padding=kernel // 2), nn.GroupNorm(8, d_out), nn.SiLU())


def as_input(frames: Tensor) -> Tensor:
    """Maps uint8 [...] frames to the network's float32 in [0, 1]."""
    return frames.float() / 255


def augmented(frames: Tensor, shift_px: int, gain: float, generator: torch.Generator) -> Tensor:
    """Shifts and brightens each window, all its frames alike, so that the motion in it stays the same.

    Args:
        frames: float32 [B, K, 3, S, S] in [0, 1].
        shift_px: largest shift to each side, pixels; what enters at the border repeats the border.
        gain: largest relative change of brightness.
        generator: source of randomness, on the CPU.
    """
    count, side = len(frames), frames.shape[-1]
    factors = 1 + gain * (2 * torch.rand(count, generator=generator) - 1)
    out = frames * factors.to(frames.device)[:, None, None, None, None]
    if shift_px:
        corners = torch.randint(0, 2 * shift_px + 1, (count, 2), generator=generator).tolist()
        edges = nn.functional.pad(out.flatten(0, 1), (shift_px,) * 4, mode="replicate")
        edges = edges.view(*frames.shape[:3], *edges.shape[-2:])
        out = torch.stack(
            [window[..., y : y + side, x : x + side] for window, (y, x) in zip(edges, corners, strict=True)]
        )
    return out.clamp(0, 1)
