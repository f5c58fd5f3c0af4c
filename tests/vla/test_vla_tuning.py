"""Going on from a checkpoint, adapters, memory, validation, preflight, and a run that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import vla_kill_driver
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_policy import TINY, affine, make_bodies, make_group

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.nn.trainer import TrainerConfig
from pyramid.types import Embodiment
from vla.config import PolicyConfig
from vla.objectives.total import Objectives, batch_loss
from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics
from vla.proxy import VLAProxy
from vla.train import VLAModule, train_vla
from vla.tuning.config import LoraSpec
from vla.tuning.initial import initial_policy
from vla.tuning.lora import add_lora, merge_lora
from vla.tuning.memory import checkpoint_blocks
from vla.tuning.preflight import preflight

FROZEN = replace(TINY, backbone=replace(TINY.backbone, frozen=True))
NEW = Embodiment(name="gripper", state_dim=1, action_dim=3, horizon=2, rate_hz=5.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def trained(tmp_path: Path) -> str:
    build_policy(TINY, make_bodies(), seed=5).save_pretrained(str(tmp_path / "old"))
    return str(tmp_path / "old")


def with_new() -> dict[str, BodyStatistics]:
    bodies = make_bodies()
    new = BodyStatistics(NEW, affine([0.0], [1.0]), affine([0.0] * 3, [1.0] * 3))
    return {"arm": bodies["arm"], "gripper": new}


def begin(folder: str, bodies: dict[str, BodyStatistics], config: PolicyConfig = TINY, **options: str) -> Policy:
    return initial_policy(folder, config, bodies, seed=1, **options)


def test_a_policy_that_goes_on_keeps_what_it_knew_and_learns_new_bodies(trained: str) -> None:
    old, new = Policy.from_pretrained(trained), begin(trained, with_new())
    assert set(new.embodiments) == {"arm", "human_latent", "gripper"}
    was, now = old.state_dict(), new.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in was.items())
    added = {name for name in now if name not in was}
    assert added
    assert all(".slots.for_gripper." in name for name in added)
    seen = {"images": np.full((1, 16, 16, 3), 90, np.uint8), "text": "push", "state": np.float32([1, 2, 0.5])}
    assert (old.act(seen, embodiment="arm") == new.act(seen, embodiment="arm")).all()


def test_future_tokens_may_be_added_and_nothing_else(trained: str) -> None:
    grown = begin(trained, with_new(), replace(TINY, head=replace(TINY.head, future_tokens=4)))
    assert grown.head.future.shape == (4, 32)
    with pytest.raises(ConfigError, match=r"policy\.head\.hidden is 48, the policy in .* has 24"):
        begin(trained, with_new(), replace(TINY, head=replace(TINY.head, hidden=48)))
    with pytest.raises(ConfigError, match=r"policy\.backbone\.image_size_px is 24, .* has 16"):
        begin(trained, with_new(), replace(TINY, backbone=replace(TINY.backbone, image_size_px=24)))


def test_whose_statistics_hold_must_be_said(trained: str) -> None:
    bodies = with_new()
    bodies["arm"] = replace(bodies["arm"], action=affine([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ConfigError, match=r"'arm' has other statistics in the mixture.*--statistics checkpoint"):
        begin(trained, bodies)
    kept = begin(trained, bodies, statistics="checkpoint").processor.body("arm").action
    taken = begin(trained, bodies, statistics="mixture").processor.body("arm").action
    assert kept.center.tolist() == [10.0, -4.0]
    assert taken.center.tolist() == [0.0, 0.0]
    narrow = replace(bodies["arm"].embodiment, horizon=3)
    bodies["arm"] = replace(make_bodies()["arm"], embodiment=narrow)
    with pytest.raises(DataError, match=r"'arm' is .*'horizon': 3.* in the mixture and .*'horizon': 4"):
        begin(trained, bodies, statistics="checkpoint")


def test_adapters_change_nothing_at_first_and_alone_train_a_frozen_backbone() -> None:
    pytest.importorskip("peft")
    policy, group = build_policy(FROZEN, make_bodies(), seed=1).eval(), make_group(make_bodies(), "arm", 4, 0)
    before, _ = policy.encode(group.images, group.text)
    add_lora(policy, LoraSpec(rank=2, alpha=4.0))
    after, _ = policy.encode(group.images, group.text)
    assert torch.allclose(before, after, atol=1e-6)
    training = {n for n, p in policy.backbone.named_parameters() if p.requires_grad}
    assert training
    assert all(".lora_" in name for name in training)
    still = {n: t.clone() for n, t in policy.backbone.state_dict().items() if ".lora_" not in n}
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        optimiser.zero_grad()
        batch_loss(policy.train(), [group], generator(step))[0].backward()
        optimiser.step()
    now = policy.backbone.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in still.items())
    assert not torch.allclose(policy.eval().encode(group.images, group.text)[0], before, atol=1e-4)


def test_adapters_are_merged_or_kept_apart_with_the_same_answers(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    policy, group = build_policy(FROZEN, make_bodies(), seed=1).eval(), make_group(make_bodies(), "arm", 4, 0)
    plain = set(policy.state_dict())
    add_lora(policy, LoraSpec(rank=2))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if ".lora_B" in name:
                p.normal_(generator=generator(3))
    want, _ = policy.encode(group.images, group.text)
    policy.save_pretrained(str(tmp_path / "apart"))
    apart = Policy.from_pretrained(str(tmp_path / "apart"))
    assert torch.equal(apart.encode(group.images, group.text)[0], want)
    with pytest.raises(ConfigError, match="adapters apart"):
        initial_policy(str(tmp_path / "apart"), FROZEN, make_bodies(), seed=0)
    merge_lora(policy)
    assert set(policy.state_dict()) == plain
    policy.save_pretrained(str(tmp_path / "merged"))
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == plain
    merged = Policy.from_pretrained(str(tmp_path / "merged"))
    assert torch.allclose(merged.encode(group.images, group.text)[0], want, rtol=1e-4, atol=1e-3)
    with pytest.raises(ConfigError, match=r"no linear layer 'w_proj'; they have .*q_proj"):
        add_lora(merged, LoraSpec(rank=2, targets=("w_proj",)))


def test_activation_checkpoints_keep_less_and_give_the_same_gradients() -> None:
    config = replace(TINY, head=replace(TINY.head, dropout=0.2))
    policies = [build_policy(config, make_bodies(), seed=2).train() for _ in range(2)]
    assert checkpoint_blocks(policies[1]) == TINY.head.layers + TINY.backbone.tap_layer
    batch = [make_group(make_bodies(), name, 4, 0) for name in ("arm", "human_latent")]
    kept, gradients = [], []
    for policy in policies:
        module = VLAModule(policy, TrainerConfig(max_steps=5, threads=1))
        kept.append(preflight(module, lambda step: batch, module.parts()).memory_bytes["activations"])
        torch.manual_seed(9)
        policy.train()
        batch_loss(policy, batch, generator())[0].backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert kept[1] < 0.7 * kept[0]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], g, atol=1e-7) for n, g in gradients[1].items())


def test_the_preflight_counts_what_there_is() -> None:
    policy = build_policy(FROZEN, make_bodies(), seed=2)
    module, read = VLAModule(policy, TrainerConfig(max_steps=50, accumulate=2, ema_decay=0.9)), []
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    state = torch.random.get_rng_state()
    found = preflight(module, lambda s: read.append(s) or [make_group(make_bodies(), "arm", 4, s)], module.parts())
    total, head = (sum(p.numel() for p in m.parameters()) for m in (policy, policy.head))
    assert found.trained["System 1"] == head
    assert (found.trained["System 2"], found.frozen["System 2"]) == (0, total - head)
    assert found.memory_bytes["weights"] == found.memory_bytes["average"] == 4 * total
    assert found.memory_bytes["optimiser"] == 2 * found.memory_bytes["gradients"] == 8 * head
    assert found.total_s == pytest.approx(50 * found.step_s)
    assert read == [0]
    assert all(p.grad is None for p in policy.parameters())
    assert all(torch.equal(before[n], t) for n, t in policy.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    # Twice the samples keep about twice as much.
    double = preflight(module, lambda s: [make_group(make_bodies(), "arm", 8, s)], module.parts())
    assert 1.5 < double.memory_bytes["activations"] / found.memory_bytes["activations"] < 2.1
    assert "System 1" in " ".join(found.lines())


@pytest.mark.usefixtures("own_cache")
@pytest.mark.slow
def test_a_killed_run_ends_bit_equal_and_tells_what_it_measured(tmp_path: Path) -> None:
    driver = [sys.executable, vla_kill_driver.__file__, str(tmp_path)]
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(driver, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"whole": 0, "killed": [-9, False, -9, False], "last": 0}
    assert files.read_bytes(f"{tmp_path}/whole/model.safetensors") == files.read_bytes(
        f"{tmp_path}/parts/model.safetensors"
    )
    log = EventAccumulator(str(tmp_path / "whole" / "logs")).Reload()
    scalars = {tag: {e.step: e.value for e in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    assert set(scalars["val/mae_arm"]) == {3, 6}
    assert {"val/loss", "val/loss_flow", "val/loss_future", "val/r2_arm"} <= set(scalars)
    assert {"loss_source/robot", "future_source/seen", "share/seen", "weight_share/robot"} <= set(scalars)
    assert scalars["share/seen"][1] == pytest.approx(1 / 3)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "| base | seen | video | human_video |" in card
    assert "| arm | measured | 1 | 2 | 3 | 10 Hz |" in card
    policy = Policy.from_pretrained(str(tmp_path / "whole"))
    assert set(policy.embodiments) == {"arm"}
    policy.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text() == card
    assert "adapters" not in json.loads((tmp_path / "whole" / "config.json").read_text())["extra"]


@pytest.mark.usefixtures("own_cache")
def test_videos_need_an_objective_and_plans_say_what_they_cost(tmp_path: Path) -> None:
    mixture = vla_kill_driver.write_mixture(tmp_path)
    with pytest.raises(ConfigError, match=r"'human_video' has no actions.*objectives\.flare\.weight"):
        train_vla(mixture, dry_run=True, config=vla_kill_driver.config(**{"objectives.flare.weight": 0.0}))
    with pytest.raises(ConfigError, match=r"'seen' has no actions \(use: video\)"):
        VLAProxy(mixture, vla_kill_driver.config())
    plan = train_vla(mixture, dry_run=True, config=vla_kill_driver.config())
    assert plan.dry_run
    assert [line.split(":")[0] for line in plan.notes] == ["parameters", "memory", "time"]
    assert all(note in repr(plan) for note in plan.notes)


def test_objectives_are_no_part_of_the_policy() -> None:
    policy = build_policy(TINY, make_bodies())
    module = VLAModule(policy, TrainerConfig())
    assert isinstance(module.objectives, Objectives)
    assert set(module.finished().state_dict()) == set(policy.state_dict())
