"""What a batch is made of: groups of samples that share an embodiment, all numbers of a batch in one stretch of memory.

A worker's batch goes to the training process as one shared stretch, not as a dozen; what stands in it is decided by
`pyramid.mixture.batch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pyramid.types import Embodiment

__all__ = ["Batch", "Group", "Packed", "Shape", "empty_tensors", "pack", "unpack"]

_ALIGN = 64

Shape = tuple[torch.dtype, tuple[int, ...]]
"""What a tensor of a group looks like."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All samples of a batch that share an embodiment."""

    embodiment: str
    """Slot of the policy."""
    images: Tensor
    """uint8 [B, V, H, W, 3], RGB."""
    text: tuple[str, ...]
    """Instructions, B."""
    state: Tensor
    """float32 [B, S], physical units; S = 0 without proprioception."""
    state_known: Tensor
    """bool [B]: False where there is no state."""
    action: Tensor
    """float32 [B, T, D], physical units."""
    mask: Tensor
    """bool [B, T, D]: False for padding and steps past the end."""
    weight: Tensor
    """float32 [B]: weight in the loss."""
    source: tuple[str, ...]
    """Names of the sources, B."""
    tier: tuple[str, ...]
    """Levels of the pyramid, B."""
    key: tuple[str, ...]
    """Keys of the clips, B."""
    position: Tensor
    """int64 [B]: place in the global order of samples."""
    label: tuple[str, ...] = ()
    """Where the actions come from, B: ``action``, or the folder of the label run."""
    replaced: tuple[bool, ...] = ()
    """Whether the sample stands in for one that could not be read, B."""


Batch = list[Group]


class Packed(NamedTuple):
    """A batch on its way from a worker."""

    memory: Tensor
    """uint8 [N]: all its numbers."""
    groups: list[dict[str, Any]]
    """Fields of each group; of a tensor where it begins, bytes, and its `Shape`."""


def shapes(body: Embodiment, n: int, size_px: int) -> dict[str, Shape]:
    """Returns the tensors of a group of ``n`` samples with one view of ``size_px`` pixels."""
    chunk = (n, body.horizon, body.action_dim)
    return {
        "images": (torch.uint8, (n, 1, size_px, size_px, 3)),
        "action": (torch.float32, chunk),
        "mask": (torch.bool, chunk),
        "state": (torch.float32, (n, body.state_dim)),
        "state_known": (torch.bool, (n,)),
        "weight": (torch.float32, (n,)),
        "position": (torch.int64, (n,)),
    }


def empty_tensors(wanted: Sequence[tuple[Embodiment, int]], size_px: int) -> list[dict[str, Tensor]]:
    """Returns the tensors of groups, not yet filled, side by side in memory: shared memory in a worker.

    Args:
        wanted: embodiment and number of samples of each group.
        size_px: side of the frames, pixels.
    """
    plans, end = [], 0
    for body, n in wanted:
        plan = {}
        for name, shape in shapes(body, n, size_px).items():
            plan[name] = (end, shape)
            end += -(-_n_bytes(shape) // _ALIGN) * _ALIGN
        plans.append(plan)
    memory = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:
        # As torch's own collation does: written once, into memory that the other process sees.
        memory = memory.set_(torch.UntypedStorage._new_shared(max(end, 1), device="cpu"))  # type: ignore[no-untyped-call]
    else:
        memory = torch.empty(end, dtype=torch.uint8)
    return [{name: _part(memory, start, shape) for name, (start, shape) in plan.items()} for plan in plans]


def pack(batch: Batch) -> Packed | Batch:
    """Returns a batch as one stretch of memory, if that is how it lies; else the batch itself."""
    storage = batch[0].images.untyped_storage() if batch else None
    groups: list[dict[str, Any]] = []
    for group in batch:
        told = {field.name: getattr(group, field.name) for field in fields(group)}
        for name, value in told.items():
            if isinstance(value, Tensor):
                if storage is None or value.untyped_storage().data_ptr() != storage.data_ptr():
                    return batch
                start = value.storage_offset() * value.element_size()
                told[name] = (start, (value.dtype, tuple(value.shape)))
        groups.append(told)
    return batch if storage is None else Packed(torch.empty(0, dtype=torch.uint8).set_(storage), groups)


def unpack(packed: Packed | Batch) -> Batch:
    """Returns the batch that was packed."""
    if not isinstance(packed, Packed):
        return packed
    tensors = {field.name for field in fields(Group) if field.type == "Tensor"}
    groups = []
    for told in packed.groups:
        whole: dict[str, Any] = {n: _part(packed.memory, *v) if n in tensors else v for n, v in told.items()}
        groups.append(Group(**whole))
    return groups


def _part(memory: Tensor, start: int, shape: Shape) -> Tensor:
    return memory[start : start + _n_bytes(shape)].view(shape[0]).view(shape[1])


def _n_bytes(shape: Shape) -> int:
    return math.prod(shape[1]) * shape[0].itemsize
