"""Training, labels and evaluation on synthetic shards, through the public functions."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import random_models
import sprites
import torch

from idm.calibrate import calibrate
from idm.config import GateConfig, HeadConfig, IDMConfig, ModelConfig, VisionConfig, WindowConfig
from idm.data import WindowSampler, fit_normalizers, fit_states, load_demonstrations
from idm.evaluate import evaluate_idm
from idm.label import load
from idm.model import Confidence, augmented
from idm.predict import ClipInput, predict_clip
from idm.train import hold_aside, train_idm
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.labels.protocol import BASE_FIELDS, FLAG_SHORT, Labeler
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames
from pyramid.shards.reader import ShardSet


@pytest.fixture(scope="module")
def labeler(model_dir):
    return load(model_dir)


@pytest.fixture(scope="module")
def samples(shards):
    found = ShardSet.open(shards)
    return [found.read(i) for i in range(4)]


class Reader(torch.nn.Module):
    """A perfect predictor: action and window are written into the pictures."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.known, self.seen = horizon, Confidence(horizon, 1), []

    def look(self, pictures):
        return pictures

    def forward(self, looked, present, state, embodiment):
        self.seen.append((looked[:, :, 0, 0, 0], present))
        start = looked[:, WINDOWS.frames.index(0), 0, 0, 0].float()
        return (start[:, None] + torch.arange(self.horizon))[None, ..., None]

    def confidence(self, embodiment):
        return self.known


WINDOWS = WindowConfig(horizon=8, frames=(-2, 0, 8, 11))
NUMBERED = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(60, 3, 8, 8)


