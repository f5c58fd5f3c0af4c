"""One pass of the action head's transformer over a batch of several embodiments.

States and actions are encoded, and velocities decoded, embodiment by embodiment; what is between them is the same for
all. Chunks are padded to the longest, and no token looks at padding. What is drawn for a sample is
`vla.objectives.flow`'s matter.

Shapes: B batch, T chunk steps, D action dimensions, M future tokens, W width of the transformer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla.policy import Policy

__all__ = ["Passed", "Tokens", "run_trunk", "tapped"]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Samples of one embodiment as the transformer is given them."""

    context: Tensor
    """Float [B, L, C]; L is the same for all that share a pass."""
    context_mask: Tensor
    """Bool [B, L]."""
    state: Tensor
    """State tokens, float [B, W]."""
    action: Tensor
    """Tokens of noisy chunks, float [B, T, W]; T = 0 without actions."""
    steps: Tensor
    """Bool [B, T], False for steps past the end."""
    bucket: Tensor
    """Time buckets, int64 [B]."""


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What the transformer made of them."""

    hidden: Tensor
    """What the decoder is given, float [B, T, hidden]."""
    future: Tensor | None
    """Future tokens after the tapped block, float [B, M, W]; None when none was tapped."""


def run_trunk(policy: Policy, groups: Sequence[Tokens], layer: int | None = None) -> list[Passed]:
    """Runs the transformer once over all groups.

    A head that shows padding to other tokens, as the published ones do, runs once for each chunk length.

    Args:
        policy: whose transformer.
        groups: at least one.
        layer: block, counted from 1, after which future tokens are taken; None takes none.

    Returns:
        One for each group, in their order.
    """
    together: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        together[0 if policy.head.masked else group.action.shape[1]].append(place)
    found: dict[int, Passed] = {}
    for places in together.values():
        found |= zip(places, _pass(policy, [groups[place] for place in places], layer), strict=True)
    return [found[place] for place in range(len(groups))]


def _pass(policy: Policy, groups: Sequence[Tokens], layer: int | None) -> list[Passed]:
    longest = max(group.action.shape[1] for group in groups)
    names = ("context", "context_mask", "state", "bucket")
    context, mask, state, bucket = (torch.cat([getattr(group, name) for group in groups]) for name in names)
    missing = [longest - group.action.shape[1] for group in groups]
    pairs = list(zip(groups, missing, strict=True))
    action = torch.cat([nn.functional.pad(group.action, (0, 0, 0, n)) for group, n in pairs])
    steps = torch.cat([nn.functional.pad(group.steps, (0, n)) for group, n in pairs])
    prepared = policy.head.prepare_tokens(context, mask, state)
    with tapped(policy, layer) as seen:
        hidden = policy.head.trunk(action, bucket, prepared, steps)
    future = seen[0][:, 1 : 1 + policy.config.head.future_tokens] if seen else None
    sizes = [len(group.bucket) for group in groups]
    futures = [None] * len(sizes) if future is None else torch.split(future, sizes)
    return [
        Passed(hidden=part[:, : group.action.shape[1]], future=ahead)
        for group, part, ahead in zip(groups, torch.split(hidden, sizes), futures, strict=True)
    ]


@contextmanager
def tapped(policy: Policy, layer: int | None) -> Iterator[list[Tensor]]:
    """Collects what leaves a block (counted from 1) of the diffusion transformer, float [B, n, W] for each pass.

    None collects nothing.
    """
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    handle = policy.head.dit.blocks[layer - 1].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
