"""What published checkpoints need of bodies and normalisers: padding, limits on the way back, halves; both runtimes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from family_policies import declared_body
from test_deploy_declared import NAMES, POLICY, TorchSession
from test_deploy_declared import seen as seen_hand

from pyramid.errors import DataError
from pyramid.normalize import Normalizer
from vla.deploy.execution import Inpainting
from vla.deploy.graphs import System1, System1Context, System1Step, System2
from vla.deploy.runtime import PolicyRuntime
from vla.deploy.spec import DeploySpec, FileRecord
from vla.policy import build_policy
from vla.processor import denormalize, normalize


def test_limits_on_the_way_back_and_halves_are_the_same_with_and_without_torch() -> None:
    made = Normalizer(
        "mixed", np.float32([1, 2, 0]), np.float32([2, 2, 1]), clip=(True, False, False), bounded=(True, False, False),
        halves=(2,),
    )  # fmt: skip
    x = np.float32([[-9, -9, 0.4], [9, 9, 0.6], [1.5, 3, -3]])
    assert made.normalize(x).tolist() == [[-1, -5.5, 0], [1, 3.5, 1], [0.25, 0.5, 0]]
    assert made.denormalize(x).tolist() == [[-1, -16, 0], [3, 20, 1], [3, 8, 0]]
    for ours, torchs in ((made.normalize, normalize), (made.denormalize, denormalize)):
        assert np.array_equal(ours(x), torchs(made, torch.from_numpy(x)).numpy())
    again = Normalizer.from_dict(json.loads(json.dumps(made.to_dict())))
    assert (again.bounded, again.halves) == (made.bounded, made.halves)
    plain = Normalizer("min_max", np.zeros(2, np.float32), np.ones(2, np.float32))
    assert set(plain.to_dict()) == {"kind", "center", "scale", "clip"}
    with pytest.raises(DataError, match="cannot have clip"):
        Normalizer.from_dict({**made.to_dict(), "bounded": [True]})
    with pytest.raises(DataError, match="cannot have clip"):
        Normalizer.from_dict({**made.to_dict(), "halves": [3]})


def test_a_padded_body_is_played_without_torch_as_with_it() -> None:
    body = declared_body()
    wide = dataclasses.replace(body.embodiment, padded=(16, 15, 6))
    assert (wide.network.state_dim, wide.network.action_dim, wide.network.horizon) == (16, 15, 6)
    with pytest.raises(DataError, match=r"padded to \(16, 11, 6\), its encoded sizes are"):
        dataclasses.replace(body.embodiment, padded=(16, 11, 6))
    policy = build_policy(POLICY, {"hand": dataclasses.replace(body, embodiment=wide)}, seed=3).eval()
    system1, none = System1(policy.head, "hand"), FileRecord("none", 0, "")
    modules = {
        "system2": System2(policy.backbone),
        "system1": system1,
        "system1_context": System1Context(system1),
        "system1_step": System1Step(system1, policy.backbone.width, has_state=True),
    }
    known = policy.processor.body("hand")
    spec = DeploySpec(
        embodiment=known.embodiment, n_views=2, image_size_px=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3,
        max_text_tokens=16, sample_steps=5, state=known.state, action=known.action,
        graphs=dict.fromkeys(modules, none), tokenizer=none, opset=18, other_files={}, provenance={},
    )  # fmt: skip
    runtime = PolicyRuntime(
        DeploySpec.from_dict(json.loads(json.dumps(spec.to_dict()))),
        policy.processor.tokenizer,
        {name: TorchSession(module, NAMES[name]) for name, module in modules.items()},
    )
    assert runtime.embodiment == wide
    for seed in range(3):
        seen = seen_hand(seed)
        want = policy.act(seen, seed=seed)
        assert want.shape == (4, 9)
        assert np.abs(runtime.act(seen, seed=seed) - want).max() < 1e-5
        for rule in ("line", "published"):
            tie = Inpainting(want[1:], frozen=1, rule=rule)  # type: ignore[arg-type]
            tied = policy.act(seen, seed=seed, tie=tie)
            assert np.abs(runtime.chunk(runtime.encode(seen), seen["state"], seed=seed, tie=tie) - tied).max() < 1e-5
            assert np.abs(tied[:1, :3] - want[1:2, :3]).max() < 1e-4
