"""Frozen vision models as targets: patch features of a frame, normalised, without a gradient.

The models themselves are Hugging Face transformers'; which one, and its input statistics, is `lam.config`'s to say.
Shapes: B batch, S image side, F feature width, G = S / patch side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from lam.config import TargetConfig
from pyramid.errors import ConfigError

__all__ = ["FrozenFeatures"]

_VIDEO = ("vjepa2",)


class FrozenFeatures(nn.Module):
    """Patch features of a frozen vision transformer (DINOv2, DINOv3, SigLIP 2, V-JEPA 2).

    Each patch is normalised over its channels (a layer norm without weights): all models then have one scale. A video
    model is shown a still: the frame as often as its tubelets are long.

    Args:
        network: the transformer, as ``AutoModel`` gives it.
        config: statistics of its input.
        size_px: side of the frames, a multiple of the model's patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, config: TargetConfig, size_px: int) -> None:
        super().__init__()
        self.described: dict[str, Any] = network.config.to_dict()
        """Plain data that `describe` builds the same architecture from."""
        self.network = getattr(network, "vision_model", network)
        vision = self.network.config
        patch = int(vision.patch_size)
        if size_px % patch:
            raise ConfigError(
                f"model.image_size_px {size_px} is no multiple of the patches of {patch} px of the features"
            )
        self.grid, self.dim = size_px // patch, int(vision.hidden_size)
        self.tubelet = int(vision.tubelet_size) if vision.model_type in _VIDEO else 0
        self.resizes = "siglip" in vision.model_type
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config.image_std).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def pretrained(cls, config: TargetConfig, size_px: int) -> Self:
        """Loads ``config.vision_model`` from a folder or the hub.

        Raises:
            ConfigError: there is no such model, or none of a kind that is known here.
        """
        from transformers import AutoModel

        try:
            network = AutoModel.from_pretrained(config.vision_model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            what = " ".join(str(error).split())[:200]
            raise ConfigError(f"target.vision_model '{config.vision_model}' cannot be loaded: {what}") from error
        return cls(network, config, size_px)

    @classmethod
    def described_by(cls, described: Mapping[str, Any], config: TargetConfig, size_px: int) -> Self:
        """Builds the architecture of a saved model, its weights to be loaded; needs no network and no files."""
        from transformers import AutoConfig, AutoModel

        kind = str(described["model_type"])
        rest = {name: value for name, value in described.items() if name != "model_type"}
        return cls(AutoModel.from_config(AutoConfig.for_model(kind, **rest)), config, size_px)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features float32 [B, F, G, G] of frames float32 [B, 3, S, S] in [0, 1]."""
        x = (pixels - self.mean) / self.std
        if self.tubelet:
            video = x[:, None].expand(-1, self.tubelet, -1, -1, -1)
            hidden = self.network(pixel_values_videos=video, skip_predictor=True).last_hidden_state
        else:
            options = {"interpolate_pos_encoding": True} if self.resizes else {}
            hidden = self.network(pixel_values=x, **options).last_hidden_state
        patches = hidden[:, -(self.grid**2) :].float()  # before them stand class and register tokens
        normed = nn.functional.layer_norm(patches, (self.dim,))
        return normed.transpose(1, 2).reshape(-1, self.dim, self.grid, self.grid)
