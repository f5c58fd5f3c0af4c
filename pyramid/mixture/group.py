"""What a batch is made of: groups of samples that share an embodiment, all numbers of a batch in one stretch of memory.

A worker's batch goes to the training process as one shared stretch, not as a dozen; what stands in it is decided by
`pyramid.mixture.batch`, which memory is taken for it by `pyramid.mixture.stretches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pyramid.mixture.stretches import Stretches
from pyramid.types import Embodiment

__all__ = [
    "Allocate",
    "Batch",
    "Group",
    "Packed",
    "Shape",
    "empty_tensors",
    "fresh_memory",
    "largest",
    "pack",
    "unpack",
]

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
    """float32 [B, S], physical units; S = 0 without proprioception. In a mixture with a history [B, H, S]: the last
    states, oldest first, of embodiments that have any."""
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
    future: Tensor | None = None
    """uint8 [B, V, H, W, 3], RGB: the views ``future_s`` later; 0 where unknown. None when the mixture reads none."""
    future_known: Tensor | None = None
    """bool [B]: False where the clip ends before."""
    action_std: Tensor | None = None
    """float32 [B, T, D], physical units: how far the votes of pseudo-actions lie apart; None where nobody says."""
    recon_gain: Tensor | None = None
    """float32 [B]: how much latent actions help the reconstruction; None where nobody says."""
    codes: Tensor | None = None
    """int64 [B, C]: codes of latent actions; None where there are none."""
    context: Tensor | None = None
    """float [B, L, C]: what is kept of the views and the text (`pyramid.mixture.kept`), 0 past each sample's own
    length. None where nothing is kept."""
    context_length: Tensor | None = None
    """int64 [B]: tokens of each sample in ``context``; 0 where it has none and stands in ``images`` alone. Where it has
    some, ``images`` may be 0."""


Batch = list[Group]


Allocate = Callable[[int], Tensor]
"""Returns so many bytes, uint8 [N]."""


class Packed(NamedTuple):
    """A batch on its way from a worker."""

    memory: Tensor | int
    """uint8 [N]: all its numbers; or the number of the stretch in which they are."""
    groups: list[dict[str, Any]]
    """Fields of each group; of a tensor that lies there where it begins, bytes, and its `Shape`."""


def shapes(body: Embodiment, n: int, size_px: int, *, future: bool = False) -> dict[str, Shape]:
    """Returns the tensors of a group of ``n`` samples with one view of ``size_px`` pixels, and a later one if asked."""
    chunk, views = (n, body.horizon, body.action_dim), (torch.uint8, (n, 1, size_px, size_px, 3))
    later: dict[str, Shape] = {"future": views, "future_known": (torch.bool, (n,))} if future else {}
    return {
        **later,
        "images": views,
        "action": (torch.float32, chunk),
        "mask": (torch.bool, chunk),
        "state": (torch.float32, (n, *body.state_shape)),
        "state_known": (torch.bool, (n,)),
        "weight": (torch.float32, (n,)),
        "position": (torch.int64, (n,)),
    }


def largest(bodies: Iterable[Embodiment], n: int, size_px: int, *, future: bool = False) -> int:
    """Returns the most bytes that a batch of ``n`` samples of some bodies takes."""
    plans = [shapes(body, 1, size_px, future=future) for body in bodies]
    gaps = sum(_ALIGN * len(plan) for plan in plans)
    return n * max(sum(_n_bytes(shape) for shape in plan.values()) for plan in plans) + gaps


def fresh_memory(n: int) -> Tensor:
    """Returns ``n`` bytes that were not used before: shared memory in a worker."""
    if get_worker_info() is None:
        return torch.empty(n, dtype=torch.uint8)
    # As torch's own collation does: written once, into memory that the other process sees.
    storage = torch.UntypedStorage._new_shared(max(n, 1), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def empty_tensors(
    wanted: Sequence[tuple[Embodiment, int]],
    size_px: int,
    allocate: Allocate = fresh_memory,
    *,
    future: bool = False,
) -> list[dict[str, Tensor]]:
    """Returns the tensors of groups, not yet filled, side by side in memory.

    Args:
        wanted: embodiment and number of samples of each group.
        size_px: side of the frames, pixels.
        future: whether each sample comes with a later frame.
        allocate: where the memory comes from.
    """
    plans, end = [], 0
    for body, n in wanted:
        plan = {}
        for name, shape in shapes(body, n, size_px, future=future).items():
            plan[name] = (end, shape)
            end += -(-_n_bytes(shape) // _ALIGN) * _ALIGN
        plans.append(plan)
    memory = allocate(end)
    return [{name: _part(memory, start, shape) for name, (start, shape) in plan.items()} for plan in plans]


def pack(batch: Batch, stretches: Stretches | None = None) -> Packed | Batch:
    """Returns a batch as one stretch of memory, if that is how it lies; else the batch itself."""
    if not batch:
        return batch
    storage = batch[0].images.untyped_storage()
    groups: list[dict[str, Any]] = []
    for group in batch:
        told = {field.name: getattr(group, field.name) for field in fields(group)}
        for name, value in told.items():
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() == storage.data_ptr():
                start = value.storage_offset() * value.element_size()
                told[name] = (start, (value.dtype, tuple(value.shape)))
            elif name == "images":
                return batch
        groups.append(told)
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)
    place = stretches.place_of(memory) if stretches else None
    return Packed(memory if place is None else place, groups)


def unpack(packed: Packed | Batch, stretches: Stretches | None = None) -> Batch:
    """Returns the batch that was packed; ``stretches`` are those that it was packed with."""
    if not isinstance(packed, Packed):
        return packed
    memory = packed.memory
    if isinstance(memory, int):
        assert stretches is not None  # noqa: S101
        memory = stretches.receive(memory)
    tensors = {field.name for field in fields(Group) if str(field.type).startswith("Tensor")}
    groups = []
    for told in packed.groups:
        # Torch makes lists of tuples on the way.
        lying = {n: _part(memory, *v) for n, v in told.items() if n in tensors and isinstance(v, tuple | list)}
        groups.append(Group(**{**told, **lying}))
    return groups


def _part(memory: Tensor, start: int, shape: Shape) -> Tensor:
    return memory[start : start + _n_bytes(shape)].view(shape[0]).view(shape[1])


def _n_bytes(shape: Shape) -> int:
    return math.prod(shape[1]) * shape[0].itemsize
