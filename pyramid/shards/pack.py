"""The verb ``pack``: decodes clips, scores them, and writes webdataset shards with their index.

The plan fixes which clip goes into which shard, so the bytes are the same for any number of workers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.config import from_dict, provenance, resolve, to_dict
from pyramid.corpora.manifest import read_manifest
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Quarantined, Unit, count_reasons, pending, run_job
from pyramid.progress import format_bytes, format_seconds
from pyramid.shards.apart import pack_video_apart
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA, shard_name
from pyramid.shards.options import PackConfig
from pyramid.shards.samples import GUESS_HZ, pack_clips
from pyramid.shards.writer import write_shard
from pyramid.types import Clip

__all__ = ["PackConfig", "PackResult", "pack", "pack_shard", "plan"]

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What packing gave."""

    clips: int
    """Samples in the shards."""
    frames: int
    """Frames in the shards."""
    shards: int
    """Shard files."""
    bytes: int
    """Size of the shard files."""
    quarantined: dict[str, int]
    """Clips set aside, by reason."""
    seconds: float
    """Wall time of this run."""
    frames_per_s: float
    """Frames packed in this run per second; 0 when all was there already."""
    skipped_done: int = 0
    """Shards that a former run had finished."""
    out: str = ""
    """The shard folder; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The clips set aside, with their reasons."""

    def __repr__(self) -> str:
        if not self.out:
            seconds = format_seconds(self.seconds)
            size = f"{self.clips} clips, about {self.frames} frames in {self.shards} shards"
            return f"{size}, about {seconds}; nothing written"
        aside = f", {sum(self.quarantined.values())} clips set aside" if self.quarantined else ""
        again = f", {self.skipped_done} shards were done" if self.skipped_done else ""
        size = format_bytes(self.bytes)
        return f"{self.clips} clips, {self.frames} frames in {self.shards} shards, {size}{aside}{again} -> {self.out}"