def test_a_perfect_predictor_labels_every_step_exactly():
    actions = predict_clip(Reader(8), ClipInput(NUMBERED, [(0, 40), (40, 45), (45, 60)]), WINDOWS, "robot")
    assert actions.step.tolist() == [*range(39), *range(45, 59)]
    assert actions.mean[:, 0].tolist() == actions.step.tolist()
    assert actions.n_votes[:9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert float(actions.std.min()) > 0


def test_frames_outside_a_shot_are_missing_and_never_clamped():
    model = Reader(8)
    predict_clip(model, ClipInput(NUMBERED, [(0, 20), (20, 60)]), WINDOWS, "robot")
    frames, present = (torch.cat(parts) for parts in zip(*model.seen, strict=True))
    for row, there in zip(frames.tolist(), present.tolist(), strict=True):
        start, (first, last) = row[1], ((0, 20) if row[1] < 20 else (20, 60))
        due = [start - 2, start, start + 8, start + 11]
        assert there == [float(first <= step < last) for step in due]
        assert [step for step, t in zip(row, there, strict=True) if t] == [
            step for step, t in zip(due, there, strict=True) if t
        ]
    assert not present[:, 0].all()
    assert not present[:, 3].all()
    assert present[:, 1:3].all()


def test_calibration_measures_errors_and_makes_the_interval_honest():
    model, clip = Reader(8), ClipInput(NUMBERED, [(0, 60)])
    truth = np.arange(60, dtype=np.float32)[:, None]
    calibrate(model, "robot", [(clip, truth + 0.5)], WINDOWS)
    assert model.known.spread[:, 0].tolist() == pytest.approx([0.5, 0.5], rel=1e-4)
    # All errors are equal: the 90 % interval has to end at them.
    assert float(model.known.factor) * 0.5 * 1.6448536 == pytest.approx(0.5, rel=1e-4)
    noisy = truth + rng(0, "t").standard_t(3, size=(60, 1)).astype(np.float32)
    calibrate(model, "robot", [(clip, noisy)], WINDOWS)
    actions = predict_clip(model, clip, WINDOWS, "robot")
    inside = np.abs(actions.mean - noisy[:-1]) <= 1.6448536 * actions.std
    assert 0.9 <= inside.mean() < 0.95
    calibrate(model, "robot", [(clip, truth)], WINDOWS)
    assert model.known.spread[:, 0].tolist() == pytest.approx([1e-3, 1e-3])


class Forgetful(Reader):
    """Errs at the end of its windows only."""

    def forward(self, looked, present, state, embodiment):
        out = super().forward(looked, present, state, embodiment)
        wrong = 3.0 * (-1.0) ** looked[:, 1, 0, 0, 0].float()
        out[:, :, 5:] += wrong[None, :, None, None]
        return out


def test_learned_weights_trust_a_window_where_it_knows_best():
    truth, clip = np.arange(60, dtype=np.float32)[:, None], ClipInput(NUMBERED, [(0, 60)])
    model, errors = Forgetful(8), {}
    for votes in ("learned", "hann", "uniform"):
        windows = replace(WINDOWS, votes=votes)
        calibrate(model, "robot", [(clip, truth)], windows)
        actions = predict_clip(model, clip, windows, "robot")
        errors[votes] = float(((actions.mean - truth[:-1]) ** 2)[8:-8].mean())
        if votes == "learned":
            weights = model.known.weights[:, 0]
            assert float(weights[:5].min()) > 100 * float(weights[5:].max())
    assert errors["learned"] < 0.01 * min(errors["hann"], errors["uniform"])


def test_preset_resolves():
    config = resolve(IDMConfig, "idm/tiny")
    assert (config.windows.horizon, config.windows.anchor) == (6, 2)
    assert config.windows.at_rate(80.0).offsets_s == pytest.approx([-0.05, 0, 0.05, 0.075, 0.1, 0.15])


def test_training_lowers_the_loss_and_states_its_rate(shards, small, model_dir, tmp_path):
    first = train_idm(shards, out=str(tmp_path), **{**small, "trainer.max_steps": 1})
    assert evaluate_idm(shards, model=model_dir).error < 0.7 * evaluate_idm(shards, model=str(tmp_path)).error
    assert first.loss > 0
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["config"]["windows"]["rate_hz"] == 80
    assert description["extra"]["embodiments"]["sprite"]["normaliser"]["kind"] == "q01_q99"


def test_finished_model_is_reused_and_dry_run_writes_nothing(shards, small, model_dir, tmp_path):
    assert train_idm(shards, out=model_dir, **small).reused
    plan = train_idm(shards, out=str(tmp_path / "x"), dry_run=True, **small)
    assert plan.dry_run
    assert not (tmp_path / "x").exists()
    assert "nothing written" in repr(train_idm(dry_run=True))


@pytest.mark.parametrize(("every", "ema_decay"), [(3, 0.0), (4, 0.0), (4, 0.9)])
def test_a_run_killed_before_or_at_its_end_resumes_to_the_same_bytes(shards, small, tmp_path, every, ema_decay):
    """Also when all steps are done and only the calibration is missing."""
    options = {**small, "trainer.max_steps": 4, "trainer.checkpoint_every": every, "trainer.ema_decay": ema_decay}
    train_idm(shards, out=str(tmp_path), **options)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    assert not train_idm(shards, out=str(tmp_path), **options).reused
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_batches_are_a_pure_function_of_the_step(shards, small):
    config = resolve(IDMConfig, "idm/tiny", **small)
    clips = ClipFrames.open(shards, split="train", size_px=32, with_actions=True)
    demonstrations = load_demonstrations(clips, config.windows, 80.0)
    sampler = WindowSampler(
        clips,
        demonstrations,
        fit_normalizers(demonstrations),
        fit_states(demonstrations),
        config.windows,
        seed=1,
        batch_size=6,
    )
    (later,) = sampler.batch_at(7)
    sampler.batch_at(2)
    (again,) = sampler.batch_at(7)
    assert later.frames.shape == (6, 5, 3, 32, 32)
    assert later.action.shape == (6, 4, 3)
    assert later.state.shape == (6, 2, 2)
    assert torch.equal(later.present, again.present)
    assert torch.equal(later.frames, again.frames)
    assert torch.equal(later.action, again.action)


def test_only_true_actions_train_and_embodiments_have_their_own_heads(tmp_path, small):
    samples = [sprites.make_sample(i, n_frames=20) for i in range(2)]
    other = [sprites.make_sample(i, n_frames=20, embodiment="narrow") for i in (2, 3)]
    samples += [replace(one, action=one.action[:, :2]) for one in other]
    samples += [replace(sprites.make_sample(4, n_frames=20, embodiment="human"), action=None, state=None)]
    folder = sprites.write_shards(tmp_path, samples)
    train_idm(folder, out=str(tmp_path / "model"), **{**small, "trainer.max_steps": 2})
    labeler = load(str(tmp_path / "model"))
    assert {name: one["action_dim"] for name, one in labeler.embodiments.items()} == {"narrow": 2, "sprite": 3}
    tables = labeler.label([samples[0], samples[2]])
    assert [len(table["action"][0]) for table in tables] == [3, 2]
    with pytest.raises(SkipItemError, match="shows 'human'") as caught:
        labeler.label([samples[4]])
    assert caught.value.reason == "embodiment"


def test_clips_of_several_rates_need_a_choice(tmp_path, small):
    samples = [sprites.make_sample(i, rate_hz=rate, n_frames=20) for i, rate in enumerate((80.0, 20.0))]
    folder = sprites.write_shards(tmp_path, samples)
    with pytest.raises(ConfigError, match="20, 80 Hz"):
        train_idm(folder, out=str(tmp_path / "model"), **small)
    options = {**small, "trainer.max_steps": 1, "windows.rate_hz": 20}
    train_idm(folder, out=str(tmp_path / "model"), **options)
    # 80 Hz is a multiple of 20 Hz: every fourth frame is labelled.
    (table,) = load(str(tmp_path / "model")).label(samples[:1])
    assert table["frame"].to_pylist() == [0, 4, 8, 12]
    assert table["gap_s"].to_pylist() == pytest.approx([0.05] * 4)


def test_no_actions_no_training(tmp_path, small):
    sample = replace(sprites.make_sample(0, n_frames=20), action=None)
    with pytest.raises(DataError, match="with actions"):
        train_idm(sprites.write_shards(tmp_path, [sample]), out=str(tmp_path / "m"), **small)
    short = sprites.write_shards(tmp_path, [sprites.make_sample(0, n_frames=4)])
    with pytest.raises(DataError, match="5 frames at 80 Hz"):
        train_idm(short, out=str(tmp_path / "m"), **small)


def postures(count, **options):
    """Samples whose actions are commanded positions, told as three numbers as their states are."""
    made = [sprites.make_sample(n, n_frames=30, split="val" if n > 5 else "train") for n in range(count)]
    states = [np.pad(one.state, ((0, 0), (0, 1))) for one in made]
    return [replace(one, state=s, action=s + one.action, **options) for one, s in zip(made, states, strict=True)]


def test_actions_that_are_told_from_states_are_added_to_them(tmp_path, small):
    shards, out = sprites.write_shards(tmp_path, postures(8)), str(tmp_path / "model")
    train_idm(shards, out=out, **{**small, "model.target": "from_state", "trainer.max_steps": 10})
    labeler, sample = load(out), postures(8)[7]
    (table,) = labeler.label([sample])
    labels = np.stack(table["action"].to_numpy())
    truth, state = sample.action[:-1], sample.state[:-1]
    assert np.abs(labels - truth).max() < 6  # of postures in 8 .. 56 and steps of up to 2.25
    labeler.config = replace(labeler.config, model=replace(labeler.config.model, target="action"))
    (differences,) = labeler.label([sample])
    assert np.array_equal(np.stack(differences["action"].to_numpy()) + state, labels)
    assert differences["action_std"].equals(table["action_std"])
    with pytest.raises(SkipItemError, match="has no states"):
        load(out).label([replace(sample, state=None)])
    evaluation = evaluate_idm(shards, model=out)
    assert evaluation.baseline_rmse["sprite"][0] < 3  # the state and the mean step, not the mean posture


def test_what_cannot_be_told_from_states_is_refused(tmp_path, small, shards):
    told = {**small, "model.target": "from_state"}
    with pytest.raises(DataError, match="2 dimensions of state for 3 of action"):
        train_idm(shards, out=str(tmp_path / "a"), **told)
    turns = {"action": {"turn": {"start": 0, "end": 3, "rotation_type": "axis_angle"}}}
    (tmp_path / "modality.json").write_text(json.dumps(turns))
    folder = sprites.write_shards(tmp_path, postures(3))
    with pytest.raises(ConfigError, match=r"cannot tell the rotations of 'sprite' \(turn\) from its states"):
        train_idm(folder, out=str(tmp_path / "c"), modality=str(tmp_path), **told)


def test_calibration_clips_are_kept_out_of_training(shards, small):
    clips = ClipFrames.open(shards, split="train", size_px=32, with_actions=True)
    demonstrations = load_demonstrations(clips, resolve(IDMConfig, "idm/tiny", **small).windows, 80.0)
    kept, aside = hold_aside(demonstrations, 0.1, seed=0)
    assert (len(kept), len(aside)) == (18, 2)
    assert {d.clip for d in kept} | {d.clip for d in aside} == set(range(20))
    few = hold_aside(demonstrations[:4], 0.1, seed=0)
    assert [len(part) for part in few] == [4, 4]


def test_augmentation_moves_all_frames_of_a_window_alike():
    frames = torch.rand(5, 3, 1, 3, 16, 16) * 200
    generator = torch.Generator().manual_seed(0)
    out = augmented(frames, 2, 0.0, generator)
    for window, moved in zip(frames[:, :, 0], out[:, :, 0], strict=True):
        padded = torch.nn.functional.pad(window, (2,) * 4, mode="replicate")
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[..., y : y + 16, x : x + 16], moved)]
        assert len(places) == 1
    brighter = augmented(frames, 0, 0.1, generator) / frames
    assert torch.allclose(brighter.flatten(1).std(1), torch.zeros(5), atol=1e-5)
    assert 0.9 <= float(brighter.min()) < 1 < float(brighter.max()) <= 1.1


