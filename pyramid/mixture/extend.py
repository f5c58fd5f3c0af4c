"""``extends``: one mixture file on top of another, merged strictly.

What the merged mapping means is left to `pyramid.mixture.spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyramid import files
from pyramid.config import load_config_file
from pyramid.errors import ConfigError
from pyramid.types import NAME_PATTERN

MAX_DEPTH = 8
_PATHS = ("shards", "labels")


def load_extended(path: str, *, below: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """Reads a mixture file and what it extends; returns the merged mapping and where the file was found.

    Keys of the upper file win; mappings are merged key by key, anything else is replaced as a whole. Paths of the lower
    file stay relative to the lower file.

    Raises:
        ConfigError: a file that is not there, that extends itself, or a mapping on top of a plain value or under one.
    """
    data, origin = load_config_file(path)
    if origin in below or len(below) >= MAX_DEPTH:
        raise ConfigError(f"{below[0]}: 'extends' goes in a circle or through more than {MAX_DEPTH} files: {origin}")
    if "extends" not in data:
        return data, origin
    lower = data.pop("extends")
    if not isinstance(lower, str) or not lower:
        raise ConfigError(f"{origin}: 'extends' names one mixture file, got {lower!r}")
    base, _ = load_extended(_beside(origin.rpartition("/")[0], lower), below=(*below, origin))
    return _merge(_rebased(base, lower.rpartition("/")[0]), data, origin), origin


def _beside(folder: str, place: str) -> str:
    """Returns a path, taken relative to a folder."""
    if not folder or files.is_remote(place) or Path(place).is_absolute():
        return place
    return files.join(folder, place)


def _rebased(data: dict[str, Any], folder: str) -> dict[str, Any]:
    """Returns a mixture with the paths of its sources relative to another file."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(v) for v in value]
        return _beside(folder, value) if isinstance(value, str) and value else value

    def walk(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        return {k: moved(v) if k in _PATHS or _is_file(k, v) else walk(v) for k, v in node.items()}

    return {**data, "tiers": walk(data.get("tiers", {}))}


def _is_file(key: str, value: Any) -> bool:
    """Whether a value is a declaration in a file of its own; a plain name is one that is shipped."""
    return key == "declaration" and isinstance(value, str) and not NAME_PATTERN.fullmatch(value)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any], origin: str, at: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if key in merged and isinstance(value, Mapping) != isinstance(merged[key], Mapping):
            raise ConfigError(f"{origin}: '{at}{key}' is a mapping in one of the files and a plain value in the other")
        both = key in merged and isinstance(value, Mapping)
        merged[key] = _merge(merged[key], value, origin, f"{at}{key}.") if both else value
    return merged
