"""Llava-shaped models: a vision tower of fixed size, a projector, and a causal language model (arXiv 2304.08485)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaModel

from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.sizes import siglip_sizes, text_sizes
from vla.config import BackboneConfig
from vla.text import SPECIAL_TOKENS

__all__ = ["LlavaBackbone"]


class LlavaBackbone(Backbone):
    """A Llava model; the tower's output is what its configuration selects."""

    model: LlavaModel
    model_types = ("llava",)

    def __init__(self, model: nn.Module, spec: BackboneSpec) -> None:
        super().__init__(model, spec)
        self.model.language_model.norm = nn.Identity()

    @classmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> LlavaConfig:
        """See `Backbone`."""
        return LlavaConfig(
            vision_config={"model_type": "siglip_vision_model", **siglip_sizes(config)},
            text_config={"model_type": "llama", **text_sizes(config, tokenizer)},
            image_token_index=tokenizer.token_to_id(SPECIAL_TOKENS[3]) or 0,
            image_seq_length=(config.image_size_px // config.patch_px) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> LlavaConfig:
        """See `Backbone`."""
        return LlavaConfig.from_dict(dict(data))

    @classmethod
    def build(cls, spec: BackboneSpec) -> LlavaBackbone:
        """See `Backbone`."""
        return cls(LlavaModel(cls.read_config(spec.model)), spec)

    @classmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """See `Backbone`."""
        full, info = LlavaForConditionalGeneration.from_pretrained(
            source, config=config, output_loading_info=True, **options
        )
        return full.model, info

    @classmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """See `Backbone`."""
        native = config.vision_config.image_size
        return None if size_px == native else f"takes {native} px"

    @property
    def width(self) -> int:
        """See `Backbone`."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def tokens_per_view(self) -> int:
        """See `Backbone`."""
        vision = self.model.config.vision_config
        # A CLIP tower has a class token, which the strategy "default" leaves out and SigLIP does not have.
        whole = self.model.config.vision_feature_select_strategy == "full"
        class_token = {"clip_vision_model": 1}.get(vision.model_type, 0)
        count = (vision.image_size // vision.patch_size) ** 2 + class_token
        return int(count if whole else count - 1)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Backbone`."""
        return self.model.language_model.layers  # type: ignore[no-any-return]

    @property
    def vision(self) -> Sequence[nn.Module]:
        """See `Backbone`."""
        return (self.model.vision_tower, self.model.multi_modal_projector)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        tower = self.model.vision_tower(pixels, output_hidden_states=True, return_dict=True)
        layers = self.model.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        skip = 1 if self.model.config.vision_feature_select_strategy == "default" else 0  # the class token
        chosen = torch.cat([tower.hidden_states[layer][:, skip:] for layer in layers], dim=-1)
        return [self.model.multi_modal_projector(chosen)]

    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """See `Backbone`."""
        return self.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
