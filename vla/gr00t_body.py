"""Bodies of published GR00T checkpoints: groups of numbers with their statistics, joined into a declared body.

Where the groups stand in a checkpoint's files is left to `vla.gr00t_processor` (N1.7) and `vla.gr00t_metadata` (N1,
N1.5). Numbers of a state and of an action come in the order of the checkpoint's groups, one group after the other.

Shapes: W numbers of a group, E encoded ones, T chunk steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyramid.actions import ActionPart, BodySpec, StatePart
from pyramid.errors import ConfigError, DataError
from pyramid.normalize import Normalizer
from pyramid.types import NAME_PATTERN, Embodiment
from vla.processor import BodyStatistics

__all__ = ["Group", "Tag", "UnreadableTagError", "bounds", "build_body", "numbers", "spread", "subset"]

Array = NDArray[np.float64]
_MOST = 4096
"""Numbers of a group, above which a file is not believed."""


class UnreadableTagError(ConfigError):
    """A tag whose numbers are written in a way that is not read here; its slot can be had with normalised numbers."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group of a state or an action: what a network is given is ``(encoded - center) / scale``."""

    name: str
    """The checkpoint's key."""
    width: int
    """W, numbers on the robot's side."""
    rule: Literal["min_max", "mean_std", "identity", "half", "sin_cos", "rotation", "pose"]
    """How they are given to the network: scaled, as they are, 1 above one half and else 0, as sines and cosines, as a
    rotation in 6D, or as a position with a rotation in 6D."""
    center: Array
    """float64 [E], or by chunk step [T, E]."""
    scale: Array
    """The same shape; 0 for numbers that do not change."""
    clip: bool = False
    """Whether they are limited to [-1, 1] for the network."""
    bounded: bool = False
    """Whether the network's are limited to [-1, 1] on the way back."""
    rotation: str = ""
    """How the robot writes a rotation."""
    relative_to: str = ""
    """Of an action: the group of the state that it is taken less; empty: as it is."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """What a checkpoint says of one embodiment."""

    index: int
    """Its slot."""
    body: BodyStatistics | None
    """With normalisers, physical units outside; None where `why` says what stands against it."""
    why: str = ""
    """Why there is none."""


def build_body(
    tag: str,
    states: Sequence[Group],
    actions: Sequence[Group],
    *,
    slot: Embodiment,
    horizon: int,
    rate_hz: float = 1.0,
    state_history: int = 1,
    state_gap_s: float = 0.0,
) -> BodyStatistics:
    """Joins groups, in the checkpoint's order, into a body that is padded to its slot.

    Args:
        tag: the embodiment's name.
        states: groups of the state.
        actions: groups of the action.
        slot: sizes of the checkpoint's slots.
        horizon: steps that the tag's chunks have.
        rate_hz: steps per second; 1 where the checkpoint does not say.
        state_history: states that are given at a time.
        state_gap_s: seconds between them.

    Raises:
        DataError: it does not fit the slot, or names that are none.
    """
    if not NAME_PATTERN.fullmatch(tag):
        raise DataError(f"'{tag[:80]}' is no name of an embodiment: use a-z, 0-9 and _")
    if horizon > slot.horizon:
        raise DataError(f"tag '{tag}': chunks of {horizon} steps, the checkpoint's have {slot.horizon}")
    for what, groups, most in (("state", states, slot.state_dim), ("action", actions, slot.action_dim)):
        width = sum(group.center.shape[-1] for group in groups)
        if not 1 <= width <= most:
            raise DataError(f"tag '{tag}': its {what} has {width} encoded dimensions, the checkpoint's slots {most}")
    try:
        spec = BodySpec(name=tag, state=_parts(StatePart, states), action=_parts(ActionPart, actions))
    except ValueError as error:
        raise DataError(f"tag '{tag}': {error}") from error
    body = Embodiment(
        name=tag,
        state_dim=spec.state_dim,
        action_dim=spec.action_dim,
        horizon=horizon,
        rate_hz=rate_hz,
        declaration=spec,
        state_history=state_history,
        state_gap_s=state_gap_s,
        padded=(slot.state_dim, slot.action_dim, slot.horizon),
    )
    return BodyStatistics(body, _joined(states), _joined(actions, horizon))


def _parts(kind: Any, groups: Sequence[Group]) -> dict[str, Any]:
    found, at = {}, 0
    for group in groups:
        options: dict[str, Any] = {"start": at, "end": at + group.width}
        if group.rule in ("rotation", "pose"):
            options |= {"kind": group.rule, "rotation": group.rotation}
        elif group.rule == "half":
            options |= {"kind": "binary"}
        else:
            options |= {"normalizer": group.rule}
        if group.relative_to:
            options |= {"representation": "relative", "state": group.relative_to}
        found[group.name], at = kind(**options), at + group.width
    return found


def _joined(groups: Sequence[Group], horizon: int = 1) -> Normalizer:
    """Puts the groups' numbers side by side: [E], or [T, E] where some are by step."""
    steps = horizon if any(group.center.ndim == 2 for group in groups) else 0
    each = [group for group in groups for _ in range(group.center.shape[-1])]

    def side(name: str) -> NDArray[np.float32]:
        parts = [getattr(group, name) for group in groups]
        wide = [np.broadcast_to(p, (steps, p.shape[-1])) if steps else p for p in parts]
        return np.concatenate(wide, -1).astype(np.float32)

    return Normalizer(
        "mixed",
        side("center"),
        side("scale"),
        clip=tuple(group.clip for group in each),
        bounded=tuple(group.bounded for group in each),
        halves=tuple(d for d, group in enumerate(each) if group.rule == "half"),
    )


