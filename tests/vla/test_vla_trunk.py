"""One pass of the transformer over several embodiments gives what a pass for each of them gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_policy import TINY, make_bodies, make_group

from pyramid.mixture.batch import Group
from vla.objectives.flow import draw, encode_groups, flow_error
from vla.objectives.total import batch_loss
from vla.objectives.trunk import run_trunk
from vla.policy import Policy, build_policy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_policy(compatibility: str) -> Policy:
    head = replace(TINY.head, compatibility=compatibility, state_dropout=0.3)
    return build_policy(replace(TINY, head=head), make_bodies(), seed=3).train()


def a_batch() -> list[Group]:
    """Chunks of 4 and of 3 steps; one sample ends after two."""
    arm, latent = make_group(make_bodies(), "arm", 5, 0), make_group(make_bodies(), "human_latent", 3, 1)
    arm.mask[2, 2:] = False
    return [arm, latent]


def one_by_one(policy: Policy, batch: list[Group]) -> tuple[torch.Tensor, torch.Tensor]:
    """The errors and counts of each sample, embodiment by embodiment, with the head's own pass for one."""
    found, drawing = [], generator()
    for group, encoded in zip(batch, encode_groups(policy, batch), strict=True):
        known = group.state_known & (torch.rand(len(group.key), generator=drawing) >= 0.3)
        body = policy.processor.body(group.embodiment)
        action, mask = body.encode_action(group.action, group.mask, group.state)
        noise = torch.randn(action.shape, generator=drawing)
        time = (1 - torch.rand(len(known), generator=drawing) ** (1 / 1.5)) * 0.999
        prepared = policy.prepare(encoded, group.state, known, group.embodiment)
        found.append(policy.head.errors(prepared, action, mask, group.embodiment, noise=noise, time=time))
    error, count = (torch.cat(parts) for parts in zip(*found, strict=True))
    return error, count


def gradients(policy: Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("compatibility", "passes"), [("none", 1), ("n1_5", 2)])
def test_a_joined_pass_gives_the_losses_and_gradients_of_one_for_each(compatibility: str, passes: int) -> None:
    policy, batch = a_policy(compatibility), a_batch()
    error, count = one_by_one(policy, batch)
    want = (error / count).mean()
    wanted = gradients(policy, want)
    calls = []
    with policy.head.dit.register_forward_hook(lambda *_: calls.append(1)):
        got, _ = batch_loss(policy, batch, generator())
    found = gradients(policy, got)
    assert len(calls) == passes
    assert got.item() == pytest.approx(want.item(), abs=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_no_sample_sees_another_or_its_padding() -> None:
    policy, batch = a_policy("none").eval(), a_batch()
    changed = [batch[0], replace(batch[1], action=batch[1].action + 1)]
    swapped = [batch[1], batch[0]]
    errors = []
    for groups in (batch, changed, swapped):
        encoded = encode_groups(policy, groups)
        drawn = [draw(policy, g, e, generator(7)) for g, e in zip(groups, encoded, strict=True)]
        passed = run_trunk(policy, [one.tokens for one in drawn])
        each = [flow_error(policy, *three) for three in zip(groups, drawn, passed, strict=True)]
        errors.append({group.embodiment: error[0] for group, error in zip(groups, each, strict=True)})
    assert torch.allclose(errors[0]["arm"], errors[1]["arm"], atol=1e-6)
    assert not torch.allclose(errors[0]["human_latent"], errors[1]["human_latent"], atol=1e-2)
    for name, error in errors[0].items():
        assert torch.allclose(error, errors[2][name], atol=1e-5)
