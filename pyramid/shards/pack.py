"""The verb ``pack``: decodes clips, scores them, and writes webdataset shards with their index.

The plan fixes which clip goes into which shard, so the bytes are the same for any number of workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pyramid import files, parquet
from pyramid.config import from_dict, provenance, resolve, to_dict
from pyramid.corpora.manifest import read_manifest
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import JobReport, Outcome, Quarantined, Unit, count_reasons, pending, run_job
from pyramid.lerobot.read import read_rows
from pyramid.progress import format_bytes, format_seconds
from pyramid.shards.layout import (
    ACTION,
    INDEX_FILE,
    INDEX_SCHEMA,
    META,
    STATE,
    TIMES,
    VIDEO,
    dump_array,
    sample_key,
    shard_name,
)
from pyramid.shards.writer import write_shard
from pyramid.types import NAME_PATTERN, Clip, Frames
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.encode import encode_mp4
from pyramid.video.filters import ClipScores, score_clip
from pyramid.video.probe import VideoLimits

_GUESS_HZ = 30.0
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How clips become samples."""

    size_px: int = 128
    """Height and width of the packed frames; even."""
    rate_hz: float | None = None
    """Frames per second to keep of clips without actions; None keeps every frame."""
    fit: Literal["squash", "crop"] = "squash"
    """Squash keeps the whole picture and not its aspect; crop keeps the aspect and the centre."""
    gop: int = 12
    """Frames between key frames in the packed clips."""
    crf: int = 18
    """x264's rate factor; smaller is better and larger."""
    frames_per_shard: int = 20_000
    """A shard is closed before the clip that would pass this."""
    prefix: str = "clips"
    """First part of the shards' names, [a-z0-9_]+."""
    min_frames: int = 2
    """Clips with fewer frames are set aside."""
    max_frames: int = 20_000
    """Clips with more are set aside."""
    drop: tuple[Literal["static", "cut", "damaged", "variable_rate"], ...] = ()
    """Oddities for which a clip is set aside; all others are only noted in the index."""
    limits: VideoLimits = field(default_factory=VideoLimits)
    """What a video may ask for."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be packed."""
        if not NAME_PATTERN.fullmatch(self.prefix):
            raise ValueError(f"prefix '{self.prefix}': use a-z, 0-9 and _")
        if self.size_px < 16 or self.size_px % 2:
            raise ValueError(f"size_px must be even and at least 16, got {self.size_px}")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")


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
    rate = clip.source_hz or _GUESS_HZ
    if config.rate_hz is not None and not clip.episode:
        rate = config.rate_hz
    return clip.duration_s * rate


def _unit(number: int, clips: Sequence[Clip], config: PackConfig, folder: str) -> Unit:
    rows = [vars(clip) for clip in clips]
    # Where a video lies does not change what is in it.
    identity = [{k: v for k, v in row.items() if k not in ("video", "episode")} for row in rows]
    return Unit(
        name=shard_name(config.prefix, number).removesuffix(".tar"),
        digest=files.digest([FORMAT_VERSION, identity, to_dict(config)]),
        task={"clips": rows, "config": to_dict(config), "shard": shard_name(config.prefix, number), "folder": folder},
        amount=sum(_expected_frames(clip, config) for clip in clips),
    )


def pack_shard(task: Mapping[str, Any]) -> Outcome:
    """Packs one shard; runs in a worker. Clips that cannot be used are set aside by name."""
    config = from_dict(PackConfig, task["config"])
    aside: list[Quarantined] = []
    rows: dict[str, dict[str, Any]] = {}

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for row in task["clips"]:
            clip = Clip(**row)
            try:
                key, members, facts = pack_clip(clip, config)
            except SkipItemError as error:
                aside.append(Quarantined(item=clip.clip_id, reason=error.reason, detail=error.detail))
                continue
            rows[key] = facts
            yield key, members

    written = write_shard(files.join(task["folder"], task["shard"]), samples())
    return Outcome(
        facts={"rows": [{**rows[row["key"]], **row} for row in written]}, output=task["shard"], quarantined=tuple(aside)
    )


