"""Clips into samples: each video decoded once, its clips scored and encoded frame by frame.

Making one sample is left to `pyramid.shards.making`, which clips belong together in a shard to `pyramid.shards.pack`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pyramid.errors import SkipItemError
from pyramid.shards.making import GUESS_HZ, Making, PackedClip
from pyramid.shards.options import PackConfig
from pyramid.types import Clip
from pyramid.video.decode import DecodeRequest
from pyramid.video.passes import Watch, decode_clips
from pyramid.video.regions import Layout, find_layout, whole_layout
from pyramid.video.scale import Picture

__all__ = ["GUESS_HZ", "Made", "PackedClip", "pack_clips", "pack_video"]

Made = PackedClip | SkipItemError
"""A sample, or why there is none."""


def pack_clips(
    clips: Sequence[Clip],
    config: PackConfig,
    of_video: Callable[[Sequence[Clip], PackConfig], Iterator[tuple[int, list[Made]]]] | None = None,
) -> Iterator[tuple[Clip, Made]]:
    """Decodes, scores and encodes clips; yields each with its sample, or with why it cannot be used, in their order.

    The clips of one video are made in one pass over it; what is held is their luma and their encoded bytes. A clip of
    several views comes several times.

    Args:
        clips: of any videos.
        config: how they are packed.
        of_video: packs the clips of one video as `pack_video` does, which it is if None.
    """
    of_video = of_video or pack_video
    by_video: dict[tuple[str, float | None], list[int]] = {}
    for number, clip in enumerate(clips):
        by_video.setdefault((clip.video, clip.source_hz), []).append(number)
    ready: dict[int, list[Made]] = {}
    given = 0
    for numbers in by_video.values():
        for place, outcomes in of_video([clips[n] for n in numbers], config):
            ready[numbers[place]] = outcomes
            while given in ready:
                for outcome in ready.pop(given):
                    yield clips[given], outcome
                given += 1


def pack_video(
    clips: Sequence[Clip], config: PackConfig, watch: Watch | None = None
) -> Iterator[tuple[int, list[Made]]]:
    """Packs clips of one video; yields the place of each with its samples, or with why there are none, as they end.

    Args:
        clips: of one video and one ``source_hz``.
        config: how they are packed.
        watch: told how far decoding is.
    """
    layout = find_layout(clips[0].video, border=config.crop_border, grid=config.split_grid, limits=config.limits)
    again: list[int] = []
    for place, outcomes in _pack_pass(clips, config, layout, watch):
        if outcomes is None:
            again.append(place)
        else:
            yield place, outcomes
    # What was black in the key frames is not in these clips: they keep all of the picture.
    whole = whole_layout(config.split_grid, layout)
    for place, outcomes in _pack_pass([clips[n] for n in again], config, whole, None):
        yield again[place], outcomes or []


def _pack_pass(
    clips: Sequence[Clip], config: PackConfig, layout: Layout, watch: Watch | None
) -> Iterator[tuple[int, list[Made] | None]]:
    """Decodes clips of a video once; yields the place of each with its samples, or with None if the layout is wrong."""
    if not clips:
        return
    making = {place: Making(clip, config, layout) for place, clip in enumerate(clips)}
    requests = [_request(clip, config) for clip in clips]
    for place, event in decode_clips(clips[0].video, requests, config.limits, watch):
        if isinstance(event, Picture):
            making[place].add(event)
            continue
        made = making.pop(place)
        if isinstance(event, SkipItemError):
            yield place, [event]
        else:
            yield place, made.finish(event)


def _request(clip: Clip, config: PackConfig) -> DecodeRequest:
    return DecodeRequest(
        start_s=clip.start_s,
        end_s=clip.end_s,
        source_hz=clip.source_hz,
        rate_hz=None if clip.episode else config.rate_hz,
        size_px=(config.size_px, config.size_px),
        crop=config.fit == "crop",
        max_frames=config.max_frames,
        decoder=config.decoder,
    )
