"""Eagle 2 and 2.5, the backbones of GR00T N1 and N1.5 (arXiv 2501.14818, 2504.15271), made of transformers' parts.

A SigLIP tower of fixed size, pixel shuffle if asked for, one or two linear layers, and a Llama or Qwen3. transformers
has no class for it, and code that comes with weights is never run here. Facts are those of the public code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, SiglipVisionConfig, SiglipVisionModel

from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.sizes import siglip_sizes, text_sizes
from vla.backbones.weights import read_weights
from vla.config import BackboneConfig

__all__ = ["EagleBackbone", "EagleConfig", "eagle_weights"]


class EagleConfig(SimpleNamespace):
    """Sizes of an Eagle model, with the attributes that the other families' configurations have."""

    model_type = "eagle"
    vision_config: SiglipVisionConfig
    text_config: PreTrainedConfig
    merge: int
    """Side of the square of patches that become one token; 1 = every patch is a token."""
    connector_layers: int
    """1: a linear layer; 2: layer norm, linear, GELU, linear."""
    project_width: int
    """Width of a linear layer after the tapped one (N1: 1536); 0 = none."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "model_type": self.model_type,
            "vision_config": self.vision_config.to_dict(),
            "text_config": self.text_config.to_dict(),
            "merge": self.merge,
            "connector_layers": self.connector_layers,
            "project_width": self.project_width,
        }


class _Eagle(nn.Module):
    """The parts, under the names that they have in published weights."""

    def __init__(self, config: EagleConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vision_config.hidden_size * config.merge**2
        out = config.text_config.hidden_size
        self.vision_model = SiglipVisionModel(config.vision_config)
        self.language_model = AutoModel.from_config(config.text_config)
        two = [nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out)]
        self.mlp1 = nn.Sequential(*(two if config.connector_layers == 2 else [nn.Linear(width, out)]))
        project = config.project_width
        self.linear = nn.Linear(out, project) if project else nn.Identity()


class EagleBackbone(Backbone):
    """An Eagle model with undivided views."""

    model: _Eagle
    model_types = ("eagle", "eagle_chat", "eagle_2_5_vl")

    def __init__(self, model: nn.Module, spec: BackboneSpec) -> None:
        super().__init__(model, spec)
        self.model.language_model.norm = nn.Identity()

    @classmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> EagleConfig:
        """See `Backbone`."""
        text = {"model_type": config.language, **text_sizes(config, tokenizer)}
        return EagleConfig(
            vision_config=SiglipVisionConfig(**siglip_sizes(config)),
            text_config=AutoConfig.for_model(**text),
            merge=config.merge,
            connector_layers=2 if config.merge > 1 else 1,
            project_width=config.project_width,
        )

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> EagleConfig:
        """Reads our own configuration, or a published one (``eagle_chat`` of N1, ``eagle_2_5_vl`` of N1.5)."""
        vision = {k: v for k, v in data["vision_config"].items() if k not in _FOREIGN}
        text = dict(data["text_config"] if "text_config" in data else data["llm_config"])
        if "merge" not in data:
            shuffled = data.get("use_pixel_shuffle", True)
            size = data.get("force_image_size") or vision["image_size"]
            vision |= {"image_size": size, "vision_use_head": False}
            merge = round(1 / data.get("downsample_ratio", 0.5)) if shuffled else 1
            layers, project = data.get("mlp_connector_layers", 2), 0
        else:
            merge, layers, project = (int(data[k]) for k in ("merge", "connector_layers", "project_width"))
        return EagleConfig(
            vision_config=SiglipVisionConfig.from_dict(vision),
            text_config=AutoConfig.for_model(**{k: v for k, v in text.items() if k not in _FOREIGN}),
            merge=merge,
            connector_layers=layers,
            project_width=project,
        )

    @classmethod
    def build(cls, spec: BackboneSpec) -> EagleBackbone:
        """See `Backbone`."""
        return cls(_Eagle(cls.read_config(spec.model)), spec)

    @classmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """See `Backbone`."""
        model = _Eagle(config)
        weights = eagle_weights(read_weights(source, options))
        missing, unexpected = model.load_state_dict(weights, strict=False)
        return model, {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": []}

    @classmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """See `Backbone`."""
        native = config.vision_config.image_size
        return None if size_px == native else f"takes {native} px"

    @property
    def width(self) -> int:
        """See `Backbone`."""
        config = self.model.config
        return int(config.project_width or config.text_config.hidden_size)

    @property
    def tokens_per_view(self) -> int:
        """See `Backbone`."""
        vision = self.model.config.vision_config
        return int((vision.image_size // vision.patch_size // self.model.config.merge) ** 2)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Backbone`."""
        return self.model.language_model.layers  # type: ignore[no-any-return]

    @property
    def vision(self) -> Sequence[nn.Module]:
        """See `Backbone`."""
        return (self.model.vision_model, self.model.mlp1)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`."""
        return self.model.language_model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        merge = self.model.config.merge
        x = self.model.vision_model(pixels).last_hidden_state
        if merge > 1:
            side = round(x.shape[1] ** 0.5)
            grid = x.reshape(x.shape[0], side // merge, merge, side // merge, merge, x.shape[2])
            x = grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return [self.model.mlp1(x)]

    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """See `Backbone`."""
        states = self.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return self.model.linear(states)  # type: ignore[no-any-return]


_FOREIGN = ("auto_map", "architectures", "_attn_implementation", "attn_implementation", "torch_dtype", "_name_or_path")


def eagle_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns published weights under the names of the parts here."""
    out = {}
    for name, tensor in weights.items():
        here = name.replace("vision_model.vision_model.", "vision_model.", 1)
        out[here.replace("language_model.model.", "language_model.", 1)] = tensor
    return out
