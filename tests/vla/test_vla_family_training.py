"""Backbones of the families that the releases use, made from their sizes and trained on shards end to end."""

from __future__ import annotations

from pathlib import Path

import drawing
import numpy as np
import pytest
import torch

from pyramid import files
from pyramid.config import dump_yaml
from pyramid.nn.trainer import TrainerConfig
from vla.config import BackboneConfig, HeadConfig, PolicyConfig, VLAConfig
from vla.policy import Policy, build_policy
from vla.train import train_vla

SIZES = {
    "tap_layer": 2, "max_text_tokens": 16, "image_size_px": 32, "patch_px": 8, "vision_width": 32, "vision_layers": 2,
    "text_width": 32, "attention_heads": 2, "kv_heads": 1,
}  # fmt: skip
BACKBONES = {
    "qwen3_vl, its top layer tuned": BackboneConfig(
        **SIZES, kind="qwen3_vl", deepstack=(0,), frozen=True, tune_top_layers=1
    ),
    "smolvlm": BackboneConfig(**SIZES, kind="smolvlm"),
    "eagle, kept features": BackboneConfig(**SIZES, kind="eagle", frozen=True, cache_features=True),
}
HEAD = HeadConfig(width=32, layers=4, heads=2, hidden=24, max_horizon=16, alternate=True, context_heads=2)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_policy_trains_from_shards_and_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = drawing.write_shards(tmp_path / "robot", [6] * 4)
    sources = {"robot": {"shards": shards, "use": "action", "weight": 1}}
    spec = {"tiers": {"top": {"weight": 1, "sources": sources}}, "horizon": 3}
    files.write_text(tmp_path / "mix.yaml", dump_yaml(spec))
    trainer = TrainerConfig(max_steps=4, batch_size=4, lr=1e-2, warmup_steps=1, log_every=1, threads=1)
    config = VLAConfig(policy=PolicyConfig(backbone=BACKBONES[name], head=HEAD), trainer=trainer)
    train_vla(str(tmp_path / "mix.yaml"), out=str(tmp_path / "policy"), config=config)
    policy = Policy.from_pretrained(str(tmp_path / "policy"))
    (body,) = policy.embodiments.values()
    seen = {"images": np.zeros((1, 32, 32, 3), np.uint8), "text": "go", "state": np.zeros(body.state_dim, np.float32)}
    assert np.isfinite(policy.act(seen)).all()
    # What trained is what the config says: against the weights that the same seed makes.
    fresh = build_policy(config.policy, policy.processor.bodies, seed=trainer.seed).state_dict()
    moved = {n for n, p in policy.state_dict().items() if not torch.equal(p, fresh[n])}
    top = {f"backbone.{n}" for n, p in policy.backbone.named_parameters() if p.requires_grad}
    assert {n for n in moved if n.startswith("backbone.")} <= top
    assert any(n.startswith("backbone.") for n in moved) == bool(top)
    assert any(n.startswith("head.dit.") for n in moved)
    kept = list((tmp_path / "robot").rglob("features/**/*.safetensors"))
    assert bool(kept) == BACKBONES[name].cache_features