def pack_clip(clip: Clip, config: PackConfig) -> tuple[str, dict[str, bytes], dict[str, Any]]:
    """Decodes, scores and encodes one clip.

    Returns:
        Its key, its members as bytes, and its row of the index.

    Raises:
        SkipItemError: the clip cannot be used, or the policy drops it; with the reason.
    """
    frames = _decode(clip, config)
    if len(frames) < config.min_frames:
        raise SkipItemError("too_short", f"{clip.video}: {len(frames)} frames, fewer than {config.min_frames}")
    scores = score_clip(frames)
    _apply_policy(clip, scores, config)
    times = frames.times_s - frames.times_s[0]
    rate = _rate_hz(times, clip, config)
    key = sample_key(clip)
    members = {VIDEO: encode_mp4(frames.pixels, rate, gop=config.gop, crf=config.crf), TIMES: dump_array(times)}
    dims = {"state_dim": 0, "action_dim": 0}
    if clip.episode:
        state, action = _numbers(clip, frames)
        members |= {STATE: dump_array(state), ACTION: dump_array(action)}
        dims = {"state_dim": state.shape[1], "action_dim": action.shape[1]}
    facts = {
        "key": key,
        "clip_id": clip.clip_id,
        "corpus": clip.corpus,
        "tier": clip.tier,
        "embodiment": clip.embodiment,
        "split": clip.split,
        "text": clip.text,
        "frames": len(frames),
        "rate_hz": rate,
        "duration_s": clip.duration_s,
        "height_px": config.size_px,
        "width_px": config.size_px,
        **dims,
    }
    found = scores.to_dict()
    meta = {**facts, "text_origin": clip.text_origin, "licence": clip.licence, "content": clip.content, "scores": found}
    members[META] = json.dumps({**meta, "start_s": clip.start_s}, sort_keys=True).encode()
    notes = {"static_share": scores.static_share, "camera_px": scores.camera_px, "cuts": list(scores.cuts)}
    return key, members, {**facts, **notes, "notes": scores.notes()}


def _decode(clip: Clip, config: PackConfig) -> Frames:
    request = DecodeRequest(
        start_s=clip.start_s,
        end_s=clip.end_s,
        source_hz=clip.source_hz,
        rate_hz=None if clip.episode else config.rate_hz,
        size_px=(config.size_px, config.size_px),
        crop=config.fit == "crop",
        max_frames=config.max_frames,
    )
    return decode_source(clip.video, request, config.limits)


def _apply_policy(clip: Clip, scores: ClipScores, config: PackConfig) -> None:
    found = {
        "static": scores.static_share >= 0.95,
        "cut": bool(scores.cuts),
        "damaged": scores.damaged is not None,
        "variable_rate": scores.variable_rate,
    }
    for reason in config.drop:
        if found[reason]:
            raise SkipItemError(reason, f"{clip.video}: {'; '.join(scores.notes()) or reason} (policy: drop {reason})")


def _rate_hz(times: np.ndarray[Any, np.dtype[np.float64]], clip: Clip, config: PackConfig) -> float:
    """Returns the clip's mean rate, or the exact one where it is known."""
    if clip.source_hz is not None and (config.rate_hz is None or clip.episode):
        return clip.source_hz
    return round((len(times) - 1) / float(times[-1]), 6) if len(times) > 1 and times[-1] > 0 else _GUESS_HZ


def _numbers(clip: Clip, frames: Frames) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Reads the states and actions of an episode; a clip that is part of it gets its own rows."""
    rate, n_frames = clip.source_hz or _GUESS_HZ, len(frames)
    shared = None if clip.first_row is None or clip.n_rows is None else (clip.first_row, clip.n_rows)
    if shared is not None:
        _check_stretch(clip, frames, shared[1])
    try:
        rows = read_rows(clip.episode, rate, rows=shared)
    except DataError as error:
        raise SkipItemError("bad_episode", str(error)) from error
    first = 0 if shared else round(clip.start_s * rate)
    state, action = rows.state[first : first + n_frames], rows.action[first : first + n_frames]
    if len(state) != n_frames:
        detail = f"{clip.episode}: {len(rows.state)} rows, but {clip.video} has frames up to {first + n_frames}"
        raise SkipItemError("length_mismatch", detail)
    return state, action


def _check_stretch(clip: Clip, frames: Frames, n_rows: int) -> None:
    """Refuses frames that are not the rows' own: a neighbour's in the same video, or too few."""
    late = float(frames.times_s[0]) - clip.start_s
    if len(frames) != n_rows or abs(late) > 1e-3:  # Containers round to a millisecond.
        where = f"{clip.video} from {clip.start_s:.3f} to {clip.end_s:.3f} s"
        detail = f"{where}: {len(frames)} frames, the first {late:.3f} s late, for {n_rows} rows of {clip.episode}"
        raise SkipItemError("length_mismatch", detail)


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
    for clip in clips[:3]:
        try:
            probed += pack_clip(clip, config)[2]["frames"]
        except SkipItemError:
            continue
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
