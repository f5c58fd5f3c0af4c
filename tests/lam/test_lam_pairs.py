"""Pairs by time: constant gap at every rate, no clamping, no cut inside, a pure function of the step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sprites
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lam.config import PairConfig
from lam.pairs import PairSampler, find_pair, label_pairs, motion
from pyramid.errors import DataError
from pyramid.shards.frames import ClipFrames

RATES = [25.0, 30000 / 1001, 30.0, 60.0]


def clips_of(folder, samples, **options):
    sprites.write_shards(folder, samples)
    return ClipFrames.open(str(folder), split="train", size_px=64, **options)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("gap_s", [0.1, 0.5, 1.0])
def test_gap_is_constant_in_seconds_at_every_rate(rate, gap_s):
    times = np.arange(round(4 * rate)) / rate
    pairs = label_pairs(times, gap_s, None)
    gaps = np.array([times[p.second] - times[p.first] for p in pairs])
    assert np.abs(gaps - gap_s).max() <= 0.5 / rate + 1e-4
    assert len(set(np.round(gaps, 9))) == 1
    # Every frame whose partner lies inside the clip is there, in order.
    assert [p.first for p in pairs] == [i for i, t in enumerate(times) if t + gap_s <= times[-1] + 0.5 / rate + 1e-4]
    assert [p.gap_s for p in pairs] == pytest.approx(gaps)


@settings(max_examples=200, deadline=None)
@given(rate=st.sampled_from(RATES), t=st.floats(0, 3), gap_s=st.floats(0.05, 1.0))
def test_snapping_first_always_finds_the_partner(rate, t, gap_s):
    times = np.arange(round(5 * rate)) / rate
    pair = find_pair(times, t, gap_s)
    assert pair is not None
    assert abs(times[pair.first] - t) <= 0.5 / rate + 1e-4
    assert abs(pair.gap_s - gap_s) <= 0.5 / rate + 1e-4


def test_no_clamped_pair_from_a_short_clip():
    times = np.arange(10) / 30.0
    assert label_pairs(times, 1.0, None) == []
    assert all(find_pair(times, t, 1.0) is None for t in times)
    # Half the clip has a partner 5 frames on; the other half has none and is not given the last frame.
    assert [(p.first, p.second) for p in label_pairs(times, 5 / 30, None)] == [(i, i + 5) for i in range(5)]


def test_gap_shorter_than_a_frame_gives_no_pair_of_one_frame():
    times = np.arange(30) / 10.0
    assert find_pair(times, 1.0, 0.03) is None


def test_variable_rate_keeps_the_gap_or_gives_no_pair():
    times = np.concatenate([np.arange(30) / 30.0, 1.6 + np.arange(30) / 30.0])
    for pair in label_pairs(times, 0.5, None):
        assert abs(pair.gap_s - 0.5) <= 0.5 / 30 + 1e-4
    assert find_pair(times, 0.8, 0.5) is None


def test_no_pair_spans_a_cut():
    times = np.arange(40) / 20.0
    pairs = label_pairs(times, 0.25, None, cuts=[17])
    assert pairs
    assert not [p for p in pairs if p.first < 17 <= p.second]
    assert {p.first for p in label_pairs(times, 0.25, None)} - {p.first for p in pairs} == {12, 13, 14, 15, 16}


def test_label_grid_is_regular_in_time():
    times = np.arange(90) / 30.0
    pairs = label_pairs(times, 0.5, 5.0)
    assert [p.first for p in pairs] == list(range(0, 75, 6))
    assert [p.first for p in label_pairs(times, 0.5, 1000.0)] == [p.first for p in label_pairs(times, 0.5, None)]


def test_motion_sees_a_small_moving_hand():
    first = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    second = first.clone()
    second[1, :, 8:16, 8:16] = 200
    assert motion(first, second).tolist() == pytest.approx([0.0, 100 / 255])


def test_batch_is_a_pure_function_of_the_step(shards):
    def sampler(cache_mb):
        clips = ClipFrames.open(shards, split="train", size_px=32, cache_mb=cache_mb)
        return PairSampler(clips, PairConfig(gap_s=0.1), seed=3, batch_size=4)

    one, other = sampler(64), sampler(0)
    later = one.batch_at(5)
    for step in (2, 5, 1):
        batch = other.batch_at(step)
    for a, b in zip(one.batch_at(1), batch, strict=True):
        assert a is b is None or torch.equal(a, b)
    assert not torch.equal(later.first, batch.first)
    assert later.first.shape == (4, 3, 32, 32)
    assert later.first.dtype == torch.uint8


def test_jitter_stays_in_range_and_pairs_stay_in_their_clip(shards):
    clips = ClipFrames.open(shards, split="train", size_px=32)
    sampler = PairSampler(clips, PairConfig(gap_s=0.1, jitter=0.5), seed=0, batch_size=1)
    gaps = []
    for i in range(100):
        index, pair, (first, second) = sampler.draw("test", i)
        gaps.append(pair.gap_s)
        assert 0 <= pair.first < pair.second < 32
        assert torch.equal(clips.frames(index, [pair.first, pair.second]), torch.stack([first, second]))
    assert min(gaps) >= 0.1 - 0.007
    assert max(gaps) <= 0.15 + 0.007
    assert max(gaps) - min(gaps) > 0.03


def test_longer_clips_are_drawn_more_often(tmp_path):
    samples = [sprites.make_sample(0, n_frames=16), sprites.make_sample(1, n_frames=64)]
    clips = clips_of(tmp_path, samples)
    sampler = PairSampler(clips, PairConfig(gap_s=0.1, jitter=0.0), seed=0, batch_size=1)
    drawn = [sampler.draw(i)[0] for i in range(300)]
    assert np.mean(drawn) == pytest.approx(56 / 64, abs=0.06)


def test_clips_shorter_than_the_gap_are_refused_by_name(shards):
    clips = ClipFrames.open(shards, split="train", size_px=32)
    with pytest.raises(DataError, match=r"as long as the gap of 9\.0 s"):
        PairSampler(clips, PairConfig(gap_s=9.0), seed=0, batch_size=1)


def test_static_policies(tmp_path):
    samples = [sprites.make_sample(0, n_frames=24, still=True), sprites.make_sample(1, n_frames=24)]
    clips = clips_of(tmp_path, samples, cache_mb=8)
    base = PairConfig(gap_s=0.1, jitter=0.0)

    def batch(policy):
        return PairSampler(clips, replace(base, static_policy=policy), seed=0, batch_size=24).batch_at(0)

    kept, scored, dropped = batch("kept"), batch("scored"), batch("dropped")
    static = kept.motion < base.static_threshold
    assert 2 < int(static.sum()) < 22
    assert torch.equal(kept.weight, torch.ones(24))
    assert torch.equal(scored.weight == 1, ~static)
    assert float(scored.weight[static].max()) < 1
    assert bool((dropped.motion >= base.static_threshold).all())


def test_dropping_everything_is_refused(tmp_path):
    clips = clips_of(tmp_path, [sprites.make_sample(0, n_frames=24, still=True)])
    config = PairConfig(gap_s=0.1, static_policy="dropped", static_threshold=0.2)
    sampler = PairSampler(clips, config, seed=0, batch_size=1)
    with pytest.raises(DataError, match="static_policy=scored"):
        sampler.batch_at(0)


def test_cache_is_bounded_and_never_decides(tmp_path):
    samples = [sprites.make_sample(i, n_frames=100) for i in range(3)]
    cached = clips_of(tmp_path, samples, cache_mb=2)  # one clip takes 1.2 MB
    plain = ClipFrames.open(str(tmp_path), split="train", size_px=64)
    for clip in (0, 1, 2, 0):
        assert torch.equal(cached.frames(clip, [7, 3, 99]), plain.frames(clip, [7, 3, 99]))
    assert len(cached._kept) == 1
    assert plain._kept == {}
