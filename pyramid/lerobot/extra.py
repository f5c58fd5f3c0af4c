"""What the metadata of a LeRobot data set says beyond the format's own keys: it is carried along as plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_OWN = ("episode_index", "tasks", "length")
_RESERVED = ("videos/", "data/", "stats/", "meta/", "dataset_from_index", "dataset_to_index")
_STRETCH = re.compile(r"(\d{1,9}):(\d{1,9})")
_MAX_DEPTH = 20


def is_extra(name: str) -> bool:
    """Tells whether a key of an episode is none of the format's."""
    return name not in _OWN and not name.startswith(_RESERVED)


def extra_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of an episode that are its author's own, as JSON knows them: no NaN, no other types."""
    return {str(name): _plain(value, 0) for name, value in row.items() if is_extra(str(name))}


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, dict | list) and depth < _MAX_DEPTH:
        if isinstance(value, list):
            return [_plain(one, depth + 1) for one in value]
        return {str(name): _plain(one, depth + 1) for name, one in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Nested deeper than anybody means, or of a type that JSON has not.
    return None if isinstance(value, dict | list) else str(value)[:1000]


def stretch_of(told: object) -> tuple[int, int] | None:
    """Returns first and last episode (exclusive) of a split as `info.json` writes it, ``0:80``; None if it is none."""
    match = _STRETCH.fullmatch(told) if isinstance(told, str) else None
    return (int(match[1]), int(match[2])) if match else None


def split_of(splits: object, index: int) -> str:
    """Returns the first split of `info.json` that an episode lies in; empty when there is none."""
    for name, told in splits.items() if isinstance(splits, dict) else ():
        stretch = stretch_of(told)
        if stretch and stretch[0] <= index < stretch[1]:
            return str(name)
    return ""
