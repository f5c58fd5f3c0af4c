"""Any tree of videos, with an optional ``captions.jsonl`` or ``captions.csv`` beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyramid import files
from pyramid.corpora.source import Found, ScanConfig, Source, is_text, video_files
from pyramid.corpora.tables import read_lines_json, read_rows
from pyramid.errors import DataError
from pyramid.jobs import Quarantined

CAPTION_FILES = ("captions.jsonl", "captions.csv")


def find(root: str, config: ScanConfig) -> Found:
    """Lists the videos below ``root``.

    Captions are rows with ``file`` (relative to ``root``) and ``text``; one that cannot be read is set aside, and its
    video has no text.
    """
    del config
    captions, aside = read_captions(root)
    sources = [
        Source(name=name, video=path, text=captions.get(name, ""), text_origin="caption" if name in captions else "")
        for name, path in video_files(root)
    ]
    return Found(sources=sources, skipped=aside)


def read_captions(root: str) -> tuple[dict[str, str], list[Quarantined]]:
    """Reads the captions beside the videos; a missing file is no captions.

    Returns:
        Text by file, and the rows that cannot be used.

    Raises:
        DataError: the file has other columns, or not one of its rows can be used.
    """
    path = next((path for name in CAPTION_FILES if files.exists(path := files.join(root, name))), "")
    captions: dict[str, str] = {}
    aside: list[Quarantined] = []
    for row in _rows(path) if path else ():
        if isinstance(row, Quarantined):
            aside.append(row)
        else:
            captions[row["file"]] = row["text"]
    if aside and not captions:
        raise DataError(
            f"'{path}': not one row can be used, each needs 'file' and 'text'; the first: {aside[0].detail}"
        )
    return captions, aside


def _rows(path: str) -> Iterator[dict[str, str] | Quarantined]:
    found = read_rows(path, ("file", "text")) if path.endswith("csv") else read_lines_json(path)
    for number, row in found:
        yield row if isinstance(row, Quarantined) else _checked(row, f"{path}, line {number}")


def _checked(row: Any, item: str) -> dict[str, str] | Quarantined:
    texts = [row.get(name) for name in ("file", "text")] if isinstance(row, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        return Quarantined(item=item, reason="bad_row", detail=f"{item}: a row has a 'file' and a 'text', both texts")
    if not all(map(is_text, texts)):
        return Quarantined(item=item, reason="not_utf8", detail=f"{item}: the text is not UTF-8")
    return dict(row)
