import copy
from dataclasses import replace

import pytest
import torch
from tiny_policy import BACKBONE, TINY, make_bodies, make_group

from vla.config import BackboneConfig
from vla.objectives.total import batch_loss
from vla.policy import build_policy


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A frozen policy that keeps features, and how many rows went through its backbone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    policy = build_policy(replace(TINY, backbone=replace(BACKBONE, frozen=True, cache_features=True)), make_bodies())
    rows = []
    policy.backbone.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return policy.train(), rows, tmp_path


def plain(policy):
    """The same policy without a cache."""
    other = copy.deepcopy(policy)
    other.config = replace(policy.config, backbone=replace(policy.config.backbone, cache_features=False))
    return other


def losses(policy, groups):
    return batch_loss(policy, groups, torch.Generator().manual_seed(0))[0]


def groups():
    return [make_group(make_bodies(), name, 3, seed=1) for name in ("arm", "human_latent")]


def test_the_loss_is_the_same_and_the_backbone_runs_once(cached):
    policy, rows, _ = cached
    want = losses(plain(policy), groups())
    rows.clear()
    first, second = losses(policy, groups()), losses(policy, groups())
    assert rows == [6]
    assert torch.allclose(first, want, atol=1e-6)
    assert torch.equal(first, second)
    second.backward()
    assert all(p.grad is None for p in policy.backbone.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.head.parameters())


def test_gradients_of_the_head_are_the_same(cached):
    policy, _, _ = cached
    other = plain(policy)
    losses(policy, groups())
    for each in (policy, other):
        losses(each, groups()).backward()
    pairs = zip(policy.head.named_parameters(), other.head.parameters(), strict=True)
    assert all((a.grad is None) == (b.grad is None) for (_, a), b in pairs)
    for (name, a), b in zip(policy.head.named_parameters(), other.head.parameters(), strict=True):
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_only_what_is_new_is_worked_out(cached):
    policy, rows, _ = cached
    images = torch.randint(0, 256, (3, 1, 16, 16, 3), dtype=torch.uint8)
    context, mask = policy.encode(images, ["a", "a longer text", "a"])
    assert mask.sum(1).tolist() == [6, 18, 6]
    assert not context[~mask].any()
    changed = images.clone()
    changed[1, 0, 0, 0, 0] ^= 1
    again, _ = policy.encode(changed, ["a", "a longer text", "b"])
    assert rows == [3, 2]
    assert torch.equal(again[0], context[0])
    assert not torch.equal(again[1], context[1])
    with torch.no_grad():
        policy.backbone.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert not torch.allclose(build_like(policy).encode(images, ["a"] * 3)[0][0], context[0][:6])
    assert rows == [3, 2, 3]


def build_like(policy):
    """The policy as it is loaded from its weights."""
    return copy.deepcopy(policy)


def test_a_damaged_file_is_made_again(cached):
    policy, rows, folder = cached
    images = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)
    want, _ = policy.encode(images, ["a"])
    (path,) = folder.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(policy.encode(images, ["a"])[0], want)
    assert torch.equal(policy.encode(images, ["a"])[0], want)
    assert rows == [1, 1]


def test_a_policy_in_use_keeps_nothing(cached):
    policy, rows, folder = cached
    for _ in range(2):
        policy.eval().encode(torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), ["a"])
    assert rows == [1, 1]
    assert not list(folder.rglob("*.safetensors"))


def test_a_backbone_that_trains_keeps_nothing():
    for changes in ({}, {"frozen": True, "tune_top_layers": 1}, {"frozen": True, "tune_vision": True}):
        with pytest.raises(ValueError, match="nothing trains"):
            BackboneConfig(cache_features=True, **changes)
