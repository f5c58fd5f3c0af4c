"""What a GR00T N1.7 checkpoint says of its embodiments, in three JSON files beside its weights.

Facts are those of the public Apache-2.0 code of N1.7; no code of it is used. There, a group between its bounds is
mapped to [-1, 1] and limited both ways; bounds are the least and greatest value, or 1 % and 99 % quantiles; actions
less the state have bounds of their own for each step of a chunk, never quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyramid import files
from pyramid.errors import DataError
from pyramid.types import Embodiment
from vla.gr00t_body import Array, Group, Tag, UnreadableTagError, bounds, build_body, spread, subset
from vla.processor import BodyStatistics

__all__ = ["SLOTS", "read_processor"]

CONFIG_FILE, STATISTICS_FILE, SLOTS_FILE = "processor_config.json", "statistics.json", "embodiment_id.json"
SLOTS = {
    "simpler_env_google": 0,
    "simpler_env_widowx": 1,
    "libero_sim": 2,
    "new_embodiment": 10,
    "robocasa_panda_omron": 10,
    "robocasa_gr1_tabletop": 10,
    "unitree_g1_sonic": 11,
    "oxe_droid_relative_eef_relative_joint": 24,
    "real_g1_relative_eef_relative_joints": 25,
    "unitree_g1_full_body_with_waist_height_nav_cmd": 25,
    "real_r1_pro_sharpa_relative_eef": 26,
    "real_r1_pro_sharpa_relative_eef_human": 26,
    "real_r1_pro_sharpa_relative_eef_maxinsights": 26,
    "real_r1_pro_sharpa_relative_eef_mecka": 26,
    "xdof_relative_eef_relative_joint": 27,
    "xdof_relative_eef_relative_joint_subtask": 27,
}
"""Slots of tags in the release, for those that a checkpoint's own table does not have."""
_KNOWN = {"delta_indices", "modality_keys", "sin_cos_embedding_keys", "mean_std_embedding_keys", "action_configs"}
_MOST_STEPS = 100_000
_REPS, _TYPES = ("RELATIVE", "DELTA", "ABSOLUTE"), ("EEF", "NON_EEF")
_FORMATS = ("DEFAULT", "XYZ_ROT6D", "XYZ_ROTVEC")


@dataclass(frozen=True, kw_only=True)
class _Options:
    """What holds for all tags of a checkpoint."""

    percentiles: bool
    clip: bool
    sin_cos: bool
    relative: bool
    odd: str
    """What is asked for and not read here; empty for nothing."""


def read_processor(folder: str, slot: Embodiment, n_slots: int, state_history: int) -> dict[str, Tag]:
    """Reads the embodiments of a checkpoint by tag; none where it has no such files.

    Args:
        folder: downloaded checkpoint.
        slot: sizes of its slots.
        n_slots: how many there are.
        state_history: states that its head takes.

    Raises:
        DataError: a file is missing beside the others, damaged, or contradicts itself; tag and group are named.
    """
    paths = {name: files.join(folder, name) for name in (CONFIG_FILE, STATISTICS_FILE, SLOTS_FILE)}
    there = {name for name, path in paths.items() if files.exists(path)}
    if not there & {CONFIG_FILE, STATISTICS_FILE}:
        return {}
    if not {CONFIG_FILE, STATISTICS_FILE} <= there:
        missing = min({CONFIG_FILE, STATISTICS_FILE} - there)
        raise DataError(f"'{folder}' is not complete: {missing} is missing; download it again")
    kwargs = _map(_map(files.read_json(paths[CONFIG_FILE]), CONFIG_FILE).get("processor_kwargs"), "processor_kwargs")
    statistics = _map(files.read_json(paths[STATISTICS_FILE]), STATISTICS_FILE)
    own = _map(files.read_json(paths[SLOTS_FILE]), SLOTS_FILE) if SLOTS_FILE in there else {}
    configs, options = _map(kwargs.get("modality_configs"), "modality_configs"), _options(kwargs)
    found = {}
    for tag in sorted(set(configs) & set(statistics)):
        index = {**SLOTS, **own}.get(tag)
        if index is not None and (type(index) is not int or not 0 <= index < n_slots):
            raise DataError(f"tag '{tag}': {SLOTS_FILE} gives it the slot {index!r}, there are 0 to {n_slots - 1}")
        try:
            if index is None or options.odd:
                raise UnreadableTagError(
                    "no slot is known for it" if index is None else f"{options.odd} is not read here"
                )
            facts = (_map(configs[tag], f"tag '{tag}'"), _map(statistics[tag], f"tag '{tag}', statistics"))
            found[tag] = Tag(index=index, body=_body(tag, facts, options, slot, state_history))
        except UnreadableTagError as error:
            found[tag] = Tag(index=-1, body=None, why=f"tag '{tag}': {error}")
    return found


