"""Pairs of frames by time: which two frames of a clip belong together, and which pairs a training step sees.

Decoding is left to `pyramid.shards.frames`. A pair is never clamped to a clip's end and never spans two clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam.config import PairConfig
from lam.order import PairOrder
from pyramid.errors import DataError
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames

__all__ = ["Drawn", "Measured", "Pair", "PairBatch", "PairSampler", "find_pair", "label_pairs", "motion"]

_BLOCKS = 8
_DRAWS = 64
"""Draws for one place in a batch before the data is said to hold no pair."""
_LENT_DRAWS = 16384
"""The same among labelled pairs, which may be few in a thousand."""
_SLACK_S = 1e-4
"""Rounding of presentation times in containers, seconds."""


class Pair(NamedTuple):
    """Two frames of one clip."""

    first: int
    """Index of the first frame."""
    second: int
    """Index of the second frame, > first."""
    gap_s: float
    """True time between them, seconds."""


class Measured(NamedTuple):
    """What a robot measured, of several embodiments in one array."""

    values: Tensor
    """float32 [B, A], physical units; 0 beyond an embodiment's own dimensions."""
    embodiment: Tensor
    """int64 [B], place of the embodiment in the sorted names."""
    known: Tensor
    """bool [B]: whether the row holds anything."""


class PairBatch(NamedTuple):
    """Pairs of one training step; what a model is not trained with is None."""

    first: Tensor
    """uint8 [B, 3, S, S], RGB."""
    second: Tensor
    """uint8 [B, 3, S, S], RGB."""
    weight: Tensor
    """float32 [B] in [0, 1]: what each pair counts in the loss."""
    motion: Tensor
    """float32 [B] in [0, 1], see `motion`."""
    gap_s: Tensor
    """float32 [B]: true gaps, seconds."""
    text: Tensor | None = None
    """float32 [B, M, W], see `lam.text`."""
    text_mask: Tensor | None = None
    """bool [B, M], True = a word."""
    boxes: Tensor | None = None
    """float32 [B, 4]: x0, y0, x1, y1 as shares of the sides; NaN without a box."""
    action: Measured | None = None
    """Mean action over the gap, of labelled episodes."""
    state: Measured | None = None
    """Proprioception at the first frame."""
    later: Measured | None = None
    """Proprioception at the second frame."""
    body: Tensor | None = None
    """int64 [B]: number of each pair's embodiment among those of the training clips."""


def find_pair(times_s: NDArray[np.float64], t_s: float, gap_s: float, cuts: Sequence[int] = ()) -> Pair | None:
    """Returns the two frames that lie ``gap_s`` apart, the first nearest to ``t_s``; None if there is no such pair.

    The first frame is snapped before the second is looked for: rounding both ends on their own would add up to a
    whole frame. The second must lie within half a frame of its due time.

    Args:
        times_s: float64 [T], ascending, seconds.
        t_s: wanted time of the first frame, seconds.
        gap_s: wanted gap, > 0, seconds.
        cuts: frames that begin a new shot; no pair spans one.
    """
    if len(times_s) < 2:
        return None
    first = _nearest(times_s, t_s)
    due = float(times_s[first]) + gap_s
    second = _nearest(times_s, due)
    tolerance = 0.5 * float(np.median(np.diff(times_s))) + _SLACK_S
    if second <= first or abs(float(times_s[second]) - due) > tolerance:
        return None
    if any(first < cut <= second for cut in cuts):
        return None
    return Pair(first, second, float(times_s[second] - times_s[first]))


def _nearest(times_s: NDArray[np.float64], t_s: float) -> int:
    right = int(np.clip(np.searchsorted(times_s, t_s), 1, len(times_s) - 1))
    # Between two frames the earlier one, by more than rounding: else a gap of half frames would flicker.
    return right if times_s[right] - t_s < t_s - times_s[right - 1] - _SLACK_S else right - 1


def label_pairs(
    times_s: NDArray[np.float64], gap_s: float, label_hz: float | None, cuts: Sequence[int] = ()
) -> list[Pair]:
    """Returns the pairs that a label table holds: a grid regular in time from the clip's first frame.

    Args:
        times_s: float64 [T], ascending, seconds.
        gap_s: gap of every pair, seconds.
        label_hz: rows per second, snapped to frames; None takes every frame.
        cuts: frames that begin a new shot; no pair spans one.
    """
    if label_hz is None:
        starts = times_s
    else:
        steps = int(np.floor((times_s[-1] - times_s[0] + _SLACK_S) * label_hz)) + 1
        starts = times_s[0] + np.arange(steps) / label_hz
    found = (find_pair(times_s, float(t), gap_s, cuts) for t in starts)
    # A grid finer than the frames snaps to one frame twice; the first row stands.
    return list({pair.first: pair for pair in reversed(list(found)) if pair}.values())[::-1]