def pack(
    manifest: str,
    *,
    out: str | None = None,
    config: PackConfig | str | Mapping[str, Any] | None = None,
    workers: int = 1,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> PackResult:
    """Packs the clips of a manifest into webdataset shards.

    Args:
        manifest: the clip manifest that scan wrote.
        out: the shard folder.
        config: a preset, a YAML file or options.
        workers: processes that decode; the shards do not depend on it.
        limit: pack the first clips only.
        resume: keep shards that are done; False packs all again.
        retry_quarantined: try again the shards in which clips were set aside.
        dry_run: plan, time a probe, write nothing.
        options: fields of `PackConfig`.

    Raises:
        DataError: the manifest is no clip manifest, or every clip was set aside.
    """
    cfg = resolve(PackConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the shards go: --out DIR")
    clips = read_manifest(manifest)[:limit]
    if not clips:
        raise DataError(f"'{manifest}' holds no clip")
    units = plan(clips, cfg, str(out or ""))
    if dry_run:
        return _plan_only(clips, units, cfg, out, resume)
    report = run_job(
        units,
        pack_shard,
        folder=str(out),
        label="pack",
        workers=workers,
        resume=resume,
        retry_quarantined=retry_quarantined,
    )
    return _finish(report, str(out), cfg, clips)


def plan(clips: Sequence[Clip], config: PackConfig, folder: str) -> list[Unit]:
    """Deals clips to shards in the manifest's order, by expected frames; a pure function of its arguments."""
    shards: list[list[Clip]] = [[]]
    filled = 0.0
    for clip in clips:
        expected = _expected_frames(clip, config)
        if shards[-1] and filled + expected > config.frames_per_shard:
            shards.append([])
            filled = 0.0
        shards[-1].append(clip)
        filled += expected
    return [_unit(i, part, config, folder) for i, part in enumerate(shards)]


def _expected_frames(clip: Clip, config: PackConfig) -> float:
    if clip.n_rows is not None:
        return clip.n_rows
    rate = clip.source_hz or GUESS_HZ
    if config.rate_hz is not None and not clip.episode:
        rate = config.rate_hz
    return clip.duration_s * rate


def _unit(number: int, clips: Sequence[Clip], config: PackConfig, folder: str) -> Unit:
    rows = [vars(clip) for clip in clips]
    # Where a video lies does not change what is in it.
    identity = [{k: v for k, v in row.items() if k not in ("video", "episode")} for row in rows]
    return Unit(
        name=shard_name(config.prefix, number).removesuffix(".tar"),
        digest=files.digest([FORMAT_VERSION, identity, _deciding(config)]),
        task={"clips": rows, "config": to_dict(config), "shard": shard_name(config.prefix, number), "folder": folder},
        amount=sum(_expected_frames(clip, config) for clip in clips),
    )


def _deciding(config: PackConfig) -> dict[str, Any]:
    """Returns what the bytes of a shard depend on: how patient the decoder's guard is decides over no frame."""
    options = to_dict(config)
    patience = ("max_decode_s", "max_decode_mb")
    return {**options, "limits": {name: value for name, value in options["limits"].items() if name not in patience}}


def pack_shard(task: Mapping[str, Any]) -> Outcome:
    """Packs one shard; runs in a worker. Clips that cannot be used are set aside by name."""
    config = from_dict(PackConfig, task["config"])
    aside: list[Quarantined] = []
    rows: dict[str, dict[str, Any]] = {}

    def samples() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for clip, made in pack_clips([Clip(**row) for row in task["clips"]], config, pack_video_apart):
            if isinstance(made, SkipItemError):
                aside.append(Quarantined(item=clip.clip_id, reason=made.reason, detail=made.detail))
                continue
            rows[made.key] = dict(made.facts)
            yield made.key, made.members

    written = write_shard(files.join(task["folder"], task["shard"]), samples())
    return Outcome(
        facts={"rows": [{**rows[row["key"]], **row} for row in written]}, output=task["shard"], quarantined=tuple(aside)
    )


def _finish(report: JobReport, out: str, config: PackConfig, clips: Sequence[Clip]) -> PackResult:
    rows = [row for outcome in report.outcomes for row in outcome.facts.get("rows", [])]
    aside = report.quarantined
    if not rows:
        details = "; ".join(item.detail for item in aside[:3])
        raise DataError(f"none of {len(clips)} clips could be packed: {details}")
    source = provenance(config=config, inputs={"clips": files.digest([clip.content for clip in clips])})
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    parquet.write(files.join(out, INDEX_FILE), index, {**source, "quarantined": [vars(q) for q in aside]})
    sizes = {row["shard"]: row["shard_bytes"] for row in rows}
    fresh = sum(row["frames"] for row in rows) if report.skipped_done < len(report.outcomes) else 0
    return PackResult(
        clips=len(rows),
        frames=sum(row["frames"] for row in rows),
        shards=len(sizes),
        bytes=sum(sizes.values()),
        quarantined=count_reasons(aside),
        seconds=round(report.seconds, 3),
        frames_per_s=round(fresh / max(report.seconds, 1e-9), 1),
        skipped_done=report.skipped_done,
        out=out,
        items=aside,
    )


def _plan_only(
    clips: Sequence[Clip], units: Sequence[Unit], config: PackConfig, out: str | None, resume: bool
) -> PackResult:
    todo = pending(units, folder=out, resume=resume) if out is not None else list(units)
    start, probed = time.monotonic(), 0
    for _, made in pack_clips(clips[:3], config, pack_video_apart):
        probed += 0 if isinstance(made, SkipItemError) else made.facts["frames"]
    rate = probed / max(time.monotonic() - start, 1e-9)
    frames = round(sum(unit.amount for unit in todo))
    return PackResult(
        clips=len(clips),
        frames=frames,
        shards=len(units),
        bytes=0,
        quarantined={},
        seconds=frames / rate if rate else 0.0,
        frames_per_s=round(rate, 1),
        skipped_done=len(units) - len(todo),
    )
