"""Past states: which rows they are, and that a control loop is given the same as training was."""

from __future__ import annotations

import numpy as np
import pytest

from pyramid.actions.history import StateHistory, past_steps
from pyramid.errors import DataError
from pyramid.rng import rng
from pyramid.types import Embodiment


def body(**changes: object) -> Embodiment:
    sizes = {"name": "arm", "state_dim": 3, "action_dim": 2, "horizon": 4, "rate_hz": 10.0}
    return Embodiment(**{**sizes, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "gap_s", "rate_hz", "steps"),
    [
        (1, 0.0, 10.0, [0]),
        (2, 1.0, 20.0, [-20, 0]),
        (3, 0.1, 30.0, [-6, -3, 0]),
        (2, 0.04, 10.0, [-1, 0]),
        (2, 0.26, 10.0, [-3, 0]),
    ],
)
def test_the_spacing_is_whole_steps(n: int, gap_s: float, rate_hz: float, steps: list[int]) -> None:
    assert past_steps(n, gap_s, rate_hz).tolist() == steps


@pytest.mark.parametrize(("n", "gap_s", "rate_hz"), [(1, 0.0, 10.0), (2, 0.3, 10.0), (4, 0.11, 30.0), (3, 0.26, 10.0)])
def test_a_loop_at_the_rate_of_the_data_is_given_the_rows_that_training_takes(
    n: int, gap_s: float, rate_hz: float
) -> None:
    episode = rng(0, "episode", n).normal(size=(40, 3)).astype(np.float32)
    history = body(state_history=n, state_gap_s=gap_s, rate_hz=rate_hz).history()
    gap = max(round(gap_s * rate_hz), 1)
    for step, state in enumerate(episode):
        want = np.stack([episode[max(step - gap * back, 0)] for back in range(n - 1, -1, -1)])
        got = history.add(state, 1000.1 + step / rate_hz)
        assert np.array_equal(got, want if n > 1 else want[0])
        assert np.array_equal(history.states(), got)
    history.clear()
    assert np.array_equal(np.atleast_2d(history.add(episode[7], 0.0)), np.repeat(episode[7:8], n, 0))


def test_times_that_no_state_has_take_the_nearest_one_and_old_states_are_forgotten() -> None:
    history = StateHistory(1, n=2, gap_s=1.0)
    for at in (0.0, 0.4, 0.9, 1.3):
        found = history.add(np.float32([at]), at)
    assert found[:, 0].tolist() == pytest.approx([0.4, 1.3])  # .3 is wanted
    assert history.add(np.float32([1.9]), 1.9)[:, 0].tolist() == pytest.approx([0.9, 1.9])
    assert history.add(np.float32([7.0]), 1.9)[:, 0].tolist() == pytest.approx([0.9, 7.0]), "the later of one time"
    for step in range(10_000):
        history.add(np.float32([step]), 2.0 + step / 100)
    assert len(history._kept) <= 102


def test_what_is_no_state_and_what_is_no_history_are_refused() -> None:
    history = StateHistory(2, n=2, gap_s=0.5)
    with pytest.raises(DataError, match="no state yet"):
        history.states()
    with pytest.raises(DataError, match=r"float \[2\], got float64 \[3\]"):
        history.add(np.zeros(3), 0.0)
    with pytest.raises(DataError, match=r"not finite in dimensions \[1\]"):
        history.add(np.array([0, np.nan]), 0.0)
    history.add(np.zeros(2), 5.0)
    for at in (4.9, np.nan):
        with pytest.raises(DataError, match=r"comes after one of 5\.0 s"):
            history.add(np.ones(2), at)
    assert not history.states().any(), "what was refused was not taken in"
    with pytest.raises(DataError, match="the seconds between states, got 2 and 0"):
        StateHistory(2, n=2)
    with pytest.raises(DataError, match="'arm' takes 2 states, how far apart is not known"):
        body(state_history=2).history()
    for bad in (
        {"state_history": 0},
        {"state_history": 1025},
        {"state_history": 2, "state_dim": 0},
        {"state_history": "2"},
    ):
        with pytest.raises(DataError, match="a history is of 1"):
            body(**bad)
    with pytest.raises(DataError, match="a history is of 1"):
        body(state_gap_s=-1.0)
    for gap_s in (1e300, float("nan")):
        with pytest.raises(DataError, match="up to 1,000,000 steps apart"):
            body(state_history=2, state_gap_s=gap_s)


def test_a_body_without_a_history_is_told_as_it_always_was() -> None:
    assert body().to_dict() == {
        "name": "arm", "state_dim": 3, "action_dim": 2, "horizon": 4, "rate_hz": 10.0, "label": "action"
    }  # fmt: skip
    long = body(state_history=2, state_gap_s=0.5)
    assert Embodiment(**long.to_dict()) == long
    assert (long.state_shape, body().state_shape, long.network.state_shape) == ((2, 3), (3,), (2, 3))
