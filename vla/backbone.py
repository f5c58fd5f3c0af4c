"""System 2: a Llava-shaped vision-language model, cut off at a layer, that turns views and text into context tokens.

It is a thin wrapper over transformers; what the tokens are used for is the action head's.

Shapes: B batch, V views, N tokens per view, T text tokens, L = V N + T context tokens, W width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaModel, SiglipVisionConfig
from transformers.utils.hub import cached_file

from pyramid.errors import ConfigError
from vla.config import BackboneConfig
from vla.text import SPECIAL_TOKENS, byte_tokenizer, tokenizer_from_json

__all__ = ["Backbone", "BackboneSpec", "build_backbone", "restore_backbone"]

_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "architectures")


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to rebuild a backbone without its source: kept in the checkpoint."""

    llava: dict[str, Any]
    """Configuration of the model as transformers writes it, already cut to the tapped layer."""
    image_mean: tuple[float, float, float]
    """Mean per colour channel, of pixels in [0, 1]."""
    image_std: tuple[float, float, float]
    """Standard deviation per colour channel, of pixels in [0, 1]."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {"llava": self.llava, "image_mean": list(self.image_mean), "image_std": list(self.image_std)}


class Backbone(nn.Module):
    """Views and text to context tokens.

    The sequence is: first text token (the beginning-of-sequence mark), the views' tokens in order, the rest of the
    text, padding. The language model is causal and padding stands last, so padding reaches no real token; the mask
    that comes out keeps it from whoever attends to the context.
    """

    def __init__(self, model: LlavaModel, spec: BackboneSpec) -> None:
        super().__init__()
        model.language_model.norm = nn.Identity()
        self.model = model
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.image_mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.image_std).reshape(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def width(self) -> int:
        """Width of a context token."""
        return int(self.model.config.text_config.hidden_size)

    def forward(self, images: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes an observation.

        Args:
            images: uint8 [B, V, H, W, 3], RGB.
            text_ids: int64 [B, T], padded on the right.
            text_mask: bool [B, T], True where a token is.

        Returns:
            Context float [B, L, W] (output of the tapped layer, before any final norm), and its mask bool [B, L].
        """
        pixels = images.flatten(0, 1).permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        (found,) = self.view_tokens((pixels - self.mean) / self.std)
        tokens = found.unflatten(0, images.shape[:2]).flatten(1, 2)  # type: ignore[no-untyped-call]
        text = self.model.get_input_embeddings()(text_ids)
        embedded = torch.cat([text[:, :1], tokens, text[:, 1:]], dim=1)
        seen = torch.ones_like(tokens[:, :, 0], dtype=torch.bool)
        mask = torch.cat([text_mask[:, :1], seen, text_mask[:, 1:]], dim=1)
        return self.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state, mask

    @property
    def layers(self) -> nn.ModuleList:
        """The language layers that are left, in order."""
        return self.model.language_model.layers  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """Returns views' tokens, float [B V, N, W], alone in a list, from normalised pixels float [B V, 3, H, W]."""
        tower = self.model.vision_tower(pixels, output_hidden_states=True, return_dict=True)
        layers = self.model.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        skip = 1 if self.model.config.vision_feature_select_strategy == "default" else 0  # the class token
        chosen = torch.cat([tower.hidden_states[layer][:, skip:] for layer in layers], dim=-1)
        return [self.model.multi_modal_projector(chosen)]


def build_backbone(config: BackboneConfig) -> tuple[Backbone, Tokenizer]:
    """Builds a backbone, fresh or from published weights, and the tokenizer that belongs to it.

    Raises:
        ConfigError: the published model cannot be had or does not fit the config.
    """
    if config.pretrained is None:
        tokenizer = byte_tokenizer()
        spec = BackboneSpec(_clean(_fresh_config(config, tokenizer)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return restore_backbone(spec.to_dict()), tokenizer
    return _pretrained(config, config.pretrained)


def restore_backbone(spec: Mapping[str, Any]) -> Backbone:
    """Builds the backbone that `BackboneSpec.to_dict` describes, with fresh weights, to load a checkpoint into."""
    parsed = BackboneSpec(dict(spec["llava"]), tuple(spec["image_mean"]), tuple(spec["image_std"]))
    return Backbone(LlavaModel(LlavaConfig.from_dict(parsed.llava)), parsed)


def _fresh_config(config: BackboneConfig, tokenizer: Tokenizer) -> LlavaConfig:
    pad, bos, eos, image = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    tokens_per_view = (config.image_size_px // config.patch_px) ** 2
    vision = SiglipVisionConfig(
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.attention_heads,
        image_size=config.image_size_px,
        patch_size=config.patch_px,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=config.text_width,
        intermediate_size=3 * config.text_width,
        num_hidden_layers=config.tap_layer,
        num_attention_heads=config.attention_heads,
        max_position_embeddings=config.n_views * tokens_per_view + config.max_text_tokens,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        image_seq_length=tokens_per_view,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _pretrained(config: BackboneConfig, source: str) -> tuple[Backbone, Tokenizer]:
    local = Path(source).is_dir()
    if not local and not re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        raise ConfigError(f"backbone.revision must be a commit (40 hex digits) of '{source}', got {config.revision!r}")
    options = {"revision": config.revision, "local_files_only": config.local_files_only or local}
    try:
        full = LlavaForConditionalGeneration.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa", **options
        )
        tokenizer = _read(source, "tokenizer.json", options)
        preprocessor = _read(source, "preprocessor_config.json", options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone '{source}' cannot be loaded: {' '.join(str(error).split())}") from error
    model = _cut(full.model, config, source)
    image = json.loads(preprocessor)
    spec = BackboneSpec(_clean(model.config), tuple(image["image_mean"]), tuple(image["image_std"]))
    return Backbone(model, spec), tokenizer_from_json(tokenizer, f"tokenizer.json of '{source}'")


def _cut(model: LlavaModel, config: BackboneConfig, source: str) -> LlavaModel:
    layers, size = len(model.language_model.layers), model.config.vision_config.image_size
    if config.tap_layer > layers:
        raise ConfigError(f"backbone.tap_layer is {config.tap_layer}, but '{source}' has {layers} language layers")
    if size != config.image_size_px:
        raise ConfigError(f"backbone.image_size_px is {config.image_size_px}, but '{source}' takes {size} px")
    model.language_model.layers = model.language_model.layers[: config.tap_layer]
    model.config.text_config.num_hidden_layers = config.tap_layer
    return model


def _read(source: str, name: str, options: Mapping[str, Any]) -> str:
    return Path(str(cached_file(source, name, **options))).read_text(encoding="utf-8")


def _clean(config: LlavaConfig) -> dict[str, Any]:
    """Returns a config as plain data without what changes between machines or library versions."""
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    for part in (plain, plain["vision_config"], plain["text_config"]):
        for key in _VOLATILE:
            part.pop(key, None)
    return dict(plain)
