"""Per-embodiment encoders and decoders: one small network per declared embodiment, each with its own dimensions.

Batches are grouped by embodiment, so a forward pass names one embodiment; normalisation and masking are the caller's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pyramid.errors import ConfigError, nearest

__all__ = ["ActionEncoder", "EmbodimentMLP", "EmbodimentModule", "FoldedActionEncoder", "bucket_sinusoid", "plain_mlp"]


M = TypeVar("M", bound=nn.Module)


class EmbodimentModule(nn.Module, Generic[M]):
    """A closed table from embodiment name to a network of its own (a "slot"); an unknown name is refused by name."""

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        # The prefix keeps names such as 'type' or 'half' from shadowing attributes of nn.Module.
        self.slots = nn.ModuleDict({f"for_{_named(name)}": module for name, module in modules.items()})

    @property
    def embodiments(self) -> tuple[str, ...]:
        """The declared embodiments, in the order of their declaration."""
        return tuple(key.removeprefix("for_") for key in self.slots)

    def add(self, embodiment: str, module: M) -> None:
        """Gives one more embodiment a network of its own.

        Raises:
            ConfigError: it has one already, or its name cannot be one.
        """
        if embodiment in self.embodiments:
            raise ConfigError(f"embodiment '{embodiment}' is declared already")
        self.slots[f"for_{_named(embodiment)}"] = module

    def fold(self, embodiment: str) -> M:
        """Return the plain network of one embodiment (sharing its weights), for instance to export it alone.

        Raises:
            ConfigError: the embodiment is not declared; the message names the declared ones and the nearest.
        """
        if f"for_{embodiment}" not in self.slots:
            raise ConfigError(_unknown(embodiment, self.embodiments))
        return self.slots[f"for_{embodiment}"]  # type: ignore[return-value]


class EmbodimentMLP(EmbodimentModule[nn.Sequential]):
    """Two-layer ReLU MLP per embodiment: the state encoder and the action decoder of the GR00T heads.

    Args:
        dims: embodiment name -> (input width, output width), each >= 1.
        hidden: width of the hidden layer, shared by all embodiments.
    """

    def __init__(self, dims: Mapping[str, tuple[int, int]], hidden: int) -> None:
        super().__init__({name: plain_mlp(d_in, hidden, d_out) for name, (d_in, d_out) in dims.items()})

    def forward(self, x: Tensor, embodiment: str) -> Tensor:
        """Map float [..., in] of one embodiment to float [..., out]."""
        return self.fold(embodiment)(x)  # type: ignore[no-any-return]


class FoldedActionEncoder(nn.Module):
    """``W3 swish(W2 [W1 a ; sincos(bucket)])`` for one embodiment (GR00T N1, arXiv 2503.14734, and its public code)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.width = width
        self.embed = nn.Linear(dim, width)
        self.mix = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, width)

    def forward(self, action: Tensor, bucket: Tensor) -> Tensor:
        """Map float [B, T, D] and time buckets int64 [B] to tokens float [B, T, width]."""
        embedded = self.embed(action)
        time = bucket_sinusoid(bucket, self.width).to(embedded.dtype)
        time = time[:, None, :].expand(-1, embedded.shape[1], -1)
        return self.out(nn.functional.silu(self.mix(torch.cat([embedded, time], dim=-1))))  # type: ignore[no-any-return]


class ActionEncoder(EmbodimentModule[FoldedActionEncoder]):
    """Encoder of noisy action chunks with the flow time mixed in, per embodiment.

    Args:
        dims: embodiment name -> action dimension, each >= 1.
        width: width of the tokens that come out; even.
    """

    def __init__(self, dims: Mapping[str, int], width: int) -> None:
        super().__init__({name: FoldedActionEncoder(dim, width) for name, dim in dims.items()})

    def forward(self, action: Tensor, bucket: Tensor, embodiment: str) -> Tensor:
        """Map float [B, T, D] and its time buckets int64 [B] to tokens float [B, T, width]."""
        return self.fold(embodiment)(action, bucket)  # type: ignore[no-any-return]


def bucket_sinusoid(bucket: Tensor, width: int) -> Tensor:
    """Sinusoids of a time bucket: ``[sin(f_k b) ; cos(f_k b)]`` with ``f_k = 10000^(-k / (width / 2))``.

    Args:
        bucket: int64 [B], 0 to 999.
        width: even number of features.

    Returns:
        float32 [B, width].
    """
    half = width // 2
    exponent = -torch.arange(half, dtype=torch.float32, device=bucket.device) * (math.log(10000.0) / half)
    angle = bucket.float()[:, None] * exponent.exp()[None, :]
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def plain_mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    """Build the two-layer ReLU MLP of one embodiment."""
    if min(d_in, hidden, d_out) < 1:
        raise ValueError(f"widths must be at least 1, got {d_in} -> {hidden} -> {d_out}")
    return nn.Sequential(nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, d_out))


def _named(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ConfigError(f"embodiment name {name!r} has characters outside [a-z0-9_]; rename it")
    return name


def _unknown(name: str, declared: Iterable[str]) -> str:
    known = sorted(declared)
    declared = f"(declared: {', '.join(known) or 'none'}){nearest(name, known)}"
    return f"embodiment '{name}' is not declared by this model {declared}"
