"""Forward models: the change to the second frame from the first and the tokens alone.

No network here is given anything of the second frame but the quantised tokens; `lam.model` calls them so. Both end in a
layer of zeros: an untrained model predicts "no change", the copy of the first frame. Shapes: B batch, N tokens, D token
width, C channels of the target, H side of its map, W transformer width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lam.config import ModelConfig
from lam.layers import FiLM, conv, twice
from lam.views import Context, GapEmbedding, Spec, View, from_patches, to_patches
from pyramid.nn.attention import SelfAttentionBlock

__all__ = ["FiLMDecoder", "TransformerDecoder"]


class FiLMDecoder(nn.Module):
    """U-Net on the first frame, steered by the tokens through FiLM (arXiv 1709.07871) alone; predicts pixels.

    FiLM acts on all places alike, so tokens must say how to move what the first frame shows. Given a map of places
    too, they paint the second frame wherever it differs: better pictures (3 dB on moving discs) of which a linear probe
    reads no action at all (R2 -.1 instead of .8 with a continuous bottleneck, -.1 instead of .6 with 8 codes).

    Args:
        config: sizes.
        specs: tokens of each bottleneck.
        channels: channels predicted, 3 and what an auxiliary target adds.
    """

    def __init__(self, config: ModelConfig, specs: Sequence[Spec], channels: int) -> None:
        super().__init__()
        fine, middle, coarse = config.decoder_widths
        self.gap = GapEmbedding(coarse) if config.gap_embedding else None
        tokens = sum(count * width for count, width in specs) + (coarse if self.gap else 0)
        self.down_fine = conv(12, fine)
        self.down_middle = conv(fine, middle, stride=2)
        self.down_coarse = conv(middle, coarse, stride=2)
        self.bottom = nn.ModuleList([FiLM(coarse, coarse, tokens), FiLM(coarse, coarse, tokens)])
        self.up_middle = FiLM(coarse + middle, middle, tokens)
        self.up_fine = FiLM(middle + fine, fine, tokens)
        self.out = nn.Conv2d(fine, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, first: View, tokens: Sequence[Tensor], context: Context) -> Tensor:
        """Returns the predicted change, float32 [B, C, S, S], from tokens float [B, N, D] of each bottleneck."""
        code = torch.cat([z.flatten(1) for z in tokens], dim=1)
        if self.gap is not None:
            code = torch.cat([code, self.gap(context)], dim=1)
        x = nn.functional.pixel_unshuffle(first.pixels - 0.5, 2).contiguous(memory_format=torch.channels_last)
        fine = self.down_fine(x)
        middle = self.down_middle(fine)
        x = self.down_coarse(middle)
        for block in self.bottom:
            x = block(x, code)
        x = self.up_middle(torch.cat([twice(x), middle], dim=1), code)
        x = self.up_fine(torch.cat([twice(x), fine], dim=1), code)
        return nn.functional.pixel_shuffle(self.out(x), 2).float()


class TransformerDecoder(nn.Module):
    """Transformer over the tokens, the instruction and the first frame's patches; predicts a change at each patch.

    Args:
        config: sizes.
        specs: tokens of each bottleneck.
        channels: channels predicted, those of the target and what an auxiliary target adds.
        feature_dim: width of the features that it starts from; 0 for pixels.
        grid: patches along a side.
        text_dim: width of the text tokens; 0 for none.
    """

    def __init__(
        self, config: ModelConfig, specs: Sequence[Spec], channels: int, *, feature_dim: int, grid: int, text_dim: int
    ) -> None:
        super().__init__()
        width = config.width
        self.patch_px = 0 if feature_dim else config.patch_px
        self.patches = nn.Linear(feature_dim or 3 * config.patch_px**2, width)
        self.tokens = nn.ModuleList(nn.Linear(dim, width) for _, dim in specs)
        self.text = nn.Linear(text_dim, width) if text_dim else None
        self.gap = GapEmbedding(width) if config.gap_embedding else None
        self.order = nn.Parameter(torch.randn(sum(count for count, _ in specs), width) * 0.02)
        self.places = nn.Parameter(torch.randn(grid * grid, width) * 0.02)
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, config.heads) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, channels * max(self.patch_px, 1) ** 2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, first: View, tokens: Sequence[Tensor], context: Context) -> Tensor:
        """Returns the predicted change, float32 [B, C, H, H], from tokens float [B, N, D] of each bottleneck."""
        patches = to_patches(first.pixels - 0.5, self.patch_px) if self.patch_px else _flat(first)
        x = self.patches(patches) + self.places
        up = torch.cat([project(z) for project, z in zip(self.tokens, tokens, strict=True)], dim=1) + self.order
        if self.gap is not None:
            up = up + self.gap(context)[:, None]
        parts, mask = [up, x], None
        if self.text is not None:
            if context.text is None or context.text_mask is None:
                raise ValueError("this model is conditioned on text: give the instruction of every pair")
            parts.insert(0, self.text(context.text))
            mask = nn.functional.pad(context.text_mask, (0, up.shape[1] + x.shape[1]), value=True)
        whole = torch.cat(parts, dim=1)
        for block in self.blocks:
            whole = block(whole, mask)
        return from_patches(self.out(self.norm(whole[:, -x.shape[1] :])).float(), max(self.patch_px, 1))


def _flat(view: View) -> Tensor:
    if view.features is None:
        raise ValueError("this model predicts features: take the view from its `look`")
    return view.features.flatten(2).transpose(1, 2)