def motion(first: Tensor, second: Tensor) -> Tensor:
    """Returns the motion of pairs: the largest mean |difference| over an 8 x 8 grid of blocks.

    The mean over the whole frame would call a small moving hand in a still room static.

    Args:
        first: uint8 [B, 3, S, S], S a multiple of 8.
        second: uint8 [B, 3, S, S].

    Returns:
        float32 [B] in [0, 1].
    """
    difference = (second.int() - first.int()).abs().float().mean(1, keepdim=True) / 255
    blocks = torch.nn.functional.avg_pool2d(difference, difference.shape[-1] // _BLOCKS)
    return blocks.flatten(1).amax(1)


class Drawn(NamedTuple):
    """A pair that was drawn."""

    clip: int
    """Number of the clip."""
    pair: Pair
    """Its frames' indices."""
    frames: tuple[Tensor, Tensor]
    """uint8 [3, S, S] each, RGB."""


class Signals(Protocol):
    """What fills a batch with more than frames, see `lam.signals`."""

    labelled: list[int]
    """Clips that lend their actions."""
    labelled_rows: int
    """Pairs of those that every batch has on top of its own."""

    def lends(self, clip: int, pair: Pair) -> bool:
        """Whether a pair of a clip lends its action."""

    def of(self, drawn: Sequence[tuple[int, Pair]]) -> dict[str, Any]:
        """Returns the further fields of a batch."""


class PairSampler:
    """Training pairs as a pure function of the step: no worker, order or earlier step has a say in them.

    Every second of video is equally likely, whatever clip it is in; a clip shorter than the gap gives no pair. Of no
    more than ``shuffle_frames`` every pair is drawn from all; of more, pairs come from a few clips at a time (see
    `lam.order`), so that a frame is decoded once an epoch.

    Args:
        clips: clips to draw from.
        config: gap, jitter and what to do with pairs without motion.
        seed: seed of the whole order.
        batch_size: pairs per step, >= 1.
        signals: what fills a batch with more than frames.
    """

    def __init__(
        self, clips: ClipFrames, config: PairConfig, *, seed: int, batch_size: int, signals: Signals | None = None
    ) -> None:
        self.signals = signals
        self.clips, self.config, self.seed, self.batch_size = clips, config, seed, batch_size
        # One frame more than the room for a start, so that a clip of exactly one gap can be drawn.
        room = clips.durations_s - config.gap_s + clips.periods_s
        if not (room > 0).any():
            longest = float(clips.durations_s.max(initial=0))
            raise DataError(
                f"no clip of the {len(clips)} is as long as the gap of {config.gap_s} s (longest: {longest:.3f} s); "
                "set pairs.gap_s lower or pack longer clips"
            )
        self._cumulative = np.cumsum(np.maximum(room, 0))
        lent = np.isin(np.arange(len(clips)), signals.labelled if signals else [])
        self._labelled = np.cumsum(np.where(lent, np.maximum(room, 0), 0))
        self.order = None
        if sum(row["frames"] for row in clips.rows) > config.shuffle_frames:
            self.order = PairOrder(clips, room, seed=seed, spread=config.shuffle_frames)
            clips.drops_oldest = True

    def batch_at(self, step: int) -> PairBatch:
        """Returns the pairs of training step ``step`` (>= 0)."""
        drawn = [self._next(step, place) for place in range(self.batch_size)]
        if self.signals is not None and self._labelled[-1] > 0:
            rows = range(self.signals.labelled_rows)
            drawn += [self._draw(self._labelled, ("labelled", step, place), self.signals) for place in rows]
        first, second = (torch.stack(frames) for frames in zip(*(frames for _, _, frames in drawn), strict=True))
        moved = motion(first, second)
        weight = torch.ones_like(moved)
        if self.config.static_policy == "scored" and self.config.static_threshold > 0:
            weight = (moved / self.config.static_threshold).clamp(max=1)
        gaps = torch.tensor([pair.gap_s for _, pair, _ in drawn], dtype=torch.float32)
        further = self.signals.of([(index, pair) for index, pair, _ in drawn]) if self.signals else {}
        return PairBatch(first, second, weight, moved, gaps, **further)

    def draw(self, *key: str | int) -> Drawn:
        """Returns the pair that belongs to ``key``, drawn from all clips."""
        return self._draw(self._cumulative, key)

    def _next(self, step: int, place: int) -> Drawn:
        """Returns a pair of a training step."""
        if self.order is None:
            return self.draw("train", step, place)
        generator = rng(self.seed, "pair", "train", step, place)
        clip, at = self.order.at(step * self.batch_size + place, generator.random())
        for _ in range(_DRAWS):
            if (found := self._pair(clip, at, generator.random())) is not None:
                return found
            at = generator.random()  # elsewhere in the clip: it is decoded already
        return self.draw("train", step, place)

    def _draw(self, cumulative: NDArray[np.float64], key: tuple[str | int, ...], among: Signals | None = None) -> Drawn:
        generator = rng(self.seed, "pair", *key)
        draws = _DRAWS if among is None else _LENT_DRAWS
        for _ in range(draws):
            clip, at, stretch = generator.random(3)
            index = int(np.searchsorted(cumulative, clip * cumulative[-1], side="right"))
            if (found := self._pair(index, at, stretch, among, keep=self.order is None)) is not None:
                return found
        raise DataError(
            f"{draws} draws found no {'' if among is None else 'labelled '}pair of frames {self.config.gap_s} s apart"
            + (" with motion; set pairs.static_policy=scored" if self.config.static_policy == "dropped" else "")
        )

    def _pair(
        self, index: int, at: float, stretch: float, among: Signals | None = None, *, keep: bool = True
    ) -> Drawn | None:
        """Returns the pair of a clip that starts at a share of the room for starts, with a share of the jitter."""
        gap_s = self.config.gap_s * (1 + self.config.jitter * stretch)
        times_s = self.clips.times_s(index)
        latest = float(times_s[-1]) - gap_s
        start_s = float(times_s[0]) + at * max(latest - float(times_s[0]), 0.0)
        pair = find_pair(times_s, start_s, gap_s, self.clips.rows[index]["cuts"] or ())
        if pair is None or (among is not None and not among.lends(index, pair)):
            return None
        first, second = self.clips.frames(index, [pair.first, pair.second], keep=keep)
        if self.config.static_policy == "dropped" and self._is_static(first, second):
            return None
        return Drawn(index, pair, (first, second))

    def _is_static(self, first: Tensor, second: Tensor) -> bool:
        return float(motion(first[None], second[None])) < self.config.static_threshold
