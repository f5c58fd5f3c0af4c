"""A few labelled pairs of many episodes: which they are, and that no other action is seen."""

from __future__ import annotations

import numpy as np
import pytest
from lam_variants import SMALL

from lam.config import LAMConfig
from lam.pairs import PairSampler, label_pairs
from lam.signals import Lenders, action_statistics, mean_action
from lam.sources import find_sources
from pyramid.config import resolve
from pyramid.shards.frames import ClipFrames

PAIRS = {"objectives.action_weight": 0.5, "objectives.action_unit": "pairs", "objectives.action_share": 0.2}


@pytest.fixture
def clips(shards):
    return ClipFrames.open(shards, split="train", size_px=32, cache_mb=64)


def config_of(**options):
    return resolve(LAMConfig, "lam/tiny", **{**SMALL, **PAIRS, **options})


def every_pair(clips, lenders):
    return [(clip, pair) for clip in lenders.clips for pair in label_pairs(clips.times_s(clip), 0.1, None)]


def test_a_share_of_the_pairs_of_every_clip_lends_its_action(clips):
    lenders = Lenders(clips, config_of())
    pairs = every_pair(clips, lenders)
    lent = [(clip, pair) for clip, pair in pairs if lenders.lends(clip, pair)]
    assert 0.1 < len(lent) / len(pairs) < 0.3
    assert {clip for clip, _ in lent} == set(lenders.clips) == set(range(len(clips)))
    fewer = Lenders(clips, config_of(**{"objectives.action_share": 0.1}))
    assert all(lenders.lends(*one) for one in pairs if fewer.lends(*one))  # a larger share only adds


def test_statistics_see_the_lent_actions_alone(clips):
    lenders = Lenders(clips, config_of())
    lent = [one for one in every_pair(clips, lenders) if lenders.lends(*one)]
    means = np.stack([mean_action(clips.sample(clip).action, pair) for clip, pair in lent])
    found = action_statistics(clips, lenders, 0.1)["sprite"]
    assert found["mean"] == pytest.approx(means.mean(0).tolist(), abs=1e-5)


def test_a_batch_has_lent_pairs_on_top_and_knows_no_other_action(clips):
    config = config_of(**{"trainer.batch_size": 40})
    signals = find_sources(config, clips).signals(clips, config)
    sampler = PairSampler(clips, config.pairs, seed=0, batch_size=40, signals=signals)
    known = sampler.batch_at(3).action.known
    assert known[40:].all()
    assert len(known) == 40 + config.objectives.action_rows
    drawn = [sampler.draw("train", 3, place)[:2] for place in range(40)]
    assert known[:40].tolist() == [signals.lends(*one) for one in drawn]
    assert 0 < known[:40].sum() < 24
