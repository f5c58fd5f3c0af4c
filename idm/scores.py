"""What an inverse dynamics model is worth, in numbers: from true and inferred actions to an `IDMEvaluation`.

Labelling held-out clips is left to `idm.evaluate`, the measures themselves to `idm.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idm import metrics
from idm.bodies import Body
from idm.groups import ActionGroup

__all__ = ["R2", "GroupScore", "IDMEvaluation", "Series", "judge", "measure"]

_LEVEL = 0.9
MEANS_OF = 4
"""Steps whose mean is scored beside single steps: commands jitter in ways that no frame shows."""
_SHARES = (0.25, 0.5, 0.75, 1.0)
_FOREIGN = 0.1
"""Share of foreign steps past which the model's statistics are doubted."""
_Number = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class R2:
    """Share of the variance of true actions that labels explain; 1 is perfect, 0 is the mean action."""

    mean: float | None
    """Over all dimensions of all embodiments; None if all are constant."""
    per_dimension: dict[str, list[float | None]]
    """Embodiment -> each dimension; None where the true action is constant."""


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """One named stretch of the action, such as a joint group; errors in physical units."""

    r2: float | None
    """Mean over its dimensions that move; None if none does."""
    rmse: float
    """Root mean squared error of labels."""
    baseline_rmse: float
    """The same of the mean training action."""
    std_ratio: float | None
    """Mean over its dimensions of spread of labels over spread of training actions."""
    coverage: float | None
    """Share of true values in the 90 % interval, over the dimensions that move."""


@dataclass(frozen=True, kw_only=True)
class IDMEvaluation:
    """What an inverse dynamics model is worth."""

    model: str
    """Model folder."""
    clips: int
    """Held-out clips labelled."""
    steps: int
    """Labelled steps compared."""
    split: str
    """The split that was measured."""
    skipped: dict[str, int]
    """Held-out clips that could not be labelled: reason -> count."""
    r2: R2
    """Per step."""
    r2_means: R2
    """Of means over 4 consecutive steps, on both sides."""
    r2_unvoted: R2
    """Per step, of the same network without votes: windows side by side, each step told once."""
    rmse: dict[str, list[float]]
    """Embodiment -> root mean squared error of each dimension, physical units."""
    baseline_rmse: dict[str, list[float]]
    """The same for the mean training action."""
    groups: dict[str, dict[str, GroupScore]]
    """Embodiment -> named stretch of its action -> scores."""
    std_ratio: dict[str, list[float | None]]
    """Embodiment -> spread of labels over spread of training actions; far below 1 means labels too small."""
    lag: int
    """Steps by which labels come late; anything but 0 means that order or time is lost."""
    coverage: float
    """Share of true values inside the 90 % interval of ``action_std``; 0.9 is honest."""
    calibration: float
    """Mean |observed - nominal| coverage over the levels .1 to .9; 0 is honest."""
    error: float
    """Mean squared error, normalised units."""
    baseline_error: float
    """The same for the mean training action."""
    risk: dict[str, float]
    """Share of the steps kept, the most certain first -> their mean squared error, normalised units."""
    gated: dict[str, float]
    """Share of the steps that the gate flags, by reason."""
    foreign: float
    """Share of the steps whose true action lies far outside what the model knows of the robot: by as much as the whole
    range of its training actions, in any dimension that moves."""
    cycle: dict[str, float] | None
    """With a latent-action model: how much nearer than chance the latents are of steps with the same label (``label``)
    and with the same true action (``truth``); 0 is chance, 1 identical. None without such a model."""
    verdict: Literal["good", "weak", "broken"]
    """What the numbers say together."""
    reasons: list[str]
    """Why, a sentence each."""

    def __repr__(self) -> str:
        mean, unvoted = ("-" if r2.mean is None else f"{r2.mean:.3f}" for r2 in (self.r2, self.r2_unvoted))
        lines = [f"{name}, {group}: {_score(s)}" for name, all_ in self.groups.items() for group, s in all_.items()]
        risk = ", ".join(f"{error:.4f} ({float(share):.0%})" for share, error in self.risk.items())
        lines.append(f"error of the most certain steps: {risk}")
        if self.cycle is not None:
            lines.append(f"steps with the same label look alike: {_cycle(self.cycle)}")
        return (
            f"idm {self.verdict}: R2 {mean} (without votes {unvoted}), error {self.error:.4f} "
            f"(mean action {self.baseline_error:.4f}), "
            f"lag {self.lag}, 90 % interval holds {self.coverage:.0%}, calibration {self.calibration:.3f}, "
            f"{self.steps} steps of {self.clips} clips" + "".join(f"\n  - {line}" for line in [*self.reasons, *lines])
        )


