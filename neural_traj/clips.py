"""Where clips to be judged come from: a folder of videos, a clip manifest, or packed shards.

Measuring them is left to `scores`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pyramid import files
from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import list_clips
from pyramid.corpora.source import ScanConfig
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.shards.layout import INDEX_FILE
from pyramid.shards.reader import ShardSet
from pyramid.types import Clip, Frames
from pyramid.video.apart import decode_apart
from pyramid.video.decode import DecodeRequest

SCORED_PX = 64
"""Clips are judged at this height and width."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One clip that can be decoded."""

    item: str
    """Clip id, or key in a shard."""
    text: str
    """Instruction; empty when none is known."""
    load: Callable[..., Frames]
    """Decodes the clip, at `SCORED_PX` or the side it is given; raises DataError or SkipItemError if that fails."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The clips of one source."""

    clips: list[Candidate]
    """In the order of the source."""
    refused: list[Quarantined]
    """Files that are no clips, with the reason."""
    digest: str
    """Digest of what the clips are."""


def open_clips(source: str, limit: int | None = None) -> Candidates:
    """Lists the clips of ``source`` without decoding any.

    Args:
        source: a folder of videos, a clip manifest (``.parquet``), or a folder of packed shards.
        limit: at most so many clips.

    Raises:
        DataError: the source is missing or holds no clip.
    """
    if not files.exists(source):
        raise DataError(f"'{source}' is not there; name a folder of videos, a clip manifest or a shard folder")
    if files.exists(files.join(source, INDEX_FILE)):
        return _packed(ShardSet.open(source), limit)
    refused: list[Quarantined] = []
    if files.is_dir(source):
        clips, refused = list_clips("generated", source, ScanConfig())
    else:
        clips = read_manifest(source)
    if not clips:
        reasons = "; ".join(item.detail for item in refused[:3])
        raise DataError(f"'{source}' holds no clip to judge" + (f": {reasons}" if reasons else ""))
    content = files.digest([[clip.clip_id, clip.content] for clip in clips[:limit]])
    return Candidates(clips=[_of_file(clip) for clip in clips[:limit]], refused=refused, digest=content)


def _of_file(clip: Clip) -> Candidate:
    return Candidate(item=clip.clip_id, text=clip.text, load=partial(_decoded, clip))


def _decoded(clip: Clip, side_px: int = SCORED_PX) -> Frames:
    request = DecodeRequest(
        start_s=clip.start_s, end_s=clip.end_s, source_hz=clip.source_hz, size_px=(side_px, side_px)
    )
    return decode_apart(clip.video, request)


def _packed(shards: ShardSet, limit: int | None) -> Candidates:
    rows = enumerate(shards.rows[:limit])
    clips = [Candidate(item=row["key"], text=row["text"], load=partial(_frames, shards, i)) for i, row in rows]
    return Candidates(clips=clips, refused=[], digest=shards.digest)


def _frames(shards: ShardSet, i: int, side_px: int = SCORED_PX) -> Frames:
    """Packed pictures are as large as they were packed, whatever is asked for."""
    del side_px
    sample = shards.read(i)
    return Frames(sample.frames(), sample.times_s)
