"""The backbone of keypoints: it says where things are, keeps padding out, and survives a checkpoint and an export."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import make_bodies

from idm.config import IDMConfig
from idm.model import InverseDynamicsModel
from idm.train import build_module
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError
from pyramid.nn.checkpoint import save_model
from pyramid.nn.keypoints import Keypoints, multiplies_bfloat16
from vla.backbone import build_backbone, restore_backbone
from vla.backbones.keypoints import KeypointBackbone
from vla.config import BackboneConfig, HeadConfig, PolicyConfig
from vla.deploy.export import export
from vla.policy import Policy, build_policy

CONFIG = BackboneConfig(kind="keypoints", image_size_px=32, patch_px=4, vision_width=16, vision_layers=3, text_width=16)


def dot(x: int, y: int, size: int = 32) -> torch.Tensor:
    """A picture with one bright spot, uint8 [1, 1, S, S, 3]."""
    picture = torch.zeros(1, 1, size, size, 3, dtype=torch.uint8)
    picture[0, 0, y - 2 : y + 2, x - 2 : x + 2] = 255
    return picture


def test_points_follow_what_moves() -> None:
    torch.manual_seed(0)
    backbone, _ = build_backbone(CONFIG)
    assert isinstance(backbone, KeypointBackbone)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    places = torch.randint(4, 28, (150, 8, 2), generator=torch.Generator().manual_seed(0))
    for row in places:
        pictures = torch.cat([dot(int(x), int(y)) for x, y in row])
        found = backbone.model.points((pictures.flatten(0, 1).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5)[:, 0]
        error = (found - (row.flip(1) / 15.5 - 1)).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error.sqrt() < 0.1, "one channel learns to say where the spot is, to a pixel and a half"


def test_padding_reaches_no_real_token() -> None:
    backbone, tokenizer = build_backbone(CONFIG)
    ids = torch.tensor([[*tokenizer.encode("push").ids, 0, 0, 0]])
    mask = torch.tensor([[True] * (ids.shape[1] - 3) + [False] * 3])
    want, seen = backbone(dot(9, 9), ids, mask)
    ids[0, -3:] = 7
    got, _ = backbone(dot(9, 9), ids, mask)
    assert torch.equal(got[seen], want[seen])
    assert seen.sum() == backbone.tokens_per_view + ids.shape[1] - 3


def test_it_is_rebuilt_from_its_description(tmp_path: Path) -> None:
    backbone, _ = build_backbone(CONFIG)
    again = restore_backbone(backbone.spec.to_dict())
    again.load_state_dict(backbone.state_dict())
    ids, mask = torch.tensor([[1, 5]]), torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(again(dot(5, 20), ids, mask)[0], backbone(dot(5, 20), ids, mask)[0])


def test_a_policy_with_keypoints_is_saved_and_asked(tmp_path: Path) -> None:
    bodies = make_bodies()
    name = next(iter(bodies))
    body = bodies[name].embodiment
    head = HeadConfig(
        width=16, layers=2, heads=2, hidden=16, max_horizon=max(b.embodiment.horizon for b in bodies.values())
    )
    policy = build_policy(PolicyConfig(backbone=CONFIG, head=head), bodies)
    policy.save_pretrained(str(tmp_path))
    observation = {"images": dot(9, 9)[0].numpy(), "text": "push", "state": np.zeros(body.state_dim, np.float32)}
    want = policy.eval().act(observation, embodiment=name)
    assert np.array_equal(Policy.from_pretrained(str(tmp_path)).act(observation, embodiment=name), want)


def test_perceptrons_are_exported_whole_and_not_by_steps(tmp_path: Path) -> None:
    bodies = make_bodies()
    head = HeadConfig(trunk="mlp", width=16, layers=1, hidden=16, context_norm=False, time_rule="mean", sample_steps=1)
    build_policy(PolicyConfig(backbone=CONFIG, head=head), bodies).save_pretrained(str(tmp_path / "policy"))
    name, out = next(iter(bodies)), str(tmp_path / "deploy")
    with pytest.raises(ConfigError, match=r"head\.trunk: mlp has none"):
        export(str(tmp_path / "policy"), out=out, embodiment=name, single_step=True)
    result = export(str(tmp_path / "policy"), out=out, embodiment=name, observations=5)
    assert max(result.max_abs_error.values()) < 1e-4


def taught(folder: Path, **options: Any) -> tuple[InverseDynamicsModel, BackboneConfig]:
    """Saves an inverse dynamics model that sees points; returns it, and a backbone that begins with them."""
    chosen = {"model.image_size_px": 32, "model.vision.widths": (8, 16, 16, 8), **options}
    config = resolve(IDMConfig, "idm/pictures", **chosen)
    model = build_module(config, {}).model.eval()
    save_model(str(folder), kind="idm", config=to_dict(config), module=model, provenance={}, extra={"embodiments": {}})
    return model, dataclasses.replace(CONFIG, pretrained=str(folder))


def test_points_that_videos_taught_are_begun_with(tmp_path: Path) -> None:
    model, config = taught(tmp_path / "idm")
    backbone, _ = build_backbone(config)
    assert isinstance(backbone, KeypointBackbone)
    pictures = torch.randint(0, 256, (3, 1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = backbone.eval().model.points(backbone.pixels(pictures)).flatten(1)
    torch.testing.assert_close(seen, model.look(pictures[:, 0].permute(0, 3, 1, 2))[:, 0], atol=1e-5, rtol=0)
    assert all(p.requires_grad for p in backbone.parameters())
    again = restore_backbone(backbone.spec.to_dict())
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again.eval().model.points(backbone.pixels(pictures)).flatten(1), seen)


@pytest.mark.parametrize(
    ("options", "size_px", "reason"),
    [
        ({}, 64, "takes 32 px"),
        ({"model.vision.kind": "cnn", "model.vision.widths": (8, 8, 8), "model.head.kind": "regressor"}, 32, "by cnn"),
    ],
)
def test_points_of_other_pictures_or_none_are_refused(
    options: dict[str, Any], size_px: int, reason: str, tmp_path: Path
) -> None:
    _, config = taught(tmp_path, **options)
    with pytest.raises(ConfigError, match=reason):
        build_backbone(dataclasses.replace(config, image_size_px=size_px))


def test_points_of_other_shapes_than_their_description_are_refused(tmp_path: Path) -> None:
    _, config = taught(tmp_path)
    described = tmp_path / "config.json"
    told = json.loads(described.read_text())
    told["config"]["model"]["vision"]["widths"] = [8, 16, 24, 8]
    described.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="other weights"):
        build_backbone(config)


def test_a_folder_without_points_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="no points to begin with"):
            build_backbone(dataclasses.replace(CONFIG, pretrained=str(folder)))


def test_low_precision_is_for_training_alone_and_for_cpus_with_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, fast = (
        build_backbone(dataclasses.replace(CONFIG, vision_precision=precision))[0]
        for precision in ("float32", "bfloat16")
    )
    fast.load_state_dict(exact.state_dict())
    ids, mask = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    want = exact.eval()(dot(9, 20), ids, mask)[0]
    assert torch.equal(fast.eval()(dot(9, 20), ids, mask)[0], want)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False}, raising=False)
    assert torch.equal(fast.train()(dot(9, 20), ids, mask)[0], want)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True}, raising=False)
    near = fast.train()(dot(9, 20), ids, mask)[0]
    assert not torch.equal(near, want)
    torch.testing.assert_close(near, want, atol=0.05, rtol=0.05)
    near.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fast.model.convolutions.parameters())


def test_units_for_low_precision_are_those_that_the_system_lists() -> None:
    listed = Path("/proc/cpuinfo")
    if not (hasattr(torch.cpu, "get_capabilities") and listed.exists() and platform.machine() == "x86_64"):
        pytest.skip("neither PyTorch nor Linux says what this CPU has")
    assert multiplies_bfloat16(torch.device("cpu")) == ("amx_bf16" in listed.read_text().split())


def test_low_precision_never_slows_training_down_much() -> None:
    """Whatever this machine's CPU has: without units for bfloat16 such convolutions would take eight times as long."""
    spent = {}
    pictures = torch.rand(16, 3, 64, 64)
    for fast in (False, True):
        points = Keypoints([32, 32, 32, 32], stride=4, side=64, fast=fast)
        times = []
        for _ in range(6):
            start = time.process_time()
            points.points(pictures).square().sum().backward()
            times.append(time.process_time() - start)
        spent[fast] = min(times)
    assert spent[True] < 3 * spent[False]
