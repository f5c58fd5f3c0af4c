"""Pairs of data larger than memory: every place once an epoch, frames decoded about once, any step from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import sprites
import torch
from lam_variants import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lam.config import PairConfig
from lam.pairs import PairSampler
from lam.train import train_lam
from pyramid.shards.frames import ClipFrames

FRAMES, PLACES, BATCH = 24, 24 - 5, 8  # a pair is five frames apart
N_CLIPS = 32
CONFIG = PairConfig(gap_s=5 / 30, jitter=0.2, shuffle_frames=96, cache_mb=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    samples = [sprites.make_sample(i, n_frames=FRAMES, rate_hz=30.0) for i in range(N_CLIPS)]
    return sprites.write_shards(tmp_path_factory.mktemp("many"), samples, per_shard=5)


def sampler_of(folder, config=CONFIG, size_px=32, **options):
    clips = ClipFrames.open(folder, split="train", size_px=size_px, cache_mb=config.cache_mb)
    return PairSampler(clips, config, seed=3, batch_size=BATCH, **options)


def test_an_epoch_has_every_place_once(many):
    order = sampler_of(many).order
    assert order.n_places == N_CLIPS * PLACES
    for epoch in (0, 1):
        found = [order.at(epoch * order.n_places + n, 0.5) for n in range(order.n_places)]
        assert {(clip, int(at * PLACES)) for clip, at in found} == {
            (c, p) for c in range(N_CLIPS) for p in range(PLACES)
        }
    assert [order.at(n, 0.5) for n in range(order.n_places)] != found


def test_a_frame_is_decoded_about_once_an_epoch_with_a_cache_of_a_third_of_the_data(many):
    sampler = sampler_of(many)
    steps = sampler.order.n_places // BATCH
    clips = []
    for step in range(2 * steps):
        drawn = [sampler._next(step, place) for place in range(BATCH)]
        clips.append(len({one.clip for one in drawn}))
        assert sum(kept[1].numel() for kept in sampler.clips._kept.values()) <= 2**20
    assert N_CLIPS * FRAMES * 32**2 * 3 > 2 * 2**20
    assert sampler.clips.decoded <= 1.15 * 2 * N_CLIPS * FRAMES
    assert sampler.clips.used == 2 * BATCH * 2 * steps
    assert np.mean(clips) > 3  # a batch is no single clip

    at_random = sampler_of(many, PairConfig(gap_s=5 / 30, jitter=0.2, cache_mb=1))
    assert at_random.order is None
    for step in range(2 * steps):
        at_random.batch_at(step)
    assert at_random.clips.decoded > 3 * sampler.clips.decoded


def test_any_step_can_be_asked_for_first_and_the_cache_decides_nothing(many):
    one = sampler_of(many)
    for step in range(6):
        batch = one.batch_at(step)
    fresh = sampler_of(many, PairConfig(gap_s=5 / 30, jitter=0.2, shuffle_frames=96, cache_mb=0))
    for a, b in zip(batch, fresh.batch_at(5), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_a_clip_without_a_pair_that_may_be_used_gives_way_to_others(tmp_path):
    samples = [sprites.make_sample(i, n_frames=FRAMES, rate_hz=30.0, still=i % 2 == 0) for i in range(8)]
    folder = sprites.write_shards(tmp_path, samples)
    sampler = sampler_of(folder, PairConfig(gap_s=5 / 30, shuffle_frames=48, static_policy="dropped"), size_px=64)
    assert sampler.order is not None
    assert bool((sampler.batch_at(0).motion >= 0.02).all())


class Lent:
    """Every pair of every clip lends its action."""

    labelled, labelled_rows = list(range(N_CLIPS)), 4

    def lends(self, clip, pair):
        return True

    def of(self, drawn):
        return {}


def test_labelled_pairs_from_all_over_do_not_drive_out_the_clips_at_hand(many):
    sampler = sampler_of(many, signals=Lent())
    for step in range(sampler.order.n_places // BATCH):
        sampler.batch_at(step)
    lent = 2 * 4 * (sampler.order.n_places // BATCH)
    gop = 12
    assert sampler.clips.decoded <= 1.15 * N_CLIPS * FRAMES + lent * gop
    assert sampler.clips.decoded < 4 * N_CLIPS * FRAMES


def test_training_logs_what_was_decoded_for_what_was_used(many, tmp_path):
    train_lam(many, out=str(tmp_path), **{**SMALL, "pairs.shuffle_frames": 96, "trainer.log_every": 1})
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    ratios = [event.value for event in events.Scalars("decoded_per_used")]
    assert len(ratios) == SMALL["trainer.max_steps"]
    assert 0 < ratios[-1] <= ratios[0]
