"""Tiny policies and synthetic groups that the tests of the policy share."""

from __future__ import annotations

import numpy as np
import torch

from pyramid.mixture.batch import Group
from pyramid.normalize import Normalizer
from pyramid.rng import rng
from pyramid.types import Embodiment
from vla.config import BackboneConfig, HeadConfig, PolicyConfig
from vla.processor import BodyStatistics

BACKBONE = BackboneConfig(
    tap_layer=2,
    max_text_tokens=16,
    image_size_px=16,
    patch_px=8,
    vision_width=32,
    vision_layers=1,
    text_width=32,
    attention_heads=2,
)
HEAD = HeadConfig(width=32, layers=4, heads=2, hidden=24, context_layers=1, context_heads=2, max_horizon=16)
TINY = PolicyConfig(backbone=BACKBONE, head=HEAD)


def affine(center: list[float], scale: list[float], *, clip: bool = False) -> Normalizer:
    return Normalizer("mean_std", np.float32(center), np.float32(scale), clip)


def make_bodies() -> dict[str, BodyStatistics]:
    arm = Embodiment(name="arm", state_dim=3, action_dim=2, horizon=4, rate_hz=10.0)
    latent = Embodiment(name="human_latent", state_dim=0, action_dim=5, horizon=3, rate_hz=2.0, label="latent")
    return {
        "arm": BodyStatistics(arm, affine([1.0, 2.0, 0.5], [0.5, 2.0, 0.0]), affine([10.0, -4.0], [3.0, 0.5])),
        "human_latent": BodyStatistics(latent, None, affine([0.0] * 5, [1.0] * 5)),
    }


def make_group(bodies: dict[str, BodyStatistics], name: str, n: int, seed: int, *, size_px: int = 16) -> Group:
    """Builds a group whose actions are told by the brightness of the view (and, where there is one, by the state)."""
    e, draw = bodies[name].embodiment, rng(seed, "test group", name)
    level = draw.random(n).astype(np.float32)
    images = np.broadcast_to((level * 255).astype(np.uint8)[:, None, None, None, None], (n, 1, size_px, size_px, 3))
    state = draw.normal(size=(n, e.state_dim)).astype(np.float32)
    signal = 2 * level[:, None, None] - 1
    action = bodies[name].action.denormalize(np.broadcast_to(signal, (n, e.horizon, e.action_dim)))
    return Group(
        embodiment=name,
        images=torch.from_numpy(images.copy()),
        text=tuple(f"task {i % 3}" for i in range(n)),
        state=torch.from_numpy(state),
        state_known=torch.full((n,), e.state_dim > 0),
        action=torch.from_numpy(action.copy()),
        mask=torch.ones(n, e.horizon, e.action_dim, dtype=torch.bool),
        weight=torch.ones(n),
        source=tuple(f"{name}_{i % 2}" for i in range(n)),
        tier=("top",) * n,
        key=tuple(f"{name}-{i}" for i in range(n)),
        position=torch.arange(n),
    )
