"""What a GR00T N1 or N1.5 checkpoint says of its embodiments: statistics by group in `experiment_cfg/metadata.json`.

Which groups a network was given, in which order and scaled how is not in the folder but in the code that trained it: a
`Layout` says it. Those here are facts of the public Apache-2.0 code; no code of it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.types import Embodiment
from vla.gr00t_body import Array, Group, Tag, UnreadableTagError, bounds, build_body, numbers, spread

__all__ = ["LAYOUTS", "SLOTS", "Layout", "read_metadata"]

METADATA_FILE = "experiment_cfg/metadata.json"
Mode = Literal["min_max", "q99", "mean_std", "binary", "sin_cos", "rotation_6d", "none"]
SLOTS = {
    "n1": {"gr1": 24, "new_embodiment": 31},
    "n1_5": {"oxe_droid": 17, "gr1": 24, "agibot_genie1": 26, "new_embodiment": 31},
}
"""Slots of tags in each release."""
_STATISTICS = ("min", "max", "mean", "std", "q01", "q99")
_TURNS = ("quaternion", "axis_angle", "matrix")
"""Writings of rotations that mean the same here and there."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which groups a network was given, in its order, and how each was scaled.

    Modes: ``min_max`` and ``q99`` map bounds to [-1, 1] (``q99`` limits to it), ``mean_std``, ``binary`` is 1 above one
    half and else 0, ``sin_cos`` gives sines and cosines (of states), ``rotation_6d`` rotations in 6D, ``none`` the
    numbers.
    """

    state: dict[str, Mode]
    """Mode by group of the state."""
    action: dict[str, Mode]
    """Mode by group of the action."""

    def __post_init__(self) -> None:
        """Refuses modes that are none."""
        for name, groups in (("state", self.state), ("action", self.action)):
            for key, mode in groups.items():
                if mode not in get_args(Mode) or (name, mode) == ("action", "sin_cos"):
                    raise ConfigError(f"{name} '{key}': '{mode}' is no mode here; known: {', '.join(get_args(Mode))}")


_ARMS = ("left_arm", "right_arm", "left_hand", "right_hand")
_GENIE = (
    "left_arm_joint_position",
    "right_arm_joint_position",
    "left_effector_position",
    "right_effector_position",
    "head_position",
    "waist_position",
)
LAYOUTS = {
    "fourier_gr1_arms_only": Layout(state=dict.fromkeys(_ARMS, "sin_cos"), action=dict.fromkeys(_ARMS, "min_max")),
    "fourier_gr1_arms_waist": Layout(
        state=dict.fromkeys((*_ARMS, "waist"), "sin_cos"), action=dict.fromkeys((*_ARMS, "waist"), "min_max")
    ),
    "so100": Layout(
        state=dict.fromkeys(("single_arm", "gripper"), "min_max"),
        action=dict.fromkeys(("single_arm", "gripper"), "min_max"),
    ),
    "agibot_genie1": Layout(
        state=dict.fromkeys(_GENIE, "min_max"), action=dict.fromkeys((*_GENIE, "robot_velocity"), "min_max")
    ),
}
"""Layouts of the releases by their names there. Which of them a checkpoint was trained with, its publisher says."""


def read_metadata(
    folder: str, version: str, slot: Embodiment, n_slots: int, layouts: Mapping[str, Layout]
) -> dict[str, Tag]:
    """Reads the embodiments of a checkpoint by tag; none where it has no such file.

    Args:
        folder: downloaded checkpoint.
        version: ``n1`` or ``n1_5``.
        slot: sizes of its slots.
        n_slots: how many there are.
        layouts: by tag.

    Raises:
        DataError: the file is damaged or contradicts itself or a layout; tag and group are named.
    """
    path = files.join(folder, METADATA_FILE)
    if not files.exists(path):
        return {}
    found = {}
    for tag, facts in _map(files.read_json(path), f"'{path}'").items():
        known = _map(facts, f"tag '{tag}'")
        if known.get("embodiment_tag", tag) != tag:
            raise DataError(f"tag '{tag}' calls itself '{str(known['embodiment_tag'])[:80]}'")
        index = SLOTS[version].get(tag)
        if index is None or index >= n_slots:
            why = f"tag '{tag}': no slot is known for it"
            found[tag] = Tag(index=-1, body=None, why=why)
            continue
        if tag not in layouts:
            why = f"tag '{tag}': the folder does not say which groups it was given, nor how scaled: give a layout"
            found[tag] = Tag(index=index, body=None, why=why)
            continue
        try:
            body = _body(tag, known, layouts[tag], slot)
            found[tag] = Tag(index=index, body=body)
        except UnreadableTagError as error:
            found[tag] = Tag(index=index, body=None, why=f"tag '{tag}': {error}")
    return found


def _body(tag: str, facts: Mapping[str, Any], layout: Layout, slot: Embodiment) -> Any:
    statistics = _map(facts.get("statistics"), f"tag '{tag}', statistics")
    modalities = _map(facts.get("modalities"), f"tag '{tag}', modalities")
    groups = {}
    for part, modes in (("state", layout.state), ("action", layout.action)):
        tables = [_map(of.get(part), f"tag '{tag}', {part}") for of in (statistics, modalities)]
        groups[part] = [_group(f"tag '{tag}', {part} '{key}'", key, mode, *tables) for key, mode in modes.items()]
    rate = _rate_hz(modalities.get("video"))
    return build_body(tag, groups["state"], groups["action"], slot=slot, horizon=slot.horizon, rate_hz=rate)


def _group(where: str, key: str, mode: Mode, statistics: Mapping[str, Any], modalities: Mapping[str, Any]) -> Group:
    for what, table in (("statistics", statistics), ("modalities", modalities)):
        if key not in table:
            raise DataError(f"{where} of the layout has no {what}; there are {', '.join(sorted(table))[:200]}")
    entry, facts = _map(statistics[key], where), _map(modalities[key], where)
    sizes = {name: len(numbers(entry, name, where)) for name in _STATISTICS}
    width = sizes["min"]
    if set(sizes.values()) != {width} or facts.get("shape") != [width]:
        raise DataError(f"{where} contradicts itself: statistics of {sizes}, shape {str(facts.get('shape'))[:80]}")
    one = {"name": key, "width": width}
    if mode == "rotation_6d":
        turn = str(facts.get("rotation_type"))
        if turn not in _TURNS:
            raise UnreadableTagError(f"'{key}' writes its rotation as {turn[:80]}; read are {', '.join(_TURNS)}")
        return Group(**one, rule="rotation", rotation=turn, center=np.zeros(6), scale=np.ones(6))  # type: ignore[arg-type]
    if mode in ("none", "binary", "sin_cos"):
        n = width * (2 if mode == "sin_cos" else 1)
        rule = {"none": "identity", "binary": "half", "sin_cos": "sin_cos"}[mode]
        return Group(**one, rule=rule, center=np.zeros(n), scale=np.ones(n))  # type: ignore[arg-type]
    center, scale = _scaling(mode, entry, where)
    rule = "mean_std" if mode == "mean_std" else "min_max"
    return Group(**one, rule=rule, center=center, scale=scale, clip=mode == "q99")  # type: ignore[arg-type]


def _scaling(mode: Mode, entry: Mapping[str, Any], where: str) -> tuple[Array, Array]:
    both = {names: bounds(entry, names, where) for names in (("min", "max"), ("q01", "q99"))}
    if mode == "mean_std":
        return spread(entry, where)
    return both["q01", "q99"] if mode == "q99" else both["min", "max"]


def _rate_hz(video: Any) -> float:
    """Returns the rate of the pictures, if all cameras have one and the same, else 1."""
    rates = (
        {facts.get("fps") for facts in video.values() if isinstance(facts, dict)} if isinstance(video, dict) else set()
    )
    rate = rates.pop() if len(rates) == 1 else None
    known = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 10_000
    return float(rate) if known and rate is not None else 1.0


def _map(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a map of names, got {type(value).__name__}")
    return value
