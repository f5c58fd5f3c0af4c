"""Published checkpoints of GR00T-Dreams' inverse dynamics model: a folder of safetensors read into `idm.dreams`.

Sizes are read off the weights, so that no configuration has to be run; facts are those of the public Apache-2.0 code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyramid import files
from pyramid.errors import DataError

if TYPE_CHECKING:
    from idm.dreams import DreamsIDM

__all__ = ["is_published", "layout_of", "read_checkpoint"]

PREFIX = "action_head."
_HEAD_WIDTH = 64
"""Width of an attention head in every release; weights do not tell it."""
_MAX_BYTES = 16 * 2**30
_TOWER = "siglip_model.vision_model."
_MIXERS = ("vl_self_attention", "vl_self_attention_model")
"""What releases call the self-attention over visual tokens; each has one of them."""


def read_checkpoint(folder: str) -> DreamsIDM:
    """Reads a published model folder: ``config.json`` and ``*.safetensors``, whole or in parts.

    Raises:
        DataError: files that are not there, or weights that do not fit the architecture; they are named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from idm.dreams import read_dreams

    parts = sorted(name for name in files.listdir(folder) if name.endswith(".safetensors"))
    if not parts or "config.json" not in files.listdir(folder):
        raise DataError(f"'{folder}' holds no published checkpoint (config.json and *.safetensors)")
    weights: dict[str, Tensor] = {}
    for name in parts:
        try:
            weights |= load(files.read_bytes(files.join(folder, name), max_bytes=_MAX_BYTES))
        except SafetensorError as error:
            raise DataError(f"'{folder}/{name}' is not a safetensors file: {error}") from error
    strange = sorted(name for name in weights if not name.startswith(PREFIX))
    if strange:
        raise DataError(f"'{folder}': {len(strange)} weights are none of an action head: {', '.join(strange[:4])}")
    head = {name.removeprefix(PREFIX): tensor.float() for name, tensor in weights.items()}
    document = files.read_json(files.join(folder, "config.json"))
    return read_dreams(layout_of(head, _declared(document)), head)


def is_published(folder: str) -> bool:
    """Tells whether a folder holds a published checkpoint, by what its ``config.json`` configures."""
    path = files.join(folder, "config.json")
    document = files.read_json(path) if files.exists(path) else None
    return isinstance(document, Mapping) and "action_head_cfg" in document and "kind" not in document


def _declared(document: Any) -> dict[str, Any]:
    """Returns the action head's configuration; the model's own horizon stands in where that has none."""
    own = document.get("action_head_cfg") if isinstance(document, Mapping) else None
    if not isinstance(own, Mapping):
        return {}
    whole = {key: document[key] for key in ("action_horizon",) if document.get(key)}
    return {**whole, **{key: value for key, value in own.items() if value is not None}}


def layout_of(weights: Mapping[str, Tensor], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration that weights of the published layout have.

    Args:
        weights: by published name, without the prefix.
        declared: the checkpoint's own configuration of the action head; horizon and Euler steps are taken from it.

    Raises:
        DataError: a weight of the layout is missing; it is named.
    """
    try:
        patch, places = (
            weights[f"{_TOWER}embeddings.{name}.weight"] for name in ("patch_embedding", "position_embedding")
        )
        width, inner = patch.shape[0], weights[f"{_TOWER}encoder.layers.0.mlp.fc1.weight"].shape[0]
        hidden, dit_out = weights["vision_projector.weight"].shape[0], weights["model.proj_out_2.weight"].shape[0]
        views, positions = (weights[f"{name}_embedding.weight"].shape[0] for name in ("view", "position"))
    except KeyError as error:
        raise DataError(f"the published weights lack {error}") from error
    own = {"num_attention_heads": max(hidden // _HEAD_WIDTH, 1)}
    return {
        "mm_projector_type": "mlp_doubledownsample",
        "hidden_size": hidden,
        "siglip_hidden_size": width,
        "max_num_views": views,
        "max_seq_len": positions,
        "action_horizon": int(declared.get("action_horizon") or 16),
        "num_inference_timesteps": int(declared.get("num_inference_timesteps") or 16),
        "siglip_vision": {
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": _count(weights, f"{_TOWER}encoder.layers."),
            "num_attention_heads": max(width // _HEAD_WIDTH, 1),
            "image_size": round(places.shape[0] ** 0.5) * patch.shape[-1],
            "patch_size": patch.shape[-1],
        }
        | dict(declared.get("siglip_vision") or {}),
        "dit": {**own, "output_dim": dit_out, "num_layers": _count(weights, "model.transformer_blocks.")}
        | dict(declared.get("dit") or {}),
        "vl_self_attention": {
            **own,
            "num_layers": sum(_count(weights, f"{name}.transformer_blocks.") for name in _MIXERS),
        }
        | dict(declared.get("vl_self_attention") or {}),
    }


def _count(weights: Mapping[str, Tensor], stem: str) -> int:
    return len({name.removeprefix(stem).split(".")[0] for name in weights if name.startswith(stem)})
