"""Optical flow as a target: what a frozen RAFT (arXiv 2003.12039) of torchvision sees move between two frames.

Shapes: B batch, S image side, H side of the target's map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lam.config import ObjectiveConfig
from pyramid import files
from pyramid.errors import ConfigError

__all__ = ["FlowTarget"]

_MAX_WEIGHTS_BYTES = 2**28
_UPDATES = 12
"""RAFT's refinement steps, torchvision's default."""


class FlowTarget(nn.Module):
    """Flow from the first frame to the second, averaged to the target's map, as shares of the image's side.

    Args:
        config: which model, and the file of its weights.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        from torchvision.models import optical_flow

        self.raft: Any = getattr(optical_flow, config.flow_model)(weights=None)
        try:
            self.raft.load_state_dict(_read(config.flow_weights), strict=True)
        except Exception as error:  # What a broken file raises has no common base.
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"'{config.flow_weights}' holds no weights of {config.flow_model}: {what}") from error
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor, side: int) -> Tensor:
        """Returns the flow float32 [B, 2, H, H] of frames float32 [B, 3, S, S] in [0, 1] on a map of ``side``."""
        with torch.autocast(first.device.type, enabled=False):
            flow = self.raft(2 * first - 1, 2 * second - 1, num_flow_updates=_UPDATES)[-1]
        return nn.functional.adaptive_avg_pool2d(flow / first.shape[-1], side)


def _read(path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load

        return dict(load(files.read_bytes(path, max_bytes=_MAX_WEIGHTS_BYTES)))
    state: dict[str, Tensor] = torch.load(Path(path), weights_only=True, map_location="cpu")
    return state
