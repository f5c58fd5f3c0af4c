"""The verb ``scan``: from a corpus on disk to a clip manifest."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyramid import files
from pyramid.config import provenance, resolve
from pyramid.corpora import ego4d, epic_kitchens, folder, generated, lerobot, something_something
from pyramid.corpora.cutting import cut_into_clips
from pyramid.corpora.manifest import ContentDigest, write_manifest
from pyramid.corpora.source import Found, ScanConfig, readable
from pyramid.errors import ConfigError, DataError, nearest
from pyramid.jobs import Quarantined
from pyramid.types import Clip

KINDS: dict[str, Callable[[str, ScanConfig], Found]] = {
    "folder": folder.find,
    "ego4d": ego4d.find,
    "epic-kitchens": epic_kitchens.find,
    "something-something": something_something.find,
    "generated": generated.find,
    "lerobot": lerobot.find,
}
MAX_LISTED = 10_000
"""Refused items that are listed one by one; their counts are always whole."""


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What a scan found."""

    clips: int
    """Clips in the manifest."""
    hours: float
    """Their total length."""
    skipped: dict[str, int]
    """Files and annotations refused, by reason."""
    out: str
    """The manifest; empty on a dry run."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Annotations left out on purpose, by reason: of other people, of videos that are not here."""
    items: list[Quarantined] = field(default_factory=list)
    """What was refused, with reasons; the first ten thousand."""

    def __repr__(self) -> str:
        aside = f", {sum(self.skipped.values())} refused" if self.skipped else ""
        left = "".join(f", {n} left out ({reason})" for reason, n in self.dropped.items())
        return f"{self.clips} clips, {self.hours * 60:.1f} min{aside}{left} -> {self.out or 'nothing written'}"


class _Tally:
    """Counts what comes on its way into the manifest, so that nothing has to be kept.

    Args:
        listed: how many of the items set aside to keep; None for all.
    """

    def __init__(self, listed: int | None) -> None:
        self.clips, self.seconds = 0, 0.0
        self.reasons: Counter[str] = Counter()
        self.skipped: list[Quarantined] = []
        self.contents = ContentDigest()
        self._listed = listed

    def of(self, stream: Iterable[Clip | Quarantined]) -> Iterator[Clip]:
        """Passes clips on and counts what is set aside."""
        for item in stream:
            if isinstance(item, Quarantined):
                self.reasons[item.reason] += 1
                if self._listed is None or len(self.skipped) < self._listed:
                    self.skipped.append(readable(item))
                continue
            self.contents.add(item.content)
            self.clips += 1
            self.seconds += item.duration_s
            yield item


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
        kind: how the corpus is laid out: folder, ego4d, epic-kitchens, something-something, generated or lerobot.
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
    found, stream = _look(kind, root, cfg, limit)
    tally = _Tally(MAX_LISTED)

    def clips() -> Iterator[Clip]:
        yield from tally.of(stream)
        if not tally.clips:
            reasons = "; ".join(item.detail for item in tally.skipped[:3])
            raise DataError(
                f"'{root}' holds no video that can be used" + (f": {reasons}" if reasons else " (no video file at all)")
            )

    def metadata() -> dict[str, Any]:
        aside = {"skipped": [vars(item) for item in tally.skipped]}
        counts = {"skipped_counts": _counts(tally.reasons), "dropped": _counts(found.dropped)}
        return {**provenance(config=cfg, inputs={"clips": tally.contents.hexdigest()}), **aside, **counts}

    if dry_run:
        for _ in clips():
            pass
    else:
        write_manifest(str(out), clips(), metadata)
    return ScanResult(
        clips=tally.clips,
        hours=tally.seconds / 3600,
        skipped=_counts(tally.reasons),
        out="" if dry_run else str(out),
        dropped=_counts(found.dropped),
        items=tally.skipped,
    )


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))


def _look(kind: str, root: str, config: ScanConfig, limit: int | None) -> tuple[Found, Iterator[Clip | Quarantined]]:
    # Absolute, so that the manifest can be used from anywhere; the ids hold relative names only.
    root = root if files.is_remote(root) else str(Path(root).resolve())
    found = KINDS[kind](root, config)
    if limit is not None:
        found = replace(found, sources=found.sources[:limit])
    corpus = config.corpus or kind.replace("-", "_")
    return found, itertools.chain(found.skipped, cut_into_clips(found, config, corpus))


def list_clips(
    kind: str, root: str, config: ScanConfig, limit: int | None = None
) -> tuple[list[Clip], list[Quarantined]]:
    """Returns a corpus's clips and what it refuses, all in memory, without writing anything."""
    tally = _Tally(None)
    clips = list(tally.of(_look(kind, root, config, limit)[1]))
    return clips, tally.skipped
