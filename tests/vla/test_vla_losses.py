import dataclasses

import pytest
import torch
from tiny_policy import TINY, make_group

from vla.objectives.flow import encode_groups
from vla.objectives.total import batch_loss
from vla.policy import build_policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_loss_falls_on_a_relation_that_can_be_learned(bodies):
    policy = build_policy(TINY, bodies, seed=0).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    losses = []
    for step in range(150):
        batch = [make_group(bodies, "arm", 16, step), make_group(bodies, "human_latent", 16, step)]
        loss, _ = batch_loss(policy, batch, generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    policy.eval()
    held = make_group(bodies, "arm", 16, 999)
    prepared = policy.prepare(policy.encode(held.images, held.text), held.state, held.state_known, "arm")
    with torch.no_grad():
        action = policy.sample(prepared, torch.randn(held.action.shape, generator=generator(1)), "arm")
    baseline = (held.action - held.action.mean(0)).abs().mean()
    assert (action - held.action).abs().mean() < 0.6 * baseline


def test_loss_is_the_weighted_mean_of_samples(policy, bodies):
    group = make_group(bodies, "arm", 4, 0)
    alone = dataclasses.replace(group, weight=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    logs = batch_loss(policy, [group], generator())[1]
    each = [
        batch_loss(policy, [dataclasses.replace(group, weight=torch.eye(4)[i])], generator())[0].item()
        for i in range(4)
    ]
    assert batch_loss(policy, [alone], generator())[0].item() == each[2]
    weighted = dataclasses.replace(group, weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    want = sum(w * v for w, v in zip((1, 2, 3, 4), each, strict=True)) / 10
    assert batch_loss(policy, [weighted], generator())[0].item() == pytest.approx(want, rel=1e-5)
    assert logs["loss_body/arm"] == pytest.approx(sum(each) / 4, rel=1e-5)
    assert logs["loss_source/arm_1"] == pytest.approx((each[1] + each[3]) / 2, rel=1e-5)


def test_samples_without_any_action_count_nowhere(policy, bodies):
    group = make_group(bodies, "arm", 4, 0)
    mask = group.mask.clone()
    mask[1:] = False
    loss, logs = batch_loss(policy, [dataclasses.replace(group, mask=mask)], generator())
    first = dataclasses.replace(group, weight=torch.tensor([1.0, 0, 0, 0]))
    assert loss.item() == pytest.approx(batch_loss(policy, [first], generator())[0].item(), rel=1e-6)
    assert {name for name in logs if name.startswith("loss_")} == {"loss_flow", "loss_source/arm_0", "loss_body/arm"}
    assert {name: logs[name] for name in logs if "share" in name} == {
        "share/arm_0": 0.5,
        "share/arm_1": 0.5,
        "weight_share/arm_0": 1.0,
    }
    empty, _ = batch_loss(policy, [dataclasses.replace(group, mask=torch.zeros_like(mask))], generator())
    assert empty.item() == 0.0


def test_padded_values_change_nothing(policy, bodies):
    group = make_group(bodies, "arm", 4, 0)
    mask = group.mask.clone()
    mask[:, 2:] = False
    padded = dataclasses.replace(group, mask=mask, state_known=torch.tensor([True, True, False, False]))
    garbage = dataclasses.replace(
        padded,
        action=torch.where(mask, padded.action, torch.nan),
        state=torch.where(padded.state_known[:, None], padded.state, torch.inf),
    )
    assert torch.equal(batch_loss(policy, [padded], generator())[0], batch_loss(policy, [garbage], generator())[0])


def test_groups_share_one_pass_without_mixing(policy, bodies):
    batch = [make_group(bodies, "arm", 3, 0), make_group(bodies, "human_latent", 2, 1)]
    together = encode_groups(policy, batch)
    for group, (context, mask) in zip(batch, together, strict=True):
        alone, alone_mask = policy.encode(group.images, group.text)
        length = min(alone.shape[1], context.shape[1])
        assert torch.equal(mask[:, :length], alone_mask[:, :length])
        assert torch.allclose(context[:, :length][alone_mask], alone[alone_mask], atol=1e-5)


def test_state_dropout_draws_from_the_generator_alone(bodies):
    config = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, state_dropout=0.5))
    policy, group = build_policy(config, bodies).train(), make_group(bodies, "arm", 8, 0)
    first = batch_loss(policy, [group], generator(3))[0]
    torch.manual_seed(99)
    assert torch.equal(batch_loss(policy, [group], generator(3))[0], first)
