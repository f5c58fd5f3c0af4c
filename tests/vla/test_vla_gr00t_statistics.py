"""Statistics in the layouts of published checkpoints: physical units in and out, against formulas written out here."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_vla_gr00t_folder as layouts
import torch
from published_head import Plain

from pyramid.errors import ConfigError, DataError
from pyramid.rng import rng
from vla.gr00t_folder import read_policy
from vla.gr00t_metadata import LAYOUTS, Layout
from vla.policy import Policy

TAG = "libero_sim"
STATE, ACTION, STEPS = {"eef": 9, "arm": 2, "hand": 1, "waist": 2}, {"eef": 9, "arm": 2, "grip": 1, "base": 1}, 4


def statistics(width: int, seed: int, *lead: int) -> dict[str, Any]:
    """Statistics of numbers around zero, quantiles within bounds."""
    draw = rng(seed, "statistics")
    low, high = (draw.uniform(*ends, (*lead, width)) for ends in ((-1.4, -0.9), (0.8, 1.3)))
    found = {"min": low, "max": high, "q01": low * 0.9, "q99": high * 0.9, "mean": (low + high) / 2}
    return {name: v.tolist() for name, v in {**found, "std": (high - low) / 4}.items()}


def config_of(rep: str, kind: str, form: str = "DEFAULT") -> dict[str, Any]:
    return {"rep": rep, "type": kind, "format": form, "state_key": None}


def n1_7_documents() -> dict[str, Any]:
    state = {
        "delta_indices": [-20, 0],
        "modality_keys": list(STATE),
        "sin_cos_embedding_keys": ["waist"],
        "mean_std_embedding_keys": ["hand"],
        "action_configs": None,
    }
    action = {
        "delta_indices": list(range(STEPS)),
        "modality_keys": list(ACTION),
        "sin_cos_embedding_keys": None,
        "mean_std_embedding_keys": ["base"],
        "action_configs": [
            config_of("RELATIVE", "EEF", "XYZ_ROT6D"),
            config_of("RELATIVE", "NON_EEF"),
            config_of("ABSOLUTE", "NON_EEF"),
            config_of("DELTA", "NON_EEF"),
        ],
    }
    kwargs = {
        "modality_configs": {TAG: {"video": {"delta_indices": [0]}, "state": state, "action": action}},
        "use_percentiles": True,
        "clip_outliers": True,
        "apply_sincos_state_encoding": True,
        "use_relative_action": True,
        "use_mean_std": False,
        "model_name": "somewhere",
    }
    numbers = {
        "state": {key: statistics(n, i) for i, (key, n) in enumerate(STATE.items())},
        "action": {key: statistics(n, 10 + i) for i, (key, n) in enumerate(ACTION.items())},
        "relative_action": {"eef": statistics(9, 20, STEPS), "arm": statistics(2, 21, STEPS)},
    }
    numbers["relative_action"]["arm"]["max"][1][0] = numbers["relative_action"]["arm"]["min"][1][0]  # stands still
    return {
        "processor_config.json": {"processor_class": "Gr00tN1d7Processor", "processor_kwargs": kwargs},
        "statistics.json": {TAG: numbers},
        "embodiment_id.json": {TAG: 1},
    }


def written(folder: Path, documents: dict[str, Any]) -> str:
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    return str(folder)


def plain_n1_7() -> Plain:
    sizes = {"state_dim": 20, "action_dim": 14, "horizon": 6, "history": 2}
    return Plain(version="n1_7", seed=3, context=32, mixer_layers=1, alternate=True, **sizes)


@pytest.fixture
def n1_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(layouts.HEADS, "n1_7", plain_n1_7())
    layouts.published(tmp_path, "n1_7")
    written(tmp_path, n1_7_documents())
    return tmp_path


def read(folder: Path, version: str = "n1_7", **options: Any) -> Policy:
    return read_policy(str(folder), backbone=layouts.BACKBONES[version], **options)


def turn(seed: int) -> np.ndarray:
    """A rotation matrix."""
    made = np.linalg.qr(rng(seed, "turn").normal(size=(3, 3)))[0]
    return made * np.sign(np.linalg.det(made))


def pose(seed: int) -> np.ndarray:
    return np.concatenate([rng(seed, "place").uniform(-0.5, 0.5, 3), turn(seed)[:2].ravel()])


def matrix(six: np.ndarray) -> np.ndarray:
    first = six[:3] / np.linalg.norm(six[:3])
    second = six[3:] - (first @ six[3:]) * first
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])


def between(x: np.ndarray, low: Any, high: Any) -> np.ndarray:
    low, high = np.asarray(low), np.asarray(high)
    return np.clip(2 * (x - low) / (high - low) - 1, -1, 1)


def back(y: np.ndarray, low: Any, high: Any) -> np.ndarray:
    low, high = np.asarray(low), np.asarray(high)
    return (np.clip(y, -1, 1) + 1) / 2 * (high - low) + low


def said_by(plain: Plain, policy: Policy, state: np.ndarray, slot: int, seed: int) -> np.ndarray:
    """What the plain re-implementation of the published head answers, normalised, [T, D]."""
    image = np.full((1, 1, 32, 32, 3), 90, np.uint8)
    with torch.no_grad():
        context, mask = policy.encode(torch.from_numpy(image), ["go"])
    where = torch.zeros_like(mask)
    first, last = policy.backbone.image_spans[0]
    where[:, first:last] = True
    noise = rng(seed, "policy noise").standard_normal((plain.horizon, plain.action_dim), dtype=np.float32)
    plain.batch = 1
    inputs = {name: value[:1] for name, value in plain.inputs().items()} | {
        "backbone_features": context, "backbone_attention_mask": mask, "image_mask": where,
        "state": torch.from_numpy(state.astype(np.float32))[None], "noise": torch.from_numpy(noise)[None],
        "embodiment_id": torch.tensor([slot]),
    }  # fmt: skip
    return plain.outputs(inputs)["action_pred"][0].double().numpy()


def asked(policy: Policy, state: np.ndarray, name: str, seed: int) -> np.ndarray:
    image = np.full((1, 32, 32, 3), 90, np.uint8)
    return policy.act({"images": image, "text": "go", "state": state.astype(np.float32)}, embodiment=name, seed=seed)


def states(seed: int) -> np.ndarray:
    """Two states, float64 [2, 14], some beyond their bounds."""
    rest = rng(seed, "rest").uniform(-2, 2, (2, 5))
    return np.concatenate([np.stack([pose(seed), pose(seed + 1)]), rest], 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_n1_7_speaks_physical_units(n1_7: Path, seed: int) -> None:
    policy, told = read(n1_7), n1_7_documents()["statistics.json"][TAG]
    assert sorted(policy.embodiments) == ["libero_sim", "slot_0", "slot_2"]
    body = policy.embodiments[TAG]
    assert (body.state_dim, body.action_dim, body.horizon) == (14, 13, STEPS)
    assert (body.state_steps.tolist(), body.padded) == ([-20, 0], (20, 14, 6))
    assert list(body.declaration.action) == list(ACTION)  # type: ignore[union-attr]
    seen = states(seed)
    eef, arm, hand, waist = np.split(seen, [9, 11, 12], axis=1)
    wanted = np.concatenate(
        [
            between(eef, told["state"]["eef"]["q01"], told["state"]["eef"]["q99"]),
            between(arm, told["state"]["arm"]["q01"], told["state"]["arm"]["q99"]),
            (hand - told["state"]["hand"]["mean"]) / told["state"]["hand"]["std"],
            np.sin(waist), np.cos(waist), np.zeros((2, 4)),
        ], axis=1,
    )  # fmt: skip
    got = policy.processor.state(torch.from_numpy(seen).float()[None], TAG)[0]
    assert np.abs(got.numpy() - wanted).max() < 1e-5
    raw = said_by(plain_n1_7(), policy, wanted, 1, seed)[:STEPS]
    moved, relative = told["relative_action"], raw[:, :11]
    place = back(relative[:, :9], moved["eef"]["min"], moved["eef"]["max"])
    here = matrix(seen[1, 3:9])
    poses = [np.concatenate([seen[1, :3] + here @ one[:3], (here @ matrix(one[3:]))[:2].ravel()]) for one in place]
    joints = seen[1, 9:11] + back(relative[:, 9:11], moved["arm"]["min"], moved["arm"]["max"])
    grip = back(raw[:, 11:12], told["action"]["grip"]["q01"], told["action"]["grip"]["q99"])
    base = raw[:, 12:13] * told["action"]["base"]["std"] + told["action"]["base"]["mean"]
    want = np.concatenate([np.stack(poses), joints, grip, base], 1)
    assert np.abs(raw[:, :12]).max() > 1, "some of what the network says lies beyond the bounds"
    assert np.abs(asked(policy, seen, TAG, seed) - want).max() < 2e-4


def test_what_is_taught_is_padded_and_comes_back(n1_7: Path) -> None:
    policy = read(n1_7)
    body = policy.processor.body(TAG)
    state = torch.from_numpy(np.stack([states(5), states(6)])).float()
    action = policy.processor.body(TAG).decode_action(torch.zeros(2, 6, 14), state)
    assert action.shape == (2, STEPS, 13)
    mask = torch.ones_like(action, dtype=torch.bool)
    mask[0, 2:] = False
    taught, counted = body.encode_action(action, mask, state)
    assert taught.shape == counted.shape == (2, 6, 14)
    assert not taught[:, STEPS:].any()
    assert not taught[..., 13:].any()
    assert counted.any(-1).tolist() == [[True] * 2 + [False] * 4, [True] * 4 + [False] * 2]
    assert not counted[..., 13:].any()
    assert torch.where(counted, taught, 0.0)[..., 9:].abs().max() < 1e-4, "zeros are the middle of every range"
    again = body.decode_action(taught, state)
    assert (again - action).abs()[1].max() < 1e-4


def test_a_policy_of_a_checkpoint_is_saved_with_its_units(n1_7: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    policy, out = read(n1_7, slots={"arm": TAG, "raw": 1}), tmp_path_factory.mktemp("ours")
    assert list(policy.embodiments) == ["arm", "raw"]
    policy.save_pretrained(str(out))
    again = Policy.from_pretrained(str(out))
    assert again.embodiments == policy.embodiments
    seen = states(3)
    assert np.array_equal(asked(again, seen, "arm", 1), asked(policy, seen, "arm", 1))
    # The slot by number is the same network on the checkpoint's own numbers.
    body = policy.processor.body("arm")
    encoded = policy.processor.state(torch.from_numpy(seen).float()[None], "arm")
    image = torch.full((1, 1, 32, 32, 3), 90, dtype=torch.uint8)
    noise = torch.from_numpy(rng(1, "policy noise").standard_normal((6, 14), dtype=np.float32))[None]
    with torch.no_grad():
        prepared = policy.prepare(policy.encode(image, ["go"]), encoded, None, "raw")
        raw = policy.sample(prepared, noise, "raw")
        want = body.decode_action(raw, torch.from_numpy(seen).float()[None])[0].numpy()
    assert np.abs(asked(policy, seen, "arm", 1) - want).max() < 1e-5


def test_bounds_instead_of_quantiles_and_no_limits(n1_7: Path) -> None:
    documents = n1_7_documents()
    kwargs = documents["processor_config.json"]["processor_kwargs"]
    kwargs |= {"use_percentiles": False, "clip_outliers": False, "use_relative_action": False}
    told = documents["statistics.json"][TAG]
    told["state"]["arm"]["max"][1] = told["state"]["arm"]["min"][1]
    policy = read(Path(written(n1_7, documents)))
    seen = states(0)
    got = policy.processor.state(torch.from_numpy(seen).float()[None], TAG)[0].numpy()
    low, high = told["state"]["arm"]["min"][0], told["state"]["arm"]["max"][0]
    assert np.abs(got[:, 9] - (2 * (seen[:, 9] - low) / (high - low) - 1)).max() < 1e-5
    assert not got[:, 10].any()
    spec = policy.embodiments[TAG].declaration
    assert spec is not None
    assert {part.representation for part in spec.action.values()} == {"absolute"}
    assert policy.processor.body(TAG).action.steps == 0


Change = Callable[[dict[str, Any]], Any]


def _config(d: dict[str, Any]) -> dict[str, Any]:
    return d["processor_config.json"]["processor_kwargs"]


def _tag(d: dict[str, Any]) -> dict[str, Any]:
    return _config(d)["modality_configs"][TAG]


def _told(d: dict[str, Any]) -> dict[str, Any]:
    return d["statistics.json"][TAG]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("statistics.json"), "statistics.json is missing"),
        (lambda d: d.pop("processor_config.json"), "processor_config.json is missing"),
        (lambda d: d.update({"statistics.json": []}), "statistics.json must be a map of names, got list"),
        (lambda d: _config(d).update(modality_configs=3), "modality_configs must be a map"),
        (lambda d: _config(d).update(use_percentiles="yes"), "use_percentiles must be true or false, got yes"),
        (lambda d: d["embodiment_id.json"].update({TAG: 3}), "'libero_sim': .* the slot 3, there are 0 to 2"),
        (lambda d: d["embodiment_id.json"].update({TAG: True}), "the slot True"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[0.0, float("nan")]), "'arm': q01 has values that are no"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[0.0, 1e300]), "state 'arm': q01 has values that are no finite"),
        (lambda d: _told(d)["state"]["arm"].update(q01=["0", "1"]), "state 'arm': q01 must be numbers"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[True, False]), "state 'arm': q01 must be numbers"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[0.0, [1.0]]), "state 'arm': q01 is no list of numbers"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[0.0] * 5000), r"must be numbers \[1 .. 4096\], got .*\[5000\]"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[0.0]), "state 'arm' contradicts itself"),
        (lambda d: _told(d)["state"]["arm"].update(q01=[9.0, 0.0]), "state 'arm' contradicts itself: q01"),
        (lambda d: _told(d)["state"]["hand"].update(std=[-1.0]), "state 'hand' contradicts itself: .*below 0"),
        (lambda d: _told(d)["state"]["arm"].pop("q99"), "state 'arm' has no q99"),
        (lambda d: _told(d)["state"].pop("arm"), "state 'arm' has no statistics"),
        (lambda d: _told(d).pop("action"), "statistics of action must be a map"),
        (lambda d: _told(d).pop("relative_action"), "relative action 'eef' has no statistics"),
        (lambda d: _told(d)["relative_action"].update(arm=statistics(2, 0, 3)), r"\[1 .. 4096\] or \[4, 1 .. 4096\]"),
        (lambda d: _told(d)["relative_action"].update(arm=statistics(3, 0, 4)), "'arm' has 3 numbers, the action 2"),
        (lambda d: _told(d)["state"].update(arm=statistics(3, 0)), "action part 'arm' .* cannot begin from .* 'arm'"),
        (lambda d: _told(d)["state"].update(eef=statistics(8, 0)), "state 'eef' is a position and two rows .* has 8"),
        (lambda d: _told(d)["state"].update(hand=statistics(9, 0)), "its state has 24 encoded dimensions, .* slots 20"),
        (lambda d: _tag(d)["state"].update(modality_keys=["eef", "eef"]), "state keys names something twice"),
        (lambda d: _tag(d)["state"].update(modality_keys="eef"), "state keys must be a list"),
        (lambda d: _tag(d)["action"].update(action_configs=[]), "action_configs must be a list of 1"),
        (lambda d: _tag(d)["action"]["action_configs"].pop(), "3 action_configs for 4 action keys"),
        (lambda d: _tag(d)["action"]["action_configs"][0].update(rep="SIDEWAYS"), "rep is 'SIDEWAYS', known are REL"),
        (lambda d: _tag(d)["action"]["action_configs"][1].update(state_key="leg"), "less the state 'leg', which there"),
        (lambda d: (_config(d).update(use_relative_action=False), _tag(d)["action"].update(delta_indices=[*range(7)])),
         "chunks of 7 steps, the checkpoint's have 6"),
        (lambda d: _tag(d)["state"].update(delta_indices=[0, 0]), "name one step twice"),
        (lambda d: _tag(d)["state"].update(delta_indices=[-(10**30), 0]), "delta_indices go beyond 100000 steps"),
        (lambda d: _tag(d)["state"].update(delta_indices=[0.5]), "state delta_indices must be a list"),
    ],
)  # fmt: skip
def test_damaged_and_contradictory_files_are_refused_by_name(n1_7: Path, change: Change, message: str) -> None:
    documents = n1_7_documents()
    change(documents)
    for name in n1_7_documents():
        (n1_7 / name).unlink()
    with pytest.raises(DataError, match=message):
        read(Path(written(n1_7, documents)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _config(d).update(use_tactile=True), "use_tactile is not read here"),
        (lambda d: _config(d).update(exclude_state=True), "exclude_state is not read here"),
        (lambda d: _config(d).update(use_mean_std=True), "use_mean_std is not read here"),
        (lambda d: _tag(d)["state"].update(exclude_state=True), "state has 'exclude_state', which is not known here"),
        (lambda d: _tag(d)["action"]["action_configs"][0].update(format="XYZ_ROTVEC"), "pose in the format XYZ_ROTVEC"),
        (lambda d: _tag(d)["action"].update(delta_indices=[0, 2, 4, 6]), r"of the steps \[0, 2, 4, 6\]"),
        (lambda d: _tag(d)["state"].update(delta_indices=[0]), r"of the steps \[0\], the head takes 2"),
        (lambda d: _tag(d)["state"].update(sin_cos_embedding_keys=["eef"]), "'eef' is a pose given as sines"),
    ],
)
def test_what_cannot_be_told_here_keeps_its_slot_with_normalised_numbers(
    n1_7: Path, change: Change, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    documents = n1_7_documents()
    change(documents)
    written(n1_7, documents)
    with caplog.at_level(logging.WARNING, "pyramid.vla"):
        policy = read(n1_7)
    assert sorted(policy.embodiments) == ["slot_0", "slot_1", "slot_2"]
    assert message.split("\\", maxsplit=1)[0] in caplog.text
    assert "its slot keeps the checkpoint's normalised numbers" in caplog.text
    with pytest.raises(ConfigError, match=message):
        read(n1_7, slots={"arm": TAG})
    with pytest.raises(ConfigError, match=r"no statistics of the tag 'libero_sin' \(of: libero_sim\).*'libero_sim'"):
        read(n1_7, slots={"arm": "libero_sin"})


def test_without_statistics_nothing_changes(n1_7: Path) -> None:
    for name in n1_7_documents():
        (n1_7 / name).unlink()
    policy = read(n1_7)
    assert sorted(policy.embodiments) == ["slot_0", "slot_1", "slot_2"]
    body = policy.embodiments["slot_1"]
    assert (body.state_dim, body.action_dim, body.horizon, body.padded) == (20, 14, 6, ())
    with pytest.raises(ConfigError, match=r"no statistics of the tag 'libero_sim' \(of: none\)"):
        read(n1_7, slots={"arm": TAG})


def test_two_tags_of_one_slot_have_a_copy_each(n1_7: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = n1_7_documents()
    for document in (_config(documents)["modality_configs"], documents["statistics.json"]):
        document["simpler_env_widowx"] = document["of_no_slot"] = copy.deepcopy(document[TAG])
    documents["statistics.json"]["only_there"] = {}
    documents["embodiment_id.json"]["simpler_env_widowx"] = 1
    policy = read(Path(written(n1_7, documents)))
    assert sorted(policy.embodiments) == ["libero_sim", "simpler_env_widowx", "slot_0", "slot_2"]
    assert "tag 'of_no_slot': no slot is known for it" in caplog.text
    seen = states(0)
    assert np.array_equal(asked(policy, seen, TAG, 0), asked(policy, seen, "simpler_env_widowx", 0))


# N1 and N1.5 ----------------------------------------------------------------------------------------------------------

LAYOUT = Layout(
    state={"arm": "sin_cos", "hand": "min_max", "wrist": "rotation_6d", "speed": "mean_std"},
    action={"arm": "min_max", "hand": "q99", "grip": "binary", "base": "none", "turn": "mean_std"},
)
WIDTHS = {
    "state": {"arm": 2, "hand": 1, "wrist": 4, "speed": 1},
    "action": dict.fromkeys(LAYOUT.action, 1) | {"arm": 2},
}


def metadata(rotation: str = "quaternion") -> dict[str, Any]:
    facts = {"absolute": True, "rotation_type": None, "continuous": True}
    modalities = {part: {key: {**facts, "shape": [n]} for key, n in groups.items()} for part, groups in WIDTHS.items()}
    modalities["state"]["wrist"]["rotation_type"] = rotation
    cameras = {"front": {"resolution": [8, 8], "channels": 3, "fps": 20.0}}
    numbers = {
        part: {key: statistics(n, i) for i, (key, n) in enumerate({**groups, "unused": 3}.items())}
        for part, groups in WIDTHS.items()
    }
    numbers["action"]["hand"]["q01"] = numbers["action"]["hand"]["q99"]
    tag = {"statistics": numbers, "modalities": {**modalities, "video": cameras}, "embodiment_tag": "gr1"}
    return {"gr1": tag, "oxe_droid": {**copy.deepcopy(tag), "embodiment_tag": "oxe_droid"}}


@pytest.fixture
def n1_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = {"state_dim": 14, "action_dim": 7, "slots": 25}
    plain = Plain(version="n1_5", seed=2, context=32, mixer_layers=1, future=2, **sizes)
    monkeypatch.setitem(layouts.HEADS, "n1_5", plain)
    layouts.published(tmp_path, "n1_5")
    written(tmp_path, {"experiment_cfg/metadata.json": metadata()})
    return tmp_path


def test_n1_5_speaks_physical_units_where_a_layout_says_how(n1_5: Path) -> None:
    policy, told = read(n1_5, "n1_5", layouts={"gr1": LAYOUT}), metadata()["gr1"]["statistics"]
    body = policy.embodiments["gr1"]
    assert "slot_24" not in policy.embodiments
    assert "slot_17" in policy.embodiments
    assert (body.state_dim, body.action_dim, body.horizon, body.rate_hz) == (8, 6, 5, 20.0)
    beyond = 0
    for seed in range(3):
        seen = rng(seed, "n1.5").uniform(-2, 2, 8)
        w, x, y, z = seen[3:7] / np.linalg.norm(seen[3:7])
        rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
        rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
        hand, speed = told["state"]["hand"], told["state"]["speed"]
        scaled = 2 * (seen[2] - hand["min"][0]) / (hand["max"][0] - hand["min"][0]) - 1
        wanted = [*np.sin(seen[:2]), *np.cos(seen[:2]), scaled, *rows, (seen[7] - speed["mean"][0]) / speed["std"][0]]
        wanted = np.array([*wanted, 0, 0])
        got = policy.processor.state(torch.from_numpy(seen).float()[None], "gr1")[0].numpy()
        assert np.abs(got - wanted).max() < 1e-5
        raw = said_by(layouts.HEADS["n1_5"], policy, wanted[None], 24, seed)
        act, arm, turning = told["action"], told["action"]["arm"], told["action"]["turn"]
        low, high = np.array(arm["min"]), np.array(arm["max"])
        want = np.concatenate(
            [
                (raw[:, :2] + 1) / 2 * (high - low) + low,  # not limited on the way back
                np.full((5, 1), act["hand"]["q01"]),
                raw[:, 3:4] > 0.5,
                raw[:, 4:5],
                raw[:, 5:6] * turning["std"] + turning["mean"],
            ], axis=1,
        )  # fmt: skip
        beyond += int((np.abs(raw[:, :2]) > 1).sum())
        assert np.abs(asked(policy, seen, "gr1", seed) - want).max() < 2e-4
    assert beyond


def test_n1_5_without_a_layout_says_that_its_numbers_are_normalised(
    n1_5: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pyramid.vla"):
        policy = read(n1_5, "n1_5")
    assert sorted(policy.embodiments) == sorted(f"slot_{i}" for i in range(25))
    assert "tag 'gr1': the folder does not say which groups it was given" in caplog.text
    with pytest.raises(ConfigError, match=r"tag 'gr1': .* give a layout; name its slot by number"):
        read(n1_5, "n1_5", slots={"arm": "gr1"})
    turned = metadata("euler_angles_rpy")
    with pytest.raises(ConfigError, match="'wrist' writes its rotation as euler_angles_rpy; read are quaternion"):
        read(Path(written(n1_5, {"experiment_cfg/metadata.json": turned})), "n1_5", slots={"arm": "gr1"},
             layouts={"gr1": LAYOUT})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(embodiment_tag="so100"), "tag 'gr1' calls itself 'so100'"),
        (lambda t: t.pop("statistics"), "tag 'gr1', statistics must be a map"),
        (lambda t: t["statistics"]["state"].pop("hand"), "state 'hand' of the layout has no statistics; there are arm"),
        (lambda t: t["modalities"]["action"].pop("grip"), "action 'grip' of the layout has no modalities"),
        (lambda t: t["modalities"]["state"]["arm"].update(shape=[3]), r"state 'arm' contradicts itself: .*shape \[3\]"),
        (lambda t: t["statistics"]["state"]["arm"].update(std=[1.0]), "state 'arm' contradicts itself"),
        (lambda t: t["statistics"]["state"]["hand"].update(min=[5.0]), "state 'hand' contradicts itself: min"),
        (
            lambda t: t["statistics"]["action"]["base"].update(mean=[float("inf")]),
            "'base': mean has values that are no",
        ),
    ],
)
def test_contradictory_metadata_is_refused_by_name(n1_5: Path, change: Change, message: str) -> None:
    document = metadata()
    change(document["gr1"])
    written(n1_5, {"experiment_cfg/metadata.json": document})
    with pytest.raises(DataError, match=message):
        read(n1_5, "n1_5", layouts={"gr1": LAYOUT})


def test_layouts_of_the_releases_name_known_modes_alone() -> None:
    with pytest.raises(ConfigError, match="action 'arm': 'sin_cos' is no mode here"):
        Layout(state={}, action={"arm": "sin_cos"})
    with pytest.raises(ConfigError, match="state 'arm': 'scale' is no mode here"):
        Layout(state={"arm": "scale"}, action={})  # type: ignore[dict-item]
    assert LAYOUTS["fourier_gr1_arms_waist"].state["waist"] == "sin_cos"
    assert list(LAYOUTS["agibot_genie1"].action)[-1] == "robot_velocity"