def numbers(entry: Mapping[str, Any], name: str, where: str, *, steps: int = 0) -> Array:
    """Returns one statistic as float64 [W], or by chunk step [T, W].

    Args:
        entry: statistics of a group.
        name: such as ``q01``.
        where: the group, for messages.
        steps: T that a statistic by step has; 0 takes none.

    Raises:
        DataError: it is missing, of another shape, or holds what are no finite numbers.
    """
    if name not in entry:
        raise DataError(f"{where} has no {name}")
    try:
        values = np.asarray(entry[name])
    except ValueError as error:
        raise DataError(f"{where}: {name} is no list of numbers: {error}") from error
    shaped = values.ndim == 1 or (values.ndim == 2 and steps and len(values) == steps)
    if values.dtype.kind not in "fiu" or not shaped or not 1 <= values.shape[-1] <= _MOST:
        want = f"[1 .. {_MOST}]" + (f" or [{steps}, 1 .. {_MOST}]" if steps else "")
        raise DataError(f"{where}: {name} must be numbers {want}, got {values.dtype} {list(values.shape)}")
    with np.errstate(over="ignore"):
        if not np.isfinite(values.astype(np.float32)).all():
            raise DataError(f"{where}: {name} has values that are no finite numbers")
    return values.astype(np.float64)


def bounds(entry: Mapping[str, Any], names: tuple[str, str], where: str, *, steps: int = 0) -> tuple[Array, Array]:
    """Returns center and scale of what maps two statistics to -1 and 1; see `numbers`.

    Raises:
        DataError: also where the lower one is above the upper one.
    """
    low, high = (numbers(entry, name, where, steps=steps) for name in names)
    if low.shape != high.shape or (low > high).any():
        told = f"{names[0]} {list(low.shape)} above {names[1]} {list(high.shape)}"
        raise DataError(f"{where} contradicts itself: {told}, or of another size")
    return (low + high) / 2, (high - low) / 2


def spread(entry: Mapping[str, Any], where: str, *, steps: int = 0) -> tuple[Array, Array]:
    """Returns center and scale of ``mean`` and ``std``; what has no spread is given as it is.

    Raises:
        DataError: see `numbers`; a deviation below 0, or as many as there are means not.
    """
    mean, std = (numbers(entry, name, where, steps=steps) for name in ("mean", "std"))
    if mean.shape != std.shape or (std < 0).any():
        raise DataError(f"{where} contradicts itself: mean {list(mean.shape)}, std {list(std.shape)} or below 0")
    return np.where(std == 0, 0.0, mean), np.where(std == 0, 1.0, std)


def subset(values: Any, where: str, kind: type | tuple[type, ...], *, least: int = 1) -> list[Any]:
    """Returns a list whose items are of a kind (a truth value is no number) and, of texts, each there once.

    Raises:
        DataError: it is none.
    """
    fits = isinstance(values, list) and least <= len(values) <= _MOST
    if not fits or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise DataError(f"{where} must be a list of {least} .. {_MOST} items, got {str(values)[:80]}")
    if any(isinstance(v, float) and not math.isfinite(v) for v in values):
        raise DataError(f"{where} has numbers that are not finite")
    if kind is str and len(set(values)) != len(values):
        raise DataError(f"{where} names something twice")
    return list(values)
