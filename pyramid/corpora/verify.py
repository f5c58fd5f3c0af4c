"""Holds a clip manifest against what a clip must be: columns, ids, times, and splits that share no video."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid import parquet
from pyramid.corpora.manifest import OPTIONAL, SCHEMA, refuse_repeated_ids, to_clip
from pyramid.errors import DataError
from pyramid.findings import Findings

_WHOLE = ("video", "person")
"""What is never in two splits; a person is where the publisher's own split was asked for."""


def check_manifest(path: str) -> Findings:
    """Looks through a clip manifest, row by row; the videos are not opened.

    Memory: one batch of rows, 8 bytes a clip, and a number for each video and person that is held out.
    """
    found = Findings(files=1)
    try:
        refuse_repeated_ids(path)
        held = _check_rows(path, found)
        _check_splits(path, held, found)
    except DataError as error:
        found.refuse(path, str(error))
    if not found.items and not found.bad:
        found.refuse(path, "it holds no clip")
    return found


def _rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for piece in parquet.iter_batches(path, SCHEMA, optional=OPTIONAL):
        for row in piece.to_pylist():
            yield f"row {number}", row
            number += 1


def _check_rows(path: str, found: Findings) -> dict[str, set[int]]:
    """Checks each row by itself; returns the hashes of the videos and of the persons that are held out."""
    held: dict[str, set[int]] = {name: set() for name in _WHOLE}
    for where, row in _rows(path):
        found.items += 1
        try:
            clip = to_clip(row, where)
            if clip.split not in ("train", "val"):
                raise DataError(f"{where}: clip '{clip.clip_id}': the split '{clip.split}' is neither train nor val")
        except DataError as error:
            found.refuse(path, str(error))
            continue
        for name, hashes in held.items():
            if clip.split == "val" and getattr(clip, name):
                hashes.add(hash((clip.corpus, getattr(clip, name))))
    return held


def _check_splits(path: str, held: dict[str, set[int]], found: Findings) -> None:
    """Names the videos and persons that are trained on and held out."""
    # Episodes that share a video file (LeRobot v3.0) have stretches of their own in it.
    told: set[int] = set()
    for where, row in _rows(path):
        for name, hashes in held.items():
            value = row.get(name)
            number = hash((row["corpus"], value))
            shared = name == "video" and row.get("first_row") is not None
            if row["split"] != "train" or not value or shared or number not in hashes or number in told:
                continue
            told.add(number)
            detail = f"{where}: the {name} '{value}' is in train and in val"
            if name == "video":
                found.refuse(path, detail)
            else:
                found.remark(f"{detail}, as publishers' own splits have it")
