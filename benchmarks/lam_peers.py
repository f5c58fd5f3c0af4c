"""Two published latent-action models in plain PyTorch modules, for `benchmarks/lam_speed.py` to be timed against.

Written from published sizes and layouts, not from code. Random weights; nothing here is trained or saved.
Shapes: B batch, L patches, N tokens, W width, D code width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LAPA", "UniVLA"]


class _Block(nn.Module):
    """Pre-norm self-attention and feed-forward of `nn.TransformerEncoderLayer`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(x, src_mask=mask)
        return out


class LAPA(nn.Module):
    """Latent action quantisation of LAPA (arXiv 2410.11758): pixels, spatial then temporal layers, NSVQ.

    Args:
        side: side of a frame, pixels.
        patch: side of a patch, pixels.
        width: width of the transformers.
        heads: attention heads.
        depth: spatial layers of the encoder, its temporal layers, and layers of the decoder.
        codes: codebook size, width of a code and tokens, the last a square.
    """

    def __init__(
        self, *, side: int, patch: int, width: int, heads: int, depth: int, codes: tuple[int, int, int]
    ) -> None:
        super().__init__()
        size, dim, self.n_tokens = codes
        self.patch, self.grid = patch, side // patch
        self.embed = nn.Linear(3 * patch**2, width)
        self.places = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1, groups=width) for _ in range(2 * depth))
        self.space = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.time = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.down = nn.Linear(width, dim)
        self.pool = nn.Conv2d(dim, dim, 3, padding=1, stride=self.grid // int(self.n_tokens**0.5))
        self.codebook = nn.Parameter(torch.randn(size, dim))
        self.up = nn.Linear(dim, width)
        self.decode = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.out = nn.Linear(width, 3 * patch**2)

    def encode(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the first frame's patches [B, L, W] and the tokens before quantisation [B, N, D]."""
        x = torch.stack([self._patches(first), self._patches(second)], 1)
        start = x[:, 0]
        batch, _, places, width = x.shape
        for i, block in enumerate(self.space):
            x = self._placed(x, i)
            x = block(x.flatten(0, 1)).view(batch, 2, places, width)
        for i, block in enumerate(self.time):
            x = self._placed(x, len(self.space) + i)
            x = block(x.transpose(1, 2).flatten(0, 1)).view(batch, places, 2, width).transpose(1, 2)
        low = self.down(x)
        pooled = [self.pool(low[:, i].transpose(1, 2).unflatten(2, (self.grid, self.grid))) for i in (0, 1)]
        return start, (pooled[1] - pooled[0]).flatten(2).transpose(1, 2)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the training loss of frames float [B, 3, S, S] in [0, 1]."""
        start, e = self.encode(first, second)
        code = self.codebook[torch.cdist(e.detach(), self.codebook.detach()).argmin(-1)]
        noise = nn.functional.normalize(torch.randn_like(e), dim=-1)
        z = e + (e - code).norm(dim=-1, keepdim=True) * noise
        return (self.predict(start.detach(), z) - second).square().mean()

    def label(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns codes int64 [B, N] after predicting the second frame, as a label with its gain needs."""
        start, e = self.encode(first, second)
        codes = torch.cdist(e, self.codebook).argmin(-1)
        self.predict(start, self.codebook[codes])
        return codes

    def predict(self, start: Tensor, z: Tensor) -> Tensor:
        """Returns the second frame float [B, 3, S, S]."""
        x, memory = start, self.up(z)
        for block in self.decode:
            x = block(x, memory)
        whole = self.grid * self.patch
        patches = self.out(x).transpose(1, 2)
        return nn.functional.fold(patches, (whole, whole), self.patch, stride=self.patch)

    def _patches(self, frames: Tensor) -> Tensor:
        patches = nn.functional.unfold(frames, self.patch, stride=self.patch).transpose(1, 2)
        return self.embed(patches)  # type: ignore[no-any-return]

    def _placed(self, x: Tensor, layer: int) -> Tensor:
        """Adds what a depthwise convolution over time and space says of a place (PEG)."""
        volume = x.permute(0, 3, 1, 2).unflatten(3, (self.grid, self.grid))
        placed: Tensor = x + self.places[layer](volume).flatten(3).permute(0, 2, 3, 1)
        return placed


class _SpaceTime(nn.Module):
    """Attention within a frame, causal attention over time, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.space, self.time = (nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, later: Tensor) -> Tensor:
        batch, frames, places = x.shape[:3]
        y = self.norms[0](x).flatten(0, 1)
        x = x + self.space(y, y, y, need_weights=False)[0].unflatten(0, (batch, frames))
        y = self.norms[1](x).transpose(1, 2).flatten(0, 1)
        y = self.time(y, y, y, need_weights=False, attn_mask=later)[0]
        x = x + y.unflatten(0, (batch, places)).transpose(1, 2)
        return x + self.mlp(self.norms[2](x))  # type: ignore[no-any-return]


class UniVLA(nn.Module):
    """Latent action model of UniVLA (arXiv 2505.06111), without instructions: DINO features, causal time, VQ.

    Args:
        vision: the frozen vision model, frames float [B, 3, S, S] to features [B, F, G, G].
        feature_dim: F.
        places: G * G.
        width: width of the transformers.
        heads: attention heads.
        depth: blocks of the encoder and of the decoder.
        codes: codebook size, width of a code and tokens.
    """

    def __init__(
        self,
        vision: nn.Module,
        *,
        feature_dim: int,
        places: int,
        width: int,
        heads: int,
        depth: int,
        codes: tuple[int, int, int],
    ) -> None:
        super().__init__()
        size, dim, self.n_tokens = codes
        self.vision = vision
        self.prompts = nn.Parameter(torch.randn(self.n_tokens, width) * 0.02)
        self.places = nn.Parameter(torch.randn(places, width) * 0.02)
        self.embed, self.embed_first = nn.Linear(feature_dim, width), nn.Linear(feature_dim, width)
        self.blocks = nn.ModuleList(_SpaceTime(width, heads) for _ in range(depth))
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.codebook = nn.Parameter(torch.empty(size, dim).uniform_(-1 / size, 1 / size))
        self.decode = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, feature_dim)
        self.register_buffer("later", torch.ones(2, 2, dtype=torch.bool).triu(1))

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the training loss of frames float [B, 3, S, S] in [0, 1]."""
        a, b = self._features(first), self._features(second)
        e = self.encode(a, b)
        code = self.codebook[torch.cdist(e.detach(), self.codebook.detach()).argmin(-1)]
        error = (self.predict(a, e + (code - e).detach()) - b).square().mean()
        return error + (code - e.detach()).square().mean() + 0.25 * (e - code.detach()).square().mean()

    def label(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns codes int64 [B, N] after predicting the second frame, as a label with its gain needs."""
        a, b = self._features(first), self._features(second)
        codes = torch.cdist(self.encode(a, b), self.codebook).argmin(-1)
        self.predict(a, self.codebook[codes])
        return codes

    def encode(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns tokens [B, N, D] of features [B, L, F]."""
        x = self.embed(torch.stack([a, b], 1)) + self.places
        x = torch.cat([self.prompts.expand(len(x), 2, -1, -1), x], 2)
        for block in self.blocks:
            x = block(x, self.later)
        return self.down(x[:, 1, : self.n_tokens])  # type: ignore[no-any-return]

    def predict(self, a: Tensor, z: Tensor) -> Tensor:
        """Returns the second frame's features [B, L, F]."""
        x = torch.cat([self.up(z), self.embed_first(a) + self.places], 1)
        for block in self.decode:
            x = block(x)
        return self.out(x[:, self.n_tokens :])  # type: ignore[no-any-return]

    def _features(self, frames: Tensor) -> Tensor:
        features: Tensor = self.vision(frames).flatten(2).transpose(1, 2)
        return features
