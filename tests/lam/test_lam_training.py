"""Ways of training: several processes, accumulation, averages of weights, half precision, pictures, sharing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ddp_driver
import numpy as np
import pytest
import torch
from lam_variants import SMALL, made
from safetensors.torch import load_file
from torch import nn

from lam.hub import CARD_FILE, PretrainedLAM
from lam.label import load
from lam.pictures import contact_sheet
from lam.train import train_lam
from pyramid.errors import DataError
from pyramid.nn.checkpoint import load_model_files
from pyramid.rng import torch_generator
from pyramid.shards.reader import ShardSet
from pyramid.training import StepModule, TrainerConfig, train_model

# Plain gradient descent would do; AdamW's first steps blow rounding up, so few and small ones are compared.
EQUAL = {**SMALL, "quantizer.kind": "none", "trainer.max_steps": 3, "trainer.batch_size": 4}


class Line(StepModule):
    """Fits a line, and keeps the weights that each pass started from."""

    def __init__(self, model, config):
        super().__init__(model, config)
        self.seen = []

    def loss(self, batch, generator):
        self.seen.append(self.model.weight.detach().clone())
        return (self.model(batch) - batch.sum(1, keepdim=True)).square().mean(), {}


def rows(place, count=4):
    return torch.randn(count, 3, generator=torch_generator(0, place))


def fitted(tmp_path, batch_at, **options):
    config = TrainerConfig(max_steps=6, lr=0.05, warmup_steps=0, checkpoint_every=4, log_every=1, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Line(nn.Linear(3, 1), config)
    train_model(module, batch_at, kind="lam", out=str(tmp_path), config=config, inputs={})
    return load_file(tmp_path / "model.safetensors")["weight"], module


def test_accumulated_passes_are_one_larger_batch(tmp_path):
    parts, _ = fitted(tmp_path / "a", rows, accumulate=2)
    whole, _ = fitted(tmp_path / "b", lambda step: torch.cat([rows(2 * step), rows(2 * step + 1)]))
    assert torch.allclose(parts, whole, atol=1e-6)


def test_the_saved_model_is_the_moving_average(tmp_path):
    saved, module = fitted(tmp_path / "a", rows, ema_decay=0.8)
    _, plain = fitted(tmp_path / "b", rows)
    after = [*plain.seen[1:], load_file(tmp_path / "b" / "model.safetensors")["weight"]]
    average = after[0]
    for weight in after[1:]:
        average = 0.8 * average + 0.2 * weight
    assert torch.allclose(saved, average, atol=1e-6)
    assert not torch.allclose(saved, after[-1], atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(module.seen, plain.seen, strict=True))  # training does not see it


@pytest.mark.parametrize("options", [{"accumulate": 3}, {"ema_decay": 0.9}, {"accumulate": 2, "ema_decay": 0.5}])
def test_resumed_it_ends_bit_equal(tmp_path, options):
    whole, _ = fitted(tmp_path, rows, **options)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    again, module = fitted(tmp_path, rows, **options)
    assert torch.equal(whole, again)
    assert len(module.seen) == 2 * options.get("accumulate", 1)  # it went on from step 4 of 6


def test_a_model_with_every_kind_of_state_resumes_bit_equal(shards, tmp_path):
    options = {**SMALL, "trainer.max_steps": 5, "trainer.checkpoint_every": 3, "trainer.ema_decay": 0.9}
    options |= {"quantizer.kind": "nsvq", "trainer.accumulate": 2, "objectives.action_weight": 0.1}
    train_lam(shards, out=str(tmp_path), **options)
    weights = (tmp_path / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    train_lam(shards, out=str(tmp_path), **options)
    assert (tmp_path / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_both_their_batches(shards, tmp_path):
    together = {**EQUAL, "trainer.devices": 2}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, ddp_driver.__file__, shards, str(tmp_path / "two"), json.dumps(together)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    train_lam(shards, out=str(tmp_path / "one"), **{**EQUAL, "trainer.accumulate": 2})
    two, one = (load_model_files(str(tmp_path / name), "lam")[1] for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        assert torch.allclose(tensor, one[name], atol=2e-4), name
    moved = train_lam(shards, out=str(tmp_path / "start"), **{**EQUAL, "trainer.max_steps": 1, "trainer.lr": 1e-9})
    start = load_model_files(moved.out, "lam")[1]
    assert max(float((two[n] - start[n]).abs().max()) for n in two) > 1e-3


def test_half_precision_trains_and_labels(shards, tmp_path):
    options = {**SMALL, "trainer.max_steps": 30, "trainer.precision": "bf16-mixed"}
    result = train_lam(shards, out=str(tmp_path), **options)
    assert result.loss < 0.97
    state = load_model_files(str(tmp_path), "lam")[1]
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.float32}
    assert load(str(tmp_path)).label([ShardSet.open(shards).read(0)])[0].num_rows == 24


def test_pictures_and_code_usage_are_logged(shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {**SMALL, "trainer.max_steps": 4, "trainer.images_every": 2, "trainer.log_every": 1}
    train_lam(shards, out=str(tmp_path), **options)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    images = events.Images("pairs")
    assert [image.step for image in images] == [2, 4]
    assert (images[0].width, images[0].height) == (8 * 32, 4 * 32)
    assert {"perplexity", "usage", "loss_prediction", "loss_quantizer"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("usage")) == 4
    plain = {**options, "trainer.images_every": 0}
    train_lam(shards, out=str(tmp_path / "plain"), **plain)
    names = ("model.safetensors",)
    assert [(tmp_path / n).read_bytes() == (tmp_path / "plain" / n).read_bytes() for n in names] == [True]


def test_the_sheet_shows_both_frames_the_prediction_and_a_transfer(shards, model_dir):
    module, sampler, _ = made(shards)
    batch = sampler.batch_at(0)
    with torch.no_grad():
        sheet = contact_sheet(module.model.eval(), batch)
    first, second, own, moved = sheet.split(32, dim=1)
    assert torch.allclose(first, torch.cat(list(batch.first / 255), dim=2))
    assert torch.allclose(second, torch.cat(list(batch.second / 255), dim=2))
    assert torch.equal(own, first)  # an untrained model predicts the copy
    assert torch.equal(moved, torch.cat([first[..., -32:], first[..., :-32]], dim=2))  # of another pair's frame


def test_saved_and_loaded_it_labels_alike(shards, model_dir, tmp_path):
    one = PretrainedLAM.from_pretrained(model_dir)
    digest = one.save_pretrained(str(tmp_path / "again"))
    other = PretrainedLAM.from_pretrained(str(tmp_path / "again"))
    assert (other.config, other.provenance) == (one.config, one.provenance)
    assert digest == load(model_dir).weights_sha256
    sample = ShardSet.open(shards).read(0)
    assert load(str(tmp_path / "again")).label([sample])[0].equals(load(model_dir).label([sample])[0])
    card = (tmp_path / "again" / CARD_FILE).read_text()
    assert card.startswith("---\nlibrary_name: latent-pyramid")
    assert "8 codes at each of 4 positions" in card
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(DataError, match="no lam model"):
        PretrainedLAM.from_pretrained(str(tmp_path))


def test_averaged_weights_are_what_labels_come_from(shards, tmp_path):
    found = []
    for name, decay in (("plain", 0.0), ("averaged", 0.99)):
        options = {**SMALL, "trainer.max_steps": 6, "trainer.ema_decay": decay, "quantizer.kind": "none"}
        train_lam(shards, out=str(tmp_path / name), **options)
        (table,) = load(str(tmp_path / name)).label([ShardSet.open(shards).read(0)])
        found.append(np.stack(table["latent"].to_numpy()))
    assert np.abs(found[0] - found[1]).max() > 1e-3
