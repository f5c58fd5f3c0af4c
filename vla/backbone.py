"""System 2 by name: a vision-language model, cut off at a layer, that turns views and text into context tokens.

The families are in `vla.backbones`; what the tokens are used for is the action head's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from pyramid.errors import ConfigError, DataError
from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.layout import ViewLayout, chat_layout, plain_layout
from vla.backbones.spans import image_mask
from vla.backbones.weights import read_text
from vla.config import BackboneConfig
from vla.text import byte_tokenizer, tokenizer_from_json

__all__ = ["KINDS", "Backbone", "BackboneSpec", "build_backbone", "family_of", "image_mask", "restore_backbone"]

KINDS = ("llava", "smolvlm", "qwen3_vl", "eagle", "keypoints")
"""Every family, as `BackboneConfig.kind` names it."""

_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "architectures")
_OUTPUTS = re.compile(r"\blm_head\.|\bvision_(model|tower)\.(vision_model\.)?head\.|\brotary_emb\.")
_LANGUAGE_LAYER = re.compile(r"\b(?:language|text)_model\.(?:model\.)?layers\.(\d+)\.")


def family_of(kind: str) -> type[Backbone]:
    """Returns the family of a name in `KINDS`; only its own part of transformers is imported, which takes seconds.

    Raises:
        KeyError: there is no such family.
    """
    match kind:
        case "llava":
            from vla.backbones.llava import LlavaBackbone

            return LlavaBackbone
        case "smolvlm":
            from vla.backbones.smolvlm import SmolVLMBackbone

            return SmolVLMBackbone
        case "qwen3_vl":
            from vla.backbones.qwen3_vl import Qwen3VLBackbone

            return Qwen3VLBackbone
        case "eagle":
            from vla.backbones.eagle import EagleBackbone

            return EagleBackbone
        case "keypoints":
            from vla.backbones.keypoints import KeypointBackbone

            return KeypointBackbone
    raise KeyError(kind)


def build_backbone(config: BackboneConfig) -> tuple[Backbone, Tokenizer]:
    """Builds a backbone, fresh or from published weights, and the tokenizer that belongs to it.

    Raises:
        ConfigError: the published model cannot be had, is not whole, or does not fit the config; it is named.
    """
    if config.pretrained is None:
        return _fresh(config)
    return _taught(config) if config.kind == "keypoints" else _pretrained(config, config.pretrained)


def restore_backbone(spec: Mapping[str, Any]) -> Backbone:
    """Builds the backbone that `BackboneSpec.to_dict` describes, with fresh weights, to load a checkpoint into.

    Raises:
        KeyError, ValueError, TypeError: the data describe no backbone.
    """
    parsed = BackboneSpec.from_dict(spec)
    return family_of(parsed.kind).build(parsed)


def _fresh(config: BackboneConfig) -> tuple[Backbone, Tokenizer]:
    tokenizer = _tokenizer(config, config.tokenizer) if config.tokenizer else byte_tokenizer()
    family, layout = family_of(config.kind), _layout(config, tokenizer)
    plain = _clean(family.fresh_config(config, tokenizer))
    mean, std = (0.5,) * 3, (family.fresh_std,) * 3
    return family.build(BackboneSpec(config.kind, plain, layout, config.image_size_px, mean, std)), tokenizer


def _taught(config: BackboneConfig) -> tuple[Backbone, Tokenizer]:
    from vla.backbones.keypoints import KeypointBackbone

    tokenizer = _tokenizer(config, config.tokenizer) if config.tokenizer else byte_tokenizer()
    return KeypointBackbone.taught(config, tokenizer, _layout(config, tokenizer)), tokenizer


def _pretrained(config: BackboneConfig, source: str) -> tuple[Backbone, Tokenizer]:
    options, family = _options(config, source), family_of(config.kind)
    try:
        published = json.loads(read_text(source, "config.json", options))
        pixels = json.loads(read_text(source, "preprocessor_config.json", options))
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone '{source}' cannot be loaded: {' '.join(str(error).split())}") from error
    tokenizer = _tokenizer(config, config.tokenizer or source)
    cut = _cut(family, config, published, source)
    model = _weights(family, cut, source, options)
    try:
        mean, std = (tuple(float(v) for v in pixels[name]) for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"backbone '{source}': preprocessor_config.json has no usable {error}") from error
    layout = _layout(config, tokenizer)
    spec = BackboneSpec(config.kind, _clean(cut), layout, config.image_size_px, mean, std)  # type: ignore[arg-type]
    return family(model, spec), tokenizer


def _options(config: BackboneConfig, source: str) -> dict[str, Any]:
    local = Path(source).is_dir()
    if not local and not re.fullmatch(r"[0-9a-f]{40}", config.revision or ""):
        raise ConfigError(f"backbone.revision must be a commit (40 hex digits) of '{source}', got {config.revision!r}")
    return {"revision": config.revision, "local_files_only": config.local_files_only or local}


def _cut(family: type[Backbone], config: BackboneConfig, published: Mapping[str, Any], source: str) -> Any:
    """Returns the published configuration, ending at the tapped layer."""
    kind = published.get("model_type")
    if kind not in family.model_types:
        fitting = [name for name in KINDS if kind in family_of(name).model_types]
        hint = f"; use backbone.kind={fitting[0]}" if fitting else ""
        raise ConfigError(f"backbone '{source}' is a model of type {kind!r}, not of kind '{config.kind}'{hint}")
    try:
        whole = family.read_config(published)
        layers, wrong = whole.text_config.num_hidden_layers, family.wrong_size(whole, config.image_size_px)
    except Exception as error:  # the library checks its configurations with errors of many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"backbone '{source}': config.json is of another version or damaged ({reason})") from error
    if config.tap_layer > layers:
        raise ConfigError(f"backbone.tap_layer is {config.tap_layer}, but '{source}' has {layers} language layers")
    if wrong:
        raise ConfigError(f"backbone.image_size_px is {config.image_size_px}, but '{source}' {wrong}")
    text = whole.text_config
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: config.tap_layer]
    text.num_hidden_layers = config.tap_layer
    return whole


def _weights(family: type[Backbone], config: Any, source: str, options: Mapping[str, Any]) -> torch.nn.Module:
    settings = {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": "sdpa", **options}
    try:
        with _quiet():
            model, info = family.load(source, config, settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, DataError) as error:
        raise ConfigError(f"backbone '{source}' cannot be loaded: {' '.join(str(error).split())}") from error
    missing = sorted(str(name) for name in info["missing_keys"] if not _OUTPUTS.search(str(name)))
    if missing:
        raise ConfigError(
            f"backbone '{source}' lacks {len(missing)} weights, the first is '{missing[0]}': "
            "it is only half downloaded, or of another version"
        )
    surplus = sorted(str(n) for n in info["unexpected_keys"] if not _left_out(str(n), config))
    if surplus:
        raise ConfigError(
            f"backbone '{source}' has {len(surplus)} weights that a model of its configuration does not have, the "
            f"first is '{surplus[0]}': it is of another version"
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's report of left-out layers from the person: what matters in it is said as an error."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _left_out(name: str, config: Any) -> bool:
    """Whether a published weight is one that a cut model has no use for: an output head, or in an upper layer."""
    layer = _LANGUAGE_LAYER.search(name)
    upper = layer is not None and int(layer[1]) >= config.text_config.num_hidden_layers
    return upper or _OUTPUTS.search(name) is not None


def _layout(config: BackboneConfig, tokenizer: Tokenizer) -> ViewLayout:
    make = chat_layout if config.layout == "chat" else plain_layout
    layout = make(tokenizer, config.kind, config.n_views)
    words = len(tokenizer.encode("").ids)
    if words >= config.max_text_tokens:
        raise ConfigError(
            f"backbone.max_text_tokens is {config.max_text_tokens}, but the layout alone takes {words} tokens"
        )
    return layout


def _tokenizer(config: BackboneConfig, source: str) -> Tokenizer:
    if source.endswith(".json"):
        folder, name, options = str(Path(source).parent), Path(source).name, {"local_files_only": True}
    else:
        folder, name, options = source, "tokenizer.json", _options(config, source)
    try:
        text = read_text(folder, name, options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer in '{source}': {' '.join(str(error).split())}") from error
    return tokenizer_from_json(text, f"{name} of '{folder}'")


def _clean(config: Any) -> dict[str, Any]:
    """Returns a config as plain data without what changes between machines or library versions."""
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    for part in (plain, plain["vision_config"], plain["text_config"]):
        for key in _VOLATILE:
            part.pop(key, None)
    return dict(plain)
