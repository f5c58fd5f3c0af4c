"""Flow matching over a batch of several embodiments: what is drawn for each sample, and its error.

Networks are in `vla.policy`, their joint pass in `vla.objectives.trunk`; what samples count for is
`vla.objectives.total`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyramid.nn.flow import masked_error, sample_time, time_bucket
from vla.features.encode import encode_alike
from vla.objectives.trunk import Passed, Tokens, run_trunk
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["Drawn", "draw", "encode_groups", "flow_error", "group_error"]

Encoded = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A group with its noise and flow times."""

    tokens: Tokens
    """What the transformer is given."""
    velocity: Tensor
    """What the decoder is to say, float [B, T, E]; E = 0 without actions."""
    mask: Tensor
    """Bool [B, T, E], where that counts."""


def draw(policy: Policy, group: Group, encoded: Encoded, generator: torch.Generator) -> Drawn:
    """Draws state dropout, noise and flow times for a group, from a CPU generator and in this order.

    A group without actions (a video) has flow times alone, the token for an unknown state, and no action tokens.
    """
    head, device = policy.head, group.action.device
    if not group.action.shape[-1]:
        return _without_actions(policy, group, encoded, generator)
    known = group.state_known
    if head.config.state_dropout:
        kept = torch.rand(len(known), generator=generator) >= head.config.state_dropout
        known = known & kept.to(device)
    action, mask = policy.processor.body(group.embodiment).encode_action(group.action, group.mask, group.state)
    noise = torch.randn(action.shape, generator=generator).to(device)
    time = sample_time(len(known), generator, rule=head.config.time_rule).to(device)
    x, bucket, velocity = head.noisy(action, mask, noise, time)
    tokens = Tokens(
        context=encoded[0],
        context_mask=encoded[1],
        state=head.state_token(policy.processor.state(group.state, group.embodiment), known, group.embodiment),
        action=head.action_tokens(x, bucket, group.embodiment),
        steps=mask.any(-1),
        bucket=bucket,
    )
    return Drawn(tokens=tokens, velocity=velocity, mask=mask)


def _without_actions(policy: Policy, group: Group, encoded: Encoded, generator: torch.Generator) -> Drawn:
    context, context_mask = encoded
    n = len(context)
    time = sample_time(n, generator, rule=policy.config.head.time_rule).to(context.device)
    tokens = Tokens(
        context=context,
        context_mask=context_mask,
        state=policy.head.state_token(context.new_zeros(n, 0), None, ""),
        action=context.new_zeros(n, 0, policy.config.head.width),
        steps=context_mask.new_zeros(n, 0),
        bucket=time_bucket(time),
    )
    return Drawn(tokens=tokens, velocity=context.new_zeros(n, 0, 0), mask=context_mask.new_zeros(n, 0, 0))


def flow_error(policy: Policy, group: Group, drawn: Drawn, passed: Passed) -> tuple[Tensor, Tensor]:
    """Returns per-sample sums of velocity errors (see `masked_error`) and of counted elements, float [B] each."""
    said = policy.head.action_decoder(passed.hidden, group.embodiment)
    return masked_error(said, drawn.velocity, drawn.mask, rule=policy.config.head.time_rule)


def group_error(policy: Policy, group: Group, encoded: Encoded, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws, passes and compares one group alone; see `flow_error`."""
    drawn = draw(policy, group, encoded, generator)
    (passed,) = run_trunk(policy, [drawn.tokens])
    return flow_error(policy, group, drawn, passed)


def encode_groups(policy: Policy, batch: Sequence[Group]) -> list[Encoded]:
    """Runs System 2 once for all groups, whose views have one shape in a mixture, and deals the contexts out again.

    Where groups come with what is kept of their frames, it runs for the others alone.
    """
    images = torch.cat([group.images for group in batch])
    texts = [text for group in batch for text in group.text]
    context, mask = encode_alike(policy, batch, images, texts) or policy.encode(images, texts)
    sizes = [len(group.images) for group in batch]
    return list(zip(torch.split(context, sizes), torch.split(mask, sizes), strict=True))
