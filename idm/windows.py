"""Windows over a clip: where they start, which frames they see, and how their overlapping predictions are joined.

Predictions are keyed by their start, so the order in which they were computed can never reach a label. T frames have
T - 1 transitions; the action of the last frame cannot be seen and is never labelled.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from idm.config import WindowConfig
from idm.joining import JoinRule
from pyramid.errors import SkipItemError

__all__ = [
    "Steps",
    "Votes",
    "clip_steps",
    "segments",
    "step_frames",
    "vote",
    "vote_weights",
    "window_frames",
    "window_starts",
]

_SLACK_S = 1e-4
"""Rounding of presentation times in containers, seconds."""


class Votes(NamedTuple):
    """Joined predictions of T - 1 steps; row t is the action from frame t to frame t + 1."""

    mean: NDArray[np.float32]
    """float32 [T - 1, D]: weighted mean of the votes."""
    variance: NDArray[np.float32]
    """float32 [T - 1, D]: weighted variance of the votes; 0 for a single one, where it means "unknown"."""
    n_votes: NDArray[np.int64]
    """int64 [T - 1]: windows that voted, >= 1."""


def window_starts(n_frames: int, horizon: int, stride: int = 1) -> list[int]:
    """Returns the starts 0, s, 2s, ... and, last, the latest one whose window fits; every transition gets a vote.

    Args:
        n_frames: frames of the clip.
        horizon: transitions in a window; frames start and start + horizon both exist.
        stride: steps between starts, 1 to horizon.

    Returns:
        Ascending starts; none when the clip is too short.
    """
    last = n_frames - 1 - horizon
    return sorted({*range(0, last + 1, stride), last}) if last >= 0 else []


def window_frames(start: int, first: int, last: int, windows: WindowConfig) -> tuple[list[int], list[float]]:
    """Returns the steps whose frames a window sees, and which of them are there (1) or lie outside its shot (0).

    Args:
        start: first step of the window.
        first: first step of the shot.
        last: past the last step of the shot.
        windows: the shape of a window.

    Returns:
        One step per entry of ``windows.frames``; the place of a missing frame is held by the window's anchor.
    """
    steps = [start + step for step in windows.frames]
    there = [first <= step < last for step in steps]
    anchor = steps[windows.anchor]
    return [s if t else anchor for s, t in zip(steps, there, strict=True)], [float(t) for t in there]


def vote_weights(horizon: int, kind: str = "hann") -> NDArray[np.float64]:
    """Returns what each step of a window counts before anything was learned, float64 [horizon].

    Args:
        horizon: steps of a window.
        kind: ``uniform``: all alike; else Hann plus .001, as a window's middle is seen best.
    """
    return np.ones(horizon) if kind == "uniform" else np.hanning(horizon) + 1e-3


def vote(
    chunks: Mapping[int, NDArray[np.floating]],
    n_frames: int,
    weights: NDArray[np.floating] | None = None,
    rule: JoinRule | None = None,
) -> Votes:
    """Joins the predictions of all windows of a clip.

    Args:
        chunks: start -> predicted actions, float [H, D], or [R, H, D] of R draws, each of which is a vote; starts as
            `window_starts` gives them, in any order.
        n_frames: frames of the clip.
        weights: float [H, D] or [H, 1], > 0: what the vote of each step of a window counts; None: `vote_weights`.
        rule: which dimensions are rotations or switches; None: none are.

    Raises:
        ValueError: a transition that no window covers, or a window past the end.
    """
    chunks = {start: chunks[start].reshape(-1, *chunks[start].shape[-2:]) for start in sorted(chunks)}
    draws, horizon, width = next(iter(chunks.values())).shape
    counts = vote_weights(horizon)[:, None] if weights is None else np.asarray(weights, np.float64)
    total, sums = np.zeros((n_frames - 1, counts.shape[1])), np.zeros((n_frames - 1, width))
    count = np.zeros(n_frames - 1, np.int64)
    for start, chunk in chunks.items():
        if start < 0 or start + horizon > n_frames - 1:
            raise ValueError(f"window {start}..{start + horizon} does not fit {n_frames} frames")
        span = slice(start, start + horizon)
        sums[span] += counts * chunk.mean(0)
        total[span] += counts
        count[span] += 1
    if not count.all():
        raise ValueError(f"transition {int(np.argmin(count))} of {n_frames - 1} has no window")
    mean = sums / total
    spread = np.zeros_like(sums)
    for start, chunk in chunks.items():
        span = slice(start, start + horizon)
        # Squared distances to the mean: a difference of squares would lose small spreads to rounding.
        spread[span] += counts * ((chunk - mean[span]) ** 2).mean(0)
    variance = np.where(count[:, None] * draws > 1, spread / total, 0)
    if rule is not None:
        rule.join(chunks, np.broadcast_to(counts, (horizon, width)), mean, variance)
    return Votes(mean.astype(np.float32), variance.astype(np.float32), count)


def step_frames(times_s: NDArray[np.float64], rate_hz: float, tolerance: float) -> list[int]:
    """Returns the frames that stand at the model's steps: those nearest to 0, 1, 2, ... times 1 / rate_hz.

    Args:
        times_s: float64 [T], ascending presentation times, seconds.
        rate_hz: the model's steps per second.
        tolerance: largest distance of a frame from its step, share of a step in [0, 0.5).

    Raises:
        SkipItemError: the clip has no frame where the model needs one.
    """
    if len(times_s) < 2:
        return list(range(len(times_s)))
    slack = tolerance / rate_hz + _SLACK_S
    steps = int(np.floor((times_s[-1] - times_s[0] + slack) * rate_hz)) + 1
    due = times_s[0] + np.arange(steps) / rate_hz
    right = np.clip(np.searchsorted(times_s, due), 1, len(times_s) - 1)
    nearest = np.where(times_s[right] - due < due - times_s[right - 1], right, right - 1)
    off = np.abs(times_s[nearest] - due)
    if (off > slack).any() or (np.diff(nearest) < 1).any():
        clip_hz = 1 / float(np.median(np.diff(times_s)))
        raise SkipItemError(
            "rate",
            f"frames come at {clip_hz:g} Hz, the inverse dynamics model was trained at {rate_hz:g} Hz, and no frame "
            f"lies within {tolerance:g} of the step at {due[int(off.argmax())]:.3f} s; "
            f"pack at a multiple of {rate_hz:g} Hz",
        )
    return [int(index) for index in nearest]


class Steps(NamedTuple):
    """The model's steps in a clip."""

    frames: list[int]
    """Frame shown at each step."""
    every: int
    """Steps from one frame to the next: 1, or more where a slow clip shows every other step of a window only."""

    def trim(self, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Shortens stretches of steps to end at a step that has a frame of its own."""
        return [(first, last - (last - first - 1) % self.every) for first, last in spans]


def clip_steps(
    times_s: NDArray[np.float64], rate_hz: float, seen: Sequence[int], horizon: int, tolerance: float
) -> Steps:
    """Finds the model's steps in a clip, at its own rate or at a whole fraction of it.

    A window looks at some of its steps only. A clip at half the rate holds those if all of them are even, so the window
    sees what it was trained on and still tells every action in between; it can just start at every other step only, so
    its actions have to come in whole pairs.

    Args:
        times_s: float64 [T], ascending presentation times, seconds.
        rate_hz: the model's steps per second.
        seen: steps of a window whose frames the model looks at.
        horizon: actions of a window.
        tolerance: largest distance of a frame from its step, share of a step in [0, 0.5).

    Raises:
        SkipItemError: ``rate``: the clip has no frame where the model needs one; both rates are named.
    """
    every = round(rate_hz * float(np.median(np.diff(times_s)))) if len(times_s) > 1 else 1
    if every > 1 and all(step % every == 0 for step in (*seen, horizon)):
        own = step_frames(times_s, rate_hz / every, tolerance / every)
        return Steps([frame for frame in own for _ in range(every)][: every * (len(own) - 1) + 1], every)
    return Steps(step_frames(times_s, rate_hz, tolerance), 1)


def segments(frames: Sequence[int], cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the stretches of steps without a cut, as (first step, past the last step).

    Args:
        frames: frame of each step, ascending.
        cuts: frames that begin a new shot.
    """
    edges = sorted({0, len(frames), *(int(np.searchsorted(frames, cut)) for cut in cuts)})
    return list(itertools.pairwise(edges))
