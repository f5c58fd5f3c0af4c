import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import TINY, make_bodies

from pyramid.errors import ConfigError, DataError, PyramidError
from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics, denormalize, normalize


def observation(seed=0, **changes):
    draw = np.random.default_rng(seed)
    return {
        "images": draw.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8),
        "text": "push",
        "state": np.float32([1.0, 2.5, 0.5]),
        **changes,
    }


def test_saved_and_loaded_is_bit_exact(policy, tmp_path):
    policy.save_pretrained(str(tmp_path))
    again = Policy.from_pretrained(str(tmp_path))
    assert again.config == policy.config
    assert again.embodiments == policy.embodiments
    ours, theirs = policy.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in policy.embodiments:
        want = policy.act(observation(state=None) if name == "human_latent" else observation(), embodiment=name, seed=4)
        got = again.act(observation(state=None) if name == "human_latent" else observation(), embodiment=name, seed=4)
        assert want.tobytes() == got.tobytes()
    second = tmp_path / "again"
    again.save_pretrained(str(second))
    for file in ("config.json", "model.safetensors"):
        assert (second / file).read_bytes() == (tmp_path / file).read_bytes()


def test_weights_are_a_function_of_the_seed_and_leave_torch_alone():
    before = torch.random.get_rng_state()
    a, b, c = (build_policy(TINY, make_bodies(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_new_embodiment_leaves_the_others_as_they_were(policy, tmp_path):
    arm = make_bodies()["arm"]
    weights, random = ({n: t.clone() for n, t in policy.state_dict().items()}, torch.random.get_rng_state())
    want = policy.act(observation(), embodiment="arm", seed=4)
    moved = replace(arm.action, center=arm.action.center + 100)
    policy.add_embodiment(replace(arm, embodiment=replace(arm.embodiment, name="twin"), action=moved), like="arm")
    policy.add_embodiment(replace(arm, embodiment=replace(arm.embodiment, name="stranger")))
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(policy.state_dict()[name], tensor) for name, tensor in weights.items())
    policy.save_pretrained(str(tmp_path))
    again = Policy.from_pretrained(str(tmp_path))
    assert set(again.embodiments) == {"arm", "human_latent", "twin", "stranger"}
    got = {name: again.act(observation(), embodiment=name, seed=4) for name in ("arm", "twin", "stranger")}
    assert got["arm"].tobytes() == want.tobytes()
    assert np.allclose(got["twin"], want + 100, atol=1e-4)
    assert not np.allclose(got["stranger"], want, atol=1e-2)


def test_an_embodiment_that_cannot_be_added_changes_nothing(policy):
    arm, names = make_bodies()["arm"], set(policy.state_dict())
    narrow = replace(arm.state, center=arm.state.center[:2], scale=arm.state.scale[:2])
    other = BodyStatistics(replace(arm.embodiment, name="other", state_dim=2), narrow, arm.action)
    with pytest.raises(ConfigError, match="declared already"):
        policy.add_embodiment(arm)
    with pytest.raises(ConfigError, match="cannot start like 'arm'"):
        policy.add_embodiment(other, like="arm")
    assert set(policy.state_dict()) == names
    assert set(policy.embodiments) == {"arm", "human_latent"}


def test_actions_are_in_physical_units(policy):
    action = policy.act(observation(), embodiment="arm", seed=1)
    assert action.shape == (4, 2)
    assert action.dtype == np.float32
    # Centre (10, -4), scale (3, 0.5): an untrained head stays within a few scales of the centre.
    assert (abs(action - np.float32([10.0, -4.0])) < 8 * np.float32([3.0, 0.5])).all()
    assert (policy.act(observation(), embodiment="arm", seed=1) == action).all()
    assert (policy.act(observation(), embodiment="arm", seed=2) != action).any()


def test_views_text_and_state_matter_and_padding_does_not(policy):
    want = policy.act(observation(), embodiment="arm")
    assert not np.allclose(policy.act(observation(1, state=np.float32([1, 2.5, 0.5])), embodiment="arm"), want)
    assert not np.allclose(policy.act(observation(text="pull"), embodiment="arm"), want)
    assert not np.allclose(policy.act(observation(state=np.float32([0, 0, 0.5])), embodiment="arm"), want)
    full = policy.processor.text(["push"])
    cut = policy.processor.text(["push"], trim=True)
    images, state = torch.from_numpy(observation()["images"])[None], torch.tensor([[1.0, 2.5, 0.5]])
    noise = torch.zeros(1, 4, 2)
    answers = [
        policy.sample(policy.prepare(policy.backbone(images, *t), state, None, "arm"), noise, "arm")
        for t in (full, cut)
    ]
    assert cut[0].shape[1] == 5
    assert torch.allclose(*answers, atol=1e-5)


def test_embodiments_are_a_closed_list(policy):
    with pytest.raises(ConfigError, match="several embodiments; name one of arm, human_latent"):
        policy.act(observation())
    with pytest.raises(ConfigError, match=r"'amr' is not declared.*did you mean 'arm'"):
        policy.act(observation(), embodiment="amr")


def test_observations_that_do_not_fit_are_refused(policy):
    with pytest.raises(DataError, match="no state"):
        policy.act(observation(state=None), embodiment="arm")
    with pytest.raises(DataError, match="16, 16"):
        policy.act(observation(images=np.zeros((1, 32, 32, 3), np.uint8)), embodiment="arm")


def test_normalising_tensors_equals_normalising_arrays():
    for body in make_bodies().values():
        for clip in (False, True):
            n = type(body.action)(body.action.kind, body.action.center, body.action.scale, clip)
            x = np.random.default_rng(0).normal(size=(5, len(n.center))).astype(np.float32) * 20
            assert np.allclose(normalize(n, torch.from_numpy(x)).numpy(), n.normalize(x), atol=1e-6)
            assert np.allclose(denormalize(n, torch.from_numpy(x)).numpy(), n.denormalize(x), atol=1e-6)


def _wider(config):
    config["config"]["policy"]["head"]["width"] = 48


def _no_tokenizer(config):
    del config["extra"]["tokenizer"]


def _bad_tokenizer(config):
    config["extra"]["tokenizer"] = {}


def _other_option(config):
    config["config"]["policy"]["head"]["colour"] = "red"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_wider, "weights do not fit"),
        (_no_tokenizer, "no policy that this version knows.*tokenizer"),
        (_bad_tokenizer, "not a tokenizer"),
        (_other_option, "colour"),
    ],
)
def test_damaged_folders_are_refused(policy, tmp_path, damage, message):
    policy.save_pretrained(str(tmp_path))
    config = json.loads(Path(tmp_path, "config.json").read_text())
    damage(config)
    Path(tmp_path, "config.json").write_text(json.dumps(config))
    with pytest.raises(PyramidError, match=message):
        Policy.from_pretrained(str(tmp_path))


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _of_another_download(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x01\x02\x03\x04")


def _another_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "kind": "idm"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model\.safetensors is not the one config\.json was written with; copy it again"),
        (_of_another_download, r"model\.safetensors is not the one config\.json was written with; copy it again"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot read .*model\.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"no vla model in .*no config\.json"),
        (_another_kind, "holds a model of kind 'idm', not 'vla'"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(policy, tmp_path, damage, message):
    policy.save_pretrained(str(tmp_path))
    damage(tmp_path)
    with pytest.raises(PyramidError, match=message) as caught:
        Policy.from_pretrained(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_a_frozen_backbone_does_not_train(bodies):
    frozen = build_policy(replace(TINY, backbone=replace(TINY.backbone, frozen=True)), bodies).train()
    assert not frozen.backbone.training
    assert frozen.head.training
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    context, _ = frozen.encode(torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), [""])
    assert not context.requires_grad
