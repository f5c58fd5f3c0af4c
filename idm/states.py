"""A linear head by way of states: points tell the state of each step, and the states of a window the action.

Both maps are linear, so what becomes of them is the head of an ordinary model. A window has nine times the numbers of
a step, so five demonstrations say far better what a step's points mean than what a window's do.

Shapes: T steps, F numbers of all points in all views, S of a state, K frames of a window, H steps, D of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from idm.config import WindowConfig
from idm.data import Demonstration
from idm.heads import solve_ridge
from idm.windows import window_frames
from pyramid.errors import DataError

__all__ = ["STATELESS", "Array", "Linear", "by_way_of", "have_states", "tell_actions", "tell_states"]

_STATE_RIDGE, _ACTION_RIDGE = 3e-4, 0.03
"""Penalties of the maps from points to states and from states to actions, of inputs of spread 1."""
_LEAST_SPREAD = 1e-3
"""Spread below which an input counts no more."""
STATELESS = "none of the demonstrations has states"

Array = NDArray[np.float64]
Linear = tuple[Array, Array]
"""Weight [F, D] and constant [D]."""


def have_states(demonstrations: Sequence[Demonstration]) -> bool:
    """Tells whether the state of any step is known."""
    return any(d.state is not None and bool(np.isfinite(d.state).all(1).any()) for d in demonstrations)


def tell_states(points: Sequence[Array], demonstrations: Sequence[Demonstration]) -> Linear:
    """Returns what tells states of points.

    Args:
        points: of every demonstration, float64 [T, F] each.
        demonstrations: those; steps whose state is not known count nothing.

    Raises:
        DataError: no states.
    """
    if not have_states(demonstrations):
        raise DataError(STATELESS)
    rows, wanted = [], []
    for own, d in zip(points, demonstrations, strict=True):
        if d.state is None:
            continue
        known = np.isfinite(d.state).all(1)
        rows.append(own[known])
        wanted.append(d.state[known].astype(np.float64))
    return _scaled_ridge(np.concatenate(rows), np.concatenate(wanted), _STATE_RIDGE)


def tell_actions(
    states: Sequence[Array],
    demonstrations: Sequence[Demonstration],
    normalize: Callable[[NDArray[np.float32]], NDArray[np.floating]],
    windows: WindowConfig,
    gain: float,
) -> Linear:
    """Returns what tells actions of the states of a window.

    Args:
        states: told of every demonstration, float64 [T, S] each.
        demonstrations: those.
        normalize: makes of actions what a head gives.
        windows: the shape of a window.
        gain: what changes of a point, and so of a state, are multiplied by (``vision.difference_gain``).

    Returns:
        Weight [K S + K, H D] and constant.
    """
    rows, actions = [], []
    for d, state in zip(demonstrations, states, strict=True):
        wanted = normalize(d.action)
        for start, first, last in d.starts:
            steps, present = window_frames(start, first, last, windows)
            rows.append(_window(state[steps], np.asarray(present), windows.anchor, gain))
            actions.append(wanted[start : start + windows.horizon].ravel())
    return _scaled_ridge(np.stack(rows), np.stack(actions).astype(np.float64), _ACTION_RIDGE)


def by_way_of(to_state: Linear, to_action: Linear, windows: WindowConfig) -> Linear:
    """Returns the map from the points of a window to actions: weight [K F + K, H D] and constant.

    Args:
        to_state: from points to states; see `tell_states`.
        to_action: from the states of a window to actions; see `tell_actions`.
        windows: the shape of a window.
    """
    (weight, bias), (of_window, constant) = to_state, to_action
    count = len(windows.frames) * len(bias)
    of_states, of_present = of_window[:count].reshape(len(windows.frames), len(bias), -1), of_window[count:]
    # A constant falls out of all differences, and counts where the window stands.
    constant = constant + bias @ of_states[windows.anchor]
    return np.concatenate([*(weight @ one for one in of_states), of_present]), constant


def _scaled_ridge(x: Array, y: Array, penalty: float) -> Linear:
    """Does what `solve_ridge` does, for inputs of any scale."""
    scale = x.std(0) + _LEAST_SPREAD
    weight, constant = solve_ridge(x / scale, y, penalty)
    return weight / scale[:, None], constant


def _window(states: Array, present: Array, anchor: int, gain: float) -> Array:
    """Returns what `KeypointEyes.join` makes of points, of states [K, S]: float64 [K S + K]."""
    rows = gain * (states - states[anchor]) * present[:, None]
    rows[anchor] = states[anchor]
    return np.concatenate([rows.ravel(), present])
