"""What every corpus shares: sources found, sources refused, cutting videos into clips, splits, fingerprints.

How a corpus is laid out on disk is left to its own file.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pyramid import files
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import Quarantined
from pyramid.rng import seed_of
from pyramid.types import Clip, Tier
from pyramid.video.probe import VIDEO_SUFFIXES, VideoLimits, open_video, probe

_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How a corpus becomes clips."""

    corpus: str = ""
    """Name of the corpus in keys and tables, [a-z0-9_]+; empty takes the kind's."""
    embodiment: str = ""
    """Whose body is seen, [a-z0-9_]+; empty takes the kind's own."""
    tier: Literal["", "base", "middle", "top"] = ""
    """Level of the pyramid; empty takes the kind's own."""
    licence: str = ""
    """Licence of the source, kept with every clip."""
    clip_s: float = 20.0
    """Longest clip, seconds; longer videos are cut into equal parts."""
    min_clip_s: float = 0.1
    """Shorter videos are skipped, seconds."""
    source_hz: float | None = None
    """True frame rate of files whose container lies."""
    val_share: float = 0.1
    """Share of videos held out; at least one where there are two."""
    seed: int = 0
    """Decides which videos are held out."""
    camera: str = ""
    """Camera of a robot data set; empty takes the first."""
    limits: VideoLimits = field(default_factory=VideoLimits)
    """What a video may ask for."""

    def __post_init__(self) -> None:
        """Refuses lengths and shares that make no clips."""
        if not 0 <= self.min_clip_s < self.clip_s:
            raise ValueError(f"need 0 <= min_clip_s < clip_s, got {self.min_clip_s} and {self.clip_s}")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share must be in [0, 1), got {self.val_share}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video of a corpus, before it is cut."""

    name: str
    """Path relative to the corpus's root; part of the clip ids."""
    video: str
    """Path of the file."""
    text: str = ""
    """Instruction or caption."""
    text_origin: str = ""
    """Where the text comes from."""
    source_hz: float | None = None
    """True rate of a container that lies."""
    episode: str = ""
    """Parquet file with states and actions."""
    stretch: tuple[float, float] | None = None
    """Start and end in a video that episodes share, seconds; None: the whole file."""
    rows: tuple[int, int] | None = None
    """First row and number of rows in an ``episode`` that others share; None: the whole file."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What looking through a corpus gave."""

    sources: list[Source]
    """Videos, in a stable order."""
    skipped: list[Quarantined] = field(default_factory=list)
    """Files that were refused, with reasons."""
    tier: Tier = "base"
    """The kind's level of the pyramid."""
    embodiment: str = "human"
    """The kind's embodiment."""


def video_files(root: str) -> Iterator[tuple[str, str]]:
    """Yields ``(name, path)`` of the files below ``root`` that look like videos by their ending, in order of name."""
    for path in files.walk_files(root):
        if path.lower().endswith(VIDEO_SUFFIXES):
            yield relative(path, root), path


def relative(path: str, root: str) -> str:
    """Returns a path below ``root`` relative to it."""
    return path.removeprefix(str(root).rstrip("/") + "/").removeprefix("./")


def fingerprint(path: str) -> str:
    """Returns the sha256 of a file's size, first and last MiB: the content's name without reading terabytes."""
    size = files.size_bytes(path)
    head = files.read_range(path, 0, min(size, _PIECE))
    tail = files.read_range(path, max(size - _PIECE, len(head)), size - max(size - _PIECE, len(head)))
    return hashlib.sha256(str(size).encode() + b"\0" + head + tail).hexdigest()


def cut_into_clips(found: Found, config: ScanConfig, corpus: str) -> tuple[list[Clip], list[Quarantined]]:
    """Probes every source and cuts it into clips; refused files and copies of the same content are set aside."""
    clips: list[Clip] = []
    skipped = list(found.skipped)
    seen: dict[str, str] = {}
    for source in found.sources:
        try:
            content = _unique(source, seen)
            clips += _clips_of(source, content, found, config, corpus)
        except SkipItemError as error:
            skipped.append(Quarantined(item=source.video, reason=error.reason, detail=error.detail))
        except DataError as error:
            skipped.append(Quarantined(item=source.video, reason="unreadable", detail=str(error)))
    return hold_out(clips, config), skipped


