"""Contexts of a batch from a backbone that stands still: those that are kept, and the others worked out alike.

Shapes: B samples, L context tokens, C their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla.features.maker import at_once, rounded
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["encode_alike"]


def encode_alike(
    policy: Policy, batch: Sequence[Group], images: Tensor, texts: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """Returns contexts that do not depend on what else is in the batch, nor on what is kept.

    On a CPU each sample passes the backbone by itself where features are to be kept: in a batch the last bits would be
    others. So what was kept decides nothing of the weights in the end.

    Args:
        policy: whose backbone it is.
        batch: groups.
        images: uint8 [B, V, H, W, 3] of all of them; 0 where a sample comes with features.
        texts: B instructions.

    Returns:
        Context float [B, L, C], 0 where padding is, and its mask bool [B, L]; None where all samples may as well pass
        the backbone together.
    """
    both = [(group.context, group.context_length) for group in batch]
    kept = [(rows, length) for rows, length in both if rows is not None and length is not None]
    if not kept and not _alone(policy, images):
        return None
    found: list[Tensor | None] = [None] * len(texts)
    if kept:
        rows = [(row, n) for some, length in kept for row, n in zip(some, length.tolist(), strict=True)]
        found = [row[:n] if n else None for row, n in rows]
    dtype = kept[0][0].dtype if kept else None
    whole = _completed(policy, found, images, texts, dtype)
    length = torch.tensor([len(row) for row in whole])
    mask = torch.arange(int(length.max())) < length[:, None]
    return torch.nn.utils.rnn.pad_sequence(whole, batch_first=True), mask.to(images.device)


def _alone(policy: Policy, images: Tensor) -> bool:
    """Whether samples pass the backbone one by one though none of them came with features."""
    still = policy.config.backbone.cache_features and policy.training and not policy.backbone.trains
    return still and at_once(images.device) == 1 and policy.config.head.compatibility == "none"


def _completed(
    policy: Policy, found: Sequence[Tensor | None], images: Tensor, texts: Sequence[str], kept: torch.dtype | None
) -> list[Tensor]:
    """Returns the rows that are there and those that are missing, all with the numbers that they are kept as."""
    size = policy.config.backbone
    missing, step = [i for i, row in enumerate(found) if row is None], at_once(images.device)
    made: dict[int, Tensor] = {}
    for first in range(0, len(missing), step):
        part = missing[first : first + step]
        context, mask = policy.encode(images[part], [texts[i] for i in part])
        for i, row, seen in zip(part, context, mask, strict=True):
            # The type of what is kept, also where a pass is only timed, without the training's precision.
            made[i] = row[seen] if kept is None else rounded(row[seen], size.cache_dtype).to(kept)
    whole = [row if row is not None else made[i] for i, row in enumerate(found)]
    return whole if kept is None or size.cache_dtype == "full" else [row.float() for row in whole]
