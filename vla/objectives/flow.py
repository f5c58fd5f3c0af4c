"""Flow matching per group of samples, all of one embodiment.

Networks are in `vla.policy`; what samples count for is `vla.objectives.total`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyramid.nn.flow import sample_time
from vla.action_head import PreparedContext
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["encode_groups", "group_error", "group_errors"]


def group_error(
    policy: Policy, group: Group, encoded: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns per-sample sums of squared velocity errors and of counted elements, float [B] each."""
    return group_errors(policy, group, encoded, generator)[:2]


def group_errors(
    policy: Policy, group: Group, encoded: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, PreparedContext]:
    """Returns the same, and what the head made of the observation."""
    device, head = group.action.device, policy.config.head
    known = group.state_known
    if head.state_dropout:
        kept = torch.rand(len(known), generator=generator) >= head.state_dropout
        known = known & kept.to(device)
    action, mask = policy.processor.body(group.embodiment).encode_action(group.action, group.mask, group.state)
    noise = torch.randn(action.shape, generator=generator).to(device)
    time = sample_time(len(known), generator, rule=head.time_rule).to(device)
    prepared = policy.prepare(encoded, group.state, known, group.embodiment)
    error, count = policy.head.errors(prepared, action, mask, group.embodiment, noise=noise, time=time)
    return error, count, prepared


def encode_groups(policy: Policy, batch: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
    """Runs System 2 once for all groups, whose views have one shape in a mixture, and deals the contexts out again."""
    images = torch.cat([group.images for group in batch])
    context, mask = policy.encode(images, [text for group in batch for text in group.text])
    sizes = [len(group.images) for group in batch]
    return list(zip(torch.split(context, sizes), torch.split(mask, sizes), strict=True))