def _unique(source: Source, seen: dict[str, str]) -> str:
    content = fingerprint(source.video)
    if source.episode:  # Equal pictures with other actions are another clip.
        content = files.digest([content, fingerprint(source.episode)])
    if source.stretch or source.rows:
        content = files.digest([content, source.stretch, source.rows])
    twin = seen.setdefault(content, source.video)
    if twin != source.video and files.sha256_file(twin) == files.sha256_file(source.video):
        raise SkipItemError("duplicate", f"{source.video}: the same content as {twin}")
    return content


def _clips_of(source: Source, content: str, found: Found, config: ScanConfig, corpus: str) -> list[Clip]:
    duration = source.stretch[1] - source.stretch[0] if source.stretch else _duration(source, config)
    if duration < config.min_clip_s:
        raise SkipItemError("too_short", f"{source.video}: {duration:.3f} s, less than min_clip_s {config.min_clip_s}")
    parts = max(1, -(-int(duration * 1000) // int(config.clip_s * 1000)))
    edges = [duration * i / parts for i in range(parts + 1)]
    rows: list[int | None] = [None] * (parts + 1)
    offset = 0.0
    if source.stretch and source.rows:  # Cut between frames: each part has rows of its own in the shared file.
        offset, (first, count) = source.stretch[0], source.rows
        cuts = [round(count * i / parts) for i in range(parts + 1)]
        edges, rows = [offset + duration * cut / count for cut in cuts], [first + cut for cut in cuts]
    return [
        Clip(
            clip_id=f"{corpus}/{source.name}#{start - offset:.3f}",
            corpus=corpus,
            video=source.video,
            start_s=start,
            end_s=stop,
            source_hz=source.source_hz or config.source_hz,
            text=source.text,
            text_origin=source.text_origin,
            tier=config.tier or found.tier,
            embodiment=config.embodiment or found.embodiment,
            licence=config.licence,
            episode=source.episode,
            content=content,
            first_row=row,
            n_rows=None if row is None or last is None else last - row,
        )
        for (start, stop), (row, last) in zip(itertools.pairwise(edges), itertools.pairwise(rows), strict=True)
    ]


def _duration(source: Source, config: ScanConfig) -> float:
    """Returns a video's true length in seconds: the header's, corrected by the last packet where they can differ."""
    info = probe(source.video, config.limits)
    rate = source.source_hz or config.source_hz
    if rate is not None and info.n_frames:
        return info.n_frames / rate
    if rate is None and info.duration_s is not None:
        return info.duration_s
    with open_video(source.video, config.limits) as (container, stream):
        packets = [p for p in container.demux(stream) if p.pts is not None]
        if not packets:
            raise SkipItemError("no_frames", f"{source.video}: the video stream is empty")
        if rate is not None:
            return len(packets) / rate
        first, last = min(packets, key=lambda p: p.pts), max(packets, key=lambda p: p.pts)
        return float((last.pts - first.pts + (last.duration or 1)) * stream.time_base)


def hold_out(clips: Sequence[Clip], config: ScanConfig) -> list[Clip]:
    """Assigns whole videos to ``val``: a keyed share, and at least one where there are two videos.

    Episodes that share a video file count as videos of their own.
    """
    names = [clip.clip_id.rsplit("#", 1)[0] for clip in clips]
    videos = {name: seed_of(config.seed, "split", name) / 2**63 for name in reversed(names)}
    held = {video for video, draw in videos.items() if draw < config.val_share}
    if not held and len(videos) > 1 and config.val_share > 0:
        held = {min(videos, key=lambda video: videos[video])}
    if len(held) == len(videos) and held:
        held.discard(max(videos, key=lambda video: videos[video]))
    return [replace(clip, split="val") if name in held else clip for name, clip in zip(names, clips, strict=True)]
