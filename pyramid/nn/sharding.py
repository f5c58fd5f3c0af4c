"""Weights that several processes share (FSDP2): dealt out before training, put together again after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["gather", "shard"]


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: Any, *, method: str = "training_step") -> None:
    """Deals the weights of a module out to the processes of a mesh.

    Args:
        root: the module; what is in no block is gathered for the whole of ``method``.
        blocks: parts of it whose weights are gathered for their own passes alone; each is called once a pass, and as
            a whole.
        mesh: a device mesh of one dimension.
        method: of the root, in which all its parts are used.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh)
    register_fsdp_forward_method(root, method)


@torch.no_grad()
def gather(root: nn.Module) -> None:
    """Gives every process all weights again; every process must call it.

    The modules stay what they are but for their parameters, which are plain ones from then on.
    """
    from torch.distributed.tensor import DTensor

    for module in root.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = parameter.full_tensor().clone()
                setattr(module, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))
