"""One clip into its samples: views scored and encoded as their frames come, with their rows of the index.

Decoding is left to `pyramid.shards.samples`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError, SkipItemError
from pyramid.lerobot.read import read_rows
from pyramid.shards.layout import ACTION, JPEGS, JPEGS_AT, META, STATE, TIMES, VIDEO, dump_array, sample_key
from pyramid.shards.options import PackConfig
from pyramid.types import Clip
from pyramid.video.encode import ClipEncoder
from pyramid.video.filters import BORDER_LUMA, ClipScores, score_luma
from pyramid.video.jpeg import JpegEncoder
from pyramid.video.regions import Layout, View
from pyramid.video.scale import Picture

GUESS_HZ = 30.0
"""Rate of a video that does not say its own."""
_DECLARED_HZ = (1.0, 240.0)
"""Rates that a clip's container may declare; the true times are a member of their own."""
_LIT_SHARE = 0.05
"""More of what was taken for black may not be lit in any frame."""


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """One clip, ready for a shard."""

    key: str
    """The sample's key."""
    members: Mapping[str, bytes]
    """The sample's members."""
    facts: Mapping[str, Any]
    """Its row of the index, without its place."""


class Making:
    """A clip whose frames are still coming.

    Args:
        clip: the clip.
        config: how it is packed.
        layout: the views that become its samples.
    """

    def __init__(self, clip: Clip, config: PackConfig, layout: Layout) -> None:
        self.clip, self.config, self.layout = clip, config, layout
        self._parts = [_Part(clip, config, view, number) for number, view in enumerate(layout.views)]
        self._fits = True

    def add(self, picture: Picture) -> None:
        """Takes the next frame."""
        self._fits = self._fits and self._holds(picture)
        for part in self._parts if self._fits else ():
            part.add(picture if part.view.box is None else picture.view(part.view.box))

    def _holds(self, picture: Picture) -> bool:
        """Tells whether the layout is true of a frame, too."""
        layout = self.layout
        if layout.stored_px is not None and picture.stored_px != layout.stored_px:
            return False
        return all(picture.lit_share(box, BORDER_LUMA) <= _LIT_SHARE for box in layout.black)

    def finish(self, times_s: Sequence[float]) -> list[PackedClip | SkipItemError] | None:
        """Returns the samples, or why one cannot be used; None if the layout does not hold for this clip."""
        if not self._fits:
            return None
        outcomes: list[PackedClip | SkipItemError] = []
        for part in self._parts:
            try:
                outcomes.append(part.finish(times_s))
            except SkipItemError as error:
                outcomes.append(error)
        # A reason that holds for all of the clip is told once.
        return outcomes if any(isinstance(one, PackedClip) for one in outcomes) else outcomes[:1]


class _Part:
    """One view of a clip."""

    def __init__(self, clip: Clip, config: PackConfig, view: View, number: int) -> None:
        self.clip, self.config, self.view, self.number = clip, config, view, number
        self._luma: list[NDArray[np.uint8]] = []
        self._video: ClipEncoder | None = None
        self._jpegs = JpegEncoder(config.jpeg_quality) if config.codec != "h264" else None

    def add(self, picture: Picture) -> None:
        if self._video is None and self.config.codec != "jpeg":
            side, rate, config = self.config.size_px, self._declared_hz(picture), self.config
            self._video = ClipEncoder(side, side, rate, gop=config.gop, crf=config.crf, preset=config.preset)
        self._luma.append(picture.luma)
        if self._jpegs is not None:
            self._jpegs.add(picture.rgb)
        if self._video is not None:
            self._video.add(picture.yuv)

    def _declared_hz(self, picture: Picture) -> float:
        """Returns the rate for the clip's container, which is written before the mean rate is known."""
        least, most = _DECLARED_HZ
        rate = self.clip.source_hz or picture.source_hz or GUESS_HZ
        if self.config.rate_hz is not None and not self.clip.episode:
            rate = min(rate, self.config.rate_hz)
        return min(max(rate, least), most)

    def finish(self, times_s: Sequence[float]) -> PackedClip:
        clip, config = self.clip, self.config
        if len(times_s) < config.min_frames:
            raise SkipItemError("too_short", f"{clip.video}: {len(times_s)} frames, fewer than {config.min_frames}")
        times = np.asarray(times_s, np.float64)
        scores = score_luma(np.stack(self._luma), times)
        _apply_policy(f"{clip.video}{' ' + self.view.name if self.view.name else ''}", scores, config)
        shown = times
        times = times - times[0]
        members = self._pictures() | {TIMES: dump_array(times)}
        dims = {"state_dim": 0, "action_dim": 0}
        if clip.episode:
            state, action = _numbers(clip, shown)
            members |= {STATE: dump_array(state), ACTION: dump_array(action)}
            dims = {"state_dim": state.shape[1], "action_dim": action.shape[1]}
        key = sample_key(clip, self.number)
        facts = {"key": key, **_facts(clip, config, len(times), _rate_hz(times, clip, config)), **dims}
        found = scores.to_dict()
        told = {"licence": clip.licence, "content": clip.content, "extra": clip.facts()}
        view = {"view": self.view.name, "crop_px": self.view.box}
        meta = {**facts, **told, **view, "scores": found, "start_s": clip.start_s}
        members[META] = json.dumps(meta, sort_keys=True).encode()
        row = {"static_share": scores.static_share, "camera_px": scores.camera_px, "cuts": list(scores.cuts)}
        notes = [*_view_notes(self.view), *scores.notes()]
        return PackedClip(key=key, members=members, facts={**facts, **row, "notes": notes})

    def _pictures(self) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        if self._video is not None:
            members[VIDEO] = self._video.finish()
        if self._jpegs is not None:
            members[JPEGS], places = self._jpegs.finish()
            members[JPEGS_AT] = dump_array(places)
        return members


def _view_notes(view: View) -> list[str]:
    if view.box is None:
        return []
    top, left, height, width = view.box
    what = f"view {view.name} of a 2x2 grid" if view.name else "cropped"
    return [f"{what}: {width}x{height} pixels at column {left}, row {top}"]


def _facts(clip: Clip, config: PackConfig, n_frames: int, rate_hz: float) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "corpus": clip.corpus,
        "tier": clip.tier,
        "embodiment": clip.embodiment,
        "split": clip.split,
        "text": clip.text,
        "text_origin": clip.text_origin,
        "person": clip.person,
        "verb": clip.verb,
        "noun": clip.noun,
        "frames": n_frames,
        "rate_hz": rate_hz,
        "duration_s": clip.duration_s,
        "height_px": config.size_px,
        "width_px": config.size_px,
    }


def _apply_policy(where: str, scores: ClipScores, config: PackConfig) -> None:
    found = {
        "static": scores.static_share >= 0.95,
        "cut": bool(scores.cuts),
        "damaged": scores.damaged is not None,
        "variable_rate": scores.variable_rate,
    }
    for reason in config.drop:
        if found[reason]:
            said = "; ".join(scores.notes()) or reason
            raise SkipItemError(reason, f"{where}: {said} (policy: drop {reason})")


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
