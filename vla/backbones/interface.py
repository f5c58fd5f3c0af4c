"""What every backbone is: views and text in, context tokens out, and which of its weights train.

Shapes: B batch, V views, H W pixels, N tokens per view, T text tokens, L context tokens, C context width.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pyramid.errors import ConfigError, DataError
from vla.backbones.layout import ViewLayout
from vla.config import BackboneConfig

__all__ = ["Backbone", "BackboneSpec"]


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to rebuild a backbone without its source: kept in the checkpoint."""

    kind: str
    """Family."""
    model: dict[str, Any]
    """Configuration of the model as transformers writes it, already cut to the tapped layer."""
    layout: ViewLayout
    """Where the views stand."""
    image_size_px: int
    """Height and width of a view."""
    image_mean: tuple[float, float, float]
    """Mean per colour channel, of pixels in [0, 1]."""
    image_std: tuple[float, float, float]
    """Standard deviation per colour channel, of pixels in [0, 1]."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {
            "kind": self.kind,
            "model": self.model,
            "layout": self.layout.to_dict(),
            "image_size_px": self.image_size_px,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Reads what `to_dict` wrote."""
        mean, std = (tuple(float(v) for v in data[name]) for name in ("image_mean", "image_std"))
        layout, size = ViewLayout.from_dict(data["layout"]), int(data["image_size_px"])
        return cls(str(data["kind"]), dict(data["model"]), layout, size, mean, std)  # type: ignore[arg-type]


