"""A folder in the published layout of GR00T-Dreams, made here at a small size with the release's own key names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sprites
import torch
from safetensors.torch import save_file
from torch import nn

from idm.evaluate import evaluate_idm
from idm.label import load
from idm.published import read_checkpoint
from idm.recipe import read_recipe
from pyramid import cli, parquet
from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, DataError
from pyramid.nn.published import slot_name
from pyramid.nn.reference import read_reference
from pyramid.rng import torch_generator
from pyramid.shards.frames import resized_frames
from pyramid.shards.reader import ShardSet

HEAD = Path(__file__).parents[1] / "reference/gr00t_dreams_idm_head.safetensors"
SLOT, HORIZON, FRAMES, PADDED = 24, 16, 24, 112
STATS = {
    "move": {"min": [-3.0, -2.0], "max": [3.0, 4.0], "mean": [0.1, 0.2], "std": [1.0, 1.1]},
    "grip": {"min": [1.0], "max": [1.0], "mean": [1.0], "std": [0.0]},
}
CAMERA = {"resolution": [64, 64], "channels": 3, "fps": 20.0}
CONFIG = {
    "modality_configs": {
        "gr1_arms": {
            "video": {"delta_indices": [0, 16], "modality_keys": ["video.ego_view"]},
            "action": {"delta_indices": list(range(16)), "modality_keys": ["action.move", "action.grip"]},
        }
    },
    "all_transforms": {
        "gr1_arms": {
            "transforms": [
                {"_target_": "x.VideoCrop", "apply_to": ["video.ego_view"], "scale": 0.9},
                {"_target_": "x.VideoResize", "apply_to": ["video.ego_view"], "height": 112, "width": 112},
                {
                    "_target_": "x.StateActionTransform",
                    "apply_to": ["action.move", "action.grip"],
                    "normalization_modes": {"action.move": "min_max", "action.grip": "min_max"},
                },
                {"_target_": "x.ConcatTransform", "action_concat_order": ["action.grip", "action.move"]},
            ]
        }
    },
}


def metadata(stats: dict | None = None, *, tag: str = "gr1", views: int = 1) -> dict:
    stats = STATS if stats is None else stats
    stats = {key: {"q01": one["min"], "q99": one["max"], **one} for key, one in stats.items()}
    actions = {key: {"absolute": True, "shape": [len(STATS[key]["min"])]} for key in stats}
    cameras = {f"view_{n}" if n else "ego_view": CAMERA for n in range(views)}
    return {
        tag: {
            "statistics": {"action": stats, "state": {}},
            "modalities": {"video": cameras, "action": actions},
            "embodiment_tag": tag,
        }
    }


def released(folder: Path, about: dict | None = None, conf: dict | None = CONFIG) -> str:
    """Writes a release of 32 slots: weights in two files, config, statistics and the recipe."""
    weights = {
        name: tensor[torch.arange(32) % len(tensor)] if tensor.ndim > 1 and name.endswith((".W", ".b")) else tensor
        for name, tensor in read_reference(str(HEAD)).weights.items()
    }
    (folder / "experiment_cfg").mkdir(parents=True)
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        part = {f"action_head.{name}": weights[name].contiguous() for name in names}
        save_file(part, folder / f"model-0000{number + 1}-of-00002.safetensors")
    heads = {name: {"num_attention_heads": 2} for name in ("dit", "vl_self_attention", "siglip_vision")}
    config = {"architectures": ["IDM"], "action_horizon": HORIZON, "action_head_cfg": {"action_dim": 7, **heads}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "experiment_cfg/metadata.json").write_text(json.dumps(metadata() if about is None else about))
    if conf is not None:
        (folder / "experiment_cfg/conf.yaml").write_text(dump_yaml(conf))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return released(tmp_path_factory.mktemp("released") / "IDM_gr1")


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> str:
    where = tmp_path_factory.mktemp("released-shards")
    return sprites.make_shards(where, n_train=1, n_val=1, n_frames=FRAMES, rate_hz=20.0, embodiment="gr1")


def plainly(folder: str, sample) -> np.ndarray:
    """Labels a clip as the release does: each window by itself, padded to 112 tokens, the plain mean of all votes."""
    network = read_checkpoint(folder)
    pictures = resized_frames(sample, range(FRAMES), 128).float()[..., 6:121, 6:121]  # .9 of 128, middle
    small = nn.functional.interpolate(pictures, (112, 112), mode="bilinear", antialias=True)
    images = nn.functional.interpolate(small, (128, 128), mode="bilinear", antialias=True) / 127.5 - 1
    noise = torch.randn(HORIZON, 7, generator=torch_generator(0, "idm-draw", 0))[None]
    ids = torch.cat([torch.zeros(1, PADDED - 8), torch.ones(1, 8)], dim=1).long()
    total, count = np.zeros((FRAMES - 1, 3)), np.zeros((FRAMES - 1, 1))
    for start in range(FRAMES - HORIZON):
        with torch.no_grad():
            visual = network.see(images[[start, start + HORIZON]], torch.tensor([0, 1]))
            chunk = network.sample(network.context(visual, ids), noise, slot_name(SLOT))[0, :, :3].numpy()
        total[start : start + HORIZON] += chunk
        count[start : start + HORIZON] += 1
    grip, x, y = (total / count).T
    return np.stack([np.ones_like(grip), 3 * x, 1 + 3 * y], axis=1)  # (v + 1) / 2 * (max - min) + min; grip is constant


def test_labels_are_those_of_the_releases_own_windows(folder, robot):
    sample = ShardSet.open(robot).read(0)
    (table,) = load(folder).label([sample])
    labels = np.stack(table["action"].to_numpy())
    assert labels.shape == (FRAMES - 1, 3)
    assert np.abs(labels - plainly(folder, sample)).max() < 1e-5
    assert table["n_votes"].to_pylist()[0] == 1
    assert max(table["n_votes"].to_pylist()) == FRAMES - HORIZON
    std = np.stack(table["action_std"].to_numpy())
    assert std[0, 1] == pytest.approx(1.0, abs=1e-5)  # a vote alone may be off by as much as actions are spread


def test_the_command_labels_and_evaluates_with_a_published_folder(folder, robot, tmp_path, capsys):
    out, modality = tmp_path / "labels", tmp_path / "modality.json"
    assert cli.main(["label", robot, "--labeler", "idm", "--model", folder, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == 2 * (FRAMES - 1)
    table, about = parquet.read(out / "clips-000000.parquet"), parquet.metadata(out / "clips-000000.parquet")
    assert table.num_rows == 2 * (FRAMES - 1)
    assert "calibrated" in json.dumps(about)
    modality.write_text(json.dumps({"action": {"move": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3}}}))
    found = evaluate_idm(robot, model=folder, modality=str(modality))
    sample = next(s for s in map(ShardSet.open(robot).read, range(2)) if s.meta["split"] == "val")
    truth = sample.action[:-1][:, [2, 0, 1]]
    (rmse,) = found.rmse.values()
    assert rmse == pytest.approx(np.sqrt(((plainly(folder, sample) - truth) ** 2).mean(0)).tolist(), abs=1e-4)
    assert [name for own in found.groups.values() for name in own] == ["grip", "move"]
    modality.write_text(json.dumps({"action": {"move": {"start": 0, "end": 2}}}))
    with pytest.raises(ConfigError, match="no action group grip"):
        evaluate_idm(robot, model=folder, modality=str(modality))


def test_a_folder_without_a_recipe_has_the_releases_two_frames_and_the_order_of_its_statistics(tmp_path):
    labeler = load(released(tmp_path / "idm", conf=None))
    windows, (body,) = labeler.config.windows, labeler.bodies.values()
    assert (windows.frames, windows.horizon, windows.rate_hz, windows.votes) == ((0, 16), 16, 20.0, "uniform")
    assert [(group.name, group.start, group.end) for group in body.groups] == [("move", 0, 2), ("grip", 2, 3)]
    assert labeler.metadata()["calibrated"] == {"gr1": False}


def test_three_views_stand_in_a_grid_and_two_have_no_known_place(tmp_path):
    labeler = load(released(tmp_path / "three", metadata(views=3), None))
    assert labeler.config.model.views[2] == (0.5, 0.0, 0.5, 0.5)
    assert labeler.config.model.picture_px == 256
    with pytest.raises(DataError, match="sees 2 views"):
        load(released(tmp_path / "two", metadata(views=2), None))


def test_frames_that_a_clip_may_lack_are_refused_by_name(tmp_path):
    video = {"delta_indices": [-8, 0, 16], "modality_keys": ["video.ego_view"]}
    with pytest.raises(DataError, match="reach past its 16 actions"):
        load(released(tmp_path / "idm", conf={"modality_configs": {"gr1": {"video": video}}}))


def test_sizes_out_of_range_are_refused_by_name(tmp_path):
    conf = {
        "modality_configs": {"gr1": {}},
        "all_transforms": {"gr1": {"transforms": [{"max_sequence_length": 10**9}]}},
    }
    with pytest.raises(DataError, match="sequences of 1000000000 tokens"):
        load(released(tmp_path / "idm", conf=conf))


def test_normalisers_are_those_of_each_key(tmp_path):
    steps = [
        {
            "apply_to": ["action.move", "action.turn", "action.grip"],
            "normalization_modes": {"action.move": "q99", "action.grip": "binary", "action.turn": "min_max"},
            "target_rotations": {"action.turn": "rotation_6d"},
        }
    ]
    order = ["action.move", "action.turn", "action.grip"]
    conf = {
        "modality_configs": {"gr1": {"action": {"modality_keys": order}}},
        "all_transforms": {"gr1": {"transforms": steps}},
    }
    (body,) = read_recipe(released(tmp_path / "idm", conf=conf), HORIZON).bodies.values()
    assert [group["kind"] for group in body["groups"]] == ["linear", "rotation_6d", "binary"]
    assert body["normaliser"]["center"] == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert body["normaliser"]["scale"] == [3, 3, 1, 1, 1, 1, 1, 1, 1]


def wide(dim: int) -> dict:
    about = metadata()
    column = {"min": [-1.0] * dim, "max": [1.0] * dim, "mean": [0.0] * dim, "std": [0.5] * dim}
    about["gr1"]["statistics"]["action"] = {"move": {"q01": column["min"], "q99": column["max"], **column}}
    about["gr1"]["modalities"]["action"] = {"move": {"shape": [dim]}}
    return about


def broken(change: str) -> dict:
    about = metadata()
    move = about["gr1"]["statistics"]["action"]["move"]
    if change == "nan":
        move["max"] = [float("nan"), 1.0]
    elif change == "shape":
        about["gr1"]["modalities"]["action"]["move"]["shape"] = [7]
    elif change == "std":
        del move["std"]
    elif change == "fps":
        about["gr1"]["modalities"]["video"]["ego_view"] = {}
    return about


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (wide(44), "44 action dimensions, the network gives at most 7: they are those of another robot"),
        (broken("shape"), "action 'move' has 7 dimensions, its statistics have 2: they are those of another robot"),
        (broken("nan"), "statistics of action 'move' are not finite"),
        (broken("fps"), "camera 'ego_view' states no fps"),
        (broken("std"), "lacks or garbles an entry: 'std'"),
        (metadata(tag="my_arm"), "the slot of 'my_arm' is not known; known: franka, gr1"),
        ({}, "names no embodiment"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_by_name(tmp_path, about, message):
    with pytest.raises(DataError, match=message):
        load(released(tmp_path / "idm", about, None))


def test_a_folder_without_statistics_is_refused_by_name(tmp_path):
    folder = released(tmp_path / "idm")
    (tmp_path / "idm/experiment_cfg/metadata.json").unlink()
    with pytest.raises(DataError, match=r"no experiment_cfg/metadata\.json"):
        load(folder)
