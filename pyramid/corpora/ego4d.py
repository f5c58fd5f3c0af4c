"""Ego4D: what a camera on a head saw, as its command line tool leaves it on disk.

Which videos there are, who wears the camera, and what must not be shown; what happens in them is left to
`pyramid.corpora.ego4d_actions`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from pyramid.corpora.ego4d_actions import CANONICAL_HZ, Actions, Piece, Reader, of_no_video
from pyramid.corpora.large_json import entries
from pyramid.corpora.source import Found, ScanConfig, Source, relative, split_of
from pyramid.corpora.splits import events
from pyramid.corpora.tables import Tree, look_through, read_rows
from pyramid.jobs import Quarantined

RENDITIONS = ("video_540ss", "full_scale")
"""Folders of whole videos, the smaller files first."""
CLIPS = "clips"
"""Folder of the pieces that the benchmark of hands and objects is about."""
NARRATIONS = ("narration.json", "all_narrations_redacted.json")
_SPLITS = ("split_fho", "split_em", "split_av")
_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = re.compile(r"v(\d+)(?:_(\d+))?")


@dataclass(frozen=True, kw_only=True)
class _Video:
    """What the publisher says of a video."""

    person: str = ""
    split: Literal["", "train", "val"] = ""
    closed: tuple[tuple[float, float], ...] = ()
    together: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def find(root: str, config: ScanConfig) -> Found:
    """Lists the videos below ``root``, each from the first folder that has it, with their narrations and actions.

    Raises:
        DataError: an annotation file is damaged; it is named.
    """
    tree = look_through(root, config)
    whole, pieces, skipped = _files(tree, config)
    told = _newest(tree, "ego4d.json")
    listed = list(_manifest_rows(tree))
    tables = [row for row in listed if not isinstance(row, Quarantined)]
    known = _from_json(told, skipped) if told else _from_manifests(tables)
    actions = Actions.open(next((path for name in NARRATIONS if (path := _newest(tree, name))), None), _fho(tree))
    skipped += [*(row for row in listed if isinstance(row, Quarantined)), *actions.refused]
    found = Found(sources=[], skipped=skipped)
    told_of = {uid: video for uid, video in known.items() if isinstance(video, _Video)}
    persons = {uid: video.person for uid, video in told_of.items()}
    event_of = events(persons, {uid: video.together for uid, video in told_of.items()})
    where = _piece_times(tables, told, actions)
    files = [(uid, path, Piece(uid)) for uid, path in whole.items()]
    for uid, path in pieces.items():
        if uid not in where:
            detail = f"{path}: no annotation file says which video this clip is a piece of"
            found.skipped.append(Quarantined(item=path, reason="unknown_clip", detail=detail))
        elif where[uid].video not in whole:
            files.append((uid, path, where[uid]))
    for name, path, piece in files:
        video = known.get(piece.video, _Video())
        if isinstance(video, _Video) and (piece.video in known or not told):
            facts = {**video.facts, **({"video_uid": piece.video} if name != piece.video else {})}
            reader = Reader(actions=actions, piece=piece, facts=facts, config=config, dropped=found.dropped)
            found.sources.append(_source(name, path, video, reader, event_of.get(piece.video, "")))
            continue
        wrong = video if isinstance(video, str) else "is not listed, so what must not be shown of it is unknown"
        detail = f"{path}: in '{told}' video {piece.video} {wrong}"
        found.skipped.append(Quarantined(item=path, reason="unknown_video", detail=detail))
    missing = actions.videos() - {piece.video for _, _, piece in files}
    if missing:
        found.dropped["missing_video"] = len(missing)
    return found


def _source(name: str, path: str, video: _Video, reader: Reader, event: str) -> Source:
    start = reader.piece.start_s
    return Source(
        name=name,
        video=path,
        person=video.person,
        split=video.split,
        extra=reader.facts,
        origin=reader.piece.video,
        event=event,
        closed=tuple((begin - start, end - start) for begin, end in video.closed),
        windows=reader.windows,
    )


def _files(tree: Tree, config: ScanConfig) -> tuple[dict[str, str], dict[str, str], list[Quarantined]]:
    """Returns paths of whole videos and of pieces by uid, and the files whose names are no uid."""
    whole: dict[str, str] = {}
    pieces: dict[str, str] = {}
    aside = []
    for path in sorted(tree.videos, key=lambda path: (_rank(path), _age(path, tree), path)):
        stem, folder = PurePosixPath(path).stem, PurePosixPath(path).parent.name
        if config.rendition and folder != config.rendition:
            continue
        if _UID.fullmatch(stem):
            (pieces if folder == CLIPS else whole).setdefault(stem, path)
        else:
            detail = f"{path}: not named by a uid, as the videos of Ego4D are"
            aside.append(Quarantined(item=path, reason="unknown_name", detail=detail))
    return dict(sorted(whole.items())), dict(sorted(pieces.items())), aside


def _rank(path: str) -> int:
    folder = PurePosixPath(path).parent.name
    return RENDITIONS.index(folder) if folder in RENDITIONS else len(RENDITIONS)


def _age(path: str, tree: Tree) -> tuple[int, int]:
    """Orders files of several versions, such as ``v1`` and ``v2_1``: the newest first, those without one last."""
    found = [_VERSION.fullmatch(part) for part in relative(path, tree.root).split("/")[:-1]]
    newest = max(((int(m[1]), int(m[2] or 0)) for m in found if m), default=(-1, 0))
    return -newest[0], -newest[1]


def _newest(tree: Tree, name: str) -> str | None:
    paths = [path for path in tree.others if path.rsplit("/", 1)[-1] == name]
    return min(paths, key=lambda path: (_age(path, tree), path.count("/"), path), default=None)


def _fho(tree: Tree) -> str | None:
    return _newest(tree, "fho_main.json")


def _from_json(path: str, aside: list[Quarantined]) -> dict[str, _Video | str]:
    """Returns what ``ego4d.json`` says of each video, or what is wrong with it: then nobody knows what is blanked out.

    Entries that are of no video go to ``aside``.
    """
    known: dict[str, _Video | str] = {}
    for entry, _ in entries(path, "videos"):
        row = entry.load()
        if not (isinstance(row, dict) and isinstance(row.get("video_uid"), str)):
            aside.append(of_no_video(entry))
            continue
        uid = row["video_uid"]
        known[uid] = "stands twice; which one is true?" if uid in known else _told_of(row)
    return known


def _told_of(row: dict[str, Any]) -> _Video | str:
    try:
        closed = tuple(_seconds(interval) for interval in row.get("redacted_intervals") or ())
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        return f"has a redacted interval that is none ({error!r})"
    person = row.get("fb_participant_id")
    return _Video(
        person="" if person is None else str(person),
        split=_split(row),
        closed=closed,
        together=_together(row.get("concurrent_sets")),
        facts=_facts(row),
    )


def _together(sets: Any) -> tuple[str, ...]:
    """Returns the uids that ``concurrent_sets`` names, of sets or of videos, however it nests them."""
    found, left = set(), [sets]
    while left:
        value = left.pop()
        left += list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        if isinstance(value, str) and _UID.fullmatch(value):
            found.add(value)
    return tuple(sorted(found))


def _seconds(interval: dict[str, Any]) -> tuple[float, float]:
    """Converts frames of the canonical video to seconds; the last frame belongs to the interval."""
    start, end = interval["start_frame"] / CANONICAL_HZ, (interval["end_frame"] + 1) / CANONICAL_HZ
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise ValueError(f"frames {interval['start_frame']}..{interval['end_frame']}")
    return start, end


def _split(row: dict[str, Any]) -> Literal["", "train", "val"]:
    """Returns the publisher's split; what any of the benchmarks holds out is held out."""
    splits = {split_of(str(row.get(name) or "")) for name in _SPLITS}
    return "val" if "val" in splits else "train" if "train" in splits else ""


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """Returns scenarios and device; a table writes the former as ``[A|B]``."""
    scenarios, device = row.get("scenarios"), row.get("device")
    if isinstance(scenarios, str):
        scenarios = scenarios.strip("[]").split("|")
    names = [name for name in scenarios if isinstance(name, str)] if isinstance(scenarios, list) else []
    facts = {"scenarios": names, "device": device if isinstance(device, str) else ""}
    return {name: value for name, value in facts.items() if value}


