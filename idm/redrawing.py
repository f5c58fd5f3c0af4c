"""Pictures of a hand with the robot drawn in its place, from pictures of the robot alone: no renderer, no hand model.

To edit the body in videos is what lets policies learn from hands (Phantom: Lepert et al. 2025, arXiv 2503.00779) or
from another robot (Mirage: Chen et al. 2024, arXiv 2402.19249); there, bodies are rendered from poses that are known.
Here the robot is cut out of the frame in which its state was told to be nearest, and put over the scene. Both looks
have to be seen by the same camera, which stands still, in about the same scene; light may differ.

- Where nothing is: the median of the hand's pictures, in the colours of the robot's.
- Hand: what differs from that in colours that the robot's look does not have.
- Objects: what else differs; they stay, where the robot does not hide them.
- Robot: of all that differs from that in the frame, what hangs together with what most frames of like states show
  there, too, in a colour that the hand's look does not have; and of this, what has such a colour itself or differs in
  most of these frames. So an object is none that the robot does not touch, or that is elsewhere at the same state.

Shapes: N and T pictures, S side, D numbers of a state, K neighbours, B bins of a colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pyramid.errors import DataError

__all__ = ["RedrawConfig", "Redrawer"]

_BINS = 16
"""Bins of a colour along each axis."""
_STILL = 4.0
"""Median difference to the median, of 255, up to which a pixel counts as still."""
_FITS = 3
"""Times that colours are fitted, each without the pixels that fitted worst."""
_FEW = 0.02
"""Pixels of a colour in a picture below which it says nothing of a look."""
_SAME_SCENE = 0.5
"""Share of the still pixels that have to agree for two looks to be of one scene."""
_MOST_LIGHT = 4.0
"""How many times as strong light may be in one look; scenes that have nothing in common fit best without any."""
_LEAST_STILL = 0.05
"""Share of pixels that have to be still in both looks."""
_SAMPLE = 1024
"""Pictures of a look that its median and its colours are taken from."""
_SUREST = 0.95
"""Share of the surest pixel's support with which others are as sure."""
_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class RedrawConfig:
    """How the robot is drawn over a hand."""

    neighbours: int = 25
    """Clips whose frames of the nearest state say what is robot; 1 to 64."""
    support: float = 0.6
    """Share of them in which a pixel has to differ from the scene to be robot, unless its colour says so; 0 to 1."""
    threshold: int = 20
    """Difference of a pixel's colour, of 255, from which on something is there; 1 to 255."""
    ratio: float = 3.0
    """How much more often a colour has to be in one look than in the other to be the hand's or the robot's; >= 1."""
    bank_mb: int = 1024
    """Bound of the robot's frames that are held, MiB; where there are more, every second is left out, or more."""
    crf: int = 12
    """x264's constant rate factor of the videos; packing encodes them once more. 0 to 51."""
    seed: int = 0
    """Of where the search for the map between looks starts."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        ranges = {"neighbours": (1, 64), "support": (0, 1), "threshold": (1, 255), "crf": (0, 51)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {getattr(self, name)}")
        for name, least in {"ratio": 1, "bank_mb": 1}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


class Redrawer:
    """Draws the robot over hands.

    Args:
        hands: pictures of the hand's look, uint8 [N, 3, S, S].
        frames: pictures of the robot's, uint8 [N, 3, S, S]; those that are cut out.
        states: what was told of each of ``frames``, float [N, D].
        clips: which clip each is of, int [N]; those of a clip stand together.
        config: see there.

    Raises:
        DataError: both looks are not of one scene.
    """

    def __init__(
        self,
        hands: Tensor,
        frames: Tensor,
        states: NDArray[np.floating],
        clips: Sequence[int],
        config: RedrawConfig,
    ) -> None:
        self.config, self.frames = config, frames
        self._spread = torch.from_numpy(np.maximum(np.asarray(states, np.float32).std(0), 1e-6))
        self._states = torch.from_numpy(np.asarray(states, np.float32)) / self._spread
        _, counts = torch.unique_consecutive(torch.as_tensor(clips), return_counts=True)
        self._sizes: list[int] = counts.tolist()
        self._firsts = counts.cumsum(0) - counts
        ours, theirs = (_some(pictures) for pictures in (hands, frames))
        empty, robots = _median(ours), _median(theirs)
        still = [_still(ours, empty), _still(theirs, robots)]
        self._gain, self._offset, self.agreement = _colours(empty, robots, still[0] & still[1], config.threshold)
        """Share of the pixels, still in both looks, that agree between them."""
        self.empty = self._recoloured(empty)
        """The scene without hand or robot in the robot's colours, float [3, S, S]."""
        base = still[1] & (_apart(robots, self.empty) > config.threshold)
        self._behind = torch.where(base, robots, self.empty).round().clamp(0, 255).byte()
        """The same with what of the robot never moves."""
        there = torch.cat([self._differs(part) for part in torch.split(frames, _AT_ONCE)])
        self._there = there
        ours = self._recoloured(ours)
        colours = [_histogram(pictures, self._differs(pictures)) for pictures in (ours, theirs)]
        self._of_hands = colours[0] > config.ratio * (colours[1] + _FEW)
        self._of_robot = colours[1] > config.ratio * (colours[0] + _FEW)

    def redraw(self, pictures: Tensor, states: NDArray[np.floating]) -> Tensor:
        """Returns pictures of hands, uint8 [T, 3, S, S], with the robot at ``states``, float [T, D]: the same shape."""
        told = torch.from_numpy(np.asarray(states, np.float32)) / self._spread
        parts = zip(torch.split(pictures, _AT_ONCE), torch.split(told, _AT_ONCE), strict=True)
        return torch.cat([self._drawn(*part) for part in parts])

    def _drawn(self, pictures: Tensor, states: Tensor) -> Tensor:
        nearest = self._nearest(states)
        there = self._there[nearest]  # [T, K, S, S]
        share = there.float().mean(1)
        cut = self.frames[nearest[:, 0]]
        own = self._of_robot[_bins(cut)]
        known = torch.where(there[:, 0] & own, share, 0.0)
        surest = known.amax((1, 2), keepdim=True)
        whole = _hanging_together(there[:, 0], seeds=(known > 0) & (known >= _SUREST * surest))
        robot = whole & (own | (share >= self.config.support))
        seen = self._recoloured(pictures)
        objects = _blocks(self._differs(seen) & ~self._of_hands[_bins(seen)])
        drawn = torch.where(objects[:, None], seen.round().clamp(0, 255).byte(), self._behind)
        return torch.where(robot[:, None], cut, drawn)

    def _nearest(self, states: Tensor) -> Tensor:
        """Returns the frames of the nearest states, int [T, K], the nearest first, each of another clip."""
        apart = torch.split(torch.cdist(states, self._states), self._sizes, dim=1)
        best = [one.min(1) for one in apart]
        clips = torch.stack([one.values for one in best], dim=1).topk(
            min(self.config.neighbours, len(best)), largest=False
        )
        frames = torch.stack([one.indices for one in best], dim=1) + self._firsts
        nearest: Tensor = frames.gather(1, clips.indices)
        return nearest

    def _differs(self, pictures: Tensor) -> Tensor:
        """Tells where something is, bool [N, S, S], in pictures of the robot's colours, [N, 3, S, S]."""
        return _apart(pictures.float(), self.empty) > self.config.threshold

    def _recoloured(self, pictures: Tensor) -> Tensor:
        """Returns pictures of the hand's look, [..., 3, S, S], in the colours of the robot's, float."""
        return pictures.float() * self._gain[:, None, None] + self._offset[:, None, None]


