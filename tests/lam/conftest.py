"""Fixtures: one folder of synthetic shards, and one model trained on it for a few steps."""

from __future__ import annotations

import pytest
import sprites
from lam_variants import SMALL

from lam.train import train_lam


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
