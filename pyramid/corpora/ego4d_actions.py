"""What happens in the videos of Ego4D: narrations (points in time) and the actions of hands and objects (FHO).

The files are larger than the memory, so each video's part is read when its turn comes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyramid.corpora.large_json import Entry, entries
from pyramid.corpora.source import ScanConfig, Window
from pyramid.jobs import Quarantined

CANONICAL_HZ = 30.0
"""Rate at which the annotations count frames, whatever a file's rate is."""
LONE_S = 2.0
"""Length of the window of a narration that has no neighbour, seconds."""
_MOST = 1e15
_PREFIX = re.compile(r"#(C C|C|O|unsure)\b\s*", re.IGNORECASE)
_WHO = {"c": "wearer", "c c": "wearer", "o": "other", "unsure": "unsure"}
_UNSURE = re.compile(r"#unsure\b", re.IGNORECASE)


@dataclass(frozen=True)
class Piece:
    """A stretch of a video that a file holds."""

    video: str
    """The video's uid."""
    start_s: float = 0.0
    """Where it starts in the video, seconds."""
    end_s: float = math.inf
    """Where it ends."""

    def holds(self, time_s: float) -> bool:
        """Tells whether a time of the video is this piece's; the whole video answers for all, even wrong ones."""
        return math.isinf(self.end_s) or self.start_s <= time_s < self.end_s


@dataclass(frozen=True)
class Actions:
    """Where the annotations of each video lie."""

    narrations: Mapping[str, Entry]
    """Narrations by video."""
    fho: Mapping[str, Entry]
    """Actions of hands and objects by video."""
    pieces: Mapping[str, Piece]
    """The clips that the actions were annotated in, by clip uid."""
    refused: Sequence[Quarantined] = ()
    """Entries of the files that cannot be used: of no video, or of one that another entry tells of, too."""

    @classmethod
    def open(cls, narrations: str | None, fho: str | None) -> Actions:
        """Looks through the annotation files that are there, once.

        Raises:
            DataError: a file is damaged.
        """
        told, acted = _Table(), _Table()
        pieces: dict[str, Piece] = {}
        # One of the two files has its videos at the top, the other within "videos".
        for entry, row in entries(narrations, "videos", or_all=True) if narrations else ():
            if isinstance(row, dict):
                told.enter(entry.key, entry)
        for entry, row in entries(fho, "videos") if fho else ():
            if not (isinstance(row, dict) and isinstance(row.get("video_uid"), str)):
                acted.refused.append(of_no_video(entry))
                continue
            acted.enter(row["video_uid"], entry)
            for interval in _dicts(row.get("annotated_intervals")):
                start, end = _number(interval.get("start_sec")), _number(interval.get("end_sec"))
                if isinstance(interval.get("clip_uid"), str) and start < end:
                    pieces[interval["clip_uid"]] = Piece(row["video_uid"], start, end)
        return cls(told.entries, acted.entries, pieces, [*told.refused, *acted.refused])

    def videos(self) -> set[str]:
        """Returns the videos that there are annotations of."""
        return {*self.narrations, *self.fho}


