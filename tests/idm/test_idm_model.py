"""The family of networks: views, context, states, both heads, presets; small ones run, large ones are only built."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import sprites
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from idm.config import HeadConfig, IDMConfig, ModelConfig, VisionConfig, WindowConfig
from idm.evaluate import evaluate_idm
from idm.heads import FlowHead
from idm.label import load
from idm.model import InverseDynamicsModel
from idm.train import build_module, train_idm
from idm.vision import split_views
from pyramid.config import resolve
from pyramid.errors import ConfigError, SkipItemError
from pyramid.labels.protocol import FLAG_GATED
from pyramid.nn.attention import SelfAttentionStack
from pyramid.video.encode import encode_mp4

SIGLIP = VisionConfig(kind="siglip", width=32, layers=2, heads=2, mlp_width=48, patch_px=8)
POINTS = VisionConfig(kind="keypoints", widths=(8, 8, 16), difference_gain=8.0)
FLOW = HeadConfig(kind="flow", width=32, heads=2, mixer_layers=1, layers=2, dropout=0.0, steps=4, samples=3)
PLAIN = HeadConfig(hidden=48)
WINDOWS = WindowConfig(horizon=4, frames=(-2, 0, 2, 4, 7))


def build(vision=None, head=PLAIN, windows=WINDOWS, **options):
    config = IDMConfig(
        windows=windows,
        model=ModelConfig(image_size_px=32, vision=vision or VisionConfig(widths=(8, 8, 16)), head=head, **options),
    )
    return build_module(config, {"a": (2, 3), "b": (5, 0)}).model.eval()


COMBINATIONS = [(v, h, n) for v in (None, POINTS, SIGLIP) for h in (PLAIN, FLOW) for n in (1, 2)]


@pytest.mark.parametrize(("vision", "head", "views"), COMBINATIONS)
def test_every_combination_gives_chunks_and_each_weight_trains(vision, head, views):
    boxes = ((0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5)) if views == 2 else ()
    model = build(vision, head, views=boxes, state="optional")
    side = model.config.model.picture_px
    pictures = torch.randint(0, 256, (3 * 5, 3, side, side), dtype=torch.uint8)
    looked = model.look(pictures).unflatten(0, (3, 5))
    present, state = torch.ones(3, 5), torch.randn(3, 3)
    state[0] = torch.nan
    out = model(looked, present, state, "a")
    assert out.shape == (3 if head is FLOW else 1, 3, 4, 2)
    assert model(looked, present, None, "b").shape == (len(out), 3, 4, 5)
    assert torch.isfinite(out).all()
    tokens, extra = model.context(looked, present, state, "a")
    if isinstance(model.head, FlowHead):
        loss = model.head.loss(tokens, torch.randn(3, 4, 2), "a", torch.Generator().manual_seed(0))
    else:
        shared = model.head.shared(tokens, extra)
        loss = model.head.actions(shared, "a").square().sum() + model.head.told(shared, "a").square().sum()
    loss.backward()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert [n for n in idle if "for_b" not in n and ".key.bias" not in n and "k_proj.bias" not in n] == []


@pytest.mark.parametrize("vision", [None, POINTS, SIGLIP])
def test_a_missing_frame_changes_nothing_but_that_it_is_missing(vision):
    model = build(vision)
    pictures = torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8)
    present = torch.tensor([[0.0, 1, 1, 1, 1]] * 2)
    other = pictures.clone()
    other[:, 0] = 255 - other[:, 0]
    a, b = (
        model(model.eyes.look_all(split_views(x, model.config.model)), present, None, "a") for x in (pictures, other)
    )
    assert torch.equal(a, b)
    seen = model(model.eyes.look_all(split_views(pictures, model.config.model)), torch.ones(2, 5), None, "a")
    assert not torch.allclose(a, seen)


def moving_squares(count, columns, generator):
    """Windows uint8 [B, 3, 3, 32, 32] of a square that moves across, and how far in a step, half pixels, float [B]."""
    by = torch.randint(-2, 3, (count,), generator=generator)
    x, y = (torch.randint(low, high, (count,), generator=generator) for low, high in (columns, (8, 24)))
    frames = torch.zeros(count, 3, 3, 32, 32, dtype=torch.uint8)
    for window, row, left, step in zip(frames, y.tolist(), x.tolist(), by.tolist(), strict=True):
        for place, picture in enumerate(window):
            at = left + (place - 1) * step
            picture[:, row - 2 : row + 2, at - 2 : at + 2] = 255
    return frames, by / 2


@pytest.mark.parametrize(
    ("vision", "elsewhere"), [(POINTS, (0.8, 1.0)), (VisionConfig(widths=(8, 16, 16)), (-math.inf, 0.5))]
)
def test_points_read_a_motion_where_none_was_shown_and_a_cnn_does_not(vision, elsewhere):
    model = build(vision, head=HeadConfig(hidden=32), windows=WindowConfig(horizon=2, frames=(0, 1, 2)))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def told(frames):
        looked = model.eyes.look_all(split_views(frames, model.config.model))
        return model(looked, torch.ones(len(frames), 3), None, "a")[0, :, 0, 0]

    for _ in range(200):
        frames, moved = moving_squares(16, (7, 14), generator)
        optimizer.zero_grad()
        (told(frames) - moved).square().mean().backward()
        optimizer.step()
    scores = []
    for columns in ((7, 14), (18, 25)):
        frames, moved = moving_squares(200, columns, generator)
        with torch.no_grad():
            scores.append(1 - float((told(frames) - moved).square().mean() / moved.var()))
    assert scores[0] > 0.9
    assert elsewhere[0] < scores[1] < elsewhere[1]


def test_views_are_cut_out_of_one_picture():
    boxes = ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5))
    config = ModelConfig(image_size_px=32, views=boxes)
    assert config.picture_px == 64
    grid = torch.arange(4, dtype=torch.uint8).view(2, 2).repeat_interleave(32, 0).repeat_interleave(32, 1)
    views = split_views(grid.expand(2, 3, 64, 64), config)
    assert views.shape == (2, 3, 3, 32, 32)
    assert [int(views[0, v].float().mean()) for v in range(3)] == [0, 1, 2]
    assert float(views.float().std((-1, -2)).max()) == 0
    with pytest.raises(ValueError, match=r"\(0\.5, 0\.0, 0\.6, 0\.5\) is not inside"):
        ModelConfig(views=((0.5, 0.0, 0.6, 0.5),))
    with pytest.raises(ValueError, match="at most 6, got 7"):
        ModelConfig(views=boxes[:1] * 7)


def test_the_context_is_mixed_once_per_window_not_once_per_step(monkeypatch):
    model, calls = build(SIGLIP, FLOW), []
    forward = SelfAttentionStack.forward
    monkeypatch.setattr(SelfAttentionStack, "forward", lambda *args: calls.append(1) or forward(*args))
    model(torch.randn(2, 5, 1, 1, 32), torch.ones(2, 5), None, "a")
    assert len(calls) == 1


def test_draws_are_the_same_for_every_window_and_mirror_each_other():
    model = build(None, FLOW)
    first, second, third = (model.noise(draw, "a", torch.zeros(2)) for draw in range(3))
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, -second)
    assert not torch.equal(first, third)


def test_a_published_tower_is_taken_over_or_named_as_not_fitting(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=8))
    tower.save_pretrained(tmp_path / "tower")
    model = build(SIGLIP, FLOW)
    model.eyes.load_published(str(tmp_path / "tower"))
    theirs = tower.state_dict()
    for name, value in model.eyes.tower.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    narrow = build(replace(SIGLIP, mlp_width=40), FLOW)
    with pytest.raises(ConfigError, match=r"does not fit model.vision: .*fc1"):
        narrow.eyes.load_published(str(tmp_path / "tower"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        model.eyes.load_published(str(tmp_path / "nothing"))


PRESETS = {
    "idm/tiny": (1.2e6, 1.4e6),
    "idm/keypoints": (0.2e6, 0.3e6),
    "idm/pictures": (0.02e6, 0.05e6),
    "idm/small": (100e6, 140e6),
    "idm/paper-dreams": (430e6, 520e6),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_built_at_its_full_size(preset):
    config = resolve(IDMConfig, preset)
    with torch.device("meta"):
        model = InverseDynamicsModel(replace(config, windows=config.windows.at_rate(20.0)), {"robot": (7, 7)})
    least, most = PRESETS[preset]
    assert least < sum(p.numel() for p in model.parameters()) < most
    if preset == "idm/paper-dreams":
        assert model.eyes.count == 2 * 16  # 16 tokens a picture
        assert (len(model.head.dit.blocks), model.head.sample_steps) == (8, 16)


def test_gaps_in_seconds_become_steps_of_the_data():
    windows = WindowConfig(gap_s=0.8, frames_s=(-0.2, 0.0, 0.8, 1.0))
    at_20 = windows.at_rate(20.0)
    assert (at_20.horizon, at_20.frames) == (16, (-4, 0, 16, 20))
    assert windows.at_rate(40.0).horizon == 2 * at_20.horizon
    assert at_20.offsets_s == pytest.approx(windows.frames_s)
    with pytest.raises(ConfigError, match=r"0\.8 s is 5\.60 steps at 7 Hz"):
        windows.at_rate(7.0)


OPTIONS = {
    "model.image_size_px": 32,
    "model.shift_px": 0,
    "model.head.kind": "flow",
    "model.head.width": 48,
    "model.head.heads": 2,
    "model.head.mixer_layers": 1,
    "model.head.layers": 2,
    "model.head.dropout": 0.0,
    "model.head.steps": 4,
    "model.head.samples": 2,
    "model.vision.widths": (16, 16, 24),
    "model.state": "required",
    "windows.horizon": 4,
    "windows.frames": (0, 2, 4),
    "trainer.batch_size": 16,
    "trainer.max_steps": 60,
    "trainer.lr": 3e-3,
    "trainer.threads": 0,
}


@pytest.fixture(scope="module")
def flow_dir(shards, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("idm-flow"))
    train_idm(shards, out=out, **OPTIONS)
    return out


def test_the_flow_head_trains_labels_and_beats_the_mean_action(shards, flow_dir):
    evaluation = evaluate_idm(shards, model=flow_dir)
    assert evaluation.error < evaluation.baseline_error
    assert evaluation.lag == 0


def test_a_state_that_is_needed_and_missing_or_not_finite_is_named(flow_dir):
    labeler, sample = load(flow_dir), sprites.make_sample(0, n_frames=20)
    (table,) = labeler.label([sample])
    assert table.num_rows == 19
    with pytest.raises(SkipItemError, match="no states") as caught:
        labeler.label([replace(sample, state=None)])
    assert caught.value.reason == "state"
    bad = sample.state.copy()
    bad[7, 0] = math.nan
    with pytest.raises(SkipItemError, match="frame 7"):
        labeler.label([replace(sample, state=bad)])


def test_a_state_that_may_be_missing_and_is_not_finite_puts_its_label_in_doubt(flow_dir):
    labeler, sample = load(flow_dir), sprites.make_sample(0, n_frames=20)
    labeler.prepare = replace(labeler.prepare, model=replace(labeler.config.model, state="optional"))
    bad = sample.state.copy()
    bad[7, 0] = math.nan
    (table,) = labeler.label([replace(sample, state=bad)])
    assert [row for row, why in enumerate(table["doubt"].to_pylist()) if "state" in why] == [7]
    assert np.isfinite(np.stack(table["action"].to_numpy())).all()


def test_one_view_of_a_grid_is_no_grid(flow_dir):
    labeler = load(flow_dir)
    boxes = ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5))
    prepare = replace(labeler.prepare, model=replace(labeler.config.model, views=boxes))
    sample = sprites.make_sample(0, n_frames=20)
    sample.meta["view"] = "top_left"
    with pytest.raises(SkipItemError, match="'top_left' alone, the model sees 2 views") as caught:
        prepare(sample)
    assert caught.value.reason == "views"


def test_labels_outside_the_limits_are_flagged_with_the_reason(flow_dir):
    labeler, sample = load(flow_dir), sprites.make_sample(0, n_frames=20)
    body = labeler.bodies["sprite"]
    (usual,) = labeler.label([sample])
    labeler.bodies["sprite"] = replace(body, low=body.high - 0.001)
    (odd,) = labeler.label([sample])
    outside = np.stack(odd["action"].to_numpy()) < body.high - 0.001 - 0.1 * 0.001 - 1e-5
    for flag, why, out in zip(odd["flags"].to_pylist(), odd["doubt"].to_pylist(), outside[:, :2].any(1), strict=True):
        assert ("range" in why) == out
        assert bool(flag & FLAG_GATED) == bool(why)
    assert outside.any()
    labeler.bodies["sprite"] = body
    labeler.config = replace(labeler.config, gate=replace(labeler.config.gate, max_std=1e-4))
    (unsure,) = labeler.label([sample])
    assert all("uncertain" in why for why in unsure["doubt"].to_pylist())
    assert unsure["action"].equals(usual["action"])


def test_a_black_view_is_another_number_of_views(flow_dir):
    labeler = load(flow_dir)
    boxes = ((0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 0.5), (0.5, 0.0, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5))
    three = replace(labeler.prepare, model=replace(labeler.config.model, views=boxes[:3]))
    four = replace(labeler.prepare, model=replace(labeler.config.model, views=boxes))
    sample = sprites.make_sample(0, n_frames=20)
    pixels = sample.frames(list(range(20))).copy()
    pixels[:, 32:, 32:] = 0
    grid = replace(sample, video=encode_mp4(pixels, 80.0))
    assert four(sample).pixels.shape == three(grid).pixels.shape  # each fits its own grid
    with pytest.raises(SkipItemError, match="view 4 of 4 is black") as caught:
        four(grid)
    assert caught.value.reason == "views"
    grid.meta["scores"] = {"black_quadrant": True}
    with pytest.raises(SkipItemError, match="a grid of three views, and the model was trained on pictures of one"):
        labeler.prepare(grid)
    known = {"sprite": labeler.prepare.embodiments["sprite"]._replace(grid=True)}
    assert replace(labeler.prepare, embodiments=known)(grid).key == grid.key  # what it was trained on is no surprise


def test_statistics_of_another_robot_are_named(flow_dir):
    labeler, sample = load(flow_dir), sprites.make_sample(0, n_frames=20)
    for change, what in (
        ({"action": sample.action[:, :2]}, "actions of 2 dimensions, the model's statistics of 'sprite' have 3"),
        ({"state": sample.state.repeat(2, 1)}, "states of 4 dimensions, the model's statistics of 'sprite' have 2"),
    ):
        with pytest.raises(SkipItemError, match=what) as caught:
            labeler.label([replace(sample, **change)])
        assert caught.value.reason == "robot"
    (table,) = labeler.label([replace(sample, state=sample.state + 1000)])
    assert set(table["doubt"].to_pylist()) <= {"state", "uncertain,state", "range,state", "uncertain,range,state"}
    (usual,) = labeler.label([sample])
    assert not any("state" in why for why in usual["doubt"].to_pylist())


def test_evaluation_says_when_the_truth_is_not_this_robots(flow_dir, tmp_path):
    samples = [sprites.make_sample(n, n_frames=20, split="val") for n in range(2)]
    usual = evaluate_idm(sprites.write_shards(tmp_path / "usual", samples), model=flow_dir)
    assert usual.foreign < 0.2
    foreign = [replace(one, action=one.action * 10 + 30) for one in samples]
    found = evaluate_idm(sprites.write_shards(tmp_path / "foreign", foreign), model=flow_dir)
    assert found.foreign == 1
    assert any("statistics of another robot" in reason for reason in found.reasons)
    assert not any("statistics of another robot" in reason for reason in usual.reasons)
