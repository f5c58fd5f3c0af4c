"""Clips of one video, packed in the guarded process: what its decoder does to itself costs the clips in hand only.

How clips become samples is left to `pyramid.shards.samples`, when a process is stopped to `pyramid.video.guard`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pyramid import files
from pyramid.config import from_dict, to_dict
from pyramid.errors import SkipItemError
from pyramid.shards.options import PackConfig
from pyramid.shards.samples import Made, PackedClip, pack_video
from pyramid.types import Clip
from pyramid.video import guard

_ATTEMPTS = 3
"""After so many processes a video has cost enough: all that is left of it is set aside."""
_ALIVE_S = 60.0
"""Seconds of a video after which its time begins anew."""


def pack_video_apart(clips: Sequence[Clip], config: PackConfig) -> Iterator[tuple[int, list[Made]]]:
    """Does what `pack_video` does, in a process that can be killed.

    The clips that were in hand when it had to be are set aside, as ``decode_timeout``, ``decode_memory`` or
    ``decode_crashed``; the video's others are tried again without them.
    """
    left = dict(enumerate(clips))
    for attempt in range(1, _ATTEMPTS + 1):
        begun: set[int] = set()
        try:
            yield from _attempt(left, begun, config)
        except SkipItemError as error:
            for number in _lost(left, begun, everything=attempt == _ATTEMPTS):
                del left[number]
                yield number, [error]
        if not left:
            return


def _lost(left: Mapping[int, Clip], begun: set[int], *, everything: bool) -> list[int]:
    """Returns what a dead process costs: what it had in hand, or the clip that it was on the way to."""
    if everything or begun:
        return sorted(left if everything else begun)
    return sorted(left, key=lambda number: (left[number].start_s, number))[:1]


def _attempt(left: dict[int, Clip], begun: set[int], config: PackConfig) -> Iterator[tuple[int, list[Made]]]:
    """Packs what is left; takes out of it, and of what has begun, what is done."""
    numbers = list(left)
    task = {"clips": [vars(clip) for clip in left.values()], "config": files.canonical_json(to_dict(config))}
    made: dict[int, list[Made]] = {}
    for facts, blobs in guard.run(pack_video_there, task, config.limits, name=left[numbers[0]].video):
        if "begun" in facts:
            begun.update(numbers[place] for place in facts["begun"])
        if "place" not in facts:
            continue
        number = numbers[facts["place"]]
        made.setdefault(number, []).append(_received(facts, blobs))
        if len(made[number]) == facts["of"]:
            begun.discard(number)
            del left[number]
            yield number, made.pop(number)


def _received(facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Made:
    if "skip" in facts:
        return SkipItemError(*facts["skip"])
    return PackedClip(key=facts["key"], members=blobs, facts=facts["facts"])


def pack_video_there(task: Mapping[str, Any], send: guard.Send) -> None:
    """Packs the clips of one video; runs in the guarded process. Sends one message per view of a clip."""
    clips, config = [Clip(**row) for row in task["clips"]], _config(task["config"])
    for place, made in pack_video(clips, config, _Watch(send)):
        for one in made:
            head = {"place": place, "of": len(made)}
            if isinstance(one, SkipItemError):
                send({**head, "skip": [one.reason, one.detail]})
            else:
                send({**head, "key": one.key, "facts": dict(one.facts)}, one.members)


@lru_cache(maxsize=4)
def _config(text: str) -> PackConfig:
    """Checking a config takes as long as packing some frames."""
    return from_dict(PackConfig, json.loads(text))


class _Watch:
    """Tells which clips have begun, and now and then how far in the video decoding is."""

    def __init__(self, send: guard.Send) -> None:
        self._send, self._told = send, float("-inf")
        self._begun: set[int] = set()

    def __call__(self, time_s: float, active: Sequence[int]) -> None:
        fresh = [place for place in active if place not in self._begun]
        # Each clip begins once, and time counts only beyond the furthest so far: damage cannot renew it for ever.
        if fresh or time_s >= self._told + _ALIVE_S:
            self._begun.update(fresh)
            self._told = max(time_s, self._told)
            self._send({"begun": fresh})
