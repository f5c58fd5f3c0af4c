"""The verb ``dream ingest``: takes a folder of generated clips into the pipeline as a clip manifest.

A clip without an instruction in its name, or with the content of another one, is set aside with the reason.
Scoring the clips is left to `judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyramid import files
from pyramid.config import provenance, resolve
from pyramid.corpora.manifest import write_manifest
from pyramid.corpora.scan import list_clips
from pyramid.corpora.source import ScanConfig
from pyramid.errors import ConfigError, DataError
from pyramid.jobs import Quarantined, count_reasons
from pyramid.types import Clip

NO_INSTRUCTION = "no_instruction"
"""Reason for clips whose name instructs nobody."""


@dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What was taken in."""

    clips: int
    """Clips in the manifest."""
    instructions: int
    """Distinct instructions among them."""
    hours: float
    """Their total length."""
    quarantined: dict[str, int]
    """Files set aside, by reason."""
    out: str
    """The manifest; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The files set aside."""

    def __repr__(self) -> str:
        aside = ", ".join(f"{n} {reason}" for reason, n in self.quarantined.items())
        found = f"{self.clips} clips, {self.instructions} different instructions, {self.hours * 60:.1f} min"
        return f"{found}{f' (set aside: {aside})' if aside else ''} -> {self.out or 'nothing written'}"


def ingest(
    root: str,
    *,
    out: str | None = None,
    config: ScanConfig | str | Mapping[str, Any] | None = None,
    without_text: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> IngestResult:
    """Lists generated clips, named ``N_instruction_with_underscores.mp4``, in a clip manifest.

    Args:
        root: the folder with the clips.
        out: the manifest to write, such as dreams.parquet.
        config: a preset, a YAML file or options, as for ``scan``.
        without_text: take clips whose name holds no instruction too.
        limit: take the first videos only.
        dry_run: look, but write nothing.
        options: fields of `ScanConfig`.

    Raises:
        ConfigError: no place for the manifest.
        DataError: the folder is missing, or holds no clip that can be used.
    """
    cfg = resolve(ScanConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the manifest goes: --out dreams.parquet")
    if not files.is_dir(root):
        raise DataError(f"'{root}' is not a folder; name the one that holds the generated clips")
    found, aside = list_clips("generated", root, cfg, limit)
    clips = [clip for clip in found if clip.text or without_text]
    aside += [_nameless(clip) for clip in found if not (clip.text or without_text)]
    if not clips:
        reasons = "; ".join(item.detail for item in aside[:3])
        raise DataError(f"'{root}' holds no generated clip that can be used: {reasons or 'no video file at all'}")
    if not dry_run:
        inputs = {"clips": files.digest([clip.content for clip in clips])}
        write_manifest(str(out), clips, {**provenance(config=cfg, inputs=inputs), "skipped": [vars(q) for q in aside]})
    return IngestResult(
        clips=len(clips),
        instructions=len({clip.text for clip in clips if clip.text}),
        hours=sum(clip.duration_s for clip in clips) / 3600,
        quarantined=count_reasons(aside),
        out="" if dry_run else str(out),
        items=aside,
    )


def _nameless(clip: Clip) -> Quarantined:
    detail = f"{clip.video}: no instruction in its name; rename it to N_instruction_in_words, or take it --without-text"
    return Quarantined(item=clip.video, reason=NO_INSTRUCTION, detail=detail)
