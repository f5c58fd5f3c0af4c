"""Clips from video world models, laid out as GR00T-Dreams does.

That is ``N_instruction_in_words.mp4``, or, once they are split, ``videos/N.mp4`` with ``labels/N.txt``.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pyramid import files
from pyramid.corpora.naming import MAX_INSTRUCTION_CHARS, parse_dreamgen_name
from pyramid.corpora.source import Found, ScanConfig, Source, relative
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.video.probe import VIDEO_SUFFIXES

_MAX_LABEL_BYTES = 64 * 1024


def find(root: str, config: ScanConfig) -> Found:
    """Lists generated clips; one that neither its name nor a label file instructs is kept without text.

    A label that cannot be read sets its clip aside.
    """
    del config
    paths = {relative(path, root): path for path in files.walk_files(root)}
    found = Found(sources=[], tier="middle", embodiment="generated")
    for name, path in paths.items():
        if not path.lower().endswith(VIDEO_SUFFIXES):
            continue
        label = paths.get(label_of(name))
        try:
            text, origin = (_read_label(label), "label") if label else _named(name)
        except DataError as error:
            found.skipped.append(Quarantined(item=path, reason="bad_label", detail=str(error)))
            continue
        found.sources.append(Source(name=name, video=path, text=text, text_origin=origin if text else ""))
    return found


def label_of(name: str) -> str:
    """Returns where the label of ``.../videos/N.mp4`` lies, ``.../labels/N.txt``; empty for other places."""
    path = PurePosixPath(name)
    return str(path.parent.parent / "labels" / f"{path.stem}.txt") if path.parent.name == "videos" else ""


def _named(name: str) -> tuple[str, str]:
    parsed = parse_dreamgen_name(PurePosixPath(name).stem)
    return (parsed[1], "file_name") if parsed else ("", "")


def _read_label(path: str) -> str:
    text = " ".join(files.read_text(path, max_bytes=_MAX_LABEL_BYTES).split())
    if len(text) > MAX_INSTRUCTION_CHARS or not text.isprintable():
        raise DataError(
            f"'{path}': an instruction is one printable sentence of at most {MAX_INSTRUCTION_CHARS} letters"
        )
    return text
