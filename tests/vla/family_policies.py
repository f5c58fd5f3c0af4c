"""Tiny policies of the backbone families, with the head of N1.6 that looks at text and images in turn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tiny_policy import HEAD, make_bodies
from tokenizers import AddedToken

from pyramid.actions import BodySpec
from pyramid.config import from_dict
from pyramid.normalize import Normalizer, fit_normalizer
from pyramid.rng import rng
from pyramid.types import Embodiment
from vla.config import BackboneConfig, PolicyConfig
from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics
from vla.text import byte_tokenizer, tokenizer_to_json

__all__ = ["FAMILY_OPTIONS", "declared_body", "family_policy"]

SIZE_PX = 16
_MARKS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<img>", "</img>",
)  # fmt: skip
_SIZES = BackboneConfig(
    tap_layer=2, max_text_tokens=96, image_size_px=SIZE_PX, patch_px=4, vision_width=16, vision_layers=2,
    text_width=32, attention_heads=2, n_views=2, layout="chat",
)  # fmt: skip
FAMILY_OPTIONS = {
    "qwen3_vl": {"deepstack": (0,), "kv_heads": 1},
    "smolvlm": {"kv_heads": 1},
    "eagle": {"language": "qwen3", "project_width": 24},
    "llava": {},
}
_HEAD = dataclasses.replace(
    HEAD, layers=4, sample_steps=2, alternate=True, text_every=2, context_layers=0, unknown_state="zeros"
)


def declared_body(horizon: int = 4) -> BodyStatistics:
    """A body of two cameras with a relative pose, a delta joint and a switch, and statistics drawn at random."""
    turn = {"kind": "pose", "representation": "relative"}
    plain = {
        "name": "hand",
        "cameras": ["head", "wrist_camera", "unused"],
        "state": {
            "wrist": {"start": 0, "end": 2, "normalizer": "sin_cos"},
            "eef": {"start": 2, "end": 9, "kind": "pose", "rotation": "quaternion"},
        },
        "action": {
            "eef": {"start": 0, "end": 6, "rotation": "axis_angle", **turn},
            "wrist": {"start": 6, "end": 8, "representation": "delta", "normalizer": "mean_std"},
            "grip": {"start": 8, "end": 9, "kind": "binary"},
        },
    }
    spec = from_dict(BodySpec, plain)
    body = Embodiment(name="hand", state_dim=9, action_dim=9, horizon=horizon, rate_hz=10.0, declaration=spec)
    draw, sizes = rng(0, "declared body"), body.network
    center, scale = draw.normal(size=(horizon, 12)) * 0.1, 0.2 + draw.random((horizon, 12)) * 0.1
    center[:, -1], scale[:, -1] = 0.5, 0.5
    clip = (True,) * 9 + (False,) * 3
    action = Normalizer("mixed", np.float32(center), np.float32(scale), clip, (11,))
    return BodyStatistics(body, fit_normalizer(draw.normal(size=(64, sizes.state_dim)), "min_max"), action)


def family_policy(kind: str, folder: Path, bodies: dict[str, BodyStatistics] | None = None) -> Policy:
    """Builds a policy of one family with the family's own chat around the instruction; seeded."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in _MARKS])
    path = folder / "tokenizer.json"
    path.write_text(tokenizer_to_json(tokenizer))
    backbone = dataclasses.replace(_SIZES, kind=kind, tokenizer=str(path), **FAMILY_OPTIONS[kind])
    return build_policy(PolicyConfig(backbone=backbone, head=_HEAD), bodies or make_bodies(), seed=3)
