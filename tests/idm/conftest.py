"""Fixtures: one folder of synthetic shards, and one small model trained on it. Sprites are those of the lam tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "lam"))

import sprites
from errands import corpus, models  # noqa: F401  # fixtures

from idm.train import train_idm

SMALL = {
    "model.image_size_px": 32,
    "model.vision.widths": (16, 16, 24),
    "model.head.hidden": 64,
    "model.shift_px": 0,
    "windows.horizon": 4,
    "windows.frames": (-2, 0, 2, 4, 6),
    "trainer.max_steps": 100,
    "trainer.batch_size": 16,
    "trainer.lr": 3e-3,
    "trainer.threads": 0,
}


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    return sprites.make_shards(tmp_path_factory.mktemp("sprites-idm"), n_train=20, n_val=5, n_frames=40)


@pytest.fixture(scope="session")
def small() -> dict:
    return dict(SMALL)


@pytest.fixture(scope="session")
def model_dir(shards, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("idm-model"))
    train_idm(shards, out=out, **SMALL)
    return out
