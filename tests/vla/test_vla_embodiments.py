"""Declared bodies in a policy: what it is taught, what it answers, what a checkpoint and a deploy folder keep of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from robots import reaching, write_robot_shards
from tiny_policy import TINY, make_group

from pyramid import pack, scan
from pyramid.actions import BodySpec
from pyramid.config import dump_yaml, from_dict
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import open_mixture
from pyramid.nn.trainer import TrainerConfig
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.rng import rng, torch_generator
from pyramid.types import Embodiment
from vla.config import VLAConfig
from vla.deploy.export import export
from vla.deploy.runtime import PolicyRuntime
from vla.evaluate import evaluate_vla
from vla.objectives.total import batch_loss
from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics, denormalize, normalize, read_bodies
from vla.train import train_vla

DATA = Path(__file__).parents[3] / "shared" / "data" / "robot"
TRAINER = TrainerConfig(max_steps=4, batch_size=8, lr=1e-3, warmup_steps=1, checkpoint_every=4, log_every=1, threads=1)
CONFIG = VLAConfig(policy=TINY, trainer=TRAINER)
T = 4
HAND: dict[str, Any] = {
    "name": "hand",
    "state": {
        "wrist": {"start": 0, "end": 2, "normalizer": "sin_cos"},
        "eef": {"start": 2, "end": 9, "kind": "pose", "rotation": "quaternion"},
    },
    "action": {
        "eef": {"start": 0, "end": 6, "kind": "pose", "rotation": "axis_angle", "representation": "relative"},
        "wrist": {"start": 6, "end": 8, "representation": "delta", "normalizer": "mean_std"},
        "grip": {"start": 8, "end": 9, "kind": "binary"},
    },
}


def hand() -> BodyStatistics:
    """A body with everything that needs encoding, and statistics of numbers drawn at random."""
    body = Embodiment(
        name="hand", state_dim=9, action_dim=9, horizon=T, rate_hz=10.0, declaration=from_dict(BodySpec, HAND)
    )
    draw, sizes = rng(0, "hand"), body.network
    rows = draw.normal(size=(64, T * sizes.action_dim))
    action = fit_normalizer(rows, "min_max")
    center, scale = (v.reshape(T, -1).copy() for v in (action.center, action.scale))
    center[:, -1], scale[:, -1] = 0.5, 0.5
    clip = (True,) * 9 + (False,) * 3
    made = Normalizer("mixed", center, scale, clip, (sizes.action_dim - 1,))
    return BodyStatistics(body, fit_normalizer(draw.normal(size=(64, sizes.state_dim)), "min_max"), made)


@pytest.fixture(scope="module")
def bodies() -> dict[str, BodyStatistics]:
    return {"hand": hand()}


def states(n: int, seed: int = 0) -> np.ndarray:
    return rng(seed, "states").normal(size=(n, 9)).astype(np.float32)


def hand_group(bodies: dict[str, BodyStatistics], n: int = 3) -> Any:
    body, draw = bodies["hand"].embodiment, rng(1, "group")
    base = {"hand": dataclasses.replace(bodies["hand"], embodiment=body.network)}
    action = draw.normal(size=(n, T, 9)).astype(np.float32)
    action[..., 8] = action[..., 8] > 0
    values = {"action": torch.from_numpy(action), "state": torch.from_numpy(states(n))}
    mask = torch.ones(n, T, 9, dtype=torch.bool)
    mask[0, 2:] = False
    return dataclasses.replace(make_group(base, "hand", n, 0), **values, mask=mask)


def test_the_networks_are_built_for_what_is_encoded(bodies: dict[str, BodyStatistics]) -> None:
    policy = build_policy(TINY, bodies)
    assert policy.embodiments["hand"].network.action_dim == 9 + 2 + 1
    assert policy.embodiments["hand"].network.state_dim == 4 + 9
    action = policy.act({"images": np.zeros((1, 16, 16, 3), np.uint8), "text": "turn", "state": states(1)[0]})
    assert action.shape == (T, 9)
    assert np.isfinite(action).all()
    assert set(np.unique(action[:, 8])) <= {0.0, 1.0}


def test_what_is_taught_comes_back_in_physical_units(bodies: dict[str, BodyStatistics]) -> None:
    body, group = bodies["hand"], hand_group(bodies)
    wide = dataclasses.replace(body, action=dataclasses.replace(body.action, clip=False))
    taught, mask = wide.encode_action(group.action, group.mask, group.state)
    assert taught.shape == mask.shape == (3, T, 12)
    assert mask.all(-1).equal(group.mask.all(-1))
    assert set(taught[..., 11].unique().tolist()) == {-1.0, 1.0}
    back = wide.decode_action(taught, group.state)
    kept = group.mask.all(-1)
    # An axis-angle vector of more than half a turn comes back as the shorter one.
    short = group.action[..., 3:6].norm(dim=-1) < np.pi - 0.01
    assert (back - group.action).abs()[kept & short].max() < 1e-4


@pytest.mark.parametrize("state", [False, True])
def test_torch_and_numpy_normalise_alike(bodies: dict[str, BodyStatistics], state: bool) -> None:
    normalizer = bodies["hand"].state if state else bodies["hand"].action
    assert normalizer is not None
    x = rng(2, "x").normal(size=(5, T, normalizer.width)).astype(np.float32) * 3
    assert np.allclose(normalize(normalizer, torch.from_numpy(x)).numpy(), normalizer.normalize(x), atol=1e-6)
    assert np.allclose(denormalize(normalizer, torch.from_numpy(x)).numpy(), normalizer.denormalize(x), atol=1e-6)


def test_padding_and_the_sign_of_a_quaternion_change_no_loss(bodies: dict[str, BodyStatistics]) -> None:
    policy, group = build_policy(TINY, bodies).eval(), hand_group(bodies)
    with torch.no_grad():
        want, _ = batch_loss(policy, [group], torch_generator(0, "loss"))
        action, state = group.action.clone(), group.state.clone()
        action[0, 2:] = 77.0
        state[:, 5:9] *= -1
        other = dataclasses.replace(group, action=action, state=state)
        assert torch.allclose(batch_loss(policy, [other], torch_generator(0, "loss"))[0], want, atol=1e-6)
        action[0, 1] += 1.0
        assert not torch.allclose(batch_loss(policy, [other], torch_generator(0, "loss"))[0], want, atol=1e-3)


def test_bad_numbers_and_a_missing_state_are_named(bodies: dict[str, BodyStatistics]) -> None:
    policy, group = build_policy(TINY, bodies).eval(), hand_group(bodies)
    action = group.action.clone()
    action[1, 0, 7] = torch.nan
    with pytest.raises(DataError, match="embodiment 'hand': action values that are not finite numbers in wrist"):
        batch_loss(policy, [dataclasses.replace(group, action=action)], torch_generator(0, "loss"))
    prepared = policy.prepare(policy.encode(group.images, group.text), group.state, group.state_known, "hand")
    with pytest.raises(DataError, match="embodiment 'hand': the actions of eef, wrist need the state, there is none"):
        policy.sample(prepared, torch.zeros(3, T, 12), "hand")
    with pytest.raises(DataError, match="has no state"):
        policy.act({"images": np.zeros((1, 16, 16, 3), np.uint8), "text": ""})


def test_statistics_of_another_config_and_too_few_cameras_are_refused(bodies: dict[str, BodyStatistics]) -> None:
    body = bodies["hand"]
    longer = dataclasses.replace(body.embodiment, horizon=T + 1)
    with pytest.raises(DataError, match="'hand': action statistics have 4 steps, its chunks 5; they are of another"):
        dataclasses.replace(body, embodiment=longer)
    with pytest.raises(DataError, match="'hand': no statistics for its 13 and 12 dimensions"):
        dataclasses.replace(body, action=fit_normalizer(np.zeros((1, 9)), "identity"))
    with pytest.raises(DataError, match="'hand': state statistics have 9 dimensions, not 13"):
        dataclasses.replace(body, state=fit_normalizer(np.zeros((1, 9)), "identity"))
    spec = from_dict(BodySpec, {**HAND, "cameras": ["front"]})
    seen = {"hand": dataclasses.replace(body, embodiment=dataclasses.replace(body.embodiment, declaration=spec))}
    two = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, n_views=2))
    with pytest.raises(ConfigError, match="takes 2 views, embodiment 'hand' declares the cameras front only"):
        build_policy(two, seen)


def test_a_checkpoint_and_a_deploy_folder_answer_alike(bodies: dict[str, BodyStatistics], tmp_path: Path) -> None:
    small = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, layers=2, sample_steps=1))
    built = build_policy(small, bodies, seed=1).eval()
    built.save_pretrained(str(tmp_path / "model"))
    policy = Policy.from_pretrained(str(tmp_path / "model"))
    assert policy.embodiments == built.embodiments
    exported = export(str(tmp_path / "model"), out=str(tmp_path / "deploy"), observations=2)
    assert max(exported.max_abs_error.values()) < 1e-5
    document = json.loads((tmp_path / "deploy" / "policy.json").read_text())
    assert document["embodiment"]["declaration"]["action"]["eef"]["representation"] == "relative"
    assert document["output"]["shape"] == [T, 9]
    assert np.shape(document["normalizers"]["action"]["center"]) == (T, 12)
    runtime = PolicyRuntime.load(str(tmp_path / "deploy"), threads=1)
    for seed in range(4):
        images = rng(seed, "images").integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
        seen = {"images": images, "text": "turn", "state": states(1, seed)[0]}
        want = policy.act(seen, seed=seed)
        assert (built.act(seen, seed=seed) == want).all()
        got = runtime.act(seen, seed=seed)
        assert got.shape == (T, 9)
        assert np.abs(got - want).max() < 1e-4
    document["embodiment"]["declaration"]["action"]["eef"]["representation"] = "sideways"
    (tmp_path / "deploy" / "policy.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"policy.json' is damaged: the declaration of embodiment 'hand'.*sideways"):
        PolicyRuntime.load(str(tmp_path / "deploy"))
    document["embodiment"] |= {"horizon": T + 1, "declaration": HAND}
    (tmp_path / "deploy" / "policy.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"policy.json' is damaged: .*statistics have 4 steps, its chunks 5"):
        PolicyRuntime.load(str(tmp_path / "deploy"))


def robot(tmp_path: Path, actions: str) -> str:
    if not (tmp_path / "robot").exists():
        write_robot_shards(tmp_path / "robot", reaching(10, seed=0), n_val=3)
    source = {"shards": "robot", "use": "action", "actions": actions}
    spec = {"tiers": {"top": {"weight": 1, "sources": {"robot": source}}}, "horizon": T}
    (tmp_path / f"{actions}.yaml").write_text(dump_yaml(spec))
    return str(tmp_path / f"{actions}.yaml")


def test_relative_actions_know_where_the_robot_is_and_absolute_ones_must_learn_it(tmp_path: Path) -> None:
    """Joints run up by 0.1 a step from anywhere in 10 rad: less the state, that is the same everywhere."""
    errors = {}
    for actions in ("absolute", "delta", "relative"):
        mixture, model = robot(tmp_path, actions), str(tmp_path / f"model_{actions}")
        train_vla(mixture, out=model, config=CONFIG)
        score = evaluate_vla(mixture, model=model, batches=2, batch_size=8).bodies["arm"]
        errors[actions] = max(score.mae_per_dim[:2])
    assert errors["relative"] < 0.01
    assert errors["delta"] < 0.01
    assert errors["absolute"] > 0.5


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the robot data in {DATA}")
@pytest.mark.parametrize("declaration", ["gr1", "meta"])
def test_a_real_humanoid_trains_with_relative_arms(tmp_path: Path, declaration: str) -> None:
    found = scan("lerobot", str(DATA / "gr1_pick_and_place"), out=str(tmp_path / "clips.parquet"), val_share=0.2)
    pack(found.out, out=str(tmp_path / "shards"), size_px=32)
    place = declaration if declaration == "gr1" else str(DATA / "gr1_pick_and_place")
    source = {"shards": "shards", "use": "action", "declaration": place, "actions": "relative"}
    tiers = {"top": {"weight": 1, "sources": {"gr1": source}}}
    (tmp_path / "mixture.yaml").write_text(dump_yaml({"tiers": tiers, "horizon": 16, "seed": 1}))
    stream = open_mixture(str(tmp_path / "mixture.yaml"), batch_size=4, image_size=16)
    (name,) = stream.embodiments
    spec = stream.embodiments[name].declaration
    assert spec is not None
    assert {spec.action[part].representation for part in ("left_arm", "right_arm")} == {"relative"}
    assert {spec.action[part].representation for part in ("left_hand", "right_hand")} == {"absolute"}
    assert stream.statistics[name]["action"].steps == 16
    # The right arm moves away from the state: the spread of a step grows along the chunk.
    moved = stream.statistics[name]["action"].scale[:, 22:29].mean(1)
    assert moved[15] > 1.5 * moved[1]
    body = read_bodies(stream.embodiments, stream.statistics)[name]
    (group,) = stream.batch(0)
    wide = dataclasses.replace(body, action=dataclasses.replace(body.action, clip=False))
    taught, mask = wide.encode_action(group.action, group.mask, group.state)
    back = wide.decode_action(taught, group.state)
    still = torch.from_numpy(body.action.scale == 0).any(0)
    assert (back - group.action).abs()[mask & ~still].max() < 1e-4
    options = {"trainer.max_steps": 6, "trainer.threads": 1, "trainer.batch_size": 8}
    head = dataclasses.replace(TINY.head, max_horizon=16)
    config = VLAConfig(policy=dataclasses.replace(TINY, head=head), trainer=TRAINER)
    result = train_vla(str(tmp_path / "mixture.yaml"), out=str(tmp_path / "model"), config=config, **options)
    assert np.isfinite(result.loss)
    policy = Policy.from_pretrained(str(tmp_path / "model"))
    state = group.state[0].numpy()
    action = policy.act({"images": group.images[0].numpy(), "text": group.text[0], "state": state})
    assert action.shape == (16, 44)
    # A head that is hardly trained stays within a few scales: arms are sent near to where they are.
    reach = np.abs(body.action.center[:, :7]) + 8 * body.action.scale[:, :7]
    assert (np.abs(action[:, :7] - state[:7]) <= reach + 1e-4).all()
