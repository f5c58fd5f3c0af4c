"""Keyed randomness: every random number is a pure function of a seed and a key.

No generator is shared and none is global, so an order never depends on how many workers ask or in which order.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, *key: str | int) -> int:
    """Returns the 63-bit seed that belongs to ``(seed, *key)``; equal keys give equal seeds on every machine."""
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """Returns a counter-based generator (Philox; Salmon et al., 2011) keyed by ``(seed, *key)``.

    Example:
        ``rng(seed, "shuffle", source, epoch).permutation(n)``
    """
    return np.random.Generator(np.random.Philox(key=seed_of(seed, *key)))


def seed_here(seed: int, device: torch.device) -> None:
    """Seeds what torch draws from on the CPU and on ``device``.

    `torch.manual_seed` tells every kind of device, and writes down the call stack for each: a tenth of a small
    model's step on a CPU, which needs none of it.
    """
    import torch

    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def torch_generator(seed: int, *key: str | int) -> torch.Generator:
    """Returns a CPU ``torch.Generator`` keyed by ``(seed, *key)``."""
    import torch

    return torch.Generator().manual_seed(seed_of(seed, *key))
