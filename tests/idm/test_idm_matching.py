"""A linear map that is found without pairs: by how both sides move."""

from __future__ import annotations

import numpy as np
import pytest

from idm.matching import match
from pyramid.errors import DataError
from pyramid.rng import rng

MIX = rng(0, "mix").normal(size=(3, 8))


def errands(count, seed, *, mirrored=0.0):
    """Returns states of clips, float64 [T, 3]: from one place to any, then up; the first number may mirror itself."""
    generator, clips = rng(seed, "errands"), []
    for _ in range(count):
        start = np.array([0.0, 0.0, 1.0])
        goal = np.array([generator.uniform(-1 if mirrored else 0.2, 1), generator.uniform(0.4, 1), 0.0])
        steps = generator.integers(30, 60)
        there = np.linspace(0, 1, steps)[:, None] ** 0.7
        lifted = np.array([0, 0.2, 0.6]) * np.linspace(0, 1, 12)[:, None]
        path = np.concatenate([start + (goal - start) * there, goal + lifted])
        clips.append(path + np.cumsum(generator.normal(size=path.shape) * 0.01, 0))
    return clips


def r2(told, truth):
    told, truth = np.concatenate(told), np.concatenate(truth)
    return 1 - ((told - truth) ** 2).mean(0) / truth.var(0)


def test_what_moves_alike_is_told_alike():
    truth = errands(60, 1)
    seen = [3 + clip @ MIX for clip in truth]
    found = match(seen, errands(60, 2), seed=0)
    assert r2([clip @ found.weight + found.bias for clip in seen], truth).min() > 0.8
    assert found.against == 0


def test_hints_tell_a_motion_from_its_mirror_image():
    truth, states = errands(60, 1, mirrored=1.0), errands(60, 2, mirrored=1.0)
    seen = [clip * [-1, 1, 1] @ MIX for clip in truth]
    shaky = rng(3, "hints")
    hints = tuple([clip[:, :2] + shaky.normal(size=(len(clip), 2)) for clip in clips] for clips in (truth, states))
    hints[0][0][:] = np.nan  # nothing moved in this one
    found = match(seen, states, hints=hints, seed=0)
    assert r2([clip @ found.weight + found.bias for clip in seen], truth).min() > 0.7
    assert found.against == 0


def test_hints_that_no_solution_agrees_with_are_told_of():
    truth, states = errands(40, 1), errands(40, 2)
    hints = [clip[:, :2] * [1, -1] for clip in truth], [clip[:, :2] for clip in states]
    assert match([clip @ MIX for clip in truth], states, hints=hints, seed=0).against > 0


def test_hints_that_are_nowhere_say_nothing():
    clips = errands(10, 1)
    nothing = [np.full((len(clip), 2), np.nan) for clip in clips]
    assert match([clip @ MIX for clip in clips], clips, hints=(nothing, nothing)).against == 0


def test_a_handful_of_clips_is_refused():
    clips = errands(20, 1)
    with pytest.raises(DataError, match="7 clips to match with 20 of the robot"):
        match([clip @ MIX for clip in [*clips[:7], clips[8][:5]]], clips)
    with pytest.raises(DataError, match="nothing moves"):
        match([np.ones((40, 4))] * 10, clips)


def test_where_an_object_lies_is_not_taken_for_where_the_hand_is():
    truth = errands(60, 1)
    goals = [np.repeat(clip[-12:-11, :2], len(clip), axis=0) for clip in truth]
    mix = rng(5, "mix").normal(size=(5, 10))
    seen = [np.concatenate([clip, 1.5 * goal], axis=1) @ mix for clip, goal in zip(truth, goals, strict=True)]
    states = errands(60, 2)
    found = match(seen, states, seed=0)
    told = [clip @ found.weight + found.bias for clip in seen]
    assert r2(told, truth).min() > 0.8
    # All hands begin at one place, wherever their objects lie.
    began = np.array([clip[0] for clip in told])
    assert (began.std(0) < 0.1 * np.concatenate(states).std(0)).all()
