"""EPIC-KITCHENS-100: kitchen videos with narrated actions, as the publisher's CSV tables tell of them.

The timestamps are the truth: the tables' frame numbers count at 50 or 60 Hz whatever a file's rate is, and a narration
may be spoken outside its action.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

from pyramid.corpora.source import Found, ScanConfig, Source, Window, split_of
from pyramid.corpora.tables import Tree, look_through, name_videos, parse_list, parse_time, read_rows
from pyramid.jobs import Quarantined

TABLES = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
"""Tables of actions by split; the test table has no labels."""
_UNTIMED = (
    "EPIC_100_train_missing_timestamp_narrations.csv",
    "EPIC_100_validation_missing_timestamp_narrations.csv",
    "EPIC_100_missing_narration_timestamps.csv",
)
"""Narrations whose own time, not that of their action, is unknown."""
_COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
_VIDEO = re.compile(r"P\d{2}_\d{2,3}")


def find(root: str, config: ScanConfig) -> Found:
    """Lists the videos below ``root``, official layout or flattened, with the actions that the tables tell of."""
    tree = look_through(root, config)
    videos, skipped = name_videos(tree, _VIDEO)
    actions, aside = read_actions(tree)
    found = Found(sources=[], skipped=skipped + aside)
    for name, path in videos.items():
        rows = actions.pop(name, [])
        splits = {split_of(split) for split, _ in rows}
        found.sources.append(
            Source(
                name=name,
                video=path,
                person=name.partition("_")[0],
                # A video that the tables put on both sides stays whole, on the side that is not trained on.
                split="val" if "val" in splits else split_of(next(iter(splits), "")),
                windows=partial(_windows, rows, name) if rows else None,
            )
        )
    if actions:
        found.dropped["missing_video"] = len(actions)
    return found


def read_actions(tree: Tree) -> tuple[dict[str, list[tuple[str, dict[str, str]]]], list[Quarantined]]:
    """Reads the tables of actions that are there.

    Returns:
        Rows with their publisher's split by video, and the rows that cannot be used.
    """
    untimed: set[str] = set()
    by_video: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    aside: list[Quarantined] = []
    for notes in filter(None, map(tree.find, _UNTIMED)):
        for _, row in read_rows(notes, ("narration_id",)):
            if isinstance(row, Quarantined):
                aside.append(row)
            else:
                untimed.add(row["narration_id"])
    for split, name in TABLES.items():
        path = tree.find(name)
        for _, row in read_rows(path, _COLUMNS) if path else ():
            if isinstance(row, Quarantined):
                aside.append(row)
                continue
            silent = {"narration_timestamp": ""} if row["narration_id"] in untimed else {}
            by_video[row["video_id"]].append((split, {**row, **silent}))
    return dict(by_video), aside


def _windows(rows: list[tuple[str, dict[str, str]]], video: str, duration_s: float) -> Iterator[Window | Quarantined]:
    del duration_s
    for split, row in rows:
        name = row["narration_id"]
        if row["participant_id"] != video.partition("_")[0]:
            detail = f"{name}: participant '{row['participant_id']}' in video {video}; the row is damaged"
            yield Quarantined(item=name, reason="bad_row", detail=detail)
            continue
        yield Window(
            name=name,
            start_s=parse_time(row["start_timestamp"]),
            end_s=parse_time(row["stop_timestamp"]),
            text=row.get("narration", ""),
            text_origin="narration",
            verb=row.get("verb", ""),
            noun=row.get("noun", ""),
            extra=_extra(row, split),
        )


def _extra(row: dict[str, str], split: str) -> dict[str, Any]:
    """Returns the classes, all nouns, and when the narration was spoken (seconds of the video), as far as known."""
    extra: dict[str, Any] = {"publisher_split": split}
    for name in ("verb_class", "noun_class"):
        if row.get(name, "").isascii() and row.get(name, "").isdigit():
            extra[name] = int(row[name])
    for name in ("all_nouns", "all_noun_classes"):
        values = parse_list(row[name]) if row.get(name) else None
        if values is not None:
            extra[name] = values
    spoken = parse_time(row.get("narration_timestamp", ""))
    if math.isfinite(spoken):
        extra["narration_s"] = spoken
    return extra