class Series(NamedTuple):
    """Truth and labels of one clip, physical units, [P, D] each, at consecutive steps."""

    embodiment: str
    truth: _Number
    label: _Number
    std: _Number
    unvoted: _Number
    """Labels without votes."""
    why: dict[str, NDArray[np.bool_]]
    """What the gate says: reason -> [P]."""


class _Scores(NamedTuple):
    """Of one embodiment, per dimension."""

    r2: list[float | None]
    means: list[float | None]
    unvoted: list[float | None]
    rmse: list[float]
    baseline: list[float]
    ratio: list[float | None]
    groups: dict[str, GroupScore]


def measure(series: Sequence[Series], bodies: Mapping[str, Body], largest_lag: int) -> dict[str, Any]:
    """Returns all numbers of an `IDMEvaluation` but its model, clips, cycle and verdict.

    Args:
        series: one per clip, at least one.
        bodies: what the model knows of each embodiment.
        largest_lag: steps by which labels are tried to be late or early.
    """
    scaled, scores = [], dict[str, _Scores]()
    for name in sorted({one.embodiment for one in series}):
        own, body = [one for one in series if one.embodiment == name], bodies[name]
        truth, label, std, unvoted = (np.concatenate(column) for column in list(zip(*own, strict=True))[1:5])
        pairs = [(metrics.running_mean(one.truth, MEANS_OF), metrics.running_mean(one.label, MEANS_OF)) for one in own]
        means = [np.concatenate(side) for side in zip(*pairs, strict=True)]
        mean = np.broadcast_to(body.mean, truth.shape)
        scores[name] = _Scores(
            metrics.r2_per_dimension(truth, label),
            metrics.r2_per_dimension(means[0], means[1]),
            metrics.r2_per_dimension(truth, unvoted),
            metrics.rmse_per_dimension(truth, label),
            metrics.rmse_per_dimension(truth, mean),
            metrics.std_ratio(label, body.std),
            {group.name: _group(body, group, truth, label, std) for group in body.groups},
        )
        unit = np.where(body.moves, body.normalizer.scale, 1)
        scaled.append(tuple((x / unit)[:, body.moves] for x in (truth, label, std, mean)))
    flat = [tuple(x.ravel() for x in columns) for columns in scaled]
    truth, label, std, mean = (np.concatenate(column) for column in zip(*flat, strict=True))
    steps = sum(len(one.truth) for one in series)
    return {
        "steps": steps,
        "r2": _mean_of({name: one.r2 for name, one in scores.items()}),
        "r2_means": _mean_of({name: one.means for name, one in scores.items()}),
        "r2_unvoted": _mean_of({name: one.unvoted for name, one in scores.items()}),
        "rmse": {name: one.rmse for name, one in scores.items()},
        "baseline_rmse": {name: one.baseline for name, one in scores.items()},
        "groups": {name: one.groups for name, one in scores.items()},
        "std_ratio": {name: one.ratio for name, one in scores.items()},
        "lag": _lag(series, largest_lag),
        "coverage": metrics.coverage(truth, label, std, _LEVEL),
        "calibration": metrics.calibration_error(truth, label, std),
        "error": float(((truth - label) ** 2).mean()),
        "baseline_error": float(((truth - mean) ** 2).mean()),
        "risk": _risk(scaled),
        "gated": {
            reason: float(np.concatenate([one.why[reason] for one in series if reason in one.why]).sum() / steps)
            for reason in sorted({reason for one in series for reason in one.why})
        },
        "foreign": float(np.concatenate([_foreign(one.truth, bodies[one.embodiment]) for one in series]).mean()),
    }