def test_labeler_keeps_the_protocol(labeler):
    assert isinstance(labeler, Labeler)
    assert labeler.name == "idm"
    assert [(f.name, f.type) for f in labeler.schema()][:5] == list(BASE_FIELDS)
    json.dumps(labeler.metadata())


def test_label_rows_need_no_actions(labeler, samples):
    bare = replace(samples[0], action=None, state=None)
    (table,) = labeler.label([bare])
    assert table.schema == labeler.schema()
    assert table.equals(labeler.label(samples[:1])[0])
    assert table["frame"].to_pylist() == list(range(39))  # in order, the last frame without a label
    assert table["n_votes"].to_pylist() == [1, 2, 3, *[4] * 33, 3, 2, 1]
    assert [flag == FLAG_SHORT for flag in table["flags"].to_pylist()] == [v == 1 for v in table["n_votes"].to_pylist()]
    assert table["gap_s"].to_pylist() == pytest.approx([1 / 80] * 39)


def test_a_single_vote_is_never_certain(labeler, samples):
    (table,) = labeler.label(samples[:1])
    std, votes = np.stack(table["action_std"].to_numpy()), table["n_votes"].to_numpy()
    assert std.min() > 0
    assert (std[votes == 1][:, :2] > 0.05).all()  # pixels; the third action is constant