def _options(kwargs: Mapping[str, Any]) -> _Options:
    odd = [name for name in ("use_tactile", "exclude_state", "use_mean_std") if _flag(kwargs, name, False)]
    return _Options(
        percentiles=_flag(kwargs, "use_percentiles", False),
        clip=_flag(kwargs, "clip_outliers", True),
        sin_cos=_flag(kwargs, "apply_sincos_state_encoding", False),
        relative=_flag(kwargs, "use_relative_action", False),
        odd=odd[0] if odd else "",
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Groups of one kind of one tag."""

    tag: str
    what: str
    config: Mapping[str, Any]
    table: Mapping[str, Any]
    options: _Options
    steps: int = 0
    """Steps that statistics may have each for itself; 0 for none."""

    def where(self, key: str) -> str:
        """Names a group."""
        return f"tag '{self.tag}', {self.what} '{key}'"

    def entry(self, key: str) -> Mapping[str, Any]:
        """Returns the statistics of a group."""
        if key not in self.table:
            raise DataError(f"{self.where(key)} has no statistics")
        return _map(self.table[key], self.where(key))

    def listed(self, key: str, name: str) -> bool:
        """Whether a group stands in a list of the configuration."""
        return key in subset(self.config.get(name) or [], f"tag '{self.tag}', {self.what}: {name}", str, least=0)

    def scaling(self, key: str) -> tuple[str, Array, Array]:
        """Returns rule, center and scale of a group."""
        where, entry = self.where(key), self.entry(key)
        if self.listed(key, "mean_std_embedding_keys"):
            return "mean_std", *spread(entry, where, steps=self.steps)
        names = ("q01", "q99") if self.options.percentiles and not self.steps else ("min", "max")
        center, scale = bounds(entry, names, where, steps=self.steps)
        still = np.isclose(center + scale, center - scale)
        return "min_max", center, np.where(still, 0.0, scale)


def _body(
    tag: str,
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    options: _Options,
    slot: Embodiment,
    state_history: int,
) -> BodyStatistics:
    config, statistics = facts
    parts = {
        what: _Part(
            tag=tag,
            what=what,
            config=_map(config.get(what), f"tag '{tag}', {what}"),
            table=_map(statistics.get(what), f"tag '{tag}', statistics of {what}"),
            options=options,
        )
        for what in ("state", "action")
    }
    for what, part in parts.items():
        strange = [key for key in sorted(set(part.config) - _KNOWN) if part.config[key]]
        if strange:
            raise UnreadableTagError(f"{what} has '{strange[0][:80]}', which is not known here")
    keys = {
        what: subset(part.config.get("modality_keys"), f"tag '{tag}', {what} keys", str) for what, part in parts.items()
    }
    steps = {
        what: subset(part.config.get("delta_indices"), f"tag '{tag}', {what} delta_indices", int)
        for what, part in parts.items()
    }
    history = _history(tag, steps["state"], state_history)
    horizon = len(steps["action"])
    if steps["action"] != list(range(horizon)):
        raise UnreadableTagError(f"its actions are of the steps {steps['action'][:4]}.., not of the next ones in turn")
    chosen = _relative(parts["action"], keys)
    poses = {state for state, pose in chosen.values() if pose}
    states = [_state(parts["state"], key, pose=key in poses) for key in keys["state"]]
    table = _map(statistics.get("relative_action", {}), f"tag '{tag}', relative_action")
    moving = replace(parts["action"], what="relative action", table=table, steps=horizon)
    actions = [_action(parts["action"], key, moving, chosen.get(key)) for key in keys["action"]]
    return build_body(tag, states, actions, slot=slot, horizon=horizon, **history)


def _history(tag: str, steps: list[int], state_history: int) -> dict[str, Any]:
    """Returns how many states are given, one step being one second, since rates are in no file."""
    gap = steps[-1] - steps[-2] if len(steps) > 1 else 0
    if any(abs(step) > _MOST_STEPS for step in steps):
        raise DataError(f"tag '{tag}': state delta_indices go beyond {_MOST_STEPS} steps")
    if len(steps) != state_history or steps != [gap * (k + 1 - len(steps)) for k in range(len(steps))] or gap < 0:
        raise UnreadableTagError(
            f"its states are of the steps {steps[:4]}, the head takes {state_history}, evenly apart"
        )
    if len(steps) > 1 and gap == 0:
        raise DataError(f"tag '{tag}': state delta_indices {steps} name one step twice")
    return {"state_history": len(steps), "state_gap_s": float(gap)}


def _relative(part: _Part, keys: Mapping[str, list[str]]) -> dict[str, tuple[str, bool]]:
    """Returns by action group what it is taken less, and whether that is a pose; others are as they are."""
    configs = part.config.get("action_configs")
    if configs is None:
        return {}
    if len(subset(configs, f"tag '{part.tag}', action_configs", dict)) != len(keys["action"]):
        raise DataError(f"tag '{part.tag}': {len(configs)} action_configs for {len(keys['action'])} action keys")
    found = {}
    for key, config in zip(keys["action"], configs, strict=True):
        where = part.where(key)
        rep, kind = _name(config, "rep", _REPS, where), _name(config, "type", _TYPES, where)
        form, state = _name(config, "format", _FORMATS, where), config.get("state_key") or key
        if rep != "RELATIVE" or not part.options.relative:
            continue  # Differences on disk are differences to the network, too.
        if kind == "EEF" and form != "XYZ_ROT6D":
            raise UnreadableTagError(f"action '{key}' is a pose in the format {form}; XYZ_ROT6D alone is read")
        if not isinstance(state, str) or state not in keys["state"]:
            raise DataError(f"{where} is taken less the state '{str(state)[:80]}', which there is none of")
        found[key] = (state, kind == "EEF")
    return found


def _state(part: _Part, key: str, *, pose: bool) -> Group:
    rule, center, scale = part.scaling(key)
    if part.options.sin_cos and part.listed(key, "sin_cos_embedding_keys"):
        if pose:
            raise UnreadableTagError(f"state '{key}' is a pose given as sines and cosines")
        n = 2 * len(center)
        return Group(name=key, width=len(center), rule="sin_cos", center=np.zeros(n), scale=np.ones(n))
    return _group(part, key, (rule, center, scale), pose=pose, clip=rule == "min_max" and part.options.clip)


def _action(part: _Part, key: str, moving: _Part, origin: tuple[str, bool] | None) -> Group:
    rule, center, scale = part.scaling(key)
    flags = {"clip": part.options.clip, "bounded": rule == "min_max"}
    if origin is None:
        return _group(part, key, (rule, center, scale), **flags)
    by_step, (state, pose) = moving.scaling(key), origin
    if by_step[1].shape[-1] != len(center):
        raise DataError(f"{moving.where(key)} has {by_step[1].shape[-1]} numbers, the action {len(center)}")
    return _group(moving, key, by_step, pose=pose, relative_to=state, **flags)


def _group(part: _Part, key: str, scaling: tuple[str, Array, Array], *, pose: bool = False, **options: Any) -> Group:
    rule, center, scale = scaling
    width = center.shape[-1]
    if pose and width != 9:
        raise DataError(f"{part.where(key)} is a position and two rows of a rotation, 9 numbers, but has {width}")
    told: dict[str, Any] = {"rule": "pose", "rotation": "rotation_6d"} if pose else {"rule": rule}
    return Group(name=key, width=width, center=center, scale=scale, **told, **options)


def _name(config: Mapping[str, Any], name: str, known: tuple[str, ...], where: str) -> str:
    value = str(config.get(name)).upper().replace("+", "_")
    if value not in known:
        raise DataError(f"{where}: {name} is '{str(config.get(name))[:80]}', known are {', '.join(known)}")
    return value


def _flag(kwargs: Mapping[str, Any], name: str, default: bool) -> bool:
    value = kwargs.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise DataError(f"{CONFIG_FILE}: {name} must be true or false, got {str(value)[:80]}")
    return default if value is None else value


def _map(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a map of names, got {type(value).__name__}")
    return value
