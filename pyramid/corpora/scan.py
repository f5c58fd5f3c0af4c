"""The verb ``scan``: from a corpus on disk to a clip manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyramid import files
from pyramid.config import provenance, resolve
from pyramid.corpora import folder, generated, lerobot
from pyramid.corpora.manifest import write_manifest
from pyramid.corpora.source import Found, ScanConfig, cut_into_clips
from pyramid.errors import ConfigError, DataError, nearest
from pyramid.jobs import Quarantined, count_reasons
from pyramid.types import Clip

KINDS: dict[str, Callable[[str, ScanConfig], Found]] = {
    "folder": folder.find,
    "generated": generated.find,
    "lerobot": lerobot.find,
}


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What a scan found."""

    clips: int
    """Clips in the manifest."""
    hours: float
    """Their total length."""
    skipped: dict[str, int]
    """Files refused, by reason."""
    out: str
    """The manifest; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The refused files with their reasons."""

    def __repr__(self) -> str:
        aside = f", {sum(self.skipped.values())} files refused" if self.skipped else ""
        return f"{self.clips} clips, {self.hours * 60:.1f} min{aside} -> {self.out or 'nothing written'}"


def scan(
    kind: str,
    root: str,
    *,
    out: str | None = None,
    config: ScanConfig | str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> ScanResult:
    """Lists the clips of a corpus in one manifest.

    Args:
        kind: how the corpus is laid out: folder, generated or lerobot.
        root: the corpus's folder.
        out: the manifest to write, such as clips.parquet.
        config: a preset, a YAML file or options.
        limit: take the first videos only.
        dry_run: look, but write nothing.
        options: fields of `ScanConfig`.

    Raises:
        DataError: the folder is missing, empty or holds no video.
    """
    cfg = resolve(ScanConfig, config, **options)
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of corpus '{kind}'{nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
    if out is None and not dry_run:
        raise ConfigError("say where the manifest goes: --out clips.parquet")
    if not files.exists(root):
        raise DataError(f"'{root}' is not there; name the folder of the corpus")
    if not files.is_dir(root):
        raise DataError(f"'{root}' is a file; name the folder that holds the videos")
    clips, skipped = list_clips(kind, root, cfg, limit)
    if not clips:
        reasons = "; ".join(item.detail for item in skipped[:3])
        raise DataError(
            f"'{root}' holds no video that can be used" + (f": {reasons}" if reasons else " (no video file at all)")
        )
    if not dry_run:
        inputs = {"clips": files.digest([clip.content for clip in clips])}
        aside = [vars(item) for item in skipped]
        write_manifest(str(out), clips, {**provenance(config=cfg, inputs=inputs), "skipped": aside})
    return ScanResult(
        clips=len(clips),
        hours=sum(clip.duration_s for clip in clips) / 3600,
        skipped=count_reasons(skipped),
        out="" if dry_run else str(out),
        items=skipped,
    )


def list_clips(
    kind: str, root: str, config: ScanConfig, limit: int | None = None
) -> tuple[list[Clip], list[Quarantined]]:
    """Returns a corpus's clips and its refused files, without writing anything."""
    # Absolute, so that the manifest can be used from anywhere; the ids hold relative names only.
    root = root if files.is_remote(root) else str(Path(root).resolve())
    found = KINDS[kind](root, config)
    if limit is not None:
        found = Found(
            sources=found.sources[:limit], skipped=found.skipped, tier=found.tier, embodiment=found.embodiment
        )
    return cut_into_clips(found, config, config.corpus or kind)
