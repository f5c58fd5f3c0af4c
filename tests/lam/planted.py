"""Latent-action models whose tokens are known: what an evaluation must say of them is known too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import sprites
import torch
from torch import Tensor, nn

from lam.camera import global_motion, moved_back
from lam.config import LAMConfig, ModelConfig, PairConfig, QuantizerConfig
from lam.model import LatentActionModel, build_model
from pyramid.rng import rng
from pyramid.video.encode import encode_mp4


class _Encoder(nn.Module):
    def __init__(self, rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, first, second, context):
        del context
        return [self.rule(first.pixels, second.pixels)[:, None]]


class _Decoder(nn.Module):
    def __init__(self, rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, first, tokens, context):
        del context
        return self.rule(first.pixels, tokens[0][:, 0]) - first.pixels


def plant(encode, decode, *, width: int, side: int = 64, gap_s: float = 0.05) -> LatentActionModel:
    """Returns a model of one token: ``encode(first, second) -> [B, D]`` and ``decode(first, z) -> second``."""
    config = LAMConfig(
        model=ModelConfig(image_size_px=side, n_tokens=1, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8)),
        quantizer=QuantizerConfig(kind="none", code_dim=width),
        pairs=PairConfig(gap_s=gap_s),
    )
    model = build_model(config)
    model.add_module("anchor", nn.Linear(1, 1))  # the evaluation asks a parameter for the device
    model.encoder, model.decoder = _Encoder(encode), _Decoder(decode)
    return model.eval()


def nothing() -> LatentActionModel:
    """Says nothing: the copy of the first frame."""
    return plant(lambda first, second: first.new_zeros(len(first), 2), lambda first, z: first, width=2)


def image_code() -> LatentActionModel:
    """Says everything: the tokens are the second frame."""
    side = 16
    return plant(
        lambda first, second: second.flatten(1),
        lambda first, z: z.unflatten(1, (3, side, side)),
        width=3 * side * side,
        side=side,
    )


def camera_code() -> LatentActionModel:
    """Says how the whole picture moved."""

    def encode(first: Tensor, second: Tensor) -> Tensor:
        return global_motion(*((255 * frames).round().to(torch.uint8) for frames in (first, second)))

    return plant(encode, lambda first, z: moved_back(first, -z)[0], width=2)


def action_code() -> LatentActionModel:
    """Says how far the disc moved, and moves the disc."""
    return plant(lambda first, second: _centre(second) - _centre(first), _move_disc, width=2)


def _disc(frames: Tensor) -> Tensor:
    return ((frames[:, 0] + frames[:, 1]) / 2 - frames[:, 2] - 0.25).clamp(0, 0.2)[:, None] / 0.2


def _centre(frames: Tensor) -> Tensor:
    weight = _disc(frames)[:, 0]
    line, total = torch.arange(frames.shape[-1]), weight.sum((1, 2)).clamp(min=1e-6)
    return torch.stack([(weight * line).sum((1, 2)), (weight * line[:, None]).sum((1, 2))], 1) / total[:, None]


def _move_disc(first: Tensor, z: Tensor) -> Tensor:
    here = _disc(first)
    there = moved_back(here, -z)[0]
    yellow = torch.tensor([1.0, 1.0, 60 / 255])[:, None, None]
    ground = first * (1 - here) + 100 / 255 * here
    return ground * (1 - there) + yellow * there


def panning_shards(folder: Path, *, n_train: int = 6, n_val: int = 3, n_frames: int = 24) -> str:
    """Writes clips in which the camera pans over a still texture; the actions have nothing to do with it."""
    samples = []
    for number in range(n_train + n_val):
        sample = sprites.make_sample(number, n_frames=n_frames, split="train" if number < n_train else "val")
        generator = rng(number, "pan")
        world = generator.integers(0, 255, (40, 40, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        place, frames = np.array([40.0, 40.0]), []
        speed = generator.normal(size=2)
        for _ in range(n_frames):
            top, left = np.clip(place.round().astype(int), 0, 96)
            frames.append(world[top : top + 64, left : left + 64])
            speed = np.clip(0.8 * speed + generator.normal(size=2), -2, 2)
            place = np.clip(place + speed, 0, 96)
        samples.append(replace(sample, video=encode_mp4(np.stack(frames), 80.0)))
    return sprites.write_shards(folder, samples)
