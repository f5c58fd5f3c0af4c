"""The presets of published sizes: built on the meta device, counted against what is published."""

from __future__ import annotations

import pytest
import torch

from pyramid.config import resolve
from pyramid.nn.embodiment import EmbodimentMLP
from pyramid.types import Embodiment
from vla.action_head import build_action_head
from vla.backbone import build_backbone
from vla.config import VLAConfig


def counted(module):
    return sum(p.numel() for p in module.parameters())


def build(name, *, state, action, horizon, slots=32):
    """Builds a preset as the release has it: so many embodiment slots of the largest sizes."""
    config = resolve(VLAConfig, name)
    body = {"state_dim": state, "action_dim": action, "horizon": horizon, "rate_hz": 10.0}
    bodies = {f"slot_{i}": Embodiment(name=f"slot_{i}", **body) for i in range(slots)}
    with torch.device("meta"):
        backbone, _ = build_backbone(config.policy.backbone)
        head = build_action_head(config.policy.head, backbone.width, bodies, backbone.image_spans)
    return config, backbone, head


# N1: published (arXiv 2503.14734: 2.2 B, 1.34 B of it the VLM). The later releases are called 3 B and publish no count:
# their totals are sums by hand. A block with cross-attention to width 2048 has 34.6 M, one with self-attention 33.0 M;
# tokens per view are published, or (N1.6) inferred.
RELEASES = {
    "vla/gr00t-n1": ({"state": 64, "action": 32, "horizon": 16}, (2.2e9, 0.02), 0.53e9, 64),
    "vla/gr00t-n1.5": ({"state": 64, "action": 32, "horizon": 16}, (2.4e9, 0.05), 0.54e9, 256),
    "vla/gr00t-n1.6": ({"state": 128, "action": 128, "horizon": 50}, (3.0e9, 0.05), 1.08e9, 81),
    "vla/gr00t-n1.7": ({"state": 132, "action": 132, "horizon": 40}, (3.15e9, 0.05), 1.08e9, 64),
}


@pytest.mark.parametrize("name", RELEASES)
def test_parameters_are_those_of_the_release(name):
    sizes, (total, within), dit, tokens = RELEASES[name]
    config, backbone, head = build(name, **sizes)
    assert counted(backbone) + counted(head) == pytest.approx(total, rel=within)
    blocks = sum(counted(block) for block in head.dit.blocks)
    assert blocks == pytest.approx(dit, rel=0.02)
    assert backbone.tokens_per_view == tokens
    assert len(backbone.layers) == config.policy.backbone.tap_layer
    if name == "vla/gr00t-n1":
        assert counted(backbone) == pytest.approx(1.34e9, rel=0.01)
    if name in ("vla/gr00t-n1", "vla/gr00t-n1.5"):
        tables = (head.state_encoder, head.action_encoder, head.action_decoder)
        assert sum(map(counted, tables)) == pytest.approx(315e6, rel=0.01)
    backbone.set_trainable(frozen=True, vision=config.policy.backbone.tune_vision)
    assert backbone.trains == (name == "vla/gr00t-n1")


def test_slots_on_demand_are_a_fraction_of_the_published_tables():
    _, _, head = build("vla/gr00t-n1.5", state=44, action=44, horizon=16, slots=1)
    tables = [head.state_encoder, head.action_encoder, head.action_decoder]
    assert isinstance(tables[0], EmbodimentMLP)
    assert sum(map(counted, tables)) < 315e6 / 28


def test_small_fits_a_card_of_24_gb():
    config, backbone, head = build("vla/small", state=32, action=16, horizon=16, slots=4)
    # Weights of both, and for what trains a gradient and two moments, all in float32.
    trained = counted(head)
    held = 4 * (counted(backbone) + 4 * trained)
    assert config.policy.backbone.frozen
    assert 0.2e9 < trained < 0.5e9
    assert held < 9e9
    assert backbone.tokens_per_view == 64
