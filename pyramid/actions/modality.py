"""GR00T's `modality.json`: named stretches of the state and action vectors, their rotations and types.

What is made of them is left to who reads it: `pyramid.actions.read` makes a body, `idm.groups` groups to average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyramid import files
from pyramid.errors import ConfigError, DataError

__all__ = ["Stretch", "find_modality", "read_stretches"]

_WHOLE_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One entry of ``state`` or ``action``."""

    start: int
    """First dimension."""
    end: int
    """One past the last dimension."""
    rotation: str
    """Its rotation_type; empty for none."""
    absolute: bool
    """False for differences."""
    whole: bool
    """Whether it is declared with a whole-number type."""
    column: str
    """Its original_key; empty for the usual column."""


def find_modality(path: str) -> tuple[Mapping[str, Any], str]:
    """Reads a `modality.json`; returns the document and where it was found.

    Args:
        path: the file, or the data set's folder or its ``meta``.

    Raises:
        ConfigError: no such file.
        DataError: it is not a JSON object.
    """
    tried = [files.join(path, *rest) for rest in ((), ("modality.json",), ("meta", "modality.json"))]
    found = next((one for one in tried if one.endswith(".json") and files.exists(one)), None)
    if found is None:
        raise ConfigError(f"no modality.json at '{path}'")
    document = files.read_json(found)
    if not isinstance(document, Mapping):
        raise DataError(f"'{found}' holds no JSON object")
    return document, found


def read_stretches(document: Mapping[str, Any], what: str, path: str) -> dict[str, Stretch]:
    """Returns the stretches of ``state`` or ``action`` by name.

    Raises:
        DataError: none are declared, or one cannot be read; it is named.
    """
    declared = document.get(what)
    if not isinstance(declared, Mapping) or not declared:
        raise DataError(f"'{path}' declares no {what} groups")
    return {str(name): _stretch(spec, f"'{path}', {what} group '{name}'") for name, spec in declared.items()}


def _stretch(spec: Any, where: str) -> Stretch:
    try:
        return Stretch(
            start=int(spec["start"]),
            end=int(spec["end"]),
            rotation=str(spec.get("rotation_type") or ""),
            absolute=bool(spec.get("absolute", True)),
            whole=spec.get("dtype") in _WHOLE_TYPES,
            column=str(spec.get("original_key") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: start, end and rotation_type cannot be read: {error}") from error
