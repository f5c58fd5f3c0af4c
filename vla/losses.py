"""The training loss of a batch that mixes embodiments: flow matching per group, weighted per sample.

Networks are in `vla.policy`; the order and weights of samples are the mixture's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyramid.nn.flow import sample_time
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["batch_loss", "encode_groups", "group_error"]


def batch_loss(policy: Policy, batch: Sequence[Group], generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Computes the loss of one batch.

    Each sample's loss is the mean squared velocity error over the elements that its mask keeps; the batch's is their
    mean weighted by `Group.weight`. A sample without any such element counts nowhere. Averaging per sample first keeps
    embodiments with long or wide chunks from outvoting the others.

    Args:
        policy: in training mode.
        batch: groups, one per embodiment.
        generator: a CPU generator, the only source of randomness (but for dropout).

    Returns:
        The loss, float [], and its mean per source and per embodiment, as ``loss_source/NAME`` and ``loss_body/NAME``.
    """
    parts, weights, logs = [], [], defaultdict[str, list[Tensor]](list)
    for group, encoded in zip(batch, encode_groups(policy, batch), strict=True):
        error, count = group_error(policy, group, encoded, generator)
        real = count > 0
        each = error / count.clamp(min=1.0)
        parts.append(each)
        weights.append(torch.where(real, group.weight.to(each), 0.0))
        for value, source, kept in zip(each.detach(), group.source, real.tolist(), strict=True):
            if kept:
                logs[f"loss_source/{source}"].append(value)
                logs[f"loss_body/{group.embodiment}"].append(value)
    weight = torch.cat(weights)
    loss = (torch.cat(parts) * weight).sum() / weight.sum().clamp(min=1e-8)
    return loss, {name: float(torch.stack(values).mean()) for name, values in sorted(logs.items())}


def group_error(
    policy: Policy, group: Group, encoded: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns per-sample sums of squared velocity errors and of counted elements, float [B] each."""
    device, head = group.action.device, policy.config.head
    known = group.state_known
    if head.state_dropout:
        kept = torch.rand(len(known), generator=generator) >= head.state_dropout
        known = known & kept.to(device)
    action, mask = policy.processor.body(group.embodiment).encode_action(group.action, group.mask, group.state)
    noise = torch.randn(action.shape, generator=generator).to(device)
    time = sample_time(len(known), generator, rule=head.time_rule).to(device)
    prepared = policy.prepare(encoded, group.state, known, group.embodiment)
    return policy.head.errors(prepared, action, mask, group.embodiment, noise=noise, time=time)


def encode_groups(policy: Policy, batch: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
    """Runs System 2 once for all groups, whose views have one shape in a mixture, and deals the contexts out again."""
    images = torch.cat([group.images for group in batch])
    context, mask = policy.encode(images, [text for group in batch for text in group.text])
    sizes = [len(group.images) for group in batch]
    return list(zip(torch.split(context, sizes), torch.split(mask, sizes), strict=True))
