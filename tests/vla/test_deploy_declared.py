"""Declared bodies and chunks under way: the runtime's own arithmetic against the policy's, on the same networks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from family_policies import declared_body
from tiny_policy import TINY

from pyramid.errors import DataError
from pyramid.normalize import Normalizer
from vla.deploy.control import ControlConfig, Controller
from vla.deploy.dialects import default_interface, modality_config
from vla.deploy.execution import Inpainting, action_limits
from vla.deploy.graphs import System1, System1Context, System1Step, System2
from vla.deploy.runtime import PolicyRuntime
from vla.deploy.spec import DeploySpec, FileRecord
from vla.policy import Policy, build_policy

POLICY = dataclasses.replace(
    TINY,
    backbone=dataclasses.replace(TINY.backbone, n_views=2),
    head=dataclasses.replace(TINY.head, alternate=True, sample_steps=5),
)
NAMES = {
    "system2": (("images", "text_ids", "text_mask"), ("context", "context_mask")),
    "system1": (("context", "context_mask", "noise", "state"), ("action",)),
    "system1_context": (("context", "context_mask"), ("key_0", "value_0", "key_1", "value_1")),
    "system1_step": (
        ("noise", "bucket", "context_mask", "state", "key_0", "value_0", "key_1", "value_1"),
        ("velocity",),
    ),
}


class TorchSession:
    """One of the networks that are exported, asked as ONNX Runtime is asked: the exporter's errors stay out."""

    def __init__(self, module: torch.nn.Module, names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        self.module, self.names = module.eval(), names

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names[0]]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.names[1]]

    @torch.no_grad()
    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        out = self.module(*(torch.from_numpy(feed[name]) for name in self.names[0]))
        return [tensor.numpy() for tensor in (out if isinstance(out, tuple) else (out,))]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_policy(POLICY, {"hand": declared_body()}, seed=3).eval()


@pytest.fixture(scope="module")
def runtime(policy: Policy) -> PolicyRuntime:
    system1 = System1(policy.head, "hand")
    modules = {
        "system2": System2(policy.backbone),
        "system1": system1,
        "system1_context": System1Context(system1),
        "system1_step": System1Step(system1, policy.backbone.width, has_state=True),
    }
    body, none = policy.processor.body("hand"), FileRecord("none", 0, "")
    spec = DeploySpec(
        embodiment=body.embodiment, n_views=2, image_size_px=16, image_mean=(0.5,) * 3, image_std=(0.5,) * 3,
        max_text_tokens=16, sample_steps=5, state=body.state, action=body.action, graphs={}, tokenizer=none,
        opset=18, other_files={}, provenance={},
    )  # fmt: skip
    return PolicyRuntime(
        DeploySpec.from_dict({**spec.to_dict(), "graphs": {n: vars(none) for n in modules}}),
        policy.processor.tokenizer,
        {name: TorchSession(module, NAMES[name]) for name, module in modules.items()},
    )


def seen(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "text": "turn it"[:seed], "state": draw.normal(size=9).astype(np.float32)}


def chunked(runtime: PolicyRuntime, seed: int, tie: Inpainting | None) -> np.ndarray:
    found = seen(seed)
    return runtime.chunk(runtime.encode(found), found["state"], seed=seed, tie=tie)


def test_relative_actions_come_out_alike(policy: Policy, runtime: PolicyRuntime) -> None:
    for seed in range(3):
        want = policy.act(seen(seed), seed=seed)
        assert np.abs(runtime.act(seen(seed), seed=seed) - want).max() < 1e-5
        assert np.abs(chunked(runtime, seed, None) - want).max() < 1e-5
        moved = {**seen(seed), "state": seen(seed)["state"] + np.float32([0, 0, 1, 0, 0, 0, 0, 0, 0])}
        assert np.abs(runtime.act(moved, seed=seed) - want).max() > 0.1  # they begin at the state


@pytest.mark.parametrize("rule", ["line", "published"])
@pytest.mark.parametrize("left", [1, 3, 9])
def test_a_chunk_under_way_is_continued_alike(policy: Policy, runtime: PolicyRuntime, rule: Any, left: int) -> None:
    old = np.repeat(policy.act(seen(1), seed=1), 3, axis=0)[1 : 1 + left]
    state = {**seen(2), "state": seen(1)["state"] + np.float32(0.05)}
    tie = Inpainting(old, frozen=2, rule=rule)
    want = policy.act(state, seed=2, tie=tie)
    got = runtime.chunk(runtime.encode(state), state["state"], seed=2, tie=tie)
    assert np.abs(got - want).max() < 1e-5
    # What was frozen is what the robot was about to do anyhow, though the new chunk is relative to another state.
    kept = min(2, left)
    assert np.abs(want[:kept, 6:] - old[:kept, 6:]).max() < 1e-5
    assert np.abs(want[:kept, :3] - old[:kept, :3]).max() < 1e-5
    assert np.abs(want - policy.act(state, seed=2)).max() > 1e-3


