"""What a policy could only learn nonsense from is refused by name; nothing is filled in, stretched or cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import drawing
import pyarrow as pa
import pytest
import torch
from tiny_policy import TINY, make_bodies, make_group

from pyramid import parquet
from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, DataError, MissingDependencyError, PyramidError
from pyramid.mixture.batch import Group
from pyramid.nn.trainer import TrainerConfig
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.types import Embodiment
from vla.config import VLAConfig
from vla.evaluate import evaluate_vla
from vla.objectives.check import BatchCheck, check_embodiments
from vla.policy import Policy, build_policy
from vla.train import train_vla

CONFIG = VLAConfig(policy=TINY, trainer=TrainerConfig(max_steps=2, batch_size=4, threads=1, warmup_steps=1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def checker() -> BatchCheck:
    return build_policy(TINY, make_bodies()).check()


def changed(change: Callable[[Group], dict[str, object]], name: str = "arm") -> Group:
    group = make_group(make_bodies(), name, 3, 0)
    return dataclasses.replace(group, **change(group))


def poisoned(value: float) -> Callable[[Group], dict[str, object]]:
    def change(group: Group) -> dict[str, object]:
        action = group.action.clone()
        action[1, 2, 0] = value
        return {"action": action}

    return change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda g: {"embodiment": "amr"},
            ConfigError,
            r"'amr' is not declared .*arm, human_latent.*did you mean 'arm'",
        ),
        (
            lambda g: {"action": g.action[..., :1], "mask": g.mask[..., :1]},
            DataError,
            r"action of shape \[3, 4, 1\].*\[3, 4, 2\]",
        ),
        (lambda g: {"action": g.action[:, :3], "mask": g.mask[:, :3]}, DataError, r"action of shape \[3, 3, 2\]"),
        (lambda g: {"mask": g.mask[..., :1]}, DataError, r"mask of shape \[3, 4, 1\]"),
        (lambda g: {"state": g.state[:, :1]}, DataError, r"state of shape \[3, 1\], embodiment 'arm' has \[3, 3\]"),
        (
            lambda g: {"images": g.images[:, :0]},
            DataError,
            r"comes with 0 camera views.*takes 1 \(policy.backbone.n_views",
        ),
        (lambda g: {"images": g.images.repeat(1, 2, 1, 1, 1)}, DataError, "comes with 2 camera views"),
        (lambda g: {"images": g.images[..., :8, :, :]}, DataError, r"uint8 \[8, 16, 3\].*uint8 \[16, 16, 3\]"),
        (lambda g: {"future": g.images[:, :0]}, DataError, r"0 camera views \(future\)"),
        (poisoned(float("nan")), DataError, r"'arm_1': clip arm-1 has actions that are not finite"),
        (poisoned(float("inf")), DataError, r"clip arm-1 has actions that are not finite"),
        (lambda g: {"state": torch.full_like(g.state, torch.nan)}, DataError, "states that are not finite"),
        (lambda g: {"text": ("push", " ", "pull")}, DataError, r"clip arm-1 has no instruction.*has_text"),
    ],
)
def test_bad_groups_are_named(change, kind: type[PyramidError], message: str) -> None:
    check = checker()
    check([make_group(make_bodies(), "arm", 3, 0)])
    with pytest.raises(kind, match=message):
        check([changed(change)])


def test_what_is_masked_or_unknown_may_be_anything() -> None:
    def hidden(group: Group) -> dict[str, object]:
        mask = group.mask.clone()
        mask[1, 2] = False
        unknown = {"state": torch.full_like(group.state, torch.nan), "state_known": torch.zeros(3, dtype=torch.bool)}
        return {**poisoned(float("nan"))(group), "mask": mask, **unknown}

    checker()([changed(hidden)])
    # Latent actions say nothing a robot obeys, so they may come without words; robots' may if it is asked for.
    checker()([changed(lambda g: {"text": ("", "", "")}, "human_latent")])
    build_policy(TINY, make_bodies()).check(require_text=False)([changed(lambda g: {"text": ("", "", "")})])


def write(folder: Path, name: str = "arm", **changes: object) -> str:
    shards = drawing.write_shards(folder / name, [8, 8, 8], n_val=1)
    spec = {"tiers": {"top": {"weight": 1, "sources": {"robot": {"shards": shards, "use": "action"}}}}, "horizon": 3}
    (folder / f"{name}.yaml").write_text(dump_yaml({**spec, **changes}))
    return str(folder / f"{name}.yaml")


def test_a_training_stops_at_a_bad_batch(tmp_path: Path) -> None:
    mixture, index = write(tmp_path), str(tmp_path / "arm" / INDEX_FILE)
    rows = [{**row, "text": ""} for row in parquet.read(index).to_pylist()]
    parquet.write(index, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), parquet.metadata(index))
    with pytest.raises(DataError, match=r"source 'robot': clip drawn-.* has no instruction"):
        train_vla(mixture, out=str(tmp_path / "x"), config=CONFIG)
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_policy_is_not_measured_on_another_robot(tmp_path: Path) -> None:
    bodies = make_bodies()
    check_embodiments({"arm": bodies["arm"].embodiment}, {"arm": bodies["arm"].embodiment})
    video = Embodiment(name="human_video", state_dim=0, action_dim=0, horizon=1, rate_hz=2.0, label="video")
    check_embodiments({}, {"human_video": video})
    build_policy(TINY, bodies).save_pretrained(str(tmp_path / "model"))
    with pytest.raises(DataError, match=r"'arm': the policy has .*'horizon': 4.*, the mixture .*'horizon': 3"):
        evaluate_vla(write(tmp_path), model=str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="'other' is not declared"):
        check_embodiments(Policy.from_pretrained(str(tmp_path / "model")).embodiments, {"other": video_of("other")})


def video_of(name: str) -> Embodiment:
    return Embodiment(name=name, state_dim=0, action_dim=2, horizon=1, rate_hz=2.0)


def test_statistics_of_another_config_are_no_matter_of_chance(tmp_path: Path) -> None:
    build_policy(TINY, {"arm": other_arm()}).save_pretrained(str(tmp_path / "model"))
    options = {"out": str(tmp_path / "out"), "config": CONFIG, "init_from": str(tmp_path / "model")}
    with pytest.raises(ConfigError, match=r"'arm' has other statistics.*--statistics"):
        train_vla(write(tmp_path), **options)
    with pytest.raises(ConfigError, match="one of same, checkpoint, mixture, got 'mine'"):
        train_vla(write(tmp_path), statistics="mine", **options)
    with pytest.raises(ConfigError, match="goes with --init-from"):
        train_vla(write(tmp_path), statistics="mixture", **{**options, "init_from": None})
    result = train_vla(write(tmp_path), statistics="checkpoint", **options)
    assert result.steps == 2
    after = Policy.from_pretrained(str(tmp_path / "out"))
    assert after.processor.body("arm").action.center.tolist() == [10.0, -4.0]
    assert after.mixture["init_from"] == str(tmp_path / "model")
    # What a run began from is part of it: another beginning is another run.
    with pytest.raises(DataError, match="another config or other data"):
        train_vla(write(tmp_path), statistics="mixture", **options)


def other_arm():
    arm = make_bodies()["arm"]
    body = Embodiment(name="arm", state_dim=1, action_dim=2, horizon=3, rate_hz=10.0)
    one = dataclasses.replace(arm.state, center=arm.state.center[:1], scale=arm.state.scale[:1])
    return dataclasses.replace(arm, embodiment=body, state=one)


def test_weights_and_biases_is_named_when_it_is_not_there(tmp_path: Path) -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        config = dataclasses.replace(CONFIG, trainer=dataclasses.replace(CONFIG.trainer, wandb="project"))
        with pytest.raises(MissingDependencyError, match="pip install wandb"):
            train_vla(write(tmp_path), out=str(tmp_path / "x"), config=config)
    else:
        pytest.skip("wandb is there; this says what happens without")