def test_labels_do_not_depend_on_what_is_labelled_together(labeler, samples):
    together = labeler.label(samples)
    backwards = labeler.label(samples[::-1])[::-1]
    for sample, a, b in zip(samples, together, backwards, strict=True):
        assert a.equals(labeler.label([sample])[0])
        assert a.equals(b)


def carried(thing):
    """What another process gets."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def test_the_first_step_is_small_and_may_run_in_another_process(labeler, samples):
    assert len(pickle.dumps(labeler.prepare)) < 10_000
    ready = carried([carried(labeler.prepare)(sample) for sample in samples])
    for a, b in zip(labeler.label(ready), labeler.label(samples), strict=True):
        assert a.equals(b)


def test_a_reloaded_model_labels_alike(labeler, model_dir, samples):
    again = load(model_dir)
    assert again.digest() == labeler.digest()
    assert again.label(samples[:1])[0].equals(labeler.label(samples[:1])[0])


def test_another_rate_is_skipped_with_both_numbers(labeler):
    with pytest.raises(SkipItemError, match=r"30 Hz.*80 Hz") as caught:
        labeler.label([sprites.make_sample(0, rate_hz=30.0, n_frames=20)])
    assert caught.value.reason == "rate"
    (table,) = labeler.label([sprites.make_sample(0, rate_hz=160.0, n_frames=20)])
    assert table["frame"].to_pylist() == list(range(0, 18, 2))


def test_short_clip_is_skipped_by_name(labeler):
    with pytest.raises(SkipItemError, match="5 frames of a window") as caught:
        labeler.label([sprites.make_sample(0, n_frames=4)])
    assert caught.value.reason == "short"


def test_windows_do_not_span_cuts(labeler):
    sample = sprites.make_sample(0, n_frames=30)
    sample.meta["scores"] = {"cuts": [12, 15]}
    (table,) = labeler.label([sample])
    assert table["frame"].to_pylist() == [*range(11), *range(15, 29)]


def test_evaluation_has_the_promised_numbers(shards, model_dir, tmp_path):
    evaluation = evaluate_idm(shards, model=model_dir, out=str(tmp_path))
    assert (evaluation.clips, evaluation.steps, evaluation.skipped) == (5, 5 * 39, {})
    assert evaluation.r2.per_dimension["sprite"][2] is None  # that action is constant
    assert evaluation.r2.mean > 0.3
    assert evaluation.r2.mean > evaluation.r2_unvoted.mean
    assert evaluation.error < evaluation.baseline_error
    assert evaluation.lag == 0
    assert 0.7 < evaluation.coverage <= 1
    assert 0 <= evaluation.calibration < 0.2
    shown = repr(evaluation)
    assert evaluation.verdict in shown
    assert f"(without votes {evaluation.r2_unvoted.mean:.3f})" in shown
    assert f"error of the most certain steps: {evaluation.risk['0.25']:.4f} (25%)" in shown
    (group,) = evaluation.groups["sprite"].values()
    assert f"spread ratio {group.std_ratio:.2f}, 90 % interval holds {group.coverage:.2f}" in shown
    assert evaluation.cycle is None
    assert "look alike" not in shown
    assert json.loads((tmp_path / "idm_evaluation.json").read_text()) == asdict(evaluation)


def test_the_cycle_is_printed_with_a_latent_action_model(shards, model_dir, tmp_path):
    evaluation = evaluate_idm(shards, model=model_dir, limit=3, lam=random_models.lam_model(tmp_path))
    label, truth = (evaluation.cycle[name] for name in ("label", "truth"))
    assert f"look alike: label {label:.3f}, truth {truth:.3f} (0: chance" in repr(evaluation)


def test_evaluation_counts_what_it_cannot_label(tmp_path, model_dir):
    odd = [
        sprites.make_sample(1, rate_hz=30.0, n_frames=20, split="val"),
        sprites.make_sample(2, n_frames=4, split="val"),
    ]
    folder = sprites.write_shards(tmp_path, odd)
    with pytest.raises(DataError, match="rate: 1, short: 1"):
        evaluate_idm(folder, model=model_dir)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (WindowConfig, {"horizon": 0}),
        (WindowConfig, {"frames": (0, 4)}),
        (WindowConfig, {"frames": (-4, -2, 9)}),
        (WindowConfig, {"gap_s": 0.8}),
        (WindowConfig, {"stride": 9}),
        (WindowConfig, {"rate_tolerance": 0.5}),
        (VisionConfig, {"widths": (8, 8, 9)}),
        (VisionConfig, {"heads": 7}),
        (HeadConfig, {"samples": 0}),
        (HeadConfig, {"width": 100}),
        (HeadConfig, {"ridge": 0.0}),
        (VisionConfig, {"widths": (8, 8, 8, 16)}),
        (GateConfig, {"max_std": 0}),
        (ModelConfig, {"image_size_px": 30}),
    ],
)
def test_values_out_of_range_are_refused_with_the_value(config, options):
    with pytest.raises(ValueError, match=re.escape(str(next(iter(options.values()))).strip("()"))):
        config(**options)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["idm/tiny", "idm/keypoints"])
def test_a_small_preset_learns_the_sprites(tmp_path, preset):
    folder = sprites.make_shards(tmp_path, n_train=24, n_val=8, n_frames=64)
    train_idm(folder, out=str(tmp_path / "model"), config=preset)
    evaluation = evaluate_idm(folder, model=str(tmp_path / "model"))
    assert evaluation.r2.mean > 0.6
    assert evaluation.lag == 0
    assert 0.8 < evaluation.coverage < 0.97
