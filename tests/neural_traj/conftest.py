"""Clips of every kind that a video model may hand over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.rng import rng
from pyramid.video.encode import encode_mp4

MakeClip = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def moving() -> MakeClip:
    """Returns a function that makes a clip of a textured square moving over a textured floor."""

    def make(n: int = 24, size: int = 64, seed: int = 0) -> NDArray[np.uint8]:
        generator = rng(seed, "clip")
        floor = np.repeat(np.repeat(generator.integers(60, 180, (8, 8, 3), dtype=np.uint8), size // 8, 0), size // 8, 1)
        clip = np.repeat(floor[None], n, axis=0)
        for t in range(n):
            clip[t, 20:40, t + 2 : t + 22] = 230
        return clip

    return make


@pytest.fixture
def folder(tmp_path: Path, moving: MakeClip) -> Path:
    """A folder with two good clips, one that flickers, one that is frozen and one that is no video."""
    root = tmp_path / "dreams"
    root.mkdir()
    gains = np.where(np.arange(24) % 2, 0.8, 1.0)[:, None, None, None]
    clips = {
        "0_push_the_cup": moving(),
        "1_open_the_drawer": moving(seed=1),
        "2_close_the_drawer": (moving(seed=2) * gains).astype(np.uint8),
        "3_wait": np.repeat(moving(seed=3)[:1], 24, axis=0),
    }
    for name, clip in clips.items():
        (root / f"{name}.mp4").write_bytes(encode_mp4(clip, 8))
    (root / "4_read_the_letter.mp4").write_bytes(b"this is no video")
    return root
