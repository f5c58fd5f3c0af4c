"""Fixtures: one folder of synthetic shards, and one model trained on it for a few steps."""

from __future__ import annotations

import pytest
import sprites

from lam.train import train_lam

SMALL = {
    "model.image_size_px": 32,
    "model.encoder_widths": (16, 16, 24),
    "model.decoder_widths": (8, 16, 24),
    "trainer.max_steps": 12,
    "trainer.batch_size": 8,
    "trainer.warmup_steps": 2,
    "trainer.checkpoint_every": 6,
    "trainer.threads": 0,
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    return sprites.make_shards(tmp_path_factory.mktemp("sprites"), n_train=8, n_val=3, n_frames=32)


@pytest.fixture(scope="session")
def small() -> dict:
    return dict(SMALL)


@pytest.fixture(scope="session")
def model_dir(shards, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("lam-model"))
    train_lam(shards, out=out, **SMALL)
    return out
