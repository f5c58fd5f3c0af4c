"""Clips into samples: decoded once for each video, scored and encoded frame by frame, with their row of the index.

Which clips belong together in a shard is left to `pyramid.shards.pack`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError, SkipItemError
from pyramid.lerobot.read import read_rows
from pyramid.shards.layout import ACTION, META, STATE, TIMES, VIDEO, dump_array, sample_key
from pyramid.shards.options import PackConfig
from pyramid.types import Clip
from pyramid.video.decode import DecodeRequest
from pyramid.video.encode import ClipEncoder
from pyramid.video.filters import ClipScores, score_luma
from pyramid.video.passes import Watch, decode_clips
from pyramid.video.scale import Picture

GUESS_HZ = 30.0
"""Rate of a video that does not say its own."""
_DECLARED_HZ = (1.0, 240.0)
"""Rates that a clip's container may declare; the true times are a member of their own."""


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One clip, ready for a shard."""

    key: str
    """The sample's key."""
    members: Mapping[str, bytes]
    """The sample's members."""
    facts: Mapping[str, Any]
    """Its row of the index, without its place."""


def pack_clips(
    clips: Sequence[Clip],
    config: PackConfig,
    of_video: Callable[[Sequence[Clip], PackConfig], Iterator[tuple[int, PackedClip | SkipItemError]]] | None = None,
) -> Iterator[tuple[Clip, PackedClip | SkipItemError]]:
    """Decodes, scores and encodes clips; yields each with its sample, or with why it cannot be used, in their order.

    The clips of one video are made in one pass over it; what is held is their luma and their encoded bytes.

    Args:
        clips: of any videos.
        config: how they are packed.
        of_video: packs the clips of one video as `pack_video` does, which it is if None.
    """
    of_video = of_video or pack_video
    by_video: dict[tuple[str, float | None], list[int]] = {}
    for number, clip in enumerate(clips):
        by_video.setdefault((clip.video, clip.source_hz), []).append(number)
    ready: dict[int, PackedClip | SkipItemError] = {}
    given = 0
    for numbers in by_video.values():
        for place, outcome in of_video([clips[n] for n in numbers], config):
            ready[numbers[place]] = outcome
            while given in ready:
                yield clips[given], ready.pop(given)
                given += 1


def pack_video(
    clips: Sequence[Clip], config: PackConfig, watch: Watch | None = None
) -> Iterator[tuple[int, PackedClip | SkipItemError]]:
    """Packs clips of one video; yields the place of each with its sample, or with why it cannot be used, as they end.

    ``watch`` is told how far decoding is.
    """
    making = {place: _Making(clip, config) for place, clip in enumerate(clips)}
    requests = [_request(clip, config) for clip in clips]
    for place, event in decode_clips(clips[0].video, requests, config.limits, watch):
        if isinstance(event, Picture):
            making[place].add(event)
            continue
        made = making.pop(place)
        try:
            yield place, event if isinstance(event, SkipItemError) else made.finish(event)
        except SkipItemError as error:
            yield place, error


def _request(clip: Clip, config: PackConfig) -> DecodeRequest:
    return DecodeRequest(
        start_s=clip.start_s,
        end_s=clip.end_s,
        source_hz=clip.source_hz,
        rate_hz=None if clip.episode else config.rate_hz,
        size_px=(config.size_px, config.size_px),
        crop=config.fit == "crop",
        max_frames=config.max_frames,
    )


