"""Keypoints: a few convolutions that say where things are, and words as they are; no pretraining, no language model.

Points (`pyramid.nn.keypoints`) are what a policy of one or a few tasks can learn from scratch on a CPU, where a
transformer over patches cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn

from pyramid.errors import ConfigError, DataError
from pyramid.nn.checkpoint import load_model_files
from pyramid.nn.keypoints import Keypoints
from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.layout import ViewLayout
from vla.config import BackboneConfig

__all__ = ["KeypointBackbone"]

_SEEN = "eyes.seen."
"""What the weights of an inverse dynamics model's points are called."""
_IDM_STRIDE, _IDM_MEAN, _IDM_STD = 4, 0.5, 1.0
"""Stride of its grid, and what its pixels, 0 to 1, are lessened and divided by."""


@dataclass(frozen=True)
class _Sizes:
    """What a model is made of; read and written like a configuration of transformers."""

    vision_config: dict[str, Any]
    text_config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Model(Keypoints):
    """Convolutions, one point a channel, tokens that each see all points; an embedding for words."""

    def __init__(self, sizes: _Sizes) -> None:
        vision, text = sizes.vision_config, sizes.text_config
        points, stride = int(vision["width"]), int(vision["stride"])
        super().__init__(
            [int(width) for width in vision.get("widths") or _widths(points, stride, int(vision["layers"]))],
            stride=stride,
            side=int(vision["image_size"]),
            fast=vision.get("precision") == "bfloat16",
        )
        self.n_tokens, width = int(vision["tokens"]), int(text["hidden_size"])
        self.tokens = nn.Linear(2 * points, self.n_tokens * width)
        self.words = nn.Embedding(int(text["vocab_size"]), width)


def _widths(points: int, stride: int, layers: int) -> list[int]:
    """Returns the channels of each fresh layer: fewer, at least 16, while pictures are still large."""
    halvings = stride.bit_length() - 1
    return [
        points if layer + 1 >= halvings else max(points // 2 ** (halvings - 1 - layer), 16)
        for layer in range(max(layers, halvings))
    ]


class KeypointBackbone(Backbone):
    """Views as points, texts as the embeddings of their tokens."""

    model: _Model
    model_types = ()
    fresh_std = 0.25  # That of pictures: without norm layers, larger inputs learn faster.

    @classmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> _Sizes:
        """See `Backbone`."""
        vision = {
            "width": config.vision_width,
            "layers": config.vision_layers,
            "stride": config.patch_px,
            "tokens": max(config.vision_width // config.merge**2, 1),
            "image_size": config.image_size_px,
            "precision": config.vision_precision,
        }
        words = max(config.vocab_size or 0, tokenizer.get_vocab_size())
        return _Sizes(vision, {"hidden_size": config.text_width, "vocab_size": words})

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> _Sizes:
        """See `Backbone`."""
        return _Sizes(dict(data["vision_config"]), dict(data["text_config"]))

    @classmethod
    def build(cls, spec: BackboneSpec) -> KeypointBackbone:
        """See `Backbone`."""
        return cls(_Model(cls.read_config(spec.model)), spec)

    @classmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """See `Backbone`."""
        raise ConfigError(f"backbone '{source}': weights of kind 'keypoints' are those of `KeypointBackbone.taught`")

    @classmethod
    def taught(cls, config: BackboneConfig, tokenizer: Tokenizer, layout: ViewLayout) -> KeypointBackbone:
        """Builds a backbone that begins with what an inverse dynamics model has learned to see (``pretrained``).

        Its points were taught by pictures, of videos without actions too; all else is fresh.

        Raises:
            ConfigError: the folder holds no such model, or one whose points cannot be taken.
        """
        source = str(config.pretrained)
        try:
            described, weights = load_model_files(source, "idm")
            model = described["config"]["model"]
            vision, side = model["vision"], int(model["image_size_px"])
            widths = [int(width) for width in vision["widths"]]
        except DataError as error:
            raise ConfigError(f"no points to begin with: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"no points to begin with: config.json of '{source}' is damaged ({error})") from error
        if vision["kind"] != "keypoints":
            raise ConfigError(f"backbone '{source}' sees by {vision['kind']}; points are learned with idm/pictures")
        if side != config.image_size_px:
            raise ConfigError(f"backbone.image_size_px is {config.image_size_px}, but '{source}' takes {side} px")
        sizes = cls.fresh_config(replace(config, vision_width=widths[-1], patch_px=_IDM_STRIDE), tokenizer).to_dict()
        sizes["vision_config"]["widths"] = widths
        mean, std = (_IDM_MEAN,) * 3, (_IDM_STD,) * 3
        backbone = cls.build(BackboneSpec(config.kind, sizes, layout, side, mean, std))
        own = {name.removeprefix(_SEEN): value for name, value in weights.items() if name.startswith(_SEEN)}
        try:
            missing, surplus = backbone.model.load_state_dict(own, strict=False)
        except RuntimeError:  # Weights of other shapes than its configuration says.
            missing, surplus = [], [source]
        if surplus or any(name.startswith("convolutions") for name in missing):
            raise ConfigError(
                f"backbone '{source}': its points have other weights than its config.json or this version"
            )
        return backbone

    @classmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """See `Backbone`."""
        native = config.vision_config["image_size"]
        return None if size_px == native else f"takes {native} px"

    @property
    def width(self) -> int:
        """See `Backbone`."""
        return self.model.words.embedding_dim

    @property
    def tokens_per_view(self) -> int:
        """See `Backbone`."""
        return self.model.n_tokens

    @property
    def layers(self) -> nn.ModuleList:
        """See `Backbone`; there are none."""
        return nn.ModuleList()

    @property
    def vision(self) -> Sequence[nn.Module]:
        """See `Backbone`."""
        return (self.model.convolutions, self.model.tokens)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`."""
        return self.model.words(ids)  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        flat = self.model.tokens(self.model.points(pixels).flatten(1))
        return [flat.unflatten(1, (self.model.n_tokens, -1))]

    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """See `Backbone`; words stay as they are."""
        return embedded
