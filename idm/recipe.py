"""What a published inverse dynamics model was trained on, read from ``experiment_cfg`` in its folder.

``metadata.json`` holds statistics and modalities per embodiment tag, ``conf.yaml`` the order of the keys, the frames of
a window and the transforms. Nothing of either is run. Facts are those of the public Apache-2.0 code of Isaac-GR00T and
GR00T-Dreams, none of which is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from idm.groups import ActionGroup
from pyramid import files
from pyramid.config import MAX_YAML_BYTES, load_yaml
from pyramid.errors import DataError
from pyramid.normalize import make_normalizer

__all__ = ["SLOTS", "Recipe", "read_recipe"]

SLOTS = {"gr1": 24, "franka": 17, "so100": 26, "robocasa_panda_omron": 13, "new_embodiment": 31}
"""Embodiment tag -> slot of the release."""
_SEQUENCE = 112
"""Length to which the release pads visual tokens."""
_CROP, _RESIZED_PX = 0.95, 224
_MOST = 4096
"""Pixels and tokens past which a configuration is no honest one."""
_ROTATIONS = {
    "rotation_6d": (6, 1.0),
    "quaternion": (4, 1.0),
    "matrix": (9, 1.0),
    "axis_angle": (3, math.pi),
    "euler_angles_rpy": (3, math.pi),
}
"""Rotation that a key is turned into -> its width, and the fixed bound that it is normalised by."""

Plain = Mapping[str, Any]


class Recipe(NamedTuple):
    """How frames and actions were made when a published model was trained."""

    frames: tuple[int, ...]
    """Steps whose frames a window sees."""
    views: int
    """Cameras."""
    rate_hz: float
    """Steps per second."""
    crop: float
    """Share of a picture's side that is kept."""
    resized_px: int
    """Side that pictures were resized to before the tower's own size."""
    sequence: int
    """Tokens, padding included."""
    slots: dict[str, int]
    """Embodiment -> slot."""
    bodies: dict[str, dict[str, Any]]
    """Embodiment -> what `idm.bodies.Body` reads."""


def read_recipe(folder: str, horizon: int) -> Recipe:
    """Reads what a published folder says of its training.

    Args:
        folder: of the model.
        horizon: actions per window; where no ``conf.yaml`` says otherwise, its two frames are the first and that one.

    Raises:
        DataError: a file or an entry is missing or does not fit; it is named.
    """
    path = files.join(folder, "experiment_cfg", "metadata.json")
    if not files.exists(path):
        raise DataError(f"'{folder}' has no experiment_cfg/metadata.json: without statistics its actions have no units")
    document, conf = files.read_json(path), _conf(folder)
    if not isinstance(document, Mapping) or not document:
        raise DataError(f"'{path}' names no embodiment")
    try:
        parts = {str(tag): _one(str(tag), about, conf, horizon) for tag, about in document.items()}
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"'{path}' or conf.yaml beside it lacks or garbles an entry: {error}") from error
    except (ValueError, DataError) as error:
        raise DataError(f"'{path}': {error}") from error
    shapes = sorted({tuple(part[:6]) for part in parts.values()})
    if len(shapes) > 1:
        raise DataError(f"'{path}': its embodiments differ in frames, views, rate or pictures: {shapes}")
    slots: dict[str, int] = {}
    bodies: dict[str, dict[str, Any]] = {}
    for part in parts.values():
        slots |= part.slots
        bodies |= part.bodies
    found = next(iter(parts.values()))
    if not (0 < found.crop <= 1 and 0 < found.resized_px <= _MOST and 0 < found.sequence <= _MOST):
        raise DataError(
            f"'{folder}', conf.yaml: a crop of {found.crop}, pictures of {found.resized_px} px or sequences of "
            f"{found.sequence} tokens are out of range"
        )
    return found._replace(slots=slots, bodies=bodies)


def _conf(folder: str) -> Plain:
    path = files.join(folder, "experiment_cfg", "conf.yaml")
    found = load_yaml(files.read_text(path, max_bytes=MAX_YAML_BYTES), path) if files.exists(path) else {}
    if not isinstance(found, Mapping):
        raise DataError(f"'{path}' is no mapping")
    return found


def _one(tag: str, about: Plain, conf: Plain, horizon: int) -> Recipe:
    name = _data_config(tag, conf)
    modalities = conf["modality_configs"][name] if name else {}
    steps = conf.get("all_transforms", {}).get(name, {}).get("transforms", []) if name else []
    cameras, declared = about["modalities"]["video"], modalities.get("video", {})
    keys = [_bare(key) for key in declared.get("modality_keys") or cameras]
    ours = modalities.get("action", {}).get("modality_keys") or about["statistics"]["action"]
    order = [_bare(key) for key in _said(steps, "action_concat_order") or ours]
    slots = {**SLOTS, **(_said(steps, "embodiment_tag_mapping") or {})}
    if tag not in slots:
        raise DataError(f"the slot of '{tag}' is not known; known: {', '.join(sorted(slots))}")
    return Recipe(
        frames=tuple(int(step) for step in declared.get("delta_indices") or (0, horizon)),
        views=len(keys),
        rate_hz=_rate(cameras, keys[0]),
        crop=float(_said(steps, "scale") or _CROP),
        resized_px=int(_said(steps, "height") or _RESIZED_PX),
        sequence=int(_said(steps, "max_sequence_length") or _SEQUENCE),
        slots={tag: int(slots[tag])},
        bodies={tag: _body(about, order, steps)},
    )


