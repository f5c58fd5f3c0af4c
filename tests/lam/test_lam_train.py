"""Training, labels and evaluation on synthetic shards, through the public functions."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import sprites
import torch

from lam.config import LAMConfig
from lam.evaluate import evaluate_lam
from lam.label import load
from lam.train import build_module, train_lam
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.labels.protocol import BASE_FIELDS, FLAG_STATIC, Labeler
from pyramid.shards.reader import ShardSet


@pytest.fixture(scope="module")
def labeler(model_dir):
    return load(model_dir)


@pytest.fixture(scope="module")
def samples(shards):
    found = ShardSet.open(shards)
    return [found.read(i) for i in range(4)]


def test_preset_resolves():
    config = resolve(LAMConfig, "lam/tiny")
    assert (config.pairs.gap_s, config.model.n_tokens, config.quantizer.codebook_size) == (0.2, 4, 8)


def test_training_lowers_the_loss(shards, small, tmp_path):
    first = train_lam(shards, out=str(tmp_path / "a"), **{**small, "trainer.max_steps": 1})
    last = train_lam(shards, out=str(tmp_path / "b"), **{**small, "trainer.max_steps": 60})
    assert first.loss == pytest.approx(1, abs=0.2)
    assert last.loss < 0.85 * first.loss


def test_same_seed_gives_the_same_bytes(shards, small, tmp_path):
    weights = []
    for name in ("a", "b"):
        train_lam(shards, out=str(tmp_path / name), **{**small, "trainer.max_steps": 3})
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_killed_run_resumes_to_the_same_bytes(shards, small, tmp_path):
    options = {**small, "trainer.max_steps": 5, "trainer.checkpoint_every": 3}
    train_lam(shards, out=str(tmp_path), **options)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    assert not train_lam(shards, out=str(tmp_path), **options).reused
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_initial_weights_do_not_touch_global_randomness():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    build_module(resolve(LAMConfig, "lam/tiny"))
    assert torch.equal(torch.rand(2), expected)


def test_finished_model_is_reused_and_dry_run_writes_nothing(shards, small, model_dir, tmp_path):
    assert train_lam(shards, out=model_dir, **small).reused
    plan = train_lam(shards, out=str(tmp_path / "x"), dry_run=True, **small)
    assert plan.dry_run
    assert plan.seconds > 0
    assert not (tmp_path / "x").exists()
    assert "nothing written" in repr(train_lam(dry_run=True))


def test_wrong_calls_are_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="shard"):
        train_lam(out=str(tmp_path))
    with pytest.raises(ConfigError, match="--out"):
        train_lam(shards)
    with pytest.raises(ConfigError, match="n_tokens"):
        train_lam(shards, out=str(tmp_path), **{"model.n_token": 3})


def test_labeler_keeps_the_protocol(labeler):
    assert isinstance(labeler, Labeler)
    assert labeler.name == "lam"
    assert [(f.name, f.type) for f in labeler.schema()][:5] == list(BASE_FIELDS)
    json.dumps(labeler.metadata())
    assert labeler.metadata()["gap_policy"] == {"gap_s": 0.1, "label_hz": None, "clamped": False}


def test_label_rows(labeler, samples):
    (table,) = labeler.label(samples[:1])
    assert table.schema == labeler.schema()
    assert table["frame"].to_pylist() == list(range(32 - 8))
    assert table["t_s"].to_pylist() == pytest.approx([i / 80 for i in range(24)])
    assert table["gap_s"].to_pylist() == pytest.approx([0.1] * 24)
    assert set(table["key"].to_pylist()) == {samples[0].key}
    latent = np.stack(table["latent"].to_numpy())
    assert latent.shape == (24, 64)
    assert np.isfinite(latent).all()
    assert 0 <= np.stack(table["codes"].to_numpy()).max() < 8


def test_labels_do_not_depend_on_what_is_labelled_together(labeler, samples):
    together = labeler.label(samples)
    alone = [labeler.label([sample])[0] for sample in samples]
    backwards = labeler.label(samples[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.equals(b)
        assert a.equals(c)


def carried(thing):
    """What another process gets."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def test_the_first_step_is_small_and_may_run_in_another_process(labeler, samples):
    assert len(pickle.dumps(labeler.prepare)) < 10_000
    ready = carried([carried(labeler.prepare)(sample) for sample in samples])
    for a, b in zip(labeler.label(ready), labeler.label(samples), strict=True):
        assert a.equals(b)


def test_padding_does_not_reach_a_label(labeler, samples):
    """The first rows of a clip are the same whether they share their pass with further rows or with padding."""
    whole = labeler.label(samples[:1])[0]
    sample = samples[0]
    cut = sprites.Sample(sample.key, sample.meta, sample.times_s[:20], sample.video, None, None)
    assert labeler.label([cut])[0].equals(whole.slice(0, 12))


