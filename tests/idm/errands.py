"""Videos of the same errands in two looks, and what has learned to see them; fixtures of the tests of looks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sprites

from idm.train import train_idm

PICTURES = {
    "config": "idm/pictures",
    "model.image_size_px": 32,
    "model.vision.widths": (16, 16, 16, 8),
    "model.vision.precision": "float32",
    "windows.frames": (-2, 0, 2, 4, 6),
    "trainer.max_steps": 250,
    "trainer.warmup_steps": 20,
}


def errand(number, **options):
    return sprites.make_sample(number, background_of=7, errand=True, **options)


def silent(samples):
    return [replace(sample, action=None, state=None) for sample in samples]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Five demonstrations, videos of the robot, and of a hand whose true actions nobody is told."""
    root = tmp_path_factory.mktemp("looks")
    hands = [errand(number, hand=True, embodiment="human") for number in range(200, 250)]
    parts = {
        "demos": [errand(number) for number in range(5)],
        "robot": silent(errand(number) for number in range(100, 140)),
        "hands": silent(hands),
    }
    return {name: sprites.write_shards(root / name, samples) for name, samples in parts.items()}, hands


@pytest.fixture(scope="session")
def models(corpus, tmp_path_factory):
    root, (shards, _) = tmp_path_factory.mktemp("looks-models"), corpus
    train_idm(shards["demos"], out=str(root / "robot"), videos=shards["robot"], **PICTURES)
    train_idm(out=str(root / "points"), videos=shards["hands"], **PICTURES)
    return root
