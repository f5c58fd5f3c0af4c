"""Named stretches of the action vector, as GR00T's `modality.json` declares them: what is a rotation, what a switch.

Averaging by their kinds is left to `idm.joining`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import ConfigError, DataError

__all__ = ["ActionGroup", "read_groups"]

Kind = Literal["linear", "binary", "rotation_6d", "quaternion", "axis_angle", "euler_angles_rpy", "matrix"]
_WIDTHS = {"rotation_6d": 6, "quaternion": 4, "axis_angle": 3, "euler_angles_rpy": 3, "matrix": 9}
_BINARY_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8")


@dataclass(frozen=True, kw_only=True)
class ActionGroup:
    """Dimensions of the action that belong together."""

    name: str
    """Such as ``left_arm``."""
    start: int
    """First dimension."""
    end: int
    """One past the last dimension."""
    kind: Kind = "linear"
    """How values are averaged."""
    meaning: Literal["", "value", "delta", "velocity"] = ""
    """What it is at other rates: a value at a time, a change over a step, a change per second; empty: not declared."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return asdict(self)

    @property
    def span(self) -> slice:
        """Its dimensions."""
        return slice(self.start, self.end)


def read_groups(path: str, actions: NDArray[np.floating]) -> list[ActionGroup]:
    """Reads the action groups of a `modality.json`.

    A dimension counts as binary if it is declared with a whole-number type, or belongs to a gripper and takes just two
    values in the training actions.

    Args:
        path: the file, or the data set's folder or its ``meta``.
        actions: float [N, D], the training actions.

    Raises:
        DataError: groups that do not fit the actions, or a rotation that is not known.
        ConfigError: no such file.
    """
    tried = [files.join(path, *rest) for rest in ((), ("modality.json",), ("meta", "modality.json"))]
    found = next((one for one in tried if one.endswith(".json") and files.exists(one)), None)
    if found is None:
        raise ConfigError(f"no modality.json at '{path}'")
    document = files.read_json(found)
    declared = document.get("action") if isinstance(document, Mapping) else None
    if not isinstance(declared, Mapping):
        raise DataError(f"'{found}' declares no action groups")
    return [_group(found, str(name), spec, actions) for name, spec in declared.items()]


def _group(path: str, name: str, spec: Any, actions: NDArray[np.floating]) -> ActionGroup:
    where, width = f"'{path}', action group '{name}'", actions.shape[1]
    try:
        start, end = int(spec["start"]), int(spec["end"])
        kind = str(spec.get("rotation_type") or "linear")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: start, end and rotation_type cannot be read: {error}") from error
    if not 0 <= start < end <= width:
        raise DataError(f"{where} spans {start}..{end}, the actions have {width} dimensions")
    if kind not in get_args(Kind) or end - start != _WIDTHS.get(kind, end - start):
        known = ", ".join(f"{one} ({n})" for one, n in _WIDTHS.items())
        raise DataError(f"{where}: '{kind}' of {end - start} dimensions is no rotation known here; known: {known}")
    if kind == "linear" and (spec.get("dtype") in _BINARY_TYPES or _is_switch(name, actions[:, start:end])):
        kind = "binary"
    # GR00T's documents say ``absolute: false`` of changes, and nothing of values.
    meaning = "delta" if spec.get("absolute") is False else "value"
    return ActionGroup(name=name, start=start, end=end, kind=kind, meaning=meaning)  # type: ignore[arg-type]


def _is_switch(name: str, values: NDArray[np.floating]) -> bool:
    return "gripper" in name.lower() and all(len(np.unique(column)) == 2 for column in values.T)


def groups_from(data: Sequence[Mapping[str, Any]]) -> list[ActionGroup]:
    """Reads what `ActionGroup.to_dict` wrote."""
    return [ActionGroup(**one) for one in data]
