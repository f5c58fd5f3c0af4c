"""Less memory for more time, and less time after a while: activation checkpoints and compiled blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vla.policy import Policy

__all__ = ["checkpoint_blocks", "compile_blocks"]


def checkpoint_blocks(policy: Policy) -> int:
    """Has the blocks of both systems forget their insides; returns how many blocks do.

    Random numbers of dropout are drawn again as they were, so losses and gradients are the same.
    """
    return sum(_wrap(block, partial(_checkpointed, block.forward)) for block in _blocks(policy))


def compile_blocks(policy: Policy) -> int:
    """Compiles the blocks of both systems one by one when they first run; returns how many there are."""
    return sum(_wrap(block, torch.compile(block.forward)) for block in _blocks(policy))


def _blocks(policy: Policy) -> Iterator[nn.Module]:
    yield from policy.head.dit.blocks
    yield from policy.backbone.layers


def _wrap(block: nn.Module, forward: Any) -> bool:
    # The block's own method stays what its hooks and its name in the checkpoint belong to.
    block.forward = forward
    return True


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