def _rate(cameras: Plain, key: str) -> float:
    if not cameras[key].get("fps"):
        raise DataError(f"camera '{key}' states no fps: without it nobody knows how far apart the model's steps are")
    return float(cameras[key]["fps"])


def _data_config(tag: str, conf: Plain) -> str | None:
    """Returns which of the data configurations is an embodiment's: the only one, or the one whose name begins alike."""
    names = list(conf.get("modality_configs") or {})
    alike = [name for name in names if name == tag] or [name for name in names if name.startswith(tag)]
    found = alike or (names if len(names) == 1 else [])
    if names and len(found) != 1:
        raise DataError(f"which of the configurations {', '.join(names)} of conf.yaml is that of '{tag}'?")
    return found[0] if found else None


def _bare(key: str) -> str:
    return str(key).rpartition(".")[2]


def _said(steps: Sequence[Plain], option: str) -> Any:
    return next((step[option] for step in steps if step.get(option)), None)


def _body(about: Plain, order: Sequence[str], steps: Sequence[Plain]) -> dict[str, Any]:
    """Returns what `idm.bodies.Body` reads of one embodiment."""
    of_actions = [s for s in steps if any(str(k).startswith("action.") for k in s.get("apply_to") or ())]
    modes, targets = (
        {_bare(key): value for key, value in (_said(of_actions, option) or {}).items()}
        for option in ("normalization_modes", "target_rotations")
    )
    columns: dict[str, list[float]] = {name: [] for name in ("center", "scale", "mean", "std", "low", "high")}
    groups: list[ActionGroup] = []
    for key in order:
        start = len(columns["mean"])
        kind, values = _key(about, key, str(modes.get(key, "" if modes else "min_max")), targets.get(key))
        for name, column in columns.items():
            column.extend(float(value) for value in values[name])
        groups.append(ActionGroup(name=key, start=start, end=len(columns["mean"]), kind=kind))
    normalizer = make_normalizer("min_max", np.array(columns["center"]), np.array(columns["scale"]))
    return {
        "action_dim": len(columns["mean"]),
        "state_dim": 0,
        "normaliser": normalizer.to_dict(),
        **{f"action_{name}": columns[name] for name in ("mean", "std", "low", "high")},
        "groups": [group.to_dict() for group in groups],
        "states": None,
        "grid": False,
        "calibrated": False,
    }


def _key(about: Plain, key: str, mode: str, target: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns how one key's values are averaged, and its statistics in the units that labels have."""
    if target:
        if target not in _ROTATIONS:
            raise DataError(f"'{key}' is turned into '{target}'; known rotations: {', '.join(_ROTATIONS)}")
        width, bound = _ROTATIONS[target]
        zero, one = np.zeros(width), np.full(width, bound if mode == "min_max" else 1.0)
        # Statistics are those of the rotation as it is stored: of the turned one only the bounds are known.
        return target, {"center": zero, "scale": one, "mean": zero, "std": one, "low": -one, "high": one}
    told = about["statistics"]["action"][key]
    values = {name: np.asarray(told[name], np.float64).ravel() for name in ("min", "max", "mean", "std", "q01", "q99")}
    widths = {len(column) for column in values.values()}
    if len(widths) != 1 or not all(np.isfinite(column).all() for column in values.values()):
        raise DataError(f"the statistics of action '{key}' are not finite numbers of one length")
    width = widths.pop()
    declared = about["modalities"]["action"].get(key, {})
    if declared.get("shape") and int(declared["shape"][0]) != width:
        raise DataError(
            f"action '{key}' has {declared['shape'][0]} dimensions, its statistics have {width}: "
            "they are those of another robot"
        )
    center, scale = _range(mode, values, key)
    kind = "binary" if mode == "binary" else declared.get("rotation_type") or "linear"
    kind = kind if kind in ("linear", "binary") or width == _ROTATIONS.get(kind, (0,))[0] else "linear"
    rest = {"mean": values["mean"], "std": values["std"], "low": values["min"], "high": values["max"]}
    return kind, {"center": center, "scale": scale, **rest}


def _range(mode: str, values: Mapping[str, np.ndarray], key: str) -> tuple[np.ndarray, np.ndarray]:
    if mode in ("min_max", "q99"):
        low, high = (values[name] for name in (("min", "max") if mode == "min_max" else ("q01", "q99")))
        return (low + high) / 2, (high - low) / 2
    if mode == "mean_std":
        return values["mean"], values["std"]
    if mode in ("", "binary"):
        return np.zeros_like(values["mean"]), np.ones_like(values["mean"])
    raise DataError(f"action '{key}' is normalised by '{mode}'; known: min_max, q99, mean_std, binary")
