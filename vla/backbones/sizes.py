"""The sizes of a fresh backbone in the words of transformers' configurations."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vla.config import BackboneConfig
from vla.text import SPECIAL_TOKENS

__all__ = ["siglip_sizes", "text_sizes"]


def siglip_sizes(config: BackboneConfig) -> dict[str, Any]:
    """Returns the sizes of a SigLIP tower."""
    return {
        "hidden_size": config.vision_width,
        "intermediate_size": config.vision_ffn or 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads or config.attention_heads,
        "image_size": config.image_size_px,
        "patch_size": config.patch_px,
        "vision_use_head": False,
    }


def text_sizes(config: BackboneConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the sizes of a language model up to the tapped layer."""
    pad, bos, eos = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS[:3])
    return {
        "vocab_size": max(config.vocab_size or 0, tokenizer.get_vocab_size()),
        "hidden_size": config.text_width,
        "intermediate_size": config.text_ffn or 3 * config.text_width,
        "num_hidden_layers": config.tap_layer,
        "num_attention_heads": config.attention_heads,
        "num_key_value_heads": config.kv_heads or config.attention_heads,
        "head_dim": config.text_width // config.attention_heads,
        "max_position_embeddings": config.n_views * (config.image_size_px // config.patch_px) ** 2
        + config.max_text_tokens,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