def _manifest_rows(tree: Tree) -> Iterator[dict[str, str] | Quarantined]:
    """Yields the rows of the tables beside the videos; their columns vary, so they go by name."""
    for path in tree.others:
        if path.rsplit("/", 1)[-1] == "manifest.csv":
            yield from (row for _, row in read_rows(path, ()))


def _from_manifests(rows: Sequence[dict[str, str]]) -> dict[str, _Video | str]:
    """Returns what is known of each video where there is no ``ego4d.json``."""
    known: dict[str, _Video | str] = {}
    for row in rows:
        if uid := row.get("video_uid") or row.get("file_uid") or "":
            known.setdefault(uid, _Video(split=_split(row), facts=_facts(row)))
    return known


def _piece_times(rows: Sequence[dict[str, str]], told: str | None, actions: Actions) -> dict[str, Piece]:
    """Returns which stretch of which video each clip file is, from whichever file tells."""
    where = dict(actions.pieces)
    listed = (entry.load() for entry, _ in (entries(told, "clips") if told else ()))
    for row, prefix in [*((row, "video") for row in listed), *((row, "parent") for row in rows)]:
        try:
            stretch = float(row[f"{prefix}_start_sec"]), float(row[f"{prefix}_end_sec"])
            piece = Piece(str(row["video_uid" if prefix == "video" else "parent_video_uid"]), *stretch)
        except (TypeError, ValueError, KeyError, OverflowError):
            continue  # Not a stretch of a video: no clip file needs it.
        for name in ("clip_uid", "exported_clip_uid"):
            if row.get(name) and piece.start_s < piece.end_s:
                where.setdefault(str(row[name]), piece)
    return where
