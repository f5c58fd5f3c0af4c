"""Points learned from pictures without actions, and a linear map from them to actions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import sprites
import torch

from idm.config import IDMConfig, WindowConfig
from idm.drawing import PictureSampler, PointsModule
from idm.evaluate import evaluate_idm
from idm.heads import LinearHead
from idm.states import by_way_of
from idm.train import build_module, train_idm
from idm.vision import KeypointEyes
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError
from pyramid.nn.checkpoint import CONFIG_FILE, load_model_files
from pyramid.shards.frames import ClipFrames

PICTURES = {
    "config": "idm/pictures",
    "model.image_size_px": 32,
    "model.vision.widths": (16, 16, 16, 8),
    "model.vision.precision": "float32",
    "windows.horizon": 4,
    "windows.frames": (-2, 0, 2, 4, 6),
    "trainer.max_steps": 400,
    "trainer.warmup_steps": 20,
}


def room(number, **options):
    """Returns a sample whose background is that of all others: one camera that stands still."""
    return sprites.make_sample(number, background_of=7, **options)


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    held_out = [room(number, split="val") for number in range(100, 108)]
    return sprites.write_shards(tmp_path_factory.mktemp("room"), [*(room(n, n_frames=24) for n in range(3)), *held_out])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    silent = [replace(room(number), action=None, state=None) for number in range(10, 40)]
    return sprites.write_shards(tmp_path_factory.mktemp("videos"), silent)


def test_videos_without_actions_teach_more_than_one_demonstration_does(videos, tmp_path):
    alone = [room(0, n_frames=30), *(room(number, split="val") for number in range(100, 108))]
    demo, scores = sprites.write_shards(tmp_path, alone), {}
    same = {name: value for name, value in PICTURES.items() if name.startswith(("windows", "model.image"))}
    for name, seen, options in (("pictures", videos, PICTURES), ("keypoints", (), same)):
        out = str(tmp_path / name)
        train_idm(demo, out=out, videos=seen, **{"config": f"idm/{name}", **options})
        scores[name] = evaluate_idm(demo, model=out).r2.mean
    assert scores["pictures"] > 0.75
    assert scores["pictures"] > scores["keypoints"] + 0.05


def test_videos_are_for_a_linear_head(demos, videos, tmp_path):
    with pytest.raises(ConfigError, match="idm/pictures"):
        train_idm(demos, out=str(tmp_path), videos=videos, config="idm/tiny")
    for options in ({"model.vision.kind": "cnn", "model.vision.widths": (8, 8, 8)}, {"model.state": "optional"}):
        with pytest.raises(ConfigError, match="linear head"):
            resolve(IDMConfig, **{**PICTURES, **options})


@pytest.mark.parametrize("every", [3, 4])
def test_a_run_killed_before_or_at_its_end_resumes_to_the_same_bytes(demos, videos, tmp_path, every):
    """Also when all steps are done and only the head is missing."""
    options = {**PICTURES, "videos": videos, "trainer.max_steps": 4, "trainer.checkpoint_every": every}
    train_idm(demos, out=str(tmp_path), **options)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", CONFIG_FILE):
        (tmp_path / name).unlink()
    assert not train_idm(demos, out=str(tmp_path), **options).reused
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert train_idm(demos, out=str(tmp_path), **options).reused


def test_other_videos_are_another_run(demos, videos, tmp_path):
    options = {**PICTURES, "trainer.max_steps": 2}
    train_idm(demos, out=str(tmp_path), videos=videos, **options)
    with pytest.raises(DataError, match="other data"):
        train_idm(demos, out=str(tmp_path), **options)


def test_pictures_are_a_pure_function_of_the_step_and_come_from_all_clips(demos):
    clips = ClipFrames.open(demos, split="train", size_px=32, cache_mb=64)
    sampler = PictureSampler(clips, seed=1, batch_size=8)
    later = sampler.batch_at(5)
    sampler.batch_at(2)
    assert torch.equal(sampler.batch_at(5), later)
    assert later.shape == (8, 3, 32, 32)
    frames = [clips.frames(clip, range(clips.rows[clip]["frames"])) for clip in range(len(clips))]
    drawn = torch.cat([sampler.batch_at(step) for step in range(40)])
    of_clips = [[clip for clip, shown in enumerate(frames) if (shown == one).flatten(1).all(1).any()] for one in drawn]
    assert all(of_clips)
    assert {clip for found in of_clips for clip in found} == set(range(len(clips)))
    assert torch.equal(sampler.some(10_000), torch.cat(frames))


def test_views_are_drawn_each_on_its_background():
    options = {"model.views": ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5)), "trainer.max_steps": 1}
    module = build_module(resolve(IDMConfig, **{**PICTURES, **options}), {"a": (2, 0)})
    assert isinstance(module, PointsModule)
    assert module.drawer.background.shape == (2, 3, 32, 32)
    batch = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    batch[..., 32:] = 200
    module.drawer.background.data[1] = 200 / 255
    module.drawer.layers[4].weight.data.zero_()
    module.drawer.layers[4].bias.data.zero_()
    assert module.pictures(batch)["drawn"].shape == (3, 64, 4 * 32)
    # Each view equals its background, so that nothing is left to draw.
    assert module.loss(batch, torch.Generator())[0].item() == pytest.approx(0, abs=1e-6)


def test_a_linear_head_is_solved_for_one_embodiment():
    generator = torch.Generator().manual_seed(0)
    tokens, extra = torch.randn(200, 5, 3, generator=generator) + 2, torch.randn(200, 2, generator=generator)
    true = torch.randn(17, 4, generator=generator)
    action = (torch.cat([tokens.flatten(1), extra], 1) @ true + 1).view(200, 2, 2)
    head = LinearHead(1e-9, d_in=5 * 3 + 2, dims={"a": 2, "b": 1}, horizon=2)
    before = head.maps.fold("b").weight.clone()
    head.fit("a", tokens, extra, action)
    assert torch.allclose(head.actions(head.shared(tokens, extra), "a"), action, atol=1e-4)
    assert torch.equal(head.maps.fold("b").weight, before)
    # A large penalty leaves the mean alone.
    head.ridge = 1e6
    head.fit("a", tokens, extra, action)
    found = head.actions(head.shared(tokens, extra), "a")
    assert torch.allclose(found, action.mean((0,)).expand_as(found), atol=1e-3)


def test_a_map_by_way_of_states_is_both_maps_in_turn():
    windows = WindowConfig(horizon=2, frames=(-2, 0, 2))
    numbers = np.random.default_rng(0)
    to_state = (numbers.normal(size=(6, 4)), numbers.normal(size=4))
    to_action = (numbers.normal(size=(3 * 4 + 3, 2 * 5)), numbers.normal(size=10))
    weight, constant = by_way_of(to_state, to_action, windows)
    like = SimpleNamespace(anchor=windows.anchor, gain=4.0, out=torch.nn.Identity(), position=None)
    present = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64).expand(7, -1)

    def window(looked):
        tokens = KeypointEyes.join(like, torch.from_numpy(looked)[:, :, None], present)
        return np.concatenate([tokens.flatten(1).numpy(), present.numpy()], 1)

    points = numbers.normal(size=(7, 3, 6))
    in_turn = window(points @ to_state[0] + to_state[1]) @ to_action[0] + to_action[1]
    assert np.allclose(window(points) @ weight + constant, in_turn)


def test_actions_come_by_way_of_states_where_there_are_any(demos, videos, tmp_path):
    silent = [replace(room(number, n_frames=24), state=None) for number in range(3)]
    stateless = sprites.write_shards(tmp_path / "stateless", silent)
    unknown = [room(number, n_frames=24) for number in range(3)]
    unknown = [replace(one, state=np.full_like(one.state, np.nan)) for one in unknown]
    unknown = sprites.write_shards(tmp_path / "unknown", unknown)
    points = str(tmp_path / "seen")
    train_idm(out=points, videos=videos, **PICTURES)
    weights, options = {}, {**PICTURES, "points": points}
    for name, source, through in (
        ("states", demos, "states"),
        ("points", demos, "points"),
        ("none", stateless, "states"),
        ("unknown", unknown, "states"),
    ):
        train_idm(source, out=str(tmp_path / name), **{**options, "model.head.through": through})
        kept = load_model_files(str(tmp_path / name), "idm")[1]
        (weights[name],) = (kept[n] for n in kept if n.startswith("head.maps") and n.endswith("weight"))
    assert torch.equal(weights["points"], weights["none"])
    assert torch.equal(weights["points"], weights["unknown"])
    assert not torch.allclose(weights["points"], weights["states"], rtol=0.1)
    scores = {name: evaluate_idm(demos, model=str(tmp_path / name)).r2.mean for name in ("states", "points")}
    assert scores["states"] > scores["points"] - 0.05
    assert scores["states"] > 0.75
