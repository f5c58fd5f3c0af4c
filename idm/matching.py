"""A linear map between two ways to tell a motion, without any pair: the one under which both kinds of clips move alike.

Somebody films a hand, somebody else a robot, at the same tasks. What is seen of the hand is mapped to the robot's state
so that the states told of many clips spread as the robot's do: where they are and how they move at each part of a clip,
and how whole clips run. Spreads are compared along random directions (sliced Wasserstein distance: Rabin et al. 2012,
doi 10.1007/978-3-642-24785-9_37), which needs gradients and no second network. To align domains by their distributions
alone is known from words of two languages (Conneau et al. 2018, arXiv 1710.04087); there, too, few linear maps qualify.
Motion that mirrors itself has mirrored solutions that spread as well: hints, numbers that mean about the same on both
sides (where in the picture something moves), tell them apart, and each result is tried with every output reversed.

Shapes: T steps of a clip, F numbers that are seen, C components of them, S numbers of a state, H hints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idm.heads import solve_ridge
from pyramid.errors import DataError
from pyramid.rng import seed_of, torch_generator

__all__ = ["Match", "match", "require_clips"]

_MOST, _LEAST, _LEAST_AFTER = 16, 0.04, 0.01
"""Principal components of what is seen: so many at most, and none that varies less than this share of the first; with
more of them solutions are not found, but the one that was found becomes better."""
_UPDATES, _LR = 300, 0.05
"""Of each solution."""
_STARTS = 3
"""Solutions that start at random."""
_BETTER = 0.98
"""How much less a distance must be for the search to go on from there."""
_DECAY = 1e-4
"""Penalty of the map, more for components that vary less."""
_LAG = 6
"""Steps over which motion is compared."""
_MOVES, _PART = 3.0, 3.0
"""What motion, and a step's part of its clip (0 to 1), weigh beside where things are (spread 1)."""
_FIRST, _ALIKE = 3, 2.0
"""First steps of clips, and what their spread weighs in the end. What is seen of objects goes well with where a hand
will be; only where hands begin, wherever the object lies, does it show that this is not where they are."""
_MOMENTS, _AT_ONCE = 16, 4
"""Moments of a clip that are looked at, and of how many the run is compared at a time."""
_STEPS, _CLIPS, _DIRECTIONS = 512, 64, 24
"""Steps, clips and random directions of one comparison."""
_FEWEST = 8
"""Clips on either side below which a spread says nothing."""
_TELLS = 0.3
"""Correlation of hints with a number of the state, on the robot's side, from which on they count."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """The map that was found: ``seen @ weight + bias`` tells states."""

    weight: Array
    """float64 [F, S]."""
    bias: Array
    """float64 [S]."""
    distance: float
    """Between the spreads that are left; states have spread 1."""
    against: int
    """Numbers of the state that the hints speak against; 0 unless no solution was better."""


def match(
    seen: Sequence[Array],
    states: Sequence[Array],
    *,
    hints: tuple[Sequence[Array], Sequence[Array]] | None = None,
    seed: int = 0,
) -> Match:
    """Returns the linear map of what is seen to states under which clips of both kinds move alike; pure.

    Args:
        seen: of each clip of one kind, float64 [T, F].
        states: of each clip of the other, float64 [T, S], at the same rate.
        hints: of the clips of ``seen`` and of ``states``, float64 [T, H] each; NaN rows where there is none.
        seed: of where solutions start.

    Raises:
        DataError: fewer than eight clips of either kind are longer than the steps over which motion is compared, or
            nothing moves in them.
    """
    pairs = [list(zip(*rows, strict=True)) for rows in zip((seen, states), hints or (seen, states), strict=True)]
    require_clips(*([len(pair[0]) for pair in rows] for rows in pairs))
    long = [[pair for pair in rows if len(pair[0]) > _LAG] for rows in pairs]
    (seen, ours), (states, theirs) = ([list(column) for column in zip(*rows, strict=True)] for rows in long)
    mean, spread = _moments(states)
    parts, center = _components(seen, _LEAST)
    judge = _judge(ours, theirs, states) if hints is not None else lambda told: 0
    told_of = [(clip - center) @ parts for clip in seen]
    search = _Search(told_of, [(clip - mean) / spread for clip in states])
    rows = torch.from_numpy(np.concatenate(told_of)).float()

    def solve(start: tuple[Tensor, Tensor], number: int) -> _Solution:
        distance, weight, bias = search.solve(*start, seed_of(seed, "match", number))
        return _Solution(judge((rows @ weight + bias).numpy()), distance, weight, bias)

    best = min((solve(search.start(torch_generator(seed, "start", n)), n) for n in range(_STARTS)), key=_order)
    # Each reflection of the best leads to another basin, which random starts may all have missed.
    while True:
        turned = min((solve(_reversed(best, n), _STARTS + n) for n in range(len(mean))), key=_order)
        if _order(turned) >= (best.against, best.distance * _BETTER):
            break
        best = turned
    # The first components are the same, however many there are.
    parts, center = _components(seen, _LEAST_AFTER)
    search = _Search([(clip - center) @ parts for clip in seen], [(clip - mean) / spread for clip in states], _ALIKE)
    more = torch.zeros(parts.shape[1] - len(best.weight), best.weight.shape[1])
    distance, weight, bias = search.solve(torch.cat([best.weight, more]), best.bias, seed_of(seed, "match", "after"))
    best = best._replace(distance=distance, weight=weight, bias=bias)
    whole = (parts @ best.weight.double().numpy()) * spread
    constant = best.bias.double().numpy() * spread + mean - center @ whole
    return Match(whole, constant, best.distance, best.against)


def require_clips(seen: Sequence[int], states: Sequence[int]) -> None:
    """Refuses what `match` would, told the steps of each clip: before what is seen is learned, which takes longer.

    Raises:
        DataError: see `match`.
    """
    ours, theirs = (sum(steps > _LAG for steps in clips) for clips in (seen, states))
    if min(ours, theirs) < _FEWEST:
        raise DataError(
            f"{ours} clips to match with {theirs} of the robot: both need {_FEWEST} of more than {_LAG} steps at the "
            "robot's rate"
        )


class _Solution(NamedTuple):
    against: int
    distance: float
    weight: Tensor
    bias: Tensor


def _order(solution: _Solution) -> tuple[int, float]:
    return solution.against, solution.distance


def _judge(ours: Sequence[Array], theirs: Sequence[Array], states: Sequence[Array]) -> Callable[[Array], int]:
    """Returns what counts the numbers of told states that run against what hints make of them."""
    hints, rows = np.concatenate(theirs), np.concatenate(states)
    there = np.isfinite(hints).all(1)
    own = np.concatenate(ours)
    known = np.isfinite(own).all(1)
    if not (there.any() and known.any()):
        return lambda told: 0
    map_, _ = solve_ridge(hints[there], rows[there], _DECAY)
    sure = _correlation(hints[there] @ map_, rows[there]) > _TELLS
    expected = own[known] @ map_
    return lambda told: int((sure & (_correlation(expected, told[known]) < 0)).sum())


def _correlation(one: Array, other: Array) -> Array:
    """Returns that of each column, float64 [S]; 0 for one that does not change."""
    one, other = one - one.mean(0), other - other.mean(0)
    scale = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return np.asarray((one * other).sum(0) / np.where(scale > 0, scale, np.inf))


def _moments(clips: Sequence[Array]) -> tuple[Array, Array]:
    rows = np.concatenate(clips)
    return rows.mean(0), np.maximum(rows.std(0), 1e-6)


def _components(seen: Sequence[Array], least: float) -> tuple[Array, Array]:
    """Returns what makes principal components of spread 1, float64 [F, C], and the mean, float64 [F].

    Those are left out that vary less than ``least`` times the first.
    """
    rows = np.concatenate(seen)
    center = rows.mean(0)
    _, sizes, axes = np.linalg.svd(rows - center, full_matrices=False)
    if not sizes[0] > 0:
        raise DataError("nothing moves in the clips that are to be matched")
    count = int(min((sizes >= least * sizes[0]).sum(), _MOST))
    return axes[:count].T / (sizes[:count] / np.sqrt(len(rows))), center


def _reversed(found: _Solution, output: int) -> tuple[Tensor, Tensor]:
    weight, bias = found.weight.clone(), found.bias.clone()
    weight[:, output] *= -1
    bias[output] *= -1
    return weight, bias


class _Search:
    """Solutions for the same clips; a solution is its distance, weight [C, S] and bias [S].

    Args:
        seen: of each clip of one kind, [T, C].
        states: of each clip of the other, [T, S], of spread 1.
        alike: what the spread of first steps weighs.
    """

    def __init__(self, seen: Sequence[Array], states: Sequence[Array], alike: float = 0.0) -> None:
        self.alike = alike
        self.first, self.begun = (_float([clip[:_FIRST] for clip in clips]) for clips in (seen, states))
        self.place, self.way, self.part = (
            _float([clip[:-_LAG] for clip in seen]),
            _float([_MOVES * (clip[_LAG:] - clip[:-_LAG]) for clip in seen]),
            _parts(seen),
        )
        placed, moved = [clip[:-_LAG] for clip in states], [_MOVES * (clip[_LAG:] - clip[:-_LAG]) for clip in states]
        self.motion = torch.cat([_float(placed), _float(moved), _parts(states)], dim=1)
        self.clips, self.runs = (torch.stack([_moments_of(clip) for clip in clips]) for clips in (seen, states))
        # Components all have spread 1, though the last vary a twentieth as much as the first and may be noise.
        self.weights = torch.linspace(0, -3, self.place.shape[1]).exp()[:, None]

    def start(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns a random solution: large for the components that vary most."""
        outputs = self.runs.shape[2]
        weight = torch.randn(self.place.shape[1], outputs, generator=generator) * self.weights
        return weight, torch.zeros(outputs)

    def solve(self, weight: Tensor, bias: Tensor, seed: int) -> tuple[float, Tensor, Tensor]:
        """Returns the solution that is reached from a start."""
        generator = torch_generator(seed, "directions")
        with torch.enable_grad():
            weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            optimiser = torch.optim.Adam([weight, bias], lr=_LR)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _UPDATES)
            for _ in range(_UPDATES):
                penalty = _DECAY * (weight / self.weights).square().sum()
                loss = self._distance(weight, bias, generator) + penalty
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        weight, bias = weight.detach(), bias.detach()
        same = torch_generator(0, "judged")  # all are judged along the same directions
        judged = [self._distance(weight, bias, same, times=4) for _ in range(16)]
        return float(torch.stack(judged).mean()), weight, bias

    def _distance(self, weight: Tensor, bias: Tensor, generator: torch.Generator, times: int = 1) -> Tensor:
        def drawn(count: int, of: Tensor) -> Tensor:
            return torch.randint(len(of), (times * count,), generator=generator)

        ours, theirs = drawn(_STEPS, self.place), drawn(_STEPS, self.motion)
        told = torch.cat([self.place[ours] @ weight + bias, self.way[ours] @ weight, self.part[ours]], dim=1)
        motion = _sliced(told, self.motion[theirs], generator, times * _DIRECTIONS)
        ours, theirs = drawn(_CLIPS, self.clips), drawn(_CLIPS, self.runs)
        at = torch.randint(_MOMENTS, (_AT_ONCE,), generator=generator).sort().values
        runs = self.clips[ours][:, at] @ weight + bias
        found = motion + _sliced(runs.flatten(1), self.runs[theirs][:, at].flatten(1), generator, times * _DIRECTIONS)
        if not self.alike:
            return found
        first = self.first[drawn(_STEPS // 2, self.first)] @ weight + bias
        begun = self.begun[drawn(_STEPS // 2, self.begun)]
        return found + self.alike * _sliced(first, begun, generator, times * _DIRECTIONS)


def _sliced(one: Tensor, other: Tensor, generator: torch.Generator, directions: int) -> Tensor:
    """Returns the mean squared distance of sorted rows along random directions, of as many rows each, float [N, W]."""
    line = torch.randn(directions, one.shape[1], generator=generator)
    line = line / line.norm(dim=1, keepdim=True)
    ours, theirs, edge = line @ one.T, (line @ other.T).numpy(), len(one) // 100
    # numpy sorts several times as fast.
    order = torch.from_numpy(np.argsort(ours.detach().numpy(), axis=1))
    apart = ours.gather(1, order) - torch.from_numpy(np.sort(theirs, axis=1))
    distance: Tensor = apart[:, edge : len(one) - edge].square().mean()
    return distance


def _float(clips: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(clips)).float()


def _parts(clips: Sequence[Array]) -> Tensor:
    return _float([_PART * np.linspace(0, 1, len(clip))[:-_LAG, None] for clip in clips])


def _moments_of(clip: Array) -> Tensor:
    """Returns a clip at evenly spread moments, float [M, C]."""
    at = np.linspace(0, len(clip) - 1, _MOMENTS)
    columns = [np.interp(at, np.arange(len(clip)), column) for column in clip.T]
    return torch.from_numpy(np.stack(columns, axis=1)).float()
