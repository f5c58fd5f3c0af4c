"""Random access to frames: the same pictures with any cache, and never more memory than was granted."""

from __future__ import annotations

from pathlib import Path

import drawing
import numpy as np
import pytest
import torch

from pyramid.errors import DataError
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames, cuts_of, resized_frames
from pyramid.shards.reader import ShardSet

FRAMES = [5, 3, 8, 4]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES, n_val=1)


def numbers(frames: torch.Tensor) -> list[int]:
    return drawing.read_pictures(frames.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_any_frames_in_any_order(folder: str, cache_mb: int) -> None:
    clips = ClipFrames.open(folder, split="train", size_px=32, cache_mb=cache_mb)
    assert len(clips) == 3
    draw = rng(0, "order")
    for _ in range(20):
        clip = int(draw.integers(3))
        indices = draw.integers(0, FRAMES[clip], 4).tolist()
        assert numbers(clips.frames(clip, indices)) == [drawing.number_of(clip, i) for i in indices]
        assert clips.times_s(clip).tolist() == [i / 10 for i in range(FRAMES[clip])]
        assert clips.sample(clip).key == drawing.key_of(clip)
    assert clips.durations_s.tolist() == pytest.approx([(n - 1) / 10 for n in FRAMES[:3]])


def test_the_cache_decides_nothing_and_keeps_its_bound(folder: str) -> None:
    plain = ClipFrames.open(folder, split="train", size_px=16)
    cached = ClipFrames.open(folder, split="train", size_px=16, cache_mb=1)
    cached._room = 9 * 3 * 16**2
    for clip in (0, 1, 2, 0, 1, 2):
        every = list(range(FRAMES[clip]))
        assert torch.equal(plain.frames(clip, every), cached.frames(clip, every))
    assert sum(kept[1].numel() for kept in cached._kept.values()) <= 9 * 3 * 16**2
    assert set(cached._kept) == {0, 1}


def test_resizing_is_antialiased_and_keeps_the_view(folder: str) -> None:
    sample = ShardSet.open(folder).read(2)
    small = resized_frames(sample, [0, 7], 16)
    assert small.shape == (2, 3, 16, 16)
    assert small.dtype == torch.uint8
    assert numbers(small) == [drawing.number_of(2, 0), drawing.number_of(2, 7)]
    full = sample.frames([0, 7]).astype(np.float32)
    means = full.reshape(2, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(small.permute(0, 2, 3, 1).numpy() - means).mean() < 4
    assert resized_frames(sample, [], 16).shape == (0, 3, 16, 16)


def test_splits_limits_and_actions(folder: str, tmp_path: Path) -> None:
    assert [r["key"] for r in ClipFrames.open(folder, split="val", size_px=16).rows] == [drawing.key_of(3)]
    assert len(ClipFrames.open(folder, split="train", size_px=16, limit=2)) == 2
    videos = drawing.write_shards(tmp_path / "videos", [3, 3], actions=False, first_clip=50)
    both = ClipFrames.open([folder, videos], split="train", size_px=16)
    assert len(both) == 5
    assert len(ClipFrames.open([folder, videos], split="train", size_px=16, with_actions=True)) == 3
    assert both.digests() == {"shards_0": ShardSet.open(folder).digest, "shards_1": ShardSet.open(videos).digest}
    with pytest.raises(DataError, match="no clip with actions of split 'train'"):
        ClipFrames.open(videos, split="train", size_px=16, with_actions=True)
    with pytest.raises(DataError, match="no clip of split 'val'"):
        ClipFrames.open(videos, split="val", size_px=16)
    assert cuts_of(both.sample(0)) == []
