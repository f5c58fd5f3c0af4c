"""Requests for videos, as ``dream prompts`` writes them and anybody may: a JSON object in each line of requests.jsonl.

What makes videos of them is left to `generate`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyramid import files
from pyramid.corpora.naming import MAX_INSTRUCTION_CHARS
from pyramid.errors import DataError

REQUESTS = "requests.jsonl"
_NEEDED = ("index", "image", "instruction", "prompt", "seed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One video that is wanted."""

    index: int
    """Number of the request, unique, 0 to 9,999,999."""
    image: str
    """Path of its first frame."""
    instruction: str
    """What is to be done, clean: what a policy is given."""
    prompt: str
    """What the generator is told."""
    seed: int
    """Decides the noise, >= 0."""


def read_requests(source: str) -> list[Request]:
    """Reads a request set; pictures are named relative to it and lie below it.

    Args:
        source: requests.jsonl, or its folder.

    Raises:
        DataError: no such file, a line that is no request, an index twice, or a picture elsewhere.
    """
    path = files.join(source, REQUESTS) if files.is_dir(source) else source
    if not files.exists(path):
        raise DataError(f"no requests '{path}'; make them: pyramid dream prompts SOURCE --out DIR")
    folder = path.rpartition("/")[0] or "."
    found: dict[int, Request] = {}
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        request = _read(line, f"'{path}', line {number}", folder)
        if request.index in found:
            raise DataError(f"'{path}', line {number}: the index {request.index} stands twice")
        found[request.index] = request
    if not found:
        raise DataError(f"'{path}' holds no request")
    return list(found.values())


def _read(line: str, where: str, folder: str) -> Request:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    kinds: dict[str, type] = {field.name: int if field.name in ("index", "seed") else str for field in fields(Request)}
    if not isinstance(data, Mapping):
        raise DataError(f"{where}: no JSON object")
    wrong = [name for name in _NEEDED if type(data.get(name)) is not kinds[name]]
    if wrong:
        raise DataError(f"{where}: {', '.join(wrong)} is missing or no {kinds[wrong[0]].__name__}")
    given: dict[str, Any] = {name: data[name] for name in _NEEDED}
    parts = given["image"].replace("\\", "/").split("/")
    if ".." in parts or given["image"].startswith("/") or ":" in given["image"]:
        raise DataError(f"{where}: the picture '{given['image']}' is not below the request set")
    text = given["instruction"]
    if not (text.strip() and text.isprintable() and len(text) <= MAX_INSTRUCTION_CHARS):
        raise DataError(f"{where}: the instruction is no printable sentence of 1 to {MAX_INSTRUCTION_CHARS} letters")
    if not 0 <= given["index"] <= 9_999_999 or not 0 <= given["seed"] < 2**63:
        raise DataError(f"{where}: index {given['index']} or seed {given['seed']} out of range")
    return Request(**{**given, "image": files.join(folder, given["image"])})
