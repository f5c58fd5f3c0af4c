"""Annotation files of publishers: where they lie, CSV row by row, Python lists without running anything.

What the columns mean is left to each corpus; JSON that is larger than the memory to `pyramid.corpora.large_json`.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pyramid import files
from pyramid.corpora.source import ScanConfig, is_text, relative
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.video.probe import VIDEO_SUFFIXES

MAX_TABLE_BYTES = 2**30
"""Largest annotation file that is read whole."""
_MAX_LITERAL = 10_000
_MOST_NAMED, _MOST_LETTERS = 50, 1000
_TIME = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Tree:
    """The files below a corpus's folder, listed once."""

    root: str
    """The corpus's folder."""
    videos: list[str]
    """Paths that look like videos by their ending, sorted."""
    others: list[str]
    """All other files, those of the annotation folder included; sorted, the shallowest first."""

    def find(self, *names: str) -> str | None:
        """Returns the file that bears the first of ``names`` that is there; the shallowest of several."""
        for name in names:
            for path in self.others:
                if path.rsplit("/", 1)[-1] == name:
                    return path
        return None


def look_through(root: str, config: ScanConfig) -> Tree:
    """Lists a corpus's files; annotation files may lie in a folder of their own.

    Raises:
        DataError: there is no such folder of annotations.
    """
    paths = list(files.walk_files(root))
    videos = [path for path in paths if path.lower().endswith(VIDEO_SUFFIXES)]
    others = [path for path in paths if not path.lower().endswith(VIDEO_SUFFIXES)]
    if config.annotations:
        if not files.is_dir(config.annotations):
            raise DataError(f"annotations '{config.annotations}' is not a folder")
        # What was named comes before what was found.
        return Tree(root, videos, _by_depth(files.walk_files(config.annotations)))
    return Tree(root, videos, _by_depth(others))


def _by_depth(paths: Iterator[str] | list[str]) -> list[str]:
    return sorted(paths, key=lambda path: (path.count("/"), path))


def name_videos(tree: Tree, pattern: re.Pattern[str]) -> tuple[dict[str, str], list[Quarantined]]:
    """Finds the videos whose stem is a name of the corpus.

    Returns:
        Path by name, in order of names, and what is set aside: files of other names, second files of one name.
    """
    found: dict[str, str] = {}
    aside = []
    for path in _by_depth(tree.videos):
        stem = PurePosixPath(path).stem
        if not pattern.fullmatch(stem):
            aside.append(_refused(path, "unknown_name", f"{path}: no video of this corpus has such a name"))
        elif stem in found:
            detail = f"{path}: {relative(found[stem], tree.root)} shows the same video, and is used"
            aside.append(_refused(path, "second_copy", detail))
        else:
            found[stem] = path
    return dict(sorted(found.items())), aside


def _refused(path: str, reason: str, detail: str) -> Quarantined:
    return Quarantined(item=path, reason=reason, detail=detail)


def read_rows(path: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | Quarantined]]:
    """Yields the rows of a CSV file with the numbers of their lines; one that cannot be used is set aside by name.

    Raises:
        DataError: the file lacks one of ``columns``, or its first line is no CSV.
    """
    rows = _csv_rows(io.StringIO(_read_text(path), newline="").readlines())
    _, header = next(rows, (1, []))
    if isinstance(header, csv.Error):
        raise DataError(f"'{path}' is not CSV: {header}")
    if missing := [name for name in columns if name not in header]:
        raise DataError(f"'{path}' has no column {', '.join(missing)}; it has {_listed(header)}")
    for number, cells in rows:
        item = f"{path}, line {number}"
        if isinstance(cells, csv.Error):
            yield number, _refused(item, "bad_row", f"{item}: no CSV: {cells}")
        elif len(cells) != len(header):
            yield number, _refused(item, "bad_row", f"{item}: {len(cells)} cells under {len(header)} columns")
        elif not all(is_text(cell) for cell in cells):
            yield number, _refused(item, "not_utf8", f"{item}: the text is not UTF-8")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _csv_rows(lines: list[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yields rows, or what is wrong with them, each with the number of its first line.

    After an error it goes on at the next line: a quote that is never closed costs its own row, not all behind it.
    """
    at = 0
    while at < len(lines):
        reader = csv.reader((lines[i] for i in range(at, len(lines))), strict=True)
        start = at
        try:
            for cells in reader:
                if cells:
                    yield at + 1, cells
                at = start + reader.line_num
        except csv.Error as error:
            yield at + 1, error
            at += 1


def _listed(header: list[str]) -> str:
    names = ", ".join(header[:_MOST_NAMED]) or "nothing"
    return names.encode(errors="backslashreplace").decode()[:_MOST_LETTERS]


def read_lines_json(path: str) -> Iterator[tuple[int, Any]]:
    """Yields the values of a file of JSON lines with their numbers; a line that is no JSON is set aside by name."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                item = f"{path}, line {number}"
                yield number, _refused(item, "bad_row", f"{item}: not JSON: {error}")


def _read_text(path: str) -> str:
    """Reads a file whole; bytes that are no UTF-8 become text that `is_text` refuses, row by row."""
    return files.read_bytes(path, max_bytes=MAX_TABLE_BYTES).decode("utf-8-sig", "surrogateescape")


def read_table_json(path: str) -> Any:
    """Reads a JSON file whole; bytes that are no UTF-8 become text that `is_text` refuses, item by item."""
    data = files.read_bytes(path, max_bytes=MAX_TABLE_BYTES)
    return parse_json(data, f"'{path}'")


def parse_json(data: bytes, where: str) -> Any:
    """Parses JSON as `read_table_json` does; ``where`` names it in errors."""
    try:
        return json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def parse_list(text: str) -> list[Any] | None:
    """Reads a list of plain values that Python's ``repr`` wrote, without running anything; None if it is none."""
    if len(text) > _MAX_LITERAL:
        return None
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    plain = isinstance(found, list) and all(isinstance(value, str | int) for value in found)
    return found if plain else None


def parse_time(text: str) -> float:
    """Reads ``HH:MM:SS.cc`` as seconds; what is no time is NaN."""
    match = _TIME.fullmatch(text.strip())
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else float("nan")
