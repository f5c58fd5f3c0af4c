"""Policies that are given past states: trained, measured, asked, exported and played with the same ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robots import write_robot_shards
from tiny_policy import TINY, affine, make_bodies, make_group

from pyramid import files
from pyramid.actions import ActionPart, BodySpec, StatePart
from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import MixtureStream
from pyramid.nn.trainer import TrainerConfig
from pyramid.rng import rng, torch_generator
from pyramid.sim.rollouts import Remembering
from pyramid.types import Embodiment
from vla.config import PolicyConfig, VLAConfig
from vla.deploy.control import ControlConfig, Controller
from vla.deploy.dialects import answer, default_interface, modality_config, parse
from vla.deploy.export import export
from vla.deploy.runtime import PolicyRuntime
from vla.evaluate import evaluate_vla
from vla.objectives.config import FlareConfig, ObjectivesConfig
from vla.objectives.total import Objectives, batch_loss
from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics
from vla.train import train_vla
from vla.tuning.config import TuneConfig, ValidationConfig

H, GAP_S, T = 2, 0.3, 4
REST: dict[str, Any] = {"images": np.zeros((1, 16, 16, 3), np.uint8), "text": "go"}


def sized(history: int = H, **head: Any) -> PolicyConfig:
    return dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, state_history=history, **head))


def long_bodies(history: int = H) -> dict[str, BodyStatistics]:
    """The usual tiny bodies, and one whose actions are relative to its state; those with a state take several."""
    plain, spec = make_bodies(), BodySpec(
        name="reach",
        state={"joints": StatePart(start=0, end=2, normalizer="sin_cos")},
        action={"joints": ActionPart(start=0, end=2, representation="relative")},
    )  # fmt: skip
    asked = {"state_history": history, "state_gap_s": GAP_S if history > 1 else 0.0}
    reach = Embodiment(name="reach", state_dim=2, action_dim=2, horizon=T, rate_hz=10.0, declaration=spec, **asked)
    arm = dataclasses.replace(plain["arm"], embodiment=dataclasses.replace(plain["arm"].embodiment, **asked))
    statistics = affine([0.1] * 4, [0.5] * 4), affine([0.2, 0.1], [0.3, 0.4])
    return {"arm": arm, "human_latent": plain["human_latent"], "reach": BodyStatistics(reach, *statistics)}


def long_group(bodies: dict[str, BodyStatistics], name: str, n: int = 3, seed: int = 0) -> Any:
    body = bodies[name].embodiment
    flat = {name: dataclasses.replace(bodies[name], embodiment=dataclasses.replace(body.network))}
    group = make_group(flat, name, n, seed)
    draw = rng(seed, "states", name)
    state = torch.from_numpy(draw.normal(size=(n, *body.state_shape)).astype(np.float32))
    action = torch.from_numpy(draw.normal(size=(n, T, body.action_dim)).astype(np.float32))
    return dataclasses.replace(group, state=state, action=action, mask=torch.ones_like(action, dtype=torch.bool))


def test_each_state_is_encoded_for_itself_and_actions_begin_from_the_last() -> None:
    for name in ("arm", "reach"):
        body, group = long_bodies()[name], long_group(long_bodies(), name)
        short = long_bodies(1)[name]
        encoded = body.encode_state(group.state)
        assert torch.equal(encoded, torch.stack([short.encode_state(group.state[:, k]) for k in range(H)], 1))
        action, mask = body.encode_action(group.action, group.mask, group.state)
        want, kept = short.encode_action(group.action, group.mask, group.state[:, -1])
        assert torch.equal(action, want)
        assert torch.equal(mask, kept)
        assert torch.equal(body.decode_action(action, group.state), short.decode_action(want, group.state[:, -1]))


def test_the_answer_is_that_of_the_states_in_their_order() -> None:
    policy = build_policy(sized(), long_bodies(), seed=3).eval()
    history = policy.history("reach")
    assert isinstance(policy, Remembering)
    states = rng(0, "walk").normal(size=(9, 2)).astype(np.float32)
    for step, state in enumerate(states):
        seen = history.add(state, step / 10)
    assert np.array_equal(seen, states[[5, 8]])
    got = policy.act({**REST, "state": seen}, embodiment="reach", seed=1)
    assert got.shape == (T, 2)
    # Once more by hand: sines and cosines, the closed form of the normaliser, the head, the sum with the last state.
    waves = np.concatenate([np.sin(seen), np.cos(seen)], -1)
    encoded = torch.from_numpy((waves - 0.1) / 0.5).float()[None]
    noise = torch.from_numpy(rng(1, "policy noise").standard_normal((T, 2), dtype=np.float32))[None]
    with torch.no_grad():
        context, mask = policy.encode(torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), ["go"])
        raw = policy.head.sample(policy.head.prepare(context, mask, encoded, None, "reach"), noise, "reach")[0].numpy()
    want = states[8] + raw * [0.3, 0.4] + [0.2, 0.1]
    assert np.abs(got - want).max() < 1e-5
    for other in (seen[::-1], seen[[1, 1]]):
        assert np.abs(policy.act({**REST, "state": other}, embodiment="reach", seed=1) - got).max() > 1e-4


def test_a_single_state_and_another_number_of_states_are_refused() -> None:
    policy = build_policy(sized(), long_bodies(), seed=3).eval()
    with pytest.raises(
        DataError, match=r"must be float \[2, 3\], got float32 \[3\]; the policy takes the last 2 states"
    ):
        policy.act({**REST, "state": np.zeros(3, np.float32)}, embodiment="arm")
    with pytest.raises(DataError, match=r"must be float \[2, 3\], got float32 \[3, 3\]"):
        policy.act({**REST, "state": np.zeros((3, 3), np.float32)}, embodiment="arm")
    bad = np.zeros((2, 3), np.float32)
    bad[0, 1] = np.nan
    with pytest.raises(DataError, match=r"not finite in dimensions \[1\]"):
        policy.act({**REST, "state": bad}, embodiment="arm")
    short = build_policy(TINY, make_bodies(), seed=3).eval()
    with pytest.raises(DataError, match=r"must be float \[3\], got float32 \[2, 3\]"):
        short.act({**REST, "state": np.zeros((2, 3), np.float32)}, embodiment="arm")


def test_head_and_samples_must_have_as_many_states() -> None:
    told = r"'arm' comes with 2 states a sample \(state_history in the mixture\), the policy encodes 1 \(policy.head"
    with pytest.raises(ConfigError, match=told):
        build_policy(TINY, long_bodies())
    with pytest.raises(ConfigError, match=r"'arm' comes with 1 states a sample .*, the policy encodes 2"):
        build_policy(sized(), make_bodies())
    policy = build_policy(TINY, make_bodies())
    with pytest.raises(ConfigError, match="'reach' comes with 2 states"):
        policy.add_embodiment(long_bodies()["reach"])
    assert "reach" not in policy.embodiments
    group = long_group(long_bodies(), "arm")
    with pytest.raises(DataError, match=r"state of shape \[3, 2, 3\], embodiment 'arm' has \[3, 3\]"):
        policy.check()([group])


def test_unknown_states_and_padding_change_no_loss() -> None:
    bodies = long_bodies()
    policy = build_policy(sized(state_dropout=0.5), bodies, seed=3)
    groups = [long_group(bodies, "arm"), make_group(bodies, "human_latent", 2, 0), long_group(bodies, "reach")]
    policy.check()(groups)

    def loss(*changed: Any) -> float:
        return float(batch_loss(policy, changed or groups, torch_generator(0, "noise"))[0].detach())

    unknown = torch.tensor([True, False, True])
    arm = dataclasses.replace(groups[0], state_known=unknown)
    poisoned = dataclasses.replace(arm, state=torch.where(unknown[:, None, None], arm.state, torch.nan))
    policy.check()([poisoned])
    with pytest.raises(DataError, match="states that are not finite"):
        policy.check()([dataclasses.replace(poisoned, state_known=torch.ones(3, dtype=torch.bool))])
    assert loss(arm, *groups[1:]) == loss(poisoned, *groups[1:])
    moved = dataclasses.replace(groups[2], state=groups[2].state + torch.tensor([[[0.5], [0.0]]]))
    assert loss(*groups[:2], moved) != loss()


def test_foreseeing_with_a_learned_target_takes_them_too() -> None:
    bodies = {"arm": long_bodies()["arm"]}
    policy = build_policy(sized(future_tokens=4), bodies, seed=3)
    flare = FlareConfig(weight=0.2, target="qformer", qformer_width=16, qformer_heads=2, layer=2)
    group = long_group(bodies, "arm")
    ahead = {"future": group.images, "future_known": torch.ones(3, dtype=torch.bool)}
    objectives = Objectives(ObjectivesConfig(flare=flare), policy)
    loss, logs = objectives.loss(policy, [dataclasses.replace(group, **ahead)], torch_generator(0, "noise"))
    loss.backward()  # type: ignore[no-untyped-call]
    assert {"loss_flow", "loss_future", "loss_target"} <= set(logs)


def swinging(n: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Episodes of a joint that moves up or down evenly from anywhere; the action is its velocity."""
    draw, found = rng(seed, "swinging"), []
    for _ in range(n):
        speed, length = float(draw.choice([-0.1, 0.1])), 14
        path = draw.uniform(-0.5, 0.5) + speed * (np.arange(length) - length / 2)
        found.append((path.astype(np.float32)[:, None], np.full((length, 1), speed, np.float32)))
    return found


