"""Any tree of videos, with an optional ``captions.jsonl`` or ``captions.csv`` beside them."""

from __future__ import annotations

import csv
import io
import json

from pyramid import files
from pyramid.corpora.source import Found, ScanConfig, Source, video_files
from pyramid.errors import DataError

CAPTION_FILES = ("captions.jsonl", "captions.csv")


def find(root: str, config: ScanConfig) -> Found:
    """Lists the videos below ``root``.

    Captions are rows with ``file`` (relative to ``root``) and ``text``.
    """
    del config
    captions = read_captions(root)
    sources = [
        Source(name=name, video=path, text=captions.get(name, ""), text_origin="caption" if name in captions else "")
        for name, path in video_files(root)
    ]
    return Found(sources=sources)


def read_captions(root: str) -> dict[str, str]:
    """Reads the captions beside the videos; a missing file is no captions."""
    for name in CAPTION_FILES:
        path = files.join(root, name)
        if files.exists(path):
            text = files.read_text(path)
            rows = _jsonl(text, path) if name.endswith("jsonl") else _csv(text, path)
            if not all(isinstance(row.get("file"), str) and isinstance(row.get("text"), str) for row in rows):
                raise DataError(f"'{path}': every row needs 'file' and 'text'")
            return {row["file"]: row["text"] for row in rows}
    return {}


def _csv(text: str, path: str) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise DataError(f"'{path}' is not CSV: {error}") from error


def _jsonl(text: str, path: str) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"'{path}', line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"'{path}', line {number}: a row is an object with 'file' and 'text'")
            rows.append(row)
    return rows
