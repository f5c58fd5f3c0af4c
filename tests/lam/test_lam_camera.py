"""Camera: its motion is found and taken back, to parts of a pixel; a still one leaves every bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sprites
import torch
from lam_variants import SMALL

from lam.camera import global_motion, moved_back
from lam.config import ObjectiveConfig
from lam.label import load
from lam.prepare import prepare
from lam.train import train_lam


def textured(count=4, side=64):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 24, 24, generator=generator)
    return torch.nn.functional.interpolate(coarse, side + 32, mode="bicubic").clamp(0, 1)


def test_a_moving_camera_is_taken_back():
    whole = textured()
    first = (whole[..., 16:80, 16:80] * 255).byte()
    second = (whole[..., 13:77, 21:85] * 255).byte()  # the content moves 5 px left and 3 px down
    assert torch.allclose(global_motion(first, second), torch.tensor([-5.0, 3.0]), atol=0.2)
    kept = prepare(ObjectiveConfig(), first, second)
    moved = prepare(ObjectiveConfig(camera="compensated"), first, second)
    assert kept.valid is None
    assert float((kept.second - kept.first).abs().mean()) > 0.05
    difference = (moved.second - moved.first).abs() * moved.valid
    assert float(difference.mean()) < 0.2 * float((kept.second - kept.first).abs().mean())
    assert 0.85 < float(moved.valid.mean()) < 0.92  # 59 of 64 columns, 61 of 64 rows
    exact, _ = moved_back(second.float() / 255, torch.tensor([[-5.0, 3.0]] * 4))
    assert torch.allclose(exact[..., 0:61, 5:64], first[..., 0:61, 5:64] / 255, atol=1e-5)


def test_a_still_camera_leaves_every_bit():
    first = (textured()[..., :64, :64] * 255).byte()
    second = first.clone()
    second[..., 20:30, 20:30] = 255  # something moves before a still background
    frames = prepare(ObjectiveConfig(camera="compensated"), first, second)
    assert torch.equal(frames.second, second.float() / 255)
    assert frames.valid.all()


@pytest.mark.parametrize("side", [32, 64])
def test_noise_before_a_still_camera_is_no_motion(side):
    generator = torch.Generator().manual_seed(0)
    plain = torch.full((64, 3, side, side), 120.0)
    plain += torch.linspace(0, 20, side)  # a wall: hardly anything to see
    first, second = ((plain + 3 * torch.randn(64, 3, side, side, generator=generator)).byte() for _ in range(2))
    assert not global_motion(first, second).any()


@pytest.mark.parametrize("shift", [(0.6, 0.0), (1.5, -0.7), (-3.5, 2.0)])
def test_parts_of_a_pixel_are_taken_back(shift):
    first = textured()[..., :64, :64]
    second, _ = moved_back(first, -torch.tensor([shift] * 4))
    generator = torch.Generator().manual_seed(1)
    noisy = [(x * 255 + torch.randn(x.shape, generator=generator)).clamp(0, 255).byte() for x in (first, second)]
    kept, moved = (prepare(ObjectiveConfig(camera=camera), *noisy) for camera in ("kept", "compensated"))
    before, after = ((frames.second - frames.first).abs()[..., 4:60, 4:60].mean() for frames in (kept, moved))
    assert float(after) < 0.7 * float(before)


def test_labels_see_the_compensated_pair(shards, tmp_path):
    train_lam(shards, out=str(tmp_path), **{**SMALL, "trainer.max_steps": 1, "objectives.camera": "compensated"})
    labeler = load(str(tmp_path))
    kept = load(str(tmp_path))
    kept.model.config = replace(kept.model.config, objectives=ObjectiveConfig())
    still = sprites.make_sample(1, n_frames=20, still=True)
    assert labeler.label([still])[0]["latent"].equals(kept.label([still])[0]["latent"])
    shift = sprites.make_sample(1, n_frames=20)
    rolled = np.stack([np.roll(frame, 3 * (i // 8 % 2), 1) for i, frame in enumerate(shift.frames())])
    moving = replace(shift, video=sprites.encode_mp4(rolled, 80.0))
    one, other = (np.stack(lab.label([moving])[0]["latent"].to_numpy()) for lab in (labeler, kept))
    assert np.abs(one - other).max() > 1e-3