class _Table:
    """Where a file tells of each video; whoever is told of twice is not believed at all."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.refused: list[Quarantined] = []
        self._twice: set[str] = set()

    def enter(self, uid: str, entry: Entry) -> None:
        if uid not in self.entries and uid not in self._twice:
            self.entries[uid] = entry
        elif uid not in self._twice:
            del self.entries[uid]
            self._twice.add(uid)
            detail = f"'{entry.path}', byte {entry.offset}: video {uid} stands twice; neither entry is used"
            self.refused.append(Quarantined(item=f"{entry.path}, video {uid}", reason="duplicate_id", detail=detail))


def of_no_video(entry: Entry) -> Quarantined:
    """Returns an entry without a video's name as an item that was set aside."""
    item = f"{entry.path}, byte {entry.offset}"
    return Quarantined(item=item, reason="bad_row", detail=f"{item}: an entry without video_uid")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads what happens in one file."""

    actions: Actions
    """The annotations of all videos."""
    piece: Piece
    """What the file holds."""
    facts: Mapping[str, Any]
    """What is known of the whole video; part of each window's extra data."""
    config: ScanConfig
    """The longest clip, and whether other people count."""
    dropped: Counter[str]
    """Where annotations that are left out on purpose are counted."""

    def windows(self, duration_s: float) -> Iterator[Window | Quarantined]:
        """Yields a window for each narration of the file's stretch, then one for each action that none tells of.

        A narration's window is its time with half of the video's mean gap between narrations on each side (EgoVLP,
        Lin et al., 2022, with one scale for all videos), at most as long as a clip. Times are seconds of the file.
        """
        piece = self.piece
        told = _narrations(self.actions.narrations.get(piece.video))
        acts = list(self._acts())
        half = min(_mean_gap_s(told), self.config.clip_s) / 2
        matches, used = _Matches(acts), set[int]()
        for one in told:
            act = matches.of(one)
            if act is not None:
                used.add(id(act))
            if not math.isfinite(one.time_s) or piece.holds(one.time_s):
                yield from self._narrated(one, act, half, duration_s)
        for act in acts:
            start, end = _seconds(act.get("start_frame"), piece), _seconds(act.get("end_frame"), piece)
            if id(act) not in used and not (start + piece.start_s >= piece.end_s or end <= 0):
                name = str(act.get("uid") or f"action at {act.get('start_frame')}")
                window = Window(name=name, start_s=start, end_s=end, text=_text(act))
                yield from self._finished(window, act, {})

    def _acts(self) -> Iterator[dict[str, Any]]:
        """Yields the actions that the annotators stand by."""
        entry = self.actions.fho.get(self.piece.video)
        data = entry.load() if entry else {}
        for interval in _dicts(data.get("annotated_intervals")):
            for act in _dicts(interval.get("narrated_actions")):
                if act.get("is_valid_action") is False or act.get("is_rejected") or act.get("is_invalid_annotation"):
                    self.dropped["rejected_action"] += 1
                else:
                    yield {**act, "redacted": interval.get("redacted") is True}

    def _narrated(
        self, one: Narration, act: dict[str, Any] | None, half: float, duration_s: float
    ) -> Iterator[Window | Quarantined]:
        at = one.time_s - self.piece.start_s
        if at < 0 or at > duration_s:
            where = f"narration '{one.name}' of video {self.piece.video}"
            detail = f"{where} is at {at} s, outside the file's 0..{duration_s:.3f} s"
            yield Quarantined(item=one.name, reason="outside_video", detail=detail)
            return
        extra = {"narrator": one.narrator, **({"narration_s": round(at, 6)} if math.isfinite(at) else {})}
        yield from self._finished(
            Window(name=one.name, start_s=at - half, end_s=at + half, text=one.text), act or {}, extra
        )

    def _finished(self, window: Window, act: dict[str, Any], extra: dict[str, Any]) -> Iterator[Window | Quarantined]:
        """Adds to a window what is known of it, or leaves it out with the reason."""
        who, text = clean(window.text)
        if who == "other" and not self.config.other_people:
            self.dropped["other_person"] += 1
        elif act.get("redacted"):
            detail = f"'{window.name}' of video {self.piece.video} lies in an interval that the publisher blanked out"
            yield Quarantined(item=window.name, reason="redacted", detail=detail)
        else:
            verb, noun, fho = _known_of(act, self.piece) if act else ("", "", {})
            known = {**self.facts, "who": who, **extra, **fho}
            yield replace(window, text=text, text_origin="narration", verb=verb, noun=noun, extra=known)


class _Matches:
    """Finds the action of a narration: the same uid and, where many share one, the same moment or words."""

    def __init__(self, acts: list[dict[str, Any]]) -> None:
        self._of_uid: dict[str, dict[str, Any]] = {}
        self._at: dict[tuple[str, int], dict[str, Any]] = {}
        self._untimed: dict[str, list[dict[str, Any]]] = {}
        for act in acts:
            uid, told_at = _first_text(act, "narration_annotation_uid"), _number(act.get("narration_timestamp_sec"))
            self._of_uid.setdefault(uid, act)
            if math.isfinite(told_at):
                self._at.setdefault((uid, round(told_at * CANONICAL_HZ)), act)
            else:
                self._untimed.setdefault(uid, []).append(act)

    def of(self, one: Narration) -> dict[str, Any] | None:
        """Returns the action that a narration tells of, if one was annotated."""
        if not one.shared:
            return self._of_uid.get(one.uid)
        if not math.isfinite(one.time_s):
            return None
        frame = round(one.time_s * CANONICAL_HZ)
        near = (self._at.get((one.uid, frame + shift)) for shift in (0, -1, 1))
        timed = next((act for act in near if act is not None), None)
        return timed or next((act for act in self._untimed.get(one.uid, []) if self._fits(act, one)), None)

    @staticmethod
    def _fits(act: dict[str, Any], one: Narration) -> bool:
        whole = Piece("")
        inside = _seconds(act.get("start_frame"), whole) <= one.time_s <= _seconds(act.get("end_frame"), whole)
        return inside and _text(act) == one.text