def test_the_rules_differ_and_a_looser_ramp_lets_go(policy: Policy) -> None:
    old = policy.act(seen(1), seed=1)
    found = {
        (rule, ramp): policy.act(seen(2), seed=2, tie=Inpainting(old, 1, ramp, rule))
        for rule in ("line", "published")
        for ramp in (1e-3, 50.0)
    }
    assert np.abs(found["line", 50.0] - found["published", 50.0]).max() > 1e-3
    apart = {ramp: np.abs(found["line", ramp] - old)[1:, :3].mean() for ramp in (1e-3, 50.0)}
    assert apart[1e-3] < apart[50.0]


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (Inpainting(np.zeros((0, 9), np.float32), 0), r"float \[1 or more, 9\], got \[0, 9\]"),
        (Inpainting(np.zeros((2, 8), np.float32), 0), r"got \[2, 8\]"),
        (Inpainting(np.full((2, 9), np.nan, np.float32), 0), "not finite"),
        (Inpainting(np.zeros((2, 9), np.float32), -1), "frozen >= 0 and ramp > 0, got -1"),
        (Inpainting(np.zeros((2, 9), np.float32), 0, 0.0), "ramp > 0"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_by_both(
    policy: Policy, runtime: PolicyRuntime, tie: Inpainting, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        policy.act(seen(0), tie=tie)
    with pytest.raises(DataError, match=message):
        chunked(runtime, 0, tie)


def test_the_loop_runs_a_declared_body(runtime: PolicyRuntime) -> None:
    now = [0.0]
    options = ControlConfig(execution="rtc", execute_steps=2, rtc_frozen_steps=1, change=1e-3)
    control = Controller(runtime, options, clock=lambda: now[0])
    for seed in (1, 2):
        control.observe(seen(seed))
        control.think()
        commands = [control.tick() for _ in range(2)]
        assert all(not c.held and np.isfinite(c.action).all() for c in commands)  # type: ignore[arg-type]
    assert control.counts.failures == 0
    assert 6 in commands[-1].limited  # the delta joint may hardly change


def test_limits_of_a_declared_body_are_those_of_its_numbers() -> None:
    body = declared_body()
    limits = action_limits(body.action, margin=0.1, change=0.5, body=body.embodiment)
    assert np.isinf(limits.low[:8]).all()  # relative and delta parts begin wherever the robot is
    assert (limits.low[8], limits.high[8]) == (pytest.approx(-0.05), pytest.approx(1.05))
    assert np.isinf(limits.change[[0, 1, 2, 3, 4, 5, 8]]).all()
    center, scale = body.action.center[:, 9:11], body.action.scale[:, 9:11]
    assert limits.change[6:8] == pytest.approx(0.5 * (np.abs(center) + 4 * scale).max(0))
    spec = body.embodiment.declaration
    assert spec is not None
    absolute = dataclasses.replace(body.embodiment, declaration=spec.with_actions("absolute"))
    columns = absolute.network.action_dim
    center, scale = np.arange(columns, dtype=np.float32), np.full(columns, 2, np.float32)
    limits = action_limits(Normalizer("mixed", center, scale), margin=0.0, change=0.5, body=absolute)
    assert limits.low[:3].tolist() == [-2, -1, 0]
    assert limits.high[:3].tolist() == [2, 3, 4]
    assert np.isinf(limits.high[3:6]).all()  # a rotation's encoded numbers are not the action's
    assert limits.high[6:8].tolist() == [9 + 8, 10 + 8]  # after nine numbers of the pose; mean and spread alone
    assert limits.change[[0, 6]].tolist() == [1, 4]


def test_the_robots_own_names_are_the_default(runtime: PolicyRuntime) -> None:
    names = default_interface(runtime.spec)
    assert names.cameras == ("head", "wrist_camera")
    assert names.state == {"wrist": (0, 2), "eef": (2, 9)}
    assert names.action == {"eef": (0, 6), "wrist": (6, 8), "grip": (8, 9)}
    told = modality_config(names, "n1_6")
    assert told["video"].as_json["modality_keys"] == ["head", "wrist_camera"]


def test_a_description_is_read_without_what_reads_configs(runtime: PolicyRuntime) -> None:
    """As on a robot; and damage in a declaration is an error that the reader of policy.json expects."""
    code = (
        "import json, sys; sys.modules['jsonargparse'] = sys.modules['torch'] = None;"
        "from vla.deploy.spec import DeploySpec; s = DeploySpec.from_dict(json.load(sys.stdin));"
        "print(json.dumps(s.to_dict()))"
    )
    plain = json.dumps(runtime.spec.to_dict())
    done = subprocess.run([sys.executable, "-c", code], input=plain, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads(plain)
    assert DeploySpec.from_dict(json.loads(plain)).embodiment == runtime.embodiment
    part = '"rotation": "axis_angle"'
    for change, message in (
        ('"rotation": "axis"', "unknown rotation type 'axis'"),
        (part + ', "more": 1', "action part 'eef' has an unknown key 'more'"),
        ('"rotation": 3', "action part 'eef': rotation cannot be 3"),
    ):
        with pytest.raises((ValueError, DataError), match=message):
            DeploySpec.from_dict(json.loads(plain.replace(part, change)))


def test_a_blank_observation_is_one_that_the_policy_takes(runtime: PolicyRuntime) -> None:
    assert runtime.blank()["state"].shape == (9,)
    assert np.isfinite(runtime.act(runtime.blank())).all()
