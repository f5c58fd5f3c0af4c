"""Which generated clips are accepted: those that a table of scores speaks for, with instructions fit for a policy.

Making the scores is left to `judge`, what becomes of the clips to `relabel`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from neural_traj.ranking import KEEP
from neural_traj.tasks import clean_task
from pyramid import files, parquet
from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import list_clips
from pyramid.corpora.source import ScanConfig
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import Quarantined
from pyramid.types import Clip

_NEEDED = ("item", "verdict", "reason")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The clips of a source, sorted out."""

    clips: list[Clip]
    """Accepted, in the order of the source, with clean instructions."""
    scores: dict[str, dict[str, Any]]
    """Row of the table of scores by clip id."""
    rejected: dict[str, int]
    """Clips that were judged and not kept, by the measure that spoke against them."""
    aside: list[Quarantined]
    """Clips without a score or an instruction, and files that are no clips."""


def select(
    source: str, scores: str, *, embodiment: str = "", prompts: Sequence[str] = (), limit: int | None = None
) -> Selection:
    """Sorts out the clips of a manifest or a folder by a table of scores.

    Args:
        source: a clip manifest, or a folder of generated clips.
        scores: the table that ``dream judge`` wrote of it.
        embodiment: whose body the clips show; empty leaves what the source says.
        prompts: words that are no part of instructions, see `clean_task`.
        limit: take the first accepted clips only.

    Raises:
        DataError: no such source or table, or no clip left.
    """
    table, (clips, aside) = read_scores(scores), _listed(source)
    found, rejected = [], Counter[str]()
    for clip in clips:
        row = table.get(clip.clip_id)
        try:
            if row is None:
                detail = f"{clip.clip_id} has no row in '{scores}'; run 'pyramid dream judge {source}' again"
                raise SkipItemError("not_judged", detail)
            if row["verdict"] != KEEP:
                rejected[str(row["reason"]).split(" ")[0]] += 1
                continue
            # Clips may have been taken in without a text on purpose.
            text = clean_task(clip.text, prompts) if clip.text else ""
        except SkipItemError as error:
            aside.append(Quarantined(item=clip.clip_id, reason=error.reason, detail=error.detail))
            continue
        found.append(replace(clip, text=text, embodiment=embodiment or clip.embodiment))
    if not found:
        told = "; ".join(item.detail for item in aside[:3]) or f"rejected: {dict(rejected)}"
        raise DataError(f"no clip of '{source}' is accepted by '{scores}': {told}")
    return Selection(clips=found[:limit], scores=table, rejected=dict(sorted(rejected.items())), aside=aside)


def read_scores(path: str) -> dict[str, dict[str, Any]]:
    """Reads a table of scores by clip id.

    Raises:
        DataError: it is not there, or lacks a column.
    """
    if not files.exists(path):
        raise DataError(f"no table of scores '{path}'; make one: pyramid dream judge CLIPS --out {path}")
    missing = [name for name in _NEEDED if name not in parquet.column_names(path)]
    if missing:
        raise DataError(f"'{path}' has no column {', '.join(missing)}; it is no table that 'pyramid dream judge' wrote")
    return {row["item"]: row for row in parquet.read(path).to_pylist()}


def _listed(source: str) -> tuple[list[Clip], list[Quarantined]]:
    if not files.is_dir(source):
        return read_manifest(source), []
    return list_clips("generated", source, ScanConfig())
