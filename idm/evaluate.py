"""Evaluation of an inverse dynamics model on held-out demonstrations, through the very path that labels take.

What is made of true and inferred actions is in `idm.scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from idm.bodies import Body
from idm.cycle import Told, cycle_score, pairs_of
from idm.data import learned_action
from idm.groups import read_groups
from idm.label import IDMLabeler, doubts, load, physical
from idm.scores import R2, IDMEvaluation, Series, judge, measure
from pyramid import files
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.labels.protocol import Labeler, load_labeler
from pyramid.shards.frames import ClipFrames

__all__ = ["R2", "IDMEvaluation", "evaluate_idm"]


def evaluate_idm(
    shards: str | Sequence[str],
    *,
    model: str,
    out: str | None = None,
    limit: int | None = None,
    device: str = "cpu",
    lam: str | None = None,
    modality: str | None = None,
) -> IDMEvaluation:
    """Measures a trained inverse dynamics model on the ``val`` clips that have measured actions.

    Args:
        shards: one or more shard folders.
        model: model folder.
        out: folder to write ``idm_evaluation.json`` to; None writes nothing.
        limit: use the first clips only.
        device: torch device.
        lam: folder of a latent-action model that says whether steps labelled alike look alike; None leaves that out.
        modality: `modality.json` of the data set (or its folder), where labels are a choice of its action groups: those
            of a published model are.

    Raises:
        DataError: no model, or no held-out clip with actions that it can label at its own rate.
        ConfigError: labels and true actions differ in dimensions, or ``modality`` lacks one of the model's groups.
    """
    labeler = load(model, device)
    looks = None if lam is None else load_labeler("lam", lam, device)
    series, told, skipped = _label_clips(shards, labeler, limit, looks, modality)
    if not series:
        why = ", ".join(f"{reason}: {count}" for reason, count in sorted(skipped.items()))
        raise DataError(f"none of the held-out clips with actions can be labelled by '{model}' ({why})")
    evaluation = IDMEvaluation(
        model=model,
        clips=len(series),
        split="val",
        skipped=dict(sorted(skipped.items())),
        cycle=cycle_score(told) if looks is not None else None,
        verdict="good",
        reasons=[],
        **measure(series, labeler.bodies, labeler.config.windows.horizon),
    )
    verdict, reasons = judge(evaluation)
    evaluation = replace(evaluation, verdict=verdict, reasons=reasons)
    if out is not None:
        files.write_json(files.join(out, "idm_evaluation.json"), asdict(evaluation))
    return evaluation


def _label_clips(
    shards: str | Sequence[str],
    labeler: IDMLabeler,
    limit: int | None,
    looks: Labeler | None,
    modality: str | None,
) -> tuple[list[Series], list[Told], Counter[str]]:
    clips = ClipFrames.open(
        shards, split="val", size_px=labeler.config.model.picture_px, limit=limit, with_actions=True
    )
    series, told, skipped = [], [], Counter[str]()
    for clip, row in enumerate(clips.rows):
        sample = clips.sample(clip)
        # Where steps are longer than the robot's, there is no true action to compare with.
        if abs(row["rate_hz"] / labeler.rate_hz - 1) > 0.01:
            skipped["rate"] += 1
            continue
        try:
            steps, actions, unvoted = labeler.predict(sample)
        except SkipItemError as error:
            skipped[error.reason] += 1
            continue
        name = labeler.embodiment_of(sample)
        body = labeler.bodies[name]
        assert sample.action is not None  # noqa: S101  # opened with_actions
        shown = np.asarray(steps.frames)[actions.step]
        # Of labels that are told from states, what is added to both sides says nothing.
        truth = _chosen(learned_action(sample, labeler.config.model.target), body, modality)[shown]
        if not np.isfinite(truth).all():
            skipped["unknown_actions"] += 1
            continue
        mean, std = physical(actions, body.normalizer)
        why = doubts(mean, std, body, labeler.config.gate)
        series.append(Series(name, truth, mean, std, physical(unvoted, body.normalizer)[0], why))
        if looks is not None:
            unit = np.where(body.moves, body.std, np.inf)
            found = pairs_of(looks, sample, sample.times_s[shown], mean / unit, truth / unit)
            told += [] if found is None else [found]
    return series, told, skipped


def _chosen(action: NDArray[np.float32], body: Body, modality: str | None) -> NDArray[np.float32]:
    """Returns those columns of true actions, float32 [T, A], that labels tell, in their order: float32 [T, D]."""
    if modality is not None:
        declared = {group.name: group for group in read_groups(modality, action)}
        lacking = [group.name for group in body.groups if group.name not in declared]
        if lacking:
            raise ConfigError(f"'{modality}' declares no action group {', '.join(lacking)}, which the model tells")
        action = np.concatenate([action[:, declared[group.name].span] for group in body.groups], axis=1)
    if action.shape[1] != len(body.mean):
        names = ", ".join(group.name for group in body.groups)
        raise ConfigError(
            f"the model tells {len(body.mean)} dimensions ({names}), the true actions have {action.shape[1]}; "
            "say with --modality where those groups stand in the data"
        )
    return action
