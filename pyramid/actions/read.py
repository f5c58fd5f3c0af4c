"""Reading a body's declaration: a YAML file, a preset by name, or GR00T's `modality.json` of a LeRobot data set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyramid.actions.modality import Stretch, find_modality, read_stretches
from pyramid.actions.spec import BodySpec
from pyramid.config import from_dict, preset_folder, resolve
from pyramid.errors import ConfigError, DataError, nearest

__all__ = ["body_presets", "read_body"]

_FOLDER = "embodiments"
_COLUMNS = {"state": "observation.state", "action": "action"}


def body_presets() -> list[str]:
    """Returns the names of the shipped declarations, such as ``gr1``."""
    return sorted(path.stem for path in (preset_folder() / _FOLDER).glob("*.yaml"))


def read_body(place: str) -> BodySpec:
    """Reads a declaration.

    Args:
        place: a YAML file, the name of a shipped one, or a `modality.json` or the folder of the data set that has it.

    Raises:
        ConfigError: not there, or it declares no body; the part is named.
        DataError: a `modality.json` that makes none.
    """
    if place.endswith((".yaml", ".yml")):
        return resolve(BodySpec, place)
    if re.fullmatch(r"[a-z0-9_]+", place):
        known = body_presets()
        if place not in known:
            raise ConfigError(
                f"no embodiment '{place}'{nearest(place, known)}; there are {', '.join(known)}; or a file"
            )
        return resolve(BodySpec, f"{_FOLDER}/{place}")
    return _from_modality(place)


def _from_modality(place: str) -> BodySpec:
    """Makes a body of a `modality.json`: kinds are told by names and types, everything is absolute."""
    document, path = find_modality(place)
    videos = document.get("video")
    data = {
        "name": re.sub(r"[^a-z0-9]+", "_", str(place).lower()).strip("_") or "body",
        "cameras": [str(name) for name in videos] if isinstance(videos, Mapping) else [],
        **{what: _parts(read_stretches(document, what, path), what, path) for what in ("state", "action")},
    }
    return from_dict(BodySpec, data, path)


def _parts(stretches: Mapping[str, Stretch], what: str, path: str) -> dict[str, dict[str, Any]]:
    for name, stretch in stretches.items():
        if stretch.column not in ("", _COLUMNS[what]):
            raise DataError(
                f"'{path}', {what} group '{name}' is in the column '{stretch.column}'; only '{_COLUMNS[what]}' is read"
            )
    found: dict[str, dict[str, Any]] = {}
    left = dict(sorted(stretches.items(), key=lambda item: item[1].start))
    while left:
        name, one = next(iter(left.items()))
        del left[name]
        other = left.get(name.removesuffix("position") + "rotation")
        if name.endswith("_position") and other and _is_pose(one, other):
            del left[name.removesuffix("position") + "rotation"]
            pose = {"start": one.start, "end": other.end, "kind": "pose", "rotation": other.rotation}
            found[name.removesuffix("_position")] = pose
            continue
        found[name] = {"start": one.start, "end": one.end, **_kind(name, one)}
    return found


def _is_pose(place: Stretch, turn: Stretch) -> bool:
    """Whether a position has its rotation right behind it: they move as one."""
    beside = place.end - place.start == 3 and turn.start == place.end
    return beside and place.absolute and turn.absolute and bool(turn.rotation)


def _kind(name: str, stretch: Stretch) -> dict[str, str]:
    if stretch.whole:
        return {"kind": "binary"}
    if not stretch.absolute or "velocity" in name or "qvel" in name:
        return {"kind": "change"}
    if stretch.rotation:
        return {"kind": "rotation", "rotation": stretch.rotation}
    words = name.lower().replace("end_effector", "eef").split("_")
    kinds = {"gripper": "gripper", "effector": "gripper", "hand": "hand", "joint": "joints", "position": "position"}
    return {"kind": next((kind for word, kind in kinds.items() if word in words), "joints")}