def _some(pictures: Tensor) -> Tensor:
    """Returns evenly spread ones of pictures, float."""
    return pictures[:: max(len(pictures) // _SAMPLE, 1)][:_SAMPLE].float()


def _median(pictures: Tensor) -> Tensor:
    """Returns the median of pictures [N, 3, S, S], float [3, S, S]."""
    return pictures.median(0).values


def _still(pictures: Tensor, median: Tensor) -> Tensor:
    """Tells which pixels hardly ever change, bool [S, S]."""
    return ((pictures - median).abs().median(0).values <= _STILL).all(0)


def _apart(pictures: Tensor, other: Tensor) -> Tensor:
    """Returns the largest difference of a channel, [..., S, S], of pictures [..., 3, S, S]."""
    return (pictures - other).abs().amax(-3)


def _colours(hands: Tensor, robots: Tensor, still: Tensor, threshold: int) -> tuple[Tensor, Tensor, float]:
    """Fits the light of one look to the other: gain and offset of each channel [3], and the share of pixels that agree.

    Raises:
        DataError: they are not of one scene.
    """
    ours, theirs = hands[:, still].double(), robots[:, still].double()
    fitting = torch.ones(ours.shape[1], dtype=torch.bool)
    gain, offset = torch.ones(3).double(), torch.zeros(3).double()
    agreeing = torch.zeros(0)
    for _ in range(_FITS):
        if fitting.sum() < _LEAST_STILL * still.numel():
            raise DataError(
                "the two looks have too little in common that stands still: hands and robot must be seen by the same "
                "camera, which does not move"
            )
        x, y = ours[:, fitting], theirs[:, fitting]
        mean_x, mean_y = x.mean(1), y.mean(1)
        spread = (x - mean_x[:, None]).square().mean(1)
        slope = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(1) / spread.clamp(min=1.0)
        gain = torch.where(spread > 1.0, slope, torch.ones_like(slope))
        offset = mean_y - gain * mean_x
        error = (ours * gain[:, None] + offset[:, None] - theirs).abs().amax(0)
        agreeing = error <= threshold
        fitting = error <= torch.clamp(error.quantile(0.8), max=threshold)
    share = float(agreeing.float().mean())
    if share < _SAME_SCENE or not ((gain > 1 / _MOST_LIGHT) & (gain < _MOST_LIGHT)).all():
        light = float(gain.mean())
        raise DataError(
            f"what stands still does not look alike in both looks ({share:.0%} of it agrees, in {light:.2f} times the "
            "light): hands and robot must be seen by the same camera in the same scene"
        )
    return gain.float(), offset.float(), share


def _bins(pictures: Tensor) -> Tensor:
    """Returns the bin of each pixel's colour, int64 [N, S, S], of pictures [N, 3, S, S], 0 to 255."""
    red, green, blue = (pictures.clamp(0, 255).long() // (256 // _BINS)).unbind(1)
    return (red * _BINS + green) * _BINS + blue


def _histogram(pictures: Tensor, there: Tensor) -> Tensor:
    """Returns how many pixels of each colour a picture has where something is, float [B^3]."""
    counts = torch.bincount(_bins(pictures)[there], minlength=_BINS**3).float() / len(pictures)
    smooth = torch.tensor([0.25, 0.5, 0.25])
    kernel = smooth[:, None, None] * smooth[None, :, None] * smooth[None, None, :]
    return functional.conv3d(counts.view(1, 1, _BINS, _BINS, _BINS), kernel[None, None], padding=1).flatten()


def _blocks(mask: Tensor) -> Tensor:
    """Keeps what has two pixels either way, bool [T, S, S]: the rims of what was taken out are thinner."""
    eroded = -functional.max_pool2d(-mask[:, None].float(), 2, stride=1)
    return functional.max_pool2d(functional.pad(eroded, (1, 1, 1, 1)), 2, stride=1)[:, 0] > 0


def _hanging_together(mask: Tensor, seeds: Tensor) -> Tensor:
    """Returns the parts of a mask, bool [T, S, S], that hang together with a seed."""
    within = mask[:, None].float()
    found = (seeds & mask)[:, None].float()
    while True:
        wider = functional.max_pool2d(found, 3, stride=1, padding=1) * within
        if torch.equal(wider, found):
            return found[:, 0] > 0
        found = wider
