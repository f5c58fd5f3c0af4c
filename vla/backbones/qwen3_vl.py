"""Qwen3-VL and what is built on it, Cosmos-Reason2 among them: a ViT with DeepStack, a Qwen3 with 3-D rotary positions.

The library's model takes pictures of any size and so decides shapes from values. Here the size of a view is fixed:
patch order, positions and the attention of each picture are worked out once, the views of a batch go through the tower
as one batch, and the graph is static. Facts: the model's public code in transformers (Apache-2.0), arXiv 2511.21631.

Shapes: N pictures (batch times views), P patches of a picture, M tokens of it (P / merge^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

from vla.backbones.interface import Backbone, BackboneSpec
from vla.backbones.sizes import text_sizes
from vla.config import BackboneConfig
from vla.text import SPECIAL_TOKENS

__all__ = ["Qwen3VLBackbone"]


class Qwen3VLBackbone(Backbone):
    """A Qwen3-VL model for views of one size."""

    model: Qwen3VLModel
    model_types = ("qwen3_vl",)

    def __init__(self, model: nn.Module, spec: BackboneSpec) -> None:
        super().__init__(model, spec)
        self.model.language_model.norm = nn.Identity()
        vision = self.model.config.vision_config
        for block in self.model.visual.blocks:
            block.attn = _PictureAttention(block.attn, vision.num_heads)
        self.side = spec.image_size_px // vision.patch_size
        self.merge = vision.spatial_merge_size
        rows, columns = _patch_grid(self.side, self.merge)
        index, weight = _resampled(rows, columns, self.side, round(vision.num_position_embeddings**0.5))
        self.register_buffer("position_index", index, persistent=False)
        self.register_buffer("position_weight", weight, persistent=False)
        cos, sin = _picture_rotary(rows, columns, vision)
        self.register_buffer("picture_cos", cos, persistent=False)
        self.register_buffer("picture_sin", sin, persistent=False)
        self.position_index: Tensor
        self.position_weight: Tensor
        self.picture_cos: Tensor
        self.picture_sin: Tensor

    @classmethod
    def fresh_config(cls, config: BackboneConfig, tokenizer: Tokenizer) -> Qwen3VLConfig:
        """See `Backbone`."""
        text = text_sizes(config, tokenizer)
        theta = {"rope_type": "default", "rope_theta": config.rope_theta}
        half = config.text_width // config.attention_heads // 2
        rows = half * 20 // 64  # published: (24, 20, 20) of a half head of 64
        text["rope_parameters"] = {**theta, "mrope_section": [half - 2 * rows, rows, rows], "mrope_interleaved": True}
        image = tokenizer.token_to_id(SPECIAL_TOKENS[3]) or 0
        vision = {
            "depth": config.vision_layers,
            "hidden_size": config.vision_width,
            "intermediate_size": config.vision_ffn or 4 * config.vision_width,
            "num_heads": config.vision_heads or config.attention_heads,
            "patch_size": config.patch_px,
            "spatial_merge_size": config.merge,
            "out_hidden_size": config.text_width,
            "num_position_embeddings": config.vision_positions or (config.image_size_px // config.patch_px) ** 2,
            "deepstack_visual_indexes": list(config.deepstack),
        }
        return Qwen3VLConfig(
            vision_config=vision, text_config=text, image_token_id=image, video_token_id=image,
            vision_start_token_id=image, vision_end_token_id=image,
        )  # fmt: skip

    @classmethod
    def read_config(cls, data: Mapping[str, Any]) -> Qwen3VLConfig:
        """See `Backbone`."""
        return Qwen3VLConfig.from_dict(dict(data))

    @classmethod
    def build(cls, spec: BackboneSpec) -> Qwen3VLBackbone:
        """See `Backbone`."""
        return cls(Qwen3VLModel(cls.read_config(spec.model)), spec)

    @classmethod
    def load(cls, source: str, config: Any, options: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Any]]:
        """See `Backbone`."""
        full, info = Qwen3VLForConditionalGeneration.from_pretrained(
            source, config=config, output_loading_info=True, **options
        )
        return full.model, info

    @classmethod
    def wrong_size(cls, config: Any, size_px: int) -> str | None:
        """See `Backbone`."""
        step = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        return None if size_px % step == 0 else f"takes multiples of {step} px"

    @property
    def width(self) -> int:
        """See `Backbone`."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def tokens_per_view(self) -> int:
        """See `Backbone`."""
        return int((self.side // self.merge) ** 2)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Backbone`."""
        return self.model.language_model.layers  # type: ignore[no-any-return]

    @property
    def vision(self) -> Sequence[nn.Module]:
        """See `Backbone`."""
        return (self.model.visual,)

    def embed(self, ids: Tensor) -> Tensor:
        """See `Backbone`."""
        return self.model.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def view_tokens(self, pixels: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        tower = self.model.visual
        positions = (tower.pos_embed(self.position_index) * self.position_weight[..., None]).sum(1)
        x = tower.patch_embed(self._patches(pixels)).unflatten(0, (-1, self.side**2)) + positions
        shape, x = x.shape, x.flatten(0, 1)
        deep = []
        for i, block in enumerate(tower.blocks):
            x = block(x, cu_seqlens=None, position_embeddings=(self.picture_cos, self.picture_sin))
            if i in tower.deepstack_visual_indexes:
                merger = tower.deepstack_merger_list[list(tower.deepstack_visual_indexes).index(i)]
                deep.append(merger(x))
        return [tokens.reshape(shape[0], self.tokens_per_view, -1) for tokens in (tower.merger(x), *deep)]

    def language(self, embedded: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """See `Backbone`."""
        model, x = self.model.language_model, embedded
        rotary = model.rotary_emb(x, self._positions(x.shape[1]).to(x.device)[:, None])
        for i, layer in enumerate(model.layers):
            # No mask: the library's attention is causal then, and padding stands last.
            x = layer(x, attention_mask=None, position_embeddings=rotary)
            x = x + deep[i] if i < len(deep) else x
        return x

    def _patches(self, pixels: Tensor) -> Tensor:
        """Cuts pictures [N, 3, H, W] into patches [N P, values], merged groups adjacent, each picture as two frames."""
        size, group, merge = self.model.config.vision_config.patch_size, self.side // self.merge, self.merge
        cut = pixels.reshape(-1, 3, group, merge, size, group, merge, size)
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
        frames = self.model.config.vision_config.temporal_patch_size
        return cut.expand(-1, -1, -1, -1, -1, -1, frames, -1, -1).reshape(-1, 3 * frames * size * size)

    def _positions(self, length: int) -> Tensor:
        """Returns positions in time, row and column, int64 [3, L]: text counts on, a picture counts as its side."""
        pieces, at, used = [], 0, 0
        side = self.side // self.merge
        grid = torch.arange(side)
        for start, stop in self.image_spans:
            pieces.append((torch.arange(start - used) + at).expand(3, -1))
            at += start - used
            rows, columns = torch.meshgrid(grid, grid, indexing="ij")
            pieces.append(torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1) + at)
            at, used = at + side, stop
        pieces.append((torch.arange(length - used) + at).expand(3, -1))
        return torch.cat(pieces, dim=1)


class _PictureAttention(nn.Module):
    """The tower's attention when all pictures have one size: they are a batch, not a list to be cut up."""

    def __init__(self, published: nn.Module, heads: int) -> None:
        super().__init__()
        self.qkv: nn.Module = published.get_submodule("qkv")
        self.proj: nn.Module = published.get_submodule("proj")
        self.heads = heads

    def forward(self, x: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> Tensor:
        """Attends within each picture; `x`: float [N P, W]."""
        cos, sin = position_embeddings
        qkv = self.qkv(x).reshape(-1, cos.shape[0], 3, self.heads, cos.shape[1]).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        out = nn.functional.scaled_dot_product_attention(_rotated(query, cos, sin), _rotated(key, cos, sin), value)
        return self.proj(out.transpose(1, 2).flatten(0, 1).flatten(1))  # type: ignore[no-any-return]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _patch_grid(side: int, merge: int) -> tuple[Tensor, Tensor]:
    """Returns row and column of every patch, int64 [P], in the order in which merged groups are adjacent."""
    index = torch.arange(side, device="cpu")
    rows, columns = torch.meshgrid(index, index, indexing="ij")

    def grouped(x: Tensor) -> Tensor:
        return x.reshape(side // merge, merge, side // merge, merge).transpose(1, 2).flatten()

    return grouped(rows), grouped(columns)


def _resampled(rows: Tensor, columns: Tensor, side: int, native: int) -> tuple[Tensor, Tensor]:
    """Returns the four learned positions around every patch, int64 [P, 4], and their bilinear weights float32 [P, 4].

    The corners of the picture meet the corners of the learned grid.
    """
    place = torch.linspace(0, native - 1, side, device="cpu")
    low, high = place.long(), (place.long() + 1).clamp(max=native - 1)
    part = place - low
    index, weight = [], []
    for r, wr in ((low, 1 - part), (high, part)):
        for c, wc in ((low, 1 - part), (high, part)):
            index.append(r[rows] * native + c[columns])
            weight.append(wr[rows] * wc[columns])
    return torch.stack(index, dim=1), torch.stack(weight, dim=1)


def _picture_rotary(rows: Tensor, columns: Tensor, vision: Any) -> tuple[Tensor, Tensor]:
    """Returns cosines and sines float32 [P, head width]: a quarter of the head by row, a quarter by column, twice."""
    half = vision.hidden_size // vision.num_heads // 2
    theta = (getattr(vision, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    frequency = 1.0 / (theta ** (torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half))
    angle = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], dim=-1).repeat(1, 2)
    return angle.cos(), angle.sin()
