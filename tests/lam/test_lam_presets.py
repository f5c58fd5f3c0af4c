"""Presets: each builds at its full size (on the meta device), says how large it is, and trains when made tiny."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import tiny_hub
import torch

from lam.config import LAMConfig, QuantizerConfig, TargetConfig, TextConfig
from lam.evaluate import evaluate_lam
from lam.facts import ModelFacts
from lam.model import build_model
from lam.train import train_lam
from pyramid.config import preset_folder, resolve, to_dict

PRESETS = ["tiny", "small", "paper-lapa", "paper-univla-stage1", "paper-univla-stage2", "paper-gr00t"]
SMALLER = {
    "model.image_size_px": 32,
    "model.width": 16,
    "model.heads": 2,
    "model.encoder_depth": 1,
    "model.decoder_depth": 1,
    "model.patch_px": 8,
    "pairs.gap_s": 0.1,
    "pairs.cache_mb": 16,
    "trainer.max_steps": 2,
    "trainer.batch_size": 4,
    "trainer.warmup_steps": 0,
    "trainer.precision": "32-true",
    "trainer.devices": 1,
    "trainer.ema_decay": 0.0,
}


def test_these_are_all_the_presets():
    assert sorted(path.stem for path in (preset_folder() / "lam").glob("*.yaml")) == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_as_large_as_it_says(name):
    from transformers import Dinov2Config, Dinov2WithRegistersConfig

    config = resolve(LAMConfig, f"lam/{name}")
    published = {  # the architecture of those ids: ViT-B/14 for 518 px
        "facebook/dinov2-base": Dinov2Config,
        "facebook/dinov2-with-registers-base": Dinov2WithRegistersConfig,
    }
    vision = config.target.vision_model
    first = resolve(LAMConfig, "lam/paper-univla-stage1")
    facts = ModelFacts(
        vision=published[vision](image_size=518, patch_size=14).to_dict() if vision else {},
        text_dim=768 if config.text.text_model else 0,  # T5-base
        stage1={"quantizer": to_dict(first.quantizer), "n_tokens": first.model.n_tokens} if config.stage1 else {},
    )
    with torch.device("meta"):
        model = build_model(config, facts)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.features.parameters()) if model.features else 0
    text = " ".join((preset_folder() / "lam" / f"{name}.yaml").read_text().replace("\n#", "").split())
    said = re.search(r"([\d.]+) M (?:trained )?parameters", text)
    assert float(said[1]) == round(trained / 1e6, 1)
    beside = re.search(r"beside ([\d.]+) M frozen", text)
    assert (float(beside[1]) if beside else 0) == round(frozen / 1e6, 1)


def test_the_published_numbers_stand_in_the_presets():
    gr00t, lapa, univla = (resolve(LAMConfig, f"lam/paper-{n}") for n in ("gr00t", "lapa", "univla-stage1"))
    assert (gr00t.model.n_tokens, gr00t.quantizer.n_codes, gr00t.pairs.gap_s) == (16, 8, 1.0)
    assert (lapa.model.n_tokens, lapa.quantizer.n_codes, lapa.quantizer.kind) == (4, 8, "nsvq")
    assert (univla.model.n_tokens, univla.quantizer.n_codes, univla.quantizer.dim) == (4, 16, 128)


@pytest.mark.parametrize(
    "name",  # UniVLA's second stage comes with its first
    ["small", *(pytest.param(f"paper-{n}", marks=pytest.mark.slow) for n in ("lapa", "univla-stage1", "gr00t"))],
)
def test_a_preset_made_tiny_trains_and_is_evaluated(name, shards, tmp_path):
    config = resolve(LAMConfig, f"lam/{name}", **SMALLER)
    if config.target.vision_model:
        kind = "dinov2" if name == "small" else "dinov2_with_registers"
        folder = tiny_hub.save_vision(kind, tmp_path / "vision")
        config = replace(config, target=TargetConfig(kind="features", vision_model=folder))
    if config.text.text_model:
        config = replace(config, text=TextConfig(text_model=tiny_hub.save_text(tmp_path / "text"), max_tokens=4))
    out = tmp_path / "model"
    train_lam(shards, out=str(out), config=config)
    evaluation = evaluate_lam(shards, model=str(out), n_pairs=33)
    assert len(evaluation.perplexity) == config.model.n_tokens
    if name == "paper-univla-stage1":
        second = resolve(LAMConfig, "lam/paper-univla-stage2", **SMALLER)
        second = replace(second, target=config.target, stage1=str(out))
        train_lam(shards, out=str(tmp_path / "second"), config=second)
        assert evaluate_lam(shards, model=str(tmp_path / "second"), n_pairs=33).n_codes == 16


def test_codebook_defaults_are_those_of_the_tiny_preset():
    assert resolve(LAMConfig, "lam/tiny").quantizer == QuantizerConfig(code_dim=16)