def swing_mixture(folder: Path, name: str, **options: Any) -> str:
    if not (folder / "robot").exists():
        write_robot_shards(folder / "robot", swinging(60, seed=0), n_val=20)
    spec = {"tiers": {"top": {"weight": 1, "sources": {"robot": {"shards": "robot", "use": "action"}}}}, "horizon": T}
    (folder / name).write_text(dump_yaml({**spec, **options}))
    return str(folder / name)


def small(steps: int, history: int) -> VLAConfig:
    trainer = TrainerConfig(
        max_steps=steps, batch_size=16, lr=3e-3, warmup_steps=10, checkpoint_every=steps // 3, log_every=10, threads=1
    )
    tune = TuneConfig(validation=ValidationConfig(every=steps // 2, batches=1))
    backbone = dataclasses.replace(TINY.backbone, frozen=True)
    config = dataclasses.replace(sized(history), backbone=backbone)
    return VLAConfig(policy=config, trainer=trainer, tune=tune)


@pytest.mark.slow
def test_what_only_the_past_tells_is_learned_from_it_alone(tmp_path: Path) -> None:
    errors = {}
    for history in (1, H):
        options = {"state_history": H, "state_gap_s": GAP_S} if history > 1 else {}
        mixture, model = swing_mixture(tmp_path, f"{history}.yaml", **options), str(tmp_path / f"model_{history}")
        train_vla(mixture, out=model, config=small(150, history))
        score = evaluate_vla(mixture, model=model, batches=4, batch_size=16).bodies["arm"]
        errors[history] = score.mae / score.baseline_mae
    assert errors[1] > 0.7, "where the joint is says little of where it goes"
    assert errors[H] < 0.45, errors
    # Such a policy knows of another mixture by name.
    with pytest.raises(DataError, match=r"the policy has .*'state_history': 2.* the mixture \{"):
        evaluate_vla(str(tmp_path / "1.yaml"), model=str(tmp_path / "model_2"))
    with pytest.raises(ConfigError, match="'arm' comes with 1 states a sample"):
        train_vla(str(tmp_path / "1.yaml"), config=small(6, H), dry_run=True)
    with pytest.raises(ConfigError, match="'arm' comes with 2 states a sample"):
        train_vla(str(tmp_path / "2.yaml"), config=small(6, 1), dry_run=True)
    other = swing_mixture(tmp_path, "other.yaml", state_history=H, state_gap_s=0.2)
    with pytest.raises(DataError, match=r"'state_gap_s': 0\.2\} in the mixture and .*'state_gap_s': 0\.3"):
        train_vla(other, config=small(6, H), init_from=str(tmp_path / "model_2"), dry_run=True)


def test_a_run_that_is_broken_off_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, read = swing_mixture(tmp_path, "mix.yaml", state_history=H, state_gap_s=GAP_S), MixtureStream.batch

    def run(name: str, last: int = 99) -> None:
        def batch(self: MixtureStream, step: int) -> Any:
            if step == last:
                raise DataError("the disk went away")
            return read(self, step)

        monkeypatch.setattr(MixtureStream, "batch", batch)
        train_vla(mixture, out=str(tmp_path / name), config=small(6, H))

    run("whole")
    with pytest.raises(DataError, match="went away"):
        run("parts", last=4)
    assert not (tmp_path / "parts" / "config.json").exists()
    run("parts")
    weights = [files.sha256_file(str(tmp_path / name / "model.safetensors")) for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, PolicyRuntime, Path]:
    folder = tmp_path_factory.mktemp("states")
    policy = build_policy(sized(layers=2, sample_steps=1), long_bodies(), seed=3).eval()
    policy.save_pretrained(str(folder / "model"))
    exported = export(
        str(folder / "model"), out=str(folder / "deploy"), embodiment="reach", observations=10, single_step=True
    )
    assert set(exported.graphs) == {"system1", "system2", "system1_context", "system1_step"}
    assert max(exported.max_abs_error.values()) < 1e-5
    again = Policy.from_pretrained(str(folder / "model"))
    assert again.embodiments == policy.embodiments
    return again, PolicyRuntime.load(str(folder / "deploy"), threads=1), folder / "deploy"


def test_the_exported_policy_answers_alike(deployed: tuple[Policy, PolicyRuntime, Path]) -> None:
    policy, runtime, folder = deployed
    document = json.loads((folder / "policy.json").read_text())
    assert document["inputs"]["state"] == {"dtype": "float32", "shape": [2, 2], "unit": "physical", "steps": [-3, 0]}
    assert runtime.blank()["state"].shape == (2, 2)
    runtime.act(runtime.blank())
    for seed in range(4):
        state = rng(seed, "seen").normal(size=(2, 2)).astype(np.float32)
        seen = {**REST, "state": state}
        want = policy.act(seen, embodiment="reach", seed=seed)
        assert np.abs(runtime.act(seen, seed=seed) - want).max() < 1e-4
        assert np.abs(runtime.chunk(runtime.encode(seen), state, seed=seed) - want).max() < 1e-4
        assert np.abs(runtime.act({**seen, "state": state[::-1]}, seed=seed) - want).max() > 1e-3
    with pytest.raises(DataError, match=r"\[2, 2\], got float32 \[2\]; the policy takes the last 2 states"):
        runtime.act({**REST, "state": np.zeros(2, np.float32)})
    with pytest.raises(DataError, match=r"the state must be float \[2, 2\], got \[2\]"):
        runtime.chunk(runtime.encode(runtime.blank()), np.zeros(2, np.float32))
    ours, theirs = runtime.history(), policy.history("reach")
    for step in range(6):
        state = np.float32([step, -step])
        assert np.array_equal(ours.add(state, step / 10), theirs.add(state, step / 10))


@pytest.mark.parametrize("execution", ["receding", "rtc"])
def test_a_controller_keeps_the_past_itself(deployed: tuple[Policy, PolicyRuntime, Path], execution: Any) -> None:
    _, runtime, _ = deployed
    now = [50.0]
    config = ControlConfig(execution=execution, execute_steps=1, margin=1e6, change=1e6)
    control = Controller(runtime, config, clock=lambda: now[0], seed=7)
    states = rng(2, "loop").normal(size=(8, 2)).astype(np.float32)
    for step, state in enumerate(states):
        now[0] = 50.0 + step / 10
        control.observe({**REST, "state": state})
        control.think()
        command = control.tick()
        assert not command.held
        if execution == "receding":
            past = np.stack([states[max(step - 3, 0)], state])
            want = runtime.chunk(runtime.encode({**REST, "state": past}), past, seed=7 + step)[0]
            assert np.abs(command.action - want).max() < 1e-5
    assert control.counts.failures == 0
    with pytest.raises(DataError, match="not finite"):
        control.observe({**REST, "state": np.float32([np.nan, 0])})
    control.observe({**REST, "state": states[:2]})  # Whoever keeps the past gives all of it.
    assert not control.tick().held


@pytest.mark.parametrize("dialect", ["n1_5", "n1_6"])
def test_both_dialects_have_a_time_axis_of_states(deployed: tuple[Policy, PolicyRuntime, Path], dialect: Any) -> None:
    _, runtime, _ = deployed
    names = default_interface(runtime.spec)
    told = modality_config(names, dialect)["state"].as_json
    assert (json.loads(told) if isinstance(told, str) else told)["delta_indices"] == [-3, 0]
    state = np.float32([[1, 2], [3, 4]])

    def asked(state: np.ndarray) -> Any:
        image = REST["images"]
        if dialect == "n1_5":
            return {"video.camera_0": image, "state.joints": state, "annotation.human.task_description": ["go"]}
        return {"observation": {"video": {"camera_0": image[None]}, "state": {"joints": state[None]}}}

    query = parse(asked(state), names)
    (seen,) = query.observations
    assert np.array_equal(seen["state"], state)
    action = runtime.act(seen)
    reply: Any = answer(query, [action], names, {})
    got = reply["action.joints"] if dialect == "n1_5" else reply[0]["joints"][0]
    assert np.array_equal(got, action)
    with pytest.raises(DataError, match=r"state 'joints' must be float \[(B, )?2, 2\], got float32"):
        parse(asked(state[:1]), names)
    state[0, 1] = np.inf
    with pytest.raises(DataError, match=r"not finite in dimensions \[1\]"):
        parse(asked(state), names)
