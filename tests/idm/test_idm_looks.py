"""Videos of a hand are labelled with the robot's actions, without one action or pair of theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import sprites
from errands import PICTURES, errand, silent

from idm.config import IDMConfig
from idm.label import load
from idm.looks import take_points
from idm.train import build_module, train_idm
from pyramid import label
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError
from pyramid.nn.checkpoint import CONFIG_FILE
from pyramid.shards.reader import ShardSet

pytestmark = pytest.mark.xdist_group("looks")  # What `errands` makes is made once.


def across(models, shards, **options):
    robot = {"robot": str(models / "robot"), "robot_videos": shards["robot"], "points": str(models / "points")}
    return train_idm(shards["demos"], videos=shards["hands"], **{**PICTURES, **robot, **options})


def test_hands_are_told_the_robots_actions(corpus, models, tmp_path):
    shards, hands = corpus
    assert across(models, shards, out=str(tmp_path / "hands")).loss is None
    label(shards["hands"], labeler="idm", model=str(tmp_path / "hands"), out=str(tmp_path / "labels"))
    rows = pq.read_table(tmp_path / "labels" / "clips-000000.parquet").to_pandas()
    truth = {sample.key: sample.action for sample in hands}
    said = np.stack(rows["action"])
    meant = np.stack([truth[key][frame] for key, frame in zip(rows["key"], rows["frame"], strict=True)])
    for axis in (0, 1):
        assert np.corrcoef(said[:, axis], meant[:, axis])[0, 1] > 0.6
    assert len(set(rows["key"])) == len(ShardSet.open(shards["hands"]).rows)
    found = load(str(tmp_path / "hands"))
    assert found.metadata()["calibrated"] == {"human": False}
    assert found.embodiments["human"]["actions_of"] == "sprite"
    # The robot's own model does not read them.
    with pytest.raises(DataError, match="human"):
        label(shards["hands"], labeler="idm", model=str(models / "robot"), out=str(tmp_path / "no"))


def test_the_same_command_finds_it_done_and_other_inputs_are_another_run(corpus, models, tmp_path):
    shards, _ = corpus
    across(models, shards, out=str(tmp_path))
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert across(models, shards, out=str(tmp_path)).reused
    (tmp_path / CONFIG_FILE).unlink()
    assert not across(models, shards, out=str(tmp_path)).reused
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    with pytest.raises(DataError, match="other data"):
        across(models, shards, out=str(tmp_path), robot_videos=shards["demos"])


def test_points_alone_tell_nothing_and_serve_other_heads(corpus, models, tmp_path):
    shards, _ = corpus
    with pytest.raises(DataError, match="points alone"):
        load(str(models / "points"))
    train_idm(shards["demos"], out=str(tmp_path), points=str(models / "robot"), **PICTURES)
    own, taken = load(str(models / "robot")).model.state_dict(), load(str(tmp_path)).model.state_dict()
    assert all(taken[name].equal(own[name]) for name in own if name.startswith(("eyes.", "head.")))
    module = build_module(resolve(IDMConfig, **{**PICTURES, "model.vision.widths": (8, 8, 8)}), {})
    with pytest.raises(ConfigError, match="another way"):
        take_points(module.model, str(models / "robot"))


def test_what_does_not_go_together_is_refused(corpus, models, tmp_path):
    shards, _ = corpus
    robot, out = str(models / "robot"), str(tmp_path)
    for options, words in [
        ({"robot": robot}, "--videos"),
        ({"robot_videos": shards["robot"]}, "--robot"),
        ({"robot": robot, "videos": shards["hands"], "windows.frames": (0, 2)}, "other windows"),
    ]:
        with pytest.raises(ConfigError, match=words):
            train_idm(shards["demos"], out=out, **{**PICTURES, **options})
    with pytest.raises(ConfigError, match="idm/pictures"):
        train_idm(shards["demos"], out=out, config="idm/tiny", robot=robot, videos=shards["hands"])
    few = sprites.write_shards(Path(out, "few"), silent(errand(n, hand=True, embodiment="human") for n in range(3)))
    with pytest.raises(DataError, match="3 clips to match"):
        across(models, {**shards, "hands": few}, out=str(tmp_path / "x"), points="")
    slow = sprites.write_shards(Path(out, "slow"), silent(errand(n, hand=True, rate_hz=33.0) for n in range(9)))
    with pytest.raises(DataError, match="a multiple of it"):
        across(models, {**shards, "hands": slow}, out=str(tmp_path / "x"), points="")
    # Before anything is trained.
    assert not (tmp_path / "x").exists()
    stateless = [replace(errand(number), state=None) for number in range(3)]
    demos = sprites.write_shards(Path(out, "stateless"), stateless)
    with pytest.raises(DataError, match="states"):
        across(models, {**shards, "demos": demos}, out=str(tmp_path / "y"))