def _foreign(truth: _Number, body: Body) -> NDArray[np.bool_]:
    reach = np.where(body.moves, body.high - body.low, np.inf)
    return np.asarray(((truth < body.low - reach) | (truth > body.high + reach)).any(1))


def _mean_of(scores: dict[str, list[float | None]]) -> R2:
    known = [score for own in scores.values() for score in own if score is not None]
    return R2(mean=float(np.mean(known)) if known else None, per_dimension=scores)


def _group(body: Body, group: ActionGroup, truth: _Number, label: _Number, std: _Number) -> GroupScore:
    span, moves = group.span, body.moves[group.span]
    t, p, s = truth[:, span], label[:, span], std[:, span]
    return GroupScore(
        r2=_known_mean(metrics.r2_per_dimension(t, p)),
        rmse=float(np.sqrt(((t - p) ** 2).mean(dtype=np.float64))),
        baseline_rmse=float(np.sqrt(((t - body.mean[span]) ** 2).mean(dtype=np.float64))),
        std_ratio=_known_mean(metrics.std_ratio(p, body.std[span])),
        coverage=metrics.coverage(t[:, moves], p[:, moves], s[:, moves], _LEVEL) if moves.any() else None,
    )


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score(score: GroupScore) -> str:
    if score.r2 is None:
        return f"constant in these clips, RMSE {score.rmse:.4g} (mean action {score.baseline_rmse:.4g})"
    known = {"spread ratio": score.std_ratio, "90 % interval holds": score.coverage}
    rest = "".join(f", {name} {value:.2f}" for name, value in known.items() if value is not None)
    return f"R2 {score.r2:.3f}, RMSE {score.rmse:.4g} (mean action {score.baseline_rmse:.4g}){rest}"


def _cycle(cycle: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in cycle.items()) + " (0: chance, 1: identical)"


def _risk(scaled: Sequence[tuple[_Number, ...]]) -> dict[str, float]:
    error = np.concatenate([((truth - label) ** 2).mean(1) for truth, label, _, _ in scaled])
    doubt = np.concatenate([(std**2).mean(1) for _, _, std, _ in scaled])
    return {
        f"{share:g}": risk for share, risk in zip(_SHARES, metrics.risk_coverage(error, doubt, _SHARES), strict=True)
    }


def _lag(series: Sequence[Series], largest: int) -> int:
    """Takes the embodiment with most steps: correlations of different bodies do not add up."""
    steps = Counter[str]()
    for one in series:
        steps[one.embodiment] += len(one.truth)
    name = max(sorted(steps), key=lambda key: steps[key])
    own = [one for one in series if one.embodiment == name]
    return metrics.best_lag([one.truth for one in own], [one.label for one in own], largest)


def judge(e: IDMEvaluation) -> tuple[Literal["good", "weak", "broken"], list[str]]:
    """Returns what the numbers say together, and why."""
    broken = []
    if e.r2.mean is None or e.r2.mean <= 0:
        broken.append(f"no better than the mean action (error {e.error:.4f}, mean action {e.baseline_error:.4f})")
    if e.lag:
        broken.append(f"labels come {e.lag} steps late: check times and rates")
    ratios = [(name, i, r) for name, all_ in e.std_ratio.items() for i, r in enumerate(all_) if r is not None]
    weak = [
        f"{name}, dimension {i}: labels have {r:.2f} of the training actions' spread, wanted 0.7 to 1.3"
        for name, i, r in ratios
        if not 0.7 <= r <= 1.3
    ]
    if e.foreign > _FOREIGN:
        weak.append(
            f"{e.foreign:.0%} of the true actions lie far outside what training showed: statistics of another robot, "
            "other units, or episodes unlike the training ones"
        )
    if not 0.8 <= e.coverage <= 0.97:
        weak.append(f"action_std is off: its 90 % interval holds {e.coverage:.0%} of the true values")
    told = {
        "uncertain": "their action_std is above gate.max_std of the training actions' spread",
        "range": "they lie further than gate.margin outside what the robot did in training",
        "state": "the state that came with them is not a finite number",
    }
    gated = [f"the gate flags {share:.0%} of the steps: {told[why]}" for why, share in e.gated.items() if share]
    return ("broken" if broken else "weak" if weak else "good"), broken + weak + gated