class Backbone(nn.Module, abc.ABC):
    """Views and text to context tokens, by a model that ends at the tapped layer and has no final norm.

    The sequence is: the words that come first, the views in order with their marks, the instruction and what follows,
    padding. The language model is causal and padding stands last, so padding reaches no real token; the mask that
    comes out keeps it from whoever attends to the context. Where a view's tokens stand does not depend on the text.

    A subclass says how its model is made and called: `view_tokens`, `language`, and where its parts are.
    """

    model_types: ClassVar[tuple[str, ...]]
    """What published models of the family call themselves in ``config.json``."""
    fresh_std: ClassVar[float] = 0.5
    """What pixel values, 0 to 1 and less 0.5, are divided by before a fresh model sees them."""

    def __init__(self, model: nn.Module, spec: BackboneSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.image_mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.image_std).reshape(1, 3, 1, 1), persistent=False)
        ids = [i for before, after in spec.layout.marks for i in (*before, *after)]
        self.register_buffer("mark_ids", torch.tensor(ids, dtype=torch.int64), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.mark_ids: Tensor
        self._tuned: list[nn.Module] | None = None

    @classmethod
    @abc.abstractmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> Any:
        """Returns transformers' configuration of a fresh model."""

    @classmethod
    @abc.abstractmethod
    def read_config(cls, data: Mapping[str, Any]) -> Any:
        """Reads a configuration, with ``text_config`` and ``vision_config``, that transformers or this module wrote."""

    @classmethod
    @abc.abstractmethod
    def build(cls, spec: BackboneSpec) -> Self:
        """Builds the model of a spec with fresh weights."""

    @classmethod
    @abc.abstractmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """Loads published weights into a model of a configuration.

        Returns:
            The model, and which weights were ``missing_keys`` and ``unexpected_keys``.
        """

    @classmethod
    @abc.abstractmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """Returns what sizes of views a model takes, if it does not take this one."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width of a context token."""

    @property
    @abc.abstractmethod
    def tokens_per_view(self) -> int:
        """Context tokens that stand for one view, N."""

    @property
    @abc.abstractmethod
    def layers(self) -> nn.ModuleList:
        """The language layers that are left, in order."""

    @property
    @abc.abstractmethod
    def vision(self) -> Sequence[nn.Module]:
        """What turns pixels into tokens: tower and projector."""

    @abc.abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Returns the embeddings float [..., C] of token ids int64 [...]."""

    @abc.abstractmethod
    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """Returns a view's tokens, from normalised pixels float [B V, 3, H, W].

        The first tensor, float [B V, N, C], takes its place in the sequence. Further ones are added to the hidden
        states at those places after the first, second, ... language layer (DeepStack, arXiv 2406.04334).
        """

    @abc.abstractmethod
    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """Returns the hidden states of the tapped layer, before any final norm.

        Args:
            embedded: the sequence, float [B, L, C].
            deep: what is added after the first layers, float [B, L, C] each, zero where no view is.
        """

    @property
    def image_spans(self) -> tuple[tuple[int, int], ...]:
        """First position and the one past the last of every view's tokens in the context."""
        return self.spec.layout.spans(self.tokens_per_view)

    def forward(self, images: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes an observation.

        Args:
            images: uint8 [B, V, H, W, 3], RGB.
            text_ids: int64 [B, T], padded on the right.
            text_mask: bool [B, T], True where a token is.

        Returns:
            Context float [B, L, C] (output of the tapped layer, before any final norm), and its mask bool [B, L].
            `image_mask` tells which of it are views.

        Raises:
            DataError: the images are not of the size or number that the backbone was built for.
        """
        self._check(images)
        features = [f.reshape(-1, images.shape[1], *f.shape[1:]) for f in self.view_tokens(self.pixels(images))]
        embedded = self._sequence(self.embed(text_ids), features[0])
        mask = self._mask(text_mask, embedded.shape[1] - text_ids.shape[1])
        return self.language(embedded, [self._placed(f, embedded) for f in features[1:]]), mask

    def pixels(self, images: Tensor) -> Tensor:
        """Maps views uint8 [B, V, H, W, 3] to what `view_tokens` takes, float [B V, 3, H, W], normalised."""
        mean, std = (
            # A number, where one will do: to broadcast along channels that lie together in memory is slow.
            numbers[0] if len(set(numbers)) == 1 else kept
            for kept, numbers in ((self.mean, self.spec.image_mean), (self.std, self.spec.image_std))
        )
        # In place: a batch of small pictures takes longer to get new memory for than to compute.
        return images.flatten(0, 1).permute(0, 3, 1, 2).to(self.mean.dtype, copy=True).div_(255.0).sub_(mean).div_(std)

    def set_trainable(self, *, frozen: bool, top_layers: int = 0, vision: bool = False) -> None:
        """Says which weights train.

        Args:
            frozen: none but those that the other two name.
            top_layers: of a frozen backbone, the topmost language layers that train.
            vision: of a frozen backbone, train what turns pixels into tokens.

        Raises:
            ConfigError: there are fewer language layers than that.
        """
        if top_layers > len(self.layers):
            raise ConfigError(f"backbone.tune_top_layers is {top_layers}, but only {len(self.layers)} layers are used")
        self.requires_grad_(not frozen)
        top = list(self.layers)[len(self.layers) - top_layers :]
        self._tuned = [*top, *(self.vision if vision else ())] if frozen else None
        for module in self._tuned or ():
            module.requires_grad_(True)

    @property
    def trains(self) -> bool:
        """Whether any weight trains."""
        return any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Backbone:
        """Switches training mode of what trains; the rest stays in evaluation mode."""
        super().train(mode and self._tuned is None)
        for module in self._tuned or ():
            module.train(mode)
        return self

    def _check(self, images: Tensor) -> None:
        size, views = self.spec.image_size_px, len(self.spec.layout.marks)
        if images.shape[1:] != (views, size, size, 3):
            raise DataError(f"the backbone takes views [{views}, {size}, {size}, 3], got {list(images.shape[1:])}")

    def _sequence(self, text: Tensor, views: Tensor) -> Tensor:
        at, marks = self.spec.layout.at, self.embed(self.mark_ids).expand(text.shape[0], -1, -1)
        pieces, used = [text[:, :at]], 0
        for view, (before, after) in enumerate(self.spec.layout.marks):
            opened, closed = used + len(before), used + len(before) + len(after)
            pieces += [marks[:, used:opened], views[:, view], marks[:, opened:closed]]
            used = closed
        return torch.cat([*pieces, text[:, at:]], dim=1)

    def _mask(self, text_mask: Tensor, inserted: int) -> Tensor:
        at = self.spec.layout.at
        seen = torch.ones_like(text_mask[:, :1]).expand(-1, inserted)
        return torch.cat([text_mask[:, :at], seen, text_mask[:, at:]], dim=1)

    def _placed(self, views: Tensor, embedded: Tensor) -> Tensor:
        pieces, used = [], 0
        for view, (start, stop) in enumerate(self.image_spans):
            pieces += [torch.zeros_like(embedded[:, used:start]), views[:, view]]
            used = stop
        return torch.cat([*pieces, torch.zeros_like(embedded[:, used:])], dim=1)
