"""The verb ``dream judge``: scores generated clips by cheap measures and says which to keep, and why not the others.

A table is written and nothing is deleted: whoever mixes or packs decides what to do with a verdict.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from neural_traj.clips import Candidate, open_clips
from neural_traj.ranking import DROP, KEEP, drop_copies, keep_best, rank, thumbnail
from neural_traj.reference import Reference, measure_reference
from neural_traj.scores import score
from neural_traj.verdict import JudgeConfig, objection
from neural_traj.vlm import Critic, TransformersCritic, marks, objection_of_marks, shown_frames
from pyramid import parquet
from pyramid.config import provenance, resolve
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import Quarantined, count_reasons
from pyramid.progress import Progress, format_seconds
from pyramid.types import Frames

_SCORES = pa.schema(
    [
        ("flicker", pa.float64()),
        ("frozen_share", pa.float64()),
        ("damaged", pa.bool_()),
        ("cuts", pa.int32()),
        ("black_quadrant", pa.float64()),
        ("colour_drift", pa.float64()),
        ("motion", pa.float64()),
        ("pace", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("text", pa.string()),
        ("frames", pa.int32()),
        ("duration_s", pa.float64()),
        *_SCORES,
        ("follows", pa.float64()),
        ("physics", pa.float64()),
        ("duplicate_of", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("rank", pa.int32()),
    ]
)
"""Columns of the table of scores; ``follows`` and ``physics`` are null where nobody was asked, ``reason`` is empty for
clips to keep, ``rank`` is 1 for the best."""


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """How the judging went."""

    clips: int
    """Clips scored."""
    kept: int
    """Clips to keep."""
    dropped: dict[str, int]
    """Clips to drop, by the first measure that spoke against them."""
    quarantined: dict[str, int]
    """Files that could not be scored, by reason."""
    out: str
    """The table of scores; empty on a dry run."""
    seconds: float
    """Wall time."""
    items: list[Quarantined] = field(default_factory=list)
    """The files that could not be scored."""

    def __repr__(self) -> str:
        dropped = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items()) or "none"
        aside = f", {sum(self.quarantined.values())} set aside" if self.quarantined else ""
        if not self.out:
            return f"{self.clips} clips to judge{aside}, nothing written"
        found = f"{self.kept} of {self.clips} clips kept (dropped: {dropped}){aside}"
        return f"{found}, {format_seconds(self.seconds)} -> {self.out}"


def judge(
    source: str,
    *,
    out: str | None = None,
    config: JudgeConfig | str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> JudgeResult:
    """Scores clips and writes a table: one row per clip with its measures, a verdict and the reason.

    Args:
        source: a folder of videos, a clip manifest, or a folder of packed shards.
        out: the table to write, such as scores.parquet.
        config: a preset, a YAML file or options.
        limit: at most so many clips.
        dry_run: list the clips, but decode and write nothing.
        options: fields of `JudgeConfig`.

    Raises:
        ConfigError: no place for the table.
        DataError: the source is missing or holds no clip that can be decoded.
    """
    start = time.monotonic()
    cfg = resolve(JudgeConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the table of scores goes: --out scores.parquet")
    candidates = open_clips(source, limit)
    aside = list(candidates.refused)
    reference = measure_reference(cfg.reference) if cfg.reference and not dry_run else None
    rows = [] if dry_run else _rows(candidates.clips, cfg, aside, reference)
    if not dry_run:
        if not rows:
            raise DataError(f"no clip of '{source}' could be scored: {'; '.join(item.detail for item in aside[:3])}")
        origin = provenance(config=cfg, inputs={"clips": candidates.digest})
        origin["reference"] = dataclasses.asdict(reference) if reference else None
        parquet.write(str(out), pa.Table.from_pylist(rows, SCHEMA), {**origin, "skipped": [vars(q) for q in aside]})
    against = Counter(row["reason"].split(" ")[0] for row in rows if row["verdict"] == DROP)
    return JudgeResult(
        clips=len(candidates.clips) if dry_run else len(rows),
        kept=sum(row["verdict"] == KEEP for row in rows),
        dropped=dict(sorted(against.items())),
        quarantined=count_reasons(aside),
        out="" if dry_run else str(out),
        seconds=time.monotonic() - start,
        items=aside,
    )


def _rows(
    clips: list[Candidate], config: JudgeConfig, aside: list[Quarantined], reference: Reference | None
) -> list[dict[str, Any]]:
    """Scores clips; those that do not decode are added to ``aside``."""
    rows, looks = [], []
    critic = TransformersCritic(config.vlm) if config.vlm.model else None
    with Progress("dream judge", len(clips)) as progress:
        for clip in clips:
            try:
                frames = clip.load()
                rows.append(_row(clip, frames, config, reference) | _marked(clip, critic, config))
                looks.append(thumbnail(frames.pixels))
            except SkipItemError as error:
                aside.append(Quarantined(item=clip.item, reason=error.reason, detail=error.detail))
            except DataError as error:
                aside.append(Quarantined(item=clip.item, reason="unreadable", detail=str(error)))
            progress.add(amount=rows[-1]["frames"] if rows else 0)
    for row in rows:
        against = "" if row["reason"] else objection_of_marks(row, config.min_follows, config.min_physics)
        if against:
            row["verdict"], row["reason"] = DROP, against
    drop_copies(rows, looks, config.copy_levels)
    rank(rows, config)
    keep_best(rows, config.best_of)
    rank(rows, config)
    return rows


def _marked(clip: Candidate, critic: Critic | None, config: JudgeConfig) -> dict[str, float | None]:
    if critic is None:
        return {"follows": None, "physics": None}
    pixels = clip.load(config.vlm.size_px).pixels
    return marks(critic, pixels[shown_frames(len(pixels), config.vlm.frames)], clip.text)


def _row(clip: Candidate, frames: Frames, config: JudgeConfig, reference: Reference | None) -> dict[str, Any]:
    scores = score(frames)
    reason = objection(scores, config, reference)
    return {
        "item": clip.item,
        "text": clip.text,
        "frames": len(frames),
        "duration_s": float(frames.times_s[-1] - frames.times_s[0]),
        **dataclasses.asdict(scores),
        "verdict": DROP if reason else KEEP,
        "reason": reason,
    }