def test_a_reloaded_model_labels_alike(labeler, model_dir, samples):
    again = load(model_dir)
    assert again.digest() == labeler.digest()
    assert again.label(samples[:1])[0].equals(labeler.label(samples[:1])[0])


def test_still_pairs_are_flagged_and_have_no_gain(labeler):
    (table,) = labeler.label([sprites.make_sample(5, n_frames=20, still=True)])
    assert set(table["flags"].to_pylist()) == {FLAG_STATIC}
    (moving,) = labeler.label([sprites.make_sample(5, n_frames=20)])
    assert set(moving["flags"].to_pylist()) == {0}


def test_short_clip_is_skipped_by_name(labeler):
    with pytest.raises(SkipItemError, match=r"no two of its 5 frames are 0\.1 s apart") as caught:
        labeler.label([sprites.make_sample(0, n_frames=5)])
    assert caught.value.reason == "short"


def test_cuts_noted_at_packing_are_not_crossed(labeler):
    sample = sprites.make_sample(0, n_frames=32)
    sample.meta["scores"] = {"cuts": [16]}
    (table,) = labeler.label([sample])
    assert table["frame"].to_pylist() == [*range(8), *range(16, 24)]


def test_label_rate_is_part_of_the_model(shards, small, tmp_path, samples):
    train_lam(shards, out=str(tmp_path), **{**small, "trainer.max_steps": 1, "pairs.label_hz": 20})
    (table,) = load(str(tmp_path)).label(samples[:1])
    assert table["frame"].to_pylist() == list(range(0, 24, 4))


def test_continuous_bottleneck_writes_null_codes(shards, small, tmp_path, samples):
    train_lam(shards, out=str(tmp_path), **{**small, "trainer.max_steps": 1, "quantizer.kind": "none"})
    (table,) = load(str(tmp_path)).label(samples[:1])
    assert table["codes"].null_count == table.num_rows == 24
    assert table.schema.field("codes").type == pa.list_(pa.uint16(), 4)
    evaluation = evaluate_lam(shards, model=str(tmp_path), n_pairs=64)
    assert (evaluation.perplexity, evaluation.static_fraction, evaluation.n_codes) == (None, None, 0)


def test_evaluation_has_the_promised_numbers(shards, model_dir, tmp_path):
    evaluation = evaluate_lam(shards, model=model_dir, out=str(tmp_path), n_pairs=96)
    assert len(evaluation.perplexity) == 4
    assert all(1 <= p <= 8 for p in evaluation.perplexity)
    assert evaluation.clips == 3
    assert evaluation.camera_r2 is None  # the camera stands still
    assert list(evaluation.probes) == ["sprite"]
    assert evaluation.probes["sprite"].per_dimension[2] is None  # that action is constant
    assert 0 < evaluation.static_fraction <= 1
    assert evaluation.verdict in repr(evaluation)
    assert json.loads((tmp_path / "lam_evaluation.json").read_text()) == asdict(evaluation)
    assert evaluate_lam(shards, model=model_dir, n_pairs=96) == replace(evaluation, pictures=[])


def test_an_untrained_model_is_not_called_good(shards, small, tmp_path):
    train_lam(shards, out=str(tmp_path), **{**small, "trainer.max_steps": 1, "trainer.lr": 1e-9})
    evaluation = evaluate_lam(shards, model=str(tmp_path), n_pairs=64)
    # It copies the first frame: its gap is 0 but for rounding, of either sign.
    assert evaluation.verdict == "collapsed"
    assert math.isclose(evaluation.copy_gap, 0, abs_tol=1e-3)


def test_held_out_folder_alone_has_no_probe(tmp_path, model_dir):
    folder = sprites.make_shards(tmp_path, n_train=0, n_val=2, n_frames=24)
    evaluation = evaluate_lam(folder, model=model_dir, n_pairs=64)
    assert (evaluation.probe_r2, evaluation.probes, evaluation.camera_r2) == (None, {}, None)
    assert evaluation.leakage is None or evaluation.leakage < 2


def test_evaluation_without_held_out_clips_is_refused(tmp_path, model_dir):
    folder = sprites.make_shards(tmp_path, n_train=2, n_val=0, n_frames=16)
    with pytest.raises(DataError, match="split 'val'"):
        evaluate_lam(folder, model=model_dir)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("none", 0.6), ("vq_ema", 0.4)])
def test_actions_can_be_read_from_the_latent(tmp_path, kind, least):
    folder = sprites.make_shards(tmp_path, n_train=24, n_val=8, n_frames=64)
    train_lam(folder, out=str(tmp_path / "model"), config="lam/tiny", **{"quantizer.kind": kind})
    evaluation = evaluate_lam(folder, model=str(tmp_path / "model"))
    assert evaluation.verdict == "usable", evaluation
    assert evaluation.copy_gap > 1.5
    assert evaluation.probe_r2 > least
