import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_policy import TINY, make_bodies, make_group

from pyramid.config import preset_folder, resolve
from pyramid.errors import ConfigError, DataError
from pyramid.nn.trainer import TrainerConfig
from vla import evaluate, train
from vla.config import BackboneConfig, HeadConfig, VLAConfig
from vla.evaluate import evaluate_batches
from vla.objectives.config import FlareConfig, ObjectivesConfig, TokensConfig, WeightsConfig
from vla.policy import Policy
from vla.tuning.config import LoraSpec, TuneConfig, ValidationConfig

OWN = (FlareConfig, TokensConfig, WeightsConfig, ObjectivesConfig, LoraSpec, ValidationConfig, TuneConfig)
TRAINER = TrainerConfig(max_steps=6, batch_size=8, lr=1e-3, warmup_steps=2, checkpoint_every=2, log_every=1, threads=1)
CONFIG = VLAConfig(policy=TINY, trainer=TRAINER)


class SyntheticStream:
    """A stream of groups that needs no files; the interface of a mixture's."""

    digest = data_digest = "synthetic"
    decoded_per_used = 1.0

    def __init__(self, offset=0):
        self.bodies, self.offset = make_bodies(), offset
        self.sources, self.typical_shares = [], {}
        self.embodiments = {n: b.embodiment for n, b in self.bodies.items()}
        self.statistics = {
            n: {"action": b.action, **({"state": b.state} if b.state else {})} for n, b in self.bodies.items()
        }

    def batch(self, step):
        return [make_group(self.bodies, name, 4, step + self.offset) for name in sorted(self.bodies)]


@pytest.fixture
def stream(monkeypatch):
    synthetic = SyntheticStream()
    monkeypatch.setattr(train, "open_stream", lambda mixture, config, split="train": synthetic)
    return synthetic


def test_training_writes_a_policy_that_loads_and_is_reused(stream, tmp_path):
    result = train.train_vla("mix.yaml", out=str(tmp_path), config=CONFIG)
    assert (result.kind, result.steps, result.reused) == ("vla", 6, False)
    assert math.isfinite(result.loss)
    policy = Policy.from_pretrained(str(tmp_path))
    assert policy.embodiments == stream.embodiments
    assert result.parameters == sum(p.numel() for p in policy.parameters())
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["config"] == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert description["provenance"]["inputs"] == {"mixture": "synthetic"}
    assert train.train_vla("mix.yaml", out=str(tmp_path), config=CONFIG).reused


def test_a_resumed_run_is_bit_equal(stream, tmp_path, monkeypatch):
    train.train_vla("mix.yaml", out=str(tmp_path / "whole"), config=CONFIG)
    batch, reads = stream.batch, []

    def interrupted(step):
        reads.append(step)
        if len(reads) > 4:
            raise DataError("the disk went away")
        return batch(step)

    monkeypatch.setattr(stream, "batch", interrupted)
    with pytest.raises(DataError, match="went away"):
        train.train_vla("mix.yaml", out=str(tmp_path / "parts"), config=CONFIG)
    monkeypatch.setattr(stream, "batch", lambda step: reads.append(step) or batch(step))
    reads.clear()
    train.train_vla("mix.yaml", out=str(tmp_path / "parts"), config=CONFIG)
    assert min(reads) > 0
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_dry_run_writes_nothing(stream, tmp_path):
    plan = train.train_vla("mix.yaml", out=str(tmp_path / "x"), config=CONFIG, dry_run=True)
    assert plan.dry_run
    assert plan.seconds > 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture": None, "out": "x"}, "mixture"),
        ({"mixture": "m.yaml"}, "--out"),
        ({"mixture": "m.yaml", "out": "x", "policy.head.widht": 3}, "width"),
        ({"mixture": "m.yaml", "out": "x", "policy.head.width": 7}, "7"),
    ],
)
def test_usage_errors_say_what_to_do(options, message):
    with pytest.raises(ConfigError, match=message):
        train.train_vla(options.pop("mixture"), config=CONFIG, **options)


def test_the_preset_says_every_option_and_parses():
    config = resolve(VLAConfig, "vla/tiny")
    text = Path(preset_folder(), "vla", "tiny.yaml").read_text()
    for part in (BackboneConfig, HeadConfig, TrainerConfig, *OWN):
        for field in dataclasses.fields(part):
            assert f"{field.name}:" in text
    assert config.trainer.max_steps == 150


@pytest.mark.parametrize(
    ("cls", "wrong"),
    [
        (BackboneConfig, {"tap_layer": 0}),
        (BackboneConfig, {"image_size_px": 65}),
        (BackboneConfig, {"text_width": 132}),
        (HeadConfig, {"width": 130}),
        (HeadConfig, {"sample_steps": 0}),
        (HeadConfig, {"state_dropout": 1.0}),
    ],
)
def test_configs_refuse_values_out_of_range(cls, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        cls(**wrong)


def test_a_perfect_policy_scores_perfectly_and_the_mean_scores_zero(policy, monkeypatch):
    batches = [SyntheticStream().batch(step) for step in range(3)]
    batches[0][0].mask[1:, 2:] = False
    batches[0][0].action[1:, 2:] = 1e9  # padding must not count
    answers = [group.action for batch in batches for group in batch]
    queue = list(answers)
    monkeypatch.setattr(policy, "sample", lambda prepared, noise, name, state: queue.pop(0))
    perfect = evaluate_batches(policy, batches)
    assert {name: (s.mae, s.r2, s.samples) for name, s in perfect.items()} == {
        "arm": (0.0, 1.0, 12),
        "human_latent": (0.0, 1.0, 12),
    }
    real = torch.cat([b[0].action[b[0].mask].reshape(-1, 2) for b in batches])
    monkeypatch.setattr(
        policy,
        "sample",
        lambda p, noise, name, state: real.mean(0).expand(4, 4, 2) if name == "arm" else torch.zeros(4, 3, 5),
    )
    mean = evaluate_batches(policy, batches)["arm"]
    assert mean.r2 == pytest.approx(0.0, abs=1e-5)
    assert mean.mae == pytest.approx(mean.baseline_mae, rel=1e-5)
    assert mean.baseline_mae == pytest.approx((real - real.mean(0)).abs().mean().item(), rel=1e-5)
    assert mean.rmse == pytest.approx((real - real.mean(0)).square().mean().sqrt().item(), rel=1e-5)


def test_evaluation_is_repeatable_and_refuses_emptiness(policy):
    batches = [SyntheticStream().batch(step) for step in range(2)]
    assert evaluate_batches(policy, batches, seed=1) == evaluate_batches(policy, batches, seed=1)
    assert evaluate_batches(policy, batches, seed=1) != evaluate_batches(policy, batches, seed=2)
    with pytest.raises(DataError, match="no held-out action"):
        evaluate_batches(policy, [])
    with pytest.raises(ConfigError, match="batches >= 1"):
        evaluate.evaluate_vla("m.yaml", model="x", batches=0)


def test_a_dimension_that_stands_still_has_no_r2():
    still = np.ones((2, 3, 2), np.float32)
    still[..., 0] = np.arange(6).reshape(2, 3)
    score = evaluate._score(still, still, np.ones_like(still, dtype=bool))
    assert score.r2 == 1.0
