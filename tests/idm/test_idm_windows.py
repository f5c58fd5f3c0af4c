"""Windows: order by construction, a perfect predictor gives back the truth, rates, cuts, votes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idm.windows import clip_steps, segments, step_frames, vote, vote_weights, window_starts
from pyramid.errors import SkipItemError
from pyramid.rng import rng


def perfect(truth, starts, horizon):
    return {start: truth[start : start + horizon] for start in starts}


@settings(max_examples=100, deadline=None)
@given(n_frames=st.integers(2, 60), horizon=st.integers(1, 16), stride=st.integers(1, 16))
def test_every_transition_has_a_window_inside_the_clip(n_frames, horizon, stride):
    starts = window_starts(n_frames, horizon, min(stride, horizon))
    if n_frames <= horizon:
        assert starts == []
        return
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] == n_frames - 1 - horizon
    covered = {start + i for start in starts for i in range(horizon)}
    assert covered == set(range(n_frames - 1))


@settings(max_examples=100, deadline=None)
@given(n_frames=st.integers(9, 60), stride=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_perfect_predictor_returns_the_truth_exactly(n_frames, stride, seed):
    truth = rng(seed, "truth").normal(size=(n_frames, 3)).astype(np.float32)
    votes = vote(perfect(truth, window_starts(n_frames, 8, stride), 8), n_frames)
    assert np.array_equal(votes.mean, truth[:-1])  # and the last frame has no action
    assert votes.variance.max() < 1e-12


def test_order_of_computing_does_not_matter():
    truth = rng(0, "truth").normal(size=(30, 2)).astype(np.float32)
    chunks = perfect(truth + rng(1, "noise").normal(size=(30, 2)).astype(np.float32), window_starts(30, 8), 8)
    chunks = {start: chunk + 0.1 * start for start, chunk in chunks.items()}
    shuffled = {start: chunks[start] for start in rng(2, "order").permutation(list(chunks)).tolist()}
    assert list(shuffled) != list(chunks)
    for a, b in zip(vote(chunks, 30), vote(shuffled, 30), strict=True):
        assert np.array_equal(a, b)


def test_votes_are_weighted_and_counted_as_in_a_closed_form():
    chunks = {0: np.array([[0.0], [0.0], [0.0]]), 1: np.array([[6.0], [6.0], [6.0]])}
    votes = vote(chunks, 5)
    first, middle, last = vote_weights(3)
    assert votes.n_votes.tolist() == [1, 2, 2, 1]
    mean = [0, 6 * first / (first + middle), 6 * middle / (middle + last), 6]
    assert votes.mean[:, 0].tolist() == pytest.approx(mean)
    share = first / (first + middle)
    assert votes.variance[:, 0].tolist() == pytest.approx([0, 36 * share * (1 - share), 36 * share * (1 - share), 0])
    assert middle > first == last > 0


def test_gaps_and_overhangs_are_refused():
    chunk = np.zeros((4, 1))
    with pytest.raises(ValueError, match="transition 4 of 9 has no window"):
        vote({0: chunk, 5: chunk}, 10)
    with pytest.raises(ValueError, match="does not fit"):
        vote({7: chunk}, 10)


def test_steps_of_a_faster_clip_are_picked_in_time():
    assert step_frames(np.arange(41) / 80, 20.0, 0.1) == list(range(0, 41, 4))
    assert step_frames(np.arange(10) / 20, 20.0, 0.0) == list(range(10))
    assert step_frames(np.arange(30) * 1001 / 30000, 30.0, 0.1) == list(range(30))


@pytest.mark.parametrize(("clip_hz", "model_hz"), [(20, 80), (30, 20), (80, 30)])
def test_another_rate_is_refused_with_both_numbers(clip_hz, model_hz):
    with pytest.raises(SkipItemError, match=f"{clip_hz} Hz.*{model_hz} Hz") as caught:
        step_frames(np.arange(100) / clip_hz, model_hz, 0.1)
    assert caught.value.reason == "rate"


@pytest.mark.parametrize("every", [1, 2, 4])
def test_slow_clip_gets_every_action_from_the_frames_it_has(every):
    steps = clip_steps(np.arange(20) * every / 80, 80.0, (0, 4, 8), 8, 0.1)
    assert steps.every == every
    assert steps.frames == [i // every for i in range(19 * every + 1)]
    [(first, last)] = steps.trim([(0, len(steps.frames))])
    assert (first, last) == (0, 19 * every + 1)
    truth = rng(0, "slow").normal(size=(last, 3)).astype(np.float32)
    starts = window_starts(last, 8, max(every, 1))
    assert all(start % every == 0 for start in starts)
    votes = vote(perfect(truth, starts, 8), last)
    np.testing.assert_allclose(votes.mean, truth[:-1], atol=1e-6)


def test_slow_clip_is_cut_at_frames():
    steps = clip_steps(np.arange(20) / 40, 80.0, (0, 4, 8), 8, 0.1)
    spans = steps.trim(segments(steps.frames, [7]))
    assert spans == [(0, 13), (14, 39)]
    assert [steps.frames[first] for first, _ in spans] == [0, 7]
    assert [steps.frames[last - 1] for _, last in spans] == [6, 19]


def test_slow_clip_without_the_frames_of_a_window_is_refused():
    with pytest.raises(SkipItemError, match=r"40 Hz.*80 Hz"):
        clip_steps(np.arange(20) / 40, 80.0, (0, 3, 8), 8, 0.1)
    # Windows of one action that begin at every other step would leave out those in between.
    with pytest.raises(SkipItemError, match=r"40 Hz.*80 Hz"):
        clip_steps(np.arange(20) / 40, 80.0, (-2, 0, 2), 1, 0.1)


def test_missing_frames_are_refused():
    times = np.delete(np.arange(30) / 20, 12)
    with pytest.raises(SkipItemError, match=r"0\.600 s"):
        step_frames(times, 20.0, 0.1)


def test_cuts_split_a_clip():
    assert segments(range(10), []) == [(0, 10)]
    assert segments(range(10), [4, 7]) == [(0, 4), (4, 7), (7, 10)]
    assert segments(range(0, 40, 4), [9]) == [(0, 3), (3, 10)]
