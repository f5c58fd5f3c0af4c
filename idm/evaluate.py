"""Evaluation of an inverse dynamics model on held-out demonstrations, through the very path that labels take.

The measures themselves are in `idm.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from idm import metrics
from idm.label import IDMLabeler, load, physical
from pyramid import files
from pyramid.errors import DataError, SkipItemError
from pyramid.shards.frames import ClipFrames

__all__ = ["R2", "IDMEvaluation", "evaluate_idm"]

_LEVEL = 0.9


@dataclass(frozen=True, kw_only=True)
class R2:
    """Share of the variance of true actions that labels explain; 1 is perfect, 0 is the mean action."""

    mean: float | None
    """Over all dimensions of all embodiments; None if all are constant."""
    per_dimension: dict[str, list[float | None]]
    """Embodiment -> each dimension; None where the true action is constant."""


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
    verdict: Literal["good", "weak", "broken"]
    """What the numbers say together."""
    reasons: list[str]
    """Why, a sentence each."""

    def __repr__(self) -> str:
        mean = "-" if self.r2.mean is None else f"{self.r2.mean:.3f}"
        return (
            f"idm {self.verdict}: R2 {mean}, error {self.error:.4f} (mean action {self.baseline_error:.4f}), "
            f"lag {self.lag}, 90 % interval holds {self.coverage:.0%}, calibration {self.calibration:.3f}, "
            f"{self.steps} steps of {self.clips} clips" + "".join(f"\n  - {reason}" for reason in self.reasons)
        )


class _Series(NamedTuple):
    """Truth and labels of one clip, physical units, [P, D] each, at consecutive steps."""

    embodiment: str
    truth: NDArray[np.float32]
    label: NDArray[np.float32]
    std: NDArray[np.float32]


def evaluate_idm(
    shards: str | Sequence[str], *, model: str, out: str | None = None, limit: int | None = None, device: str = "cpu"
) -> IDMEvaluation:
    """Measures a trained inverse dynamics model on the ``val`` clips that have measured actions.

    Args:
        shards: one or more shard folders.
        model: model folder.
        out: folder to write ``idm_evaluation.json`` to; None writes nothing.
        limit: use the first clips only.
        device: torch device.

    Raises:
        DataError: no model, or no held-out clip with actions that it can label at its own rate.
    """
    labeler = load(model, device)
    series, skipped = _label_clips(shards, labeler, limit)
    if not series:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
        raise DataError(f"none of the held-out clips with actions can be labelled by '{model}' ({why})")
    evaluation = _measure(model, labeler, series, skipped)
    verdict, reasons = _judge(evaluation)
    evaluation = replace(evaluation, verdict=verdict, reasons=reasons)
    if out is not None:
        files.write_json(files.join(out, "idm_evaluation.json"), asdict(evaluation))
    return evaluation


def _label_clips(
    shards: str | Sequence[str], labeler: IDMLabeler, limit: int | None
) -> tuple[list[_Series], Counter[str]]:
    clips = ClipFrames.open(
        shards, split="val", size_px=labeler.config.model.image_size_px, limit=limit, with_actions=True
    )
    series, skipped = [], Counter[str]()
    for clip, row in enumerate(clips.rows):
        sample = clips.sample(clip)
        # Where steps are longer than the robot's, there is no true action to compare with.
        if abs(row["rate_hz"] / labeler.rate_hz - 1) > 0.01:
            skipped["rate"] += 1
            continue
        try:
            steps, actions = labeler.predict(sample)
        except SkipItemError as error:
            skipped[error.reason] += 1
            continue
        name = labeler.embodiment_of(sample)
        assert sample.action is not None  # noqa: S101  # opened with_actions
        truth = sample.action[np.asarray(steps.frames)[actions.step]]
        if not np.isfinite(truth).all():
            skipped["unknown_actions"] += 1
            continue
        series.append(_Series(name, truth, *physical(actions, labeler.normalizers[name])))
    return series, skipped


def _measure(model: str, labeler: IDMLabeler, series: Sequence[_Series], skipped: Counter[str]) -> IDMEvaluation:
    r2, ratio, scaled = {}, {}, []
    for name in sorted({one.embodiment for one in series}):
        own = [one for one in series if one.embodiment == name]
        truth, label, std = (np.concatenate(column) for column in list(zip(*own, strict=True))[1:])
        about = labeler.embodiments[name]
        r2[name] = metrics.r2_per_dimension(truth, label)
        ratio[name] = metrics.std_ratio(label, np.array(about["action_std"]))
        moves = labeler.normalizers[name].scale > 0
        unit = np.where(moves, labeler.normalizers[name].scale, 1)
        mean = np.broadcast_to(np.array(about["action_mean"], np.float32), truth.shape)
        scaled.append(tuple((x / unit)[:, moves].ravel() for x in (truth, label, std, mean)))
    truth, label, std, mean = (np.concatenate(column) for column in zip(*scaled, strict=True))
    known = [score for scores in r2.values() for score in scores if score is not None]
    return IDMEvaluation(
        model=model,
        clips=len(series),
        steps=sum(len(one.truth) for one in series),
        split="val",
        skipped=dict(sorted(skipped.items())),
        r2=R2(mean=float(np.mean(known)) if known else None, per_dimension=r2),
        std_ratio=ratio,
        lag=_lag(series, labeler.config.windows.horizon),
        coverage=metrics.coverage(truth, label, std, _LEVEL),
        calibration=metrics.calibration_error(truth, label, std),
        error=float(((truth - label) ** 2).mean()),
        baseline_error=float(((truth - mean) ** 2).mean()),
        verdict="good",
        reasons=[],
    )


def _lag(series: Sequence[_Series], largest: int) -> int:
    """Takes the embodiment with most steps: correlations of different bodies do not add up."""
    steps = Counter[str]()
    for one in series:
        steps[one.embodiment] += len(one.truth)
    name = max(sorted(steps), key=lambda key: steps[key])
    own = [one for one in series if one.embodiment == name]
    return metrics.best_lag([one.truth for one in own], [one.label for one in own], largest)


def _judge(e: IDMEvaluation) -> tuple[Literal["good", "weak", "broken"], list[str]]:
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
    if not 0.8 <= e.coverage <= 0.97:
        weak.append(f"action_std is off: its 90 % interval holds {e.coverage:.0%} of the true values")
    return ("broken" if broken else "weak" if weak else "good"), broken + weak
