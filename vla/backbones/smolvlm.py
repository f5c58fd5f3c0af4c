"""SmolVLM and Idefics3 (arXiv 2504.05299, 2408.12637): SigLIP, pixel shuffle, and a Llama-shaped language model.

Views are not cut into tiles: a view is one picture of the size that the backbone was built for, so that the positions
of its patches are worked out once and the graph is static.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
)

from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.sizes import siglip_sizes, text_sizes
from vla.config import BackboneConfig
from vla.text import SPECIAL_TOKENS

__all__ = ["SmolVLMBackbone"]


class SmolVLMBackbone(Backbone):
    """A SmolVLM or Idefics3 model."""

    model: SmolVLMModel
    model_types = ("smolvlm", "idefics3")

    def __init__(self, model: nn.Module, spec: BackboneSpec) -> None:
        super().__init__(model, spec)
        self.model.text_model.norm = nn.Identity()
        vision = self.model.config.vision_config
        positions = _patch_positions(spec.image_size_px // vision.patch_size, vision.image_size // vision.patch_size)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    @classmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> SmolVLMConfig:
        """See `Backbone`."""
        sizes = siglip_sizes(config)
        del sizes["vision_use_head"]
        text = text_sizes(config, tokenizer)
        return SmolVLMConfig(
            vision_config={"model_type": "smolvlm_vision", **sizes},
            text_config={"model_type": "llama", **text},
            image_token_id=tokenizer.token_to_id(SPECIAL_TOKENS[3]) or 0,
            pad_token_id=text["pad_token_id"],
            scale_factor=config.merge,
        )

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        """See `Backbone`."""
        kind = Idefics3Config if data.get("model_type") == "idefics3" else SmolVLMConfig
        return kind.from_dict(dict(data))

    @classmethod
    def build(cls, spec: BackboneSpec) -> SmolVLMBackbone:
        """See `Backbone`."""
        config = cls.read_config(spec.model)
        kind = Idefics3Model if config.model_type == "idefics3" else SmolVLMModel
        return cls(kind(config), spec)

    @classmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """See `Backbone`."""
        older = config.model_type == "idefics3"
        kind = Idefics3ForConditionalGeneration if older else SmolVLMForConditionalGeneration
        full, info = kind.from_pretrained(source, config=config, output_loading_info=True, **options)
        return full.model, info

    @classmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """See `Backbone`."""
        step = config.vision_config.patch_size * config.scale_factor
        most = config.vision_config.image_size
        return None if size_px % step == 0 and size_px <= most else f"takes multiples of {step} px up to {most} px"

    @property
    def width(self) -> int:
        """See `Backbone`."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def tokens_per_view(self) -> int:
        """See `Backbone`."""
        return int(len(self.positions) // self.model.config.scale_factor**2)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Backbone`."""
        return self.model.text_model.layers  # type: ignore[no-any-return]

    @property
    def vision(self) -> Sequence[nn.Module]:
        """See `Backbone`."""
        return (self.model.vision_model, self.model.connector)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        tower = self.model.vision_model
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = patches + tower.embeddings.position_embedding(self.positions)
        for layer in tower.encoder.layers:
            x = layer(x, None)
        return [self.model.connector(tower.post_layernorm(x))]

    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """See `Backbone`."""
        return self.model.text_model(inputs_embeds=embedded, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def _patch_positions(per_side: int, native: int) -> Tensor:
    """Returns which learned positions the patches of a square picture have, int64 [per_side^2].

    A picture smaller than the native one spreads its patches over the whole table (NaViT, arXiv 2307.06304, in the way
    of Idefics): patch i of n sits at the fraction i / n of the side.
    """
    with torch.device("cpu"):
        edges = torch.arange(1 / native, 1.0, 1 / native)
        place = torch.clamp(torch.arange(per_side, dtype=torch.float32) * (1.0 / per_side), max=1.0 - 1e-6)
        row = torch.bucketize(place, edges, right=True)
    return (row[:, None] * native + row[None, :]).flatten()