class _Making:
    """A clip whose frames are still coming."""

    def __init__(self, clip: Clip, config: PackConfig) -> None:
        self.clip, self.config = clip, config
        self._luma: list[NDArray[np.uint8]] = []
        self._encoder: ClipEncoder | None = None

    def add(self, picture: Picture) -> None:
        if self._encoder is None:
            side, rate, config = self.config.size_px, self._declared_hz(picture), self.config
            self._encoder = ClipEncoder(side, side, rate, gop=config.gop, crf=config.crf, preset=config.preset)
        self._luma.append(picture.luma)
        self._encoder.add(picture.yuv)

    def _declared_hz(self, picture: Picture) -> float:
        """Returns the rate for the clip's container, which is written before the mean rate is known."""
        least, most = _DECLARED_HZ
        rate = self.clip.source_hz or picture.source_hz or GUESS_HZ
        if self.config.rate_hz is not None and not self.clip.episode:
            rate = min(rate, self.config.rate_hz)
        return min(max(rate, least), most)

    def finish(self, times_s: Sequence[float]) -> PackedClip:
        clip, config = self.clip, self.config
        if len(times_s) < config.min_frames or self._encoder is None:
            raise SkipItemError("too_short", f"{clip.video}: {len(times_s)} frames, fewer than {config.min_frames}")
        times = np.asarray(times_s, np.float64)
        scores = score_luma(np.stack(self._luma), times)
        _apply_policy(clip, scores, config)
        shown = times
        times = times - times[0]
        members = {VIDEO: self._encoder.finish(), TIMES: dump_array(times)}
        dims = {"state_dim": 0, "action_dim": 0}
        if clip.episode:
            state, action = _numbers(clip, shown)
            members |= {STATE: dump_array(state), ACTION: dump_array(action)}
            dims = {"state_dim": state.shape[1], "action_dim": action.shape[1]}
        facts = _facts(clip, config, len(times), _rate_hz(times, clip, config)) | dims
        found = scores.to_dict()
        origin = {"text_origin": clip.text_origin, "licence": clip.licence, "content": clip.content}
        told = {"person": clip.person, "verb": clip.verb, "noun": clip.noun, "extra": clip.facts()}
        meta = {**facts, **origin, **told, "scores": found, "start_s": clip.start_s}
        members[META] = json.dumps(meta, sort_keys=True).encode()
        notes = {"static_share": scores.static_share, "camera_px": scores.camera_px, "cuts": list(scores.cuts)}
        return PackedClip(key=facts["key"], members=members, facts={**facts, **notes, "notes": scores.notes()})


def _facts(clip: Clip, config: PackConfig, n_frames: int, rate_hz: float) -> dict[str, Any]:
    return {
        "key": sample_key(clip),
        "clip_id": clip.clip_id,
        "corpus": clip.corpus,
        "tier": clip.tier,
        "embodiment": clip.embodiment,
        "split": clip.split,
        "text": clip.text,
        "frames": n_frames,
        "rate_hz": rate_hz,
        "duration_s": clip.duration_s,
        "height_px": config.size_px,
        "width_px": config.size_px,
    }


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


def _rate_hz(times: NDArray[np.float64], clip: Clip, config: PackConfig) -> float:
    """Returns the clip's mean rate, or the exact one where it is known."""
    if clip.source_hz is not None and (config.rate_hz is None or clip.episode):
        return clip.source_hz
    return round((len(times) - 1) / float(times[-1]), 6) if len(times) > 1 and times[-1] > 0 else GUESS_HZ


def _numbers(clip: Clip, times_s: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Reads the states and actions of an episode; a clip that is part of it gets its own rows."""
    rate, n_frames = clip.source_hz or GUESS_HZ, len(times_s)
    shared = None if clip.first_row is None or clip.n_rows is None else (clip.first_row, clip.n_rows)
    if shared is not None:
        _check_stretch(clip, times_s, shared[1])
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


def _check_stretch(clip: Clip, times_s: NDArray[np.float64], n_rows: int) -> None:
    """Refuses frames that are not the rows' own: a neighbour's in the same video, or too few."""
    late = float(times_s[0]) - clip.start_s
    if len(times_s) != n_rows or abs(late) > 1e-3:  # Containers round to a millisecond.
        where = f"{clip.video} from {clip.start_s:.3f} to {clip.end_s:.3f} s"
        detail = f"{where}: {len(times_s)} frames, the first {late:.3f} s late, for {n_rows} rows of {clip.episode}"
        raise SkipItemError("length_mismatch", detail)