def clean(text: str) -> tuple[str, str]:
    """Splits a narration into who acts and what is done; an unsure thing becomes ``something``.

    Example:
        >>> clean("#C C picks up #unsure")
        ('wearer', 'picks up something')
    """
    match = _PREFIX.match(text.lstrip())
    who = _WHO[match[1].lower()] if match else ""
    rest = text.lstrip()[match.end() :] if match else text
    return who, " ".join(_UNSURE.sub("something", rest).split())


@dataclass(frozen=True)
class Narration:
    """One sentence about one moment."""

    uid: str
    """Of the annotation; some files give one to all narrations of an annotator."""
    time_s: float
    """When, seconds of the whole video; NaN where it is no number."""
    text: str
    """As written, prefix included."""
    narrator: str
    """Which of the annotators."""
    shared: bool
    """Whether other narrations of the video bear the same uid."""

    @property
    def name(self) -> str:
        """A name of its own, also where the uid is shared."""
        return f"{self.uid}@{self.time_s:.3f}" if self.shared else self.uid


def _narrations(entry: Entry | None) -> list[Narration]:
    data = entry.load() if entry else {}
    rows = _told(data) if isinstance(data, dict) else []
    uids = [_first_text(row, "annotation_uid", "_annotation_uid") for _, row in rows]
    counts = Counter(uids)
    return [
        Narration(
            uid=uid or narrator,
            time_s=_number(row.get("timestamp_sec", row.get("time"))),
            text=_first_text(row, "narration_text", "text"),
            narrator=narrator,
            shared=not uid or counts[uid] > 1,
        )
        for (narrator, row), uid in zip(rows, uids, strict=True)
    ]


def _told(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns narrator and row: of ``narration.json`` by passes, of ``all_narrations_redacted.json`` in one list."""
    found = [(str(row.get("annotator") or "pass_1"), row) for row in _dicts(data.get("narrations"))]
    for name in ("pass_1", "pass_2"):
        told = data.get(f"narration_{name}")
        found += [(name, row) for row in _dicts(told.get("narrations") if isinstance(told, dict) else None)]
    return [(narrator, row) for narrator, row in found if row.get("is_summary") is not True]


def _first_text(row: dict[str, Any], *names: str) -> str:
    return next((row[name] for name in names if isinstance(row.get(name), str)), "")


def _mean_gap_s(narrations: list[Narration]) -> float:
    """Returns the mean time between neighbouring narrations, each annotator's for himself, seconds."""
    times: dict[str, list[float]] = {}
    for one in narrations:
        if math.isfinite(one.time_s):
            times.setdefault(one.narrator, []).append(one.time_s)
    total = sum(max(own) - min(own) for own in times.values())
    count = sum(len(own) - 1 for own in times.values())
    return total / count if total > 0 else LONE_S


def _known_of(act: dict[str, Any], piece: Piece) -> tuple[str, str, dict[str, Any]]:
    """Returns verb, noun, and the action's times: its stretch and its critical frames, in seconds of the file."""
    critical = act.get("critical_frames")
    times = {
        str(name): _seconds(frame, piece)
        for name, frame in (critical.items() if isinstance(critical, dict) else ())
        if math.isfinite(_seconds(frame, piece))
    }
    stretch = {"start_s": _seconds(act.get("start_frame"), piece), "end_s": _seconds(act.get("end_frame"), piece)}
    known = {name: value for name, value in stretch.items() if math.isfinite(value)}
    boxes = [box for frame in _dicts(act.get("frames")) for box in _dicts(frame.get("boxes"))]
    nouns = [_word(b, "noun") for b in boxes if b.get("object_type") == "object_of_change"]
    fho = {"action_uid": str(act.get("uid") or ""), **known, "critical_s": times}
    return _word(act, "verb"), next((noun for noun in nouns if noun), ""), {"fho": fho}


def _word(row: dict[str, Any], kind: str) -> str:
    """Returns the word from the closed list, or the annotator's own where none fits."""
    listed, own = row.get(f"structured_{kind}"), row.get(f"freeform_{kind}")
    return str(listed) if listed and listed != "[other]" else str(own or "")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _text(act: dict[str, Any]) -> str:
    return _first_text(act, "narration_text")


def _number(value: object) -> float:
    """Returns a number, and NaN for whatever is none or too large for one."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _MOST:
        return math.nan
    return float(value)


def _seconds(frame: object, piece: Piece) -> float:
    return round(_number(frame) / CANONICAL_HZ - piece.start_s, 6)
