"""The verb ``pack``: decodes clips, scores them, and writes webdataset shards with their index.

The plan fixes which clip goes into which shard, so the bytes are the same for any number of workers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyramid import files
from pyramid.config import from_dict, resolve, to_dict
from pyramid.corpora.manifest import ContentDigest, iter_manifest
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Quarantined, Unit, pending, run_job
from pyramid.progress import format_bytes, format_seconds
from pyramid.shards.apart import pack_video_apart, pack_video_there
from pyramid.shards.indexing import PackIndex
from pyramid.shards.layout import shard_name
from pyramid.shards.options import PackConfig
from pyramid.shards.samples import GUESS_HZ, pack_clips
from pyramid.shards.writer import write_shard
from pyramid.types import Clip
from pyramid.video.guard import warm_up

__all__ = ["PackConfig", "PackResult", "pack", "pack_shard", "plan"]

FORMAT_VERSION = 3


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
    """The clips set aside, with their reasons; the first ten thousand."""

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
    survey = _survey(manifest, limit, cfg)
    if not survey.clips:
        raise DataError(f"'{manifest}' holds no clip")
    units = plan(_clips(manifest, limit, again=True), cfg, str(out or ""))
    if dry_run:
        return _plan_only(survey, units, cfg, out, resume)
    with PackIndex(str(out), cfg, survey.contents) as index:
        report = run_job(
            units,
            pack_shard,
            folder=str(out),
            label="pack",
            workers=workers,
            resume=resume,
            retry_quarantined=retry_quarantined,
            n_units=survey.shards,
            each=index.add,
        )
    return _finish(report, index, str(out))


def _clips(manifest: str, limit: int | None, *, again: bool = False) -> Iterator[Clip]:
    return itertools.islice(iter_manifest(manifest, again=again), limit)


@dataclass
class _Survey:
    """What a manifest holds; made by reading all of it, so that a bad row is told before hours of work."""

    clips: int = 0
    frames: float = 0.0
    shards: int = 0
    contents: str = ""
    first: list[Clip] = field(default_factory=list)


def _survey(manifest: str, limit: int | None, config: PackConfig) -> _Survey:
    found, contents = _Survey(), ContentDigest()
    for part in _dealt(_clips(manifest, limit), config):
        found.first = found.first or part[:3]
        found.clips += len(part)
        found.frames += sum(_expected_frames(clip, config) for clip in part)
        found.shards += 1
        for clip in part:
            contents.add(clip)
    found.contents = contents.hexdigest()
    return found


def plan(clips: Iterable[Clip], config: PackConfig, folder: str) -> Iterator[Unit]:
    """Deals clips to shards in the manifest's order, by expected frames; a pure function of its arguments."""
    for number, part in enumerate(_dealt(clips, config)):
        yield _unit(number, part, config, folder)


def _dealt(clips: Iterable[Clip], config: PackConfig) -> Iterator[list[Clip]]:
    part: list[Clip] = []
    filled = 0.0
    for clip in clips:
        expected = _expected_frames(clip, config)
        if part and filled + expected > config.frames_per_shard:
            yield part
            part, filled = [], 0.0
        part.append(clip)
        filled += expected
    if part:
        yield part


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
    if options["decoder"] != "decord":  # The others are one.
        del options["decoder"]
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


def _finish(report: JobReport, index: PackIndex, out: str) -> PackResult:
    fresh = index.frames if report.skipped_done < report.units else 0
    return PackResult(
        clips=index.clips,
        frames=index.frames,
        shards=index.shards,
        bytes=index.bytes,
        quarantined=dict(sorted(index.reasons.items())),
        seconds=round(report.seconds, 3),
        frames_per_s=round(fresh / max(report.seconds, 1e-9), 1),
        skipped_done=report.skipped_done,
        out=out,
        items=index.aside,
    )


def _plan_only(survey: _Survey, units: Iterator[Unit], config: PackConfig, out: str | None, resume: bool) -> PackResult:
    shards, frames = survey.shards, survey.frames
    if out is not None:
        todo = [unit.amount for unit in pending(units, folder=out, resume=resume)]
        shards, frames = len(todo), sum(todo)
    warm_up(pack_video_there)
    start, probed = time.monotonic(), 0
    for _, made in pack_clips(survey.first, config, pack_video_apart):
        probed += 0 if isinstance(made, SkipItemError) else made.facts["frames"]
    rate = probed / max(time.monotonic() - start, 1e-9)
    return PackResult(
        clips=survey.clips,
        frames=round(frames),
        shards=survey.shards,
        bytes=0,
        quarantined={},
        seconds=frames / rate if rate else 0.0,
        frames_per_s=round(rate, 1),
        skipped_done=survey.shards - shards,
    )
