"""Options that make every variant of the model small, and what training builds from them."""

from __future__ import annotations

import tiny_hub

from lam.config import LAMConfig
from lam.pairs import PairSampler
from lam.sources import find_sources
from lam.train import build_module
from pyramid.config import resolve
from pyramid.shards.frames import ClipFrames

SMALL = {
    "model.image_size_px": 32,
    "model.encoder_widths": (16, 16, 24),
    "model.decoder_widths": (8, 16, 24),
    "pairs.gap_s": 0.1,
    "objectives.focus": "whole",
    "trainer.max_steps": 12,
    "trainer.batch_size": 8,
    "trainer.warmup_steps": 2,
    "trainer.checkpoint_every": 6,
    "trainer.threads": 0,
}
TRANSFORMER = {
    "model.encoder": "transformer",
    "model.decoder": "transformer",
    "model.width": 16,
    "model.heads": 2,
    "model.encoder_depth": 1,
    "model.decoder_depth": 1,
    "model.patch_px": 8,
}


def made(shards, **options):
    """A module, its sampler and its sources, as training makes them."""
    config = resolve(LAMConfig, "lam/tiny", **{**SMALL, **options})
    clips = ClipFrames.open(shards, split="train", size_px=config.model.image_size_px)
    sources = find_sources(config, clips)
    sampler = PairSampler(
        clips,
        config.pairs,
        seed=config.trainer.seed,
        batch_size=config.trainer.batch_size,
        signals=sources.signals(clips, config),
    )
    return build_module(config, sources).train(), sampler, sources


def features_of(tmp_path, kind="dinov2"):
    return {
        **TRANSFORMER,
        "target.kind": "features",
        "target.vision_model": tiny_hub.save_vision(kind, tmp_path / kind),
    }
