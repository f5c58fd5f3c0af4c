"""Named stretches of the action vector, as GR00T's `modality.json` declares them: what is a rotation, what a switch.

Averaging by their kinds is left to `idm.joining`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pyramid.actions.modality import Stretch, find_modality, read_stretches
from pyramid.actions.rotations import WIDTHS
from pyramid.errors import DataError

__all__ = ["ActionGroup", "read_groups"]

Kind = Literal["linear", "binary", "rotation_6d", "quaternion", "axis_angle", "euler_angles_rpy", "matrix"]


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
    document, found = find_modality(path)
    stretches = read_stretches(document, "action", found)
    return [_group(found, name, stretch, actions) for name, stretch in stretches.items()]


def _group(path: str, name: str, stretch: Stretch, actions: NDArray[np.floating]) -> ActionGroup:
    where, width = f"'{path}', action group '{name}'", actions.shape[1]
    start, end, kind = stretch.start, stretch.end, stretch.rotation or "linear"
    if not 0 <= start < end <= width:
        raise DataError(f"{where} spans {start}..{end}, the actions have {width} dimensions")
    if kind not in get_args(Kind) or end - start != WIDTHS.get(kind, end - start):
        known = ", ".join(f"{one} ({WIDTHS[one]})" for one in get_args(Kind) if one in WIDTHS)
        raise DataError(f"{where}: '{kind}' of {end - start} dimensions is no rotation known here; known: {known}")
    if kind == "linear" and (stretch.whole or _is_switch(name, actions[:, start:end])):
        kind = "binary"
    # GR00T's documents say ``absolute: false`` of changes, and nothing of values.
    meaning = "value" if stretch.absolute else "delta"
    return ActionGroup(name=name, start=start, end=end, kind=kind, meaning=meaning)  # type: ignore[arg-type]


def _is_switch(name: str, values: NDArray[np.floating]) -> bool:
    return "gripper" in name.lower() and all(len(np.unique(column)) == 2 for column in values.T)


def groups_from(data: Sequence[Mapping[str, Any]]) -> list[ActionGroup]:
    """Reads what `ActionGroup.to_dict` wrote."""
    return [ActionGroup(**one) for one in data]
