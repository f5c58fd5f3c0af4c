"""Pseudo-actions at the times of a clip's own frames, whatever the rate of the model that told them.

What an action is at another rate depends on what it means, which `modality.json` says for each group:

- a *value* (``absolute``, the default there) is read at the frame's time: linearly between steps, rotations along the
  shortest arc on SO(3) (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), switches from the step
  that the frame lies in;
- a *delta* is the change over a step, so a frame gets the change from itself to the next one: shares of a step, or
  sums of steps; rotations as powers of a step's rotation, composed in order;
- a *velocity* is a change per second: the mean over the time to the next frame.

A standard deviation is resampled like its value, as if neighbouring steps erred alike (they share windows).
Shapes: K steps of a stretch without a cut, N frames, D dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idm.groups import ActionGroup
from idm.rotations import turn_by, turn_to
from pyramid.actions.rotations import from_quaternion, to_quaternion

__all__ = ["Stretch", "at_frames", "stretches"]

Array = NDArray[np.float64]
_TOUCH_S = 2e-3
"""Steps that lie closer than this follow each other: times are rounded to microseconds, gaps to float32."""


class Stretch(NamedTuple):
    """Labels of consecutive steps."""

    rows: slice
    """Their rows in the clip's table."""
    edges_s: Array
    """float64 [K + 1]: beginning of each step, and the end of the last."""


def stretches(t_s: Array, gap_s: Array) -> list[Stretch]:
    """Splits the labels of a clip where one step does not end where the next begins.

    Args:
        t_s: float64 [P], ascending, seconds.
        gap_s: float [P], length of each step, seconds.
    """
    ends = np.asarray(t_s + gap_s, np.float64)
    breaks = np.flatnonzero(np.abs(t_s[1:] - ends[:-1]) > _TOUCH_S) + 1
    edges = [0, *breaks.tolist(), len(t_s)]
    return [Stretch(slice(a, b), np.append(t_s[a:b], ends[b - 1])) for a, b in itertools.pairwise(edges) if b > a]


def at_frames(
    edges_s: Array, actions: Array, std: Array, frames_s: Array, groups: Sequence[ActionGroup]
) -> tuple[Array, Array]:
    """Resamples the labels of one stretch; past its ends the nearest step is taken to go on.

    Args:
        edges_s: float64 [K + 1], ascending.
        actions: float64 [K, D], physical units.
        std: float64 [K, D], likewise.
        frames_s: float64 [N + 1], ascending: time of each frame, and of the one after the last.
        groups: all dimensions, each with a meaning.

    Returns:
        Actions and standard deviations, float64 [N, D] each.

    Raises:
        ValueError: a group without a meaning, or a change of rotation written as a quaternion, whose order of
            components nobody declares.
    """
    found, spread = np.zeros((len(frames_s) - 1, actions.shape[1])), np.zeros((len(frames_s) - 1, actions.shape[1]))
    for group in groups:
        if not group.meaning:
            raise ValueError(f"nothing says whether the action group '{group.name}' holds values or changes")
        told, doubt = actions[:, group.span], std[:, group.span]
        if group.kind == "binary":
            step = _step_of(edges_s, frames_s[:-1])
            found[:, group.span], spread[:, group.span] = told[step], doubt[step]
            continue
        spread[:, group.span] = _linear(edges_s, doubt, frames_s, group.meaning)
        if group.kind == "linear":
            found[:, group.span] = _linear(edges_s, told, frames_s, group.meaning)
        elif group.meaning == "value":
            found[:, group.span] = _rotated(edges_s, told, frames_s, group.kind)
        else:
            found[:, group.span] = _turned(edges_s, told, frames_s, group)
    return found, spread


def _step_of(edges_s: Array, times_s: Array) -> NDArray[np.intp]:
    """Returns the step that each time lies in; a time on an edge begins a step."""
    return np.asarray(np.clip(np.searchsorted(edges_s, times_s + _TOUCH_S / 2, "right") - 1, 0, len(edges_s) - 2))


def _between(edges_s: Array, times_s: Array) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Returns the steps before and after each time, and the share of the way from the one to the other."""
    starts = edges_s[:-1]
    before = _step_of(edges_s, times_s)
    after = np.minimum(before + 1, len(starts) - 1)
    room = np.where(after > before, starts[after] - starts[before], 1.0)
    share = np.where(after > before, np.clip((times_s - starts[before]) / room, 0, 1), 0.0)
    # Rounded times would make of a step's own action a mixture.
    return before, after, np.where(share * room < _TOUCH_S / 2, 0.0, share)


def _linear(edges_s: Array, values: Array, frames_s: Array, meaning: str) -> Array:
    if meaning == "value":
        before, after, share = _between(edges_s, frames_s[:-1])
        return np.asarray(values[before] * (1 - share)[:, None] + values[after] * share[:, None])
    lengths = np.diff(edges_s)[:, None]
    rates = values / lengths if meaning == "delta" else values
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(rates * lengths, axis=0)])
    step = _step_of(edges_s, frames_s)
    reached = total[step] + rates[step] * (frames_s - edges_s[step])[:, None]
    change = np.diff(reached, axis=0)
    return np.asarray(change if meaning == "delta" else change / np.diff(frames_s)[:, None])


def _rotated(edges_s: Array, values: Array, frames_s: Array, kind: str) -> Array:
    before, after, share = _between(edges_s, frames_s[:-1])
    quaternions = to_quaternion(values, kind)
    found = from_quaternion(turn_to(quaternions[before], quaternions[after], share), kind)
    if kind == "quaternion":  # The sign that the labels have.
        found *= np.where((found * values[before]).sum(1) < 0, -1.0, 1.0)[:, None]
    # What was read at a step's own time is left as it was written.
    return np.where((share == 0)[:, None], values[before], found)


def _turned(edges_s: Array, values: Array, frames_s: Array, group: ActionGroup) -> Array:
    if group.kind == "quaternion":
        raise ValueError(f"the group '{group.name}' holds changes as quaternions of which nobody says the order")
    lengths = np.diff(edges_s)
    quaternions = to_quaternion(values, group.kind)
    rows = []
    for start, end in itertools.pairwise(frames_s.tolist()):
        first, last = _step_of(edges_s, np.array([start, end - _TOUCH_S])).tolist()
        # The outermost steps go on past the ends of the stretch.
        begins = [start, *edges_s[first + 1 : last + 1]]
        ends = [*edges_s[first + 1 : last + 1], end]
        shares = (np.array(ends) - np.array(begins)) / lengths[first : last + 1]
        if group.meaning == "velocity":
            shares = shares * lengths[first : last + 1] / (end - start)
        rows.append(turn_by(quaternions[first : last + 1], shares))
    return from_quaternion(np.stack(rows), group.kind)
