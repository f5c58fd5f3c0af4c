"""The declaration of a body: which of its numbers belong together, what they are, and how a network is given them.

Reading one from a file is left to `pyramid.actions.read`, the arithmetic to `pyramid.actions.chunks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pyramid.actions.rotations import WIDTHS
from pyramid.errors import ConfigError, nearest

__all__ = ["ActionPart", "BodySpec", "Part", "PartKind", "Representation", "StatePart"]

PartKind = Literal["joints", "position", "rotation", "pose", "hand", "gripper", "binary", "change"]
Representation = Literal["absolute", "delta", "relative"]
Rule = Literal["", "q01_q99", "min_max", "mean_std", "identity", "binary"]
_TURNING = ("rotation", "pose")
_MOVING = ("joints", "position", "rotation", "pose")
"""Kinds that `BodySpec.with_actions` rewrites; fingers, grippers, switches and changes stay as they are."""
_FIXED = ("gripper", "binary", "change")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Dimensions of the state or the action that belong together."""

    start: int
    """First dimension."""
    end: int
    """One past the last dimension."""
    kind: PartKind = "joints"
    """What they are. ``pose`` is a position of three numbers, then a rotation; ``change`` is a velocity, or a
    difference already on disk; ``binary`` is on or off."""
    rotation: str = ""
    """How a rotation or pose writes its rotation, such as ``quaternion``; see `pyramid.actions.rotations`."""
    period: float = 0.0
    """Of angles that go round: 6.283185 (radians) or 360 (degrees); differences go the short way. 0 for others."""

    def __post_init__(self) -> None:
        """Refuses stretches, rotations and periods that are none."""
        if not 0 <= self.start < self.end:
            raise ValueError(f"a part spans start < end, got {self.start}..{self.end}")
        if (self.kind in _TURNING) != bool(self.rotation):
            raise ValueError(f"kind: {self.kind} goes {'with' if self.kind in _TURNING else 'without'} a rotation")
        if self.rotation:
            if self.rotation not in WIDTHS:
                known = f"known: {', '.join(WIDTHS)}"
                raise ValueError(f"unknown rotation type '{self.rotation}'{nearest(self.rotation, WIDTHS)}; {known}")
            want = WIDTHS[self.rotation] + 3 * (self.kind == "pose")
            if self.width != want:
                raise ValueError(f"a {self.kind} with {self.rotation} has {want} dimensions, not {self.width}")
        if not 0 <= self.period < math.inf or (self.period and self.kind != "joints"):
            raise ValueError(f"period {self.period:g} is for joints, and at least 0")

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return self.end - self.start

    @property
    def span(self) -> slice:
        """Its dimensions."""
        return slice(self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class StatePart(Part):
    """A part of the state."""

    normalizer: Literal[Rule, "sin_cos"] = ""
    """How values are scaled; ``sin_cos`` gives the network sine and cosine of angles in radians. Empty: ``binary`` for
    switches, ``q01_q99`` for others. Rotations are given as 6D and are not scaled."""

    def __post_init__(self) -> None:
        """Also refuses normalisers that do not go with the kind."""
        super().__post_init__()
        _check_rule(self.kind, self.normalizer)


@dataclass(frozen=True, kw_only=True)
class ActionPart(Part):
    """A part of the action."""

    normalizer: Rule = ""
    """How values are scaled; empty: ``binary`` for switches, ``q01_q99`` for others. Absolute rotations are given as 6D
    and are not scaled."""
    representation: Representation = "absolute"
    """What the network is taught: the values; ``delta``, each step less the one before; or ``relative``, each step less
    the state at the chunk's start (a pose: in the frame of that state)."""
    state: str = ""
    """Part of the state that delta and relative begin from; empty: the one of the same name."""

    def __post_init__(self) -> None:
        """Also refuses representations that do not go with the kind."""
        super().__post_init__()
        _check_rule(self.kind, self.normalizer)
        if self.kind in _FIXED and self.representation != "absolute":
            raise ValueError(f"kind: {self.kind} is always absolute, not {self.representation}")


@dataclass(frozen=True, kw_only=True)
class BodySpec:
    """A body, as its data set writes it."""

    name: str
    """``[a-z0-9_]+``; what messages call it."""
    action: dict[str, ActionPart]
    """Parts of the action by name; together they cover every dimension once."""
    state: dict[str, StatePart] = field(default_factory=dict)
    """Parts of the state by name; together they cover every dimension once. Empty without proprioception."""
    rate_hz: float = 0.0
    """Steps per second of the data; 0 leaves it unchecked."""
    cameras: list[str] = field(default_factory=list)
    """Names of the cameras in the order of a policy's views; a policy with fewer views takes the first."""

    def __post_init__(self) -> None:
        """Refuses parts that overlap, leave gaps, or have no state to begin from."""
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"the name '{self.name}' of a body: use a-z, 0-9 and _")
        if not 0 <= self.rate_hz < math.inf:
            raise ValueError(f"rate_hz must be at least 0, got {self.rate_hz}")
        if not self.action:
            raise ValueError("a body needs at least one part of the action")
        _check_cover("state", self.state)
        _check_cover("action", self.action)
        for name, part in self.action.items():
            if part.representation != "absolute" or part.state:
                self._check_origin(name, part)

    def _check_origin(self, name: str, part: ActionPart) -> None:
        origin = self.state.get(part.state or name)
        if origin is None:
            known = f"the state has {', '.join(self.state) or 'no parts'}"
            raise ValueError(
                f"action part '{name}': {part.representation} needs the state, and there is no state part "
                f"'{part.state or name}'{nearest(part.state or name, list(self.state))}; {known}; name one with state:"
            )
        turning = part.kind in _TURNING or origin.kind in _TURNING
        if (origin.kind != part.kind) if turning else (origin.width != part.width):
            raise ValueError(
                f"action part '{name}' ({part.kind}, {part.width} dimensions) cannot begin from the state part "
                f"'{part.state or name}' ({origin.kind}, {origin.width} dimensions)"
            )

    @property
    def action_dim(self) -> int:
        """Dimensions of the action on disk."""
        return max(part.end for part in self.action.values())

    @property
    def state_dim(self) -> int:
        """Dimensions of the state on disk."""
        return max((part.end for part in self.state.values()), default=0)

    @property
    def needs_state(self) -> bool:
        """Whether actions cannot be written or read without the state."""
        return any(part.representation != "absolute" for part in self.action.values())

    def with_actions(self, representation: Representation) -> BodySpec:
        """Returns the body with another representation of joints, positions, rotations and poses.

        Raises:
            ConfigError: a part has no state to begin from.
        """
        action = {
            name: replace(part, representation=representation) if part.kind in _MOVING else part
            for name, part in self.action.items()
        }
        try:
            return replace(self, action=action)
        except ValueError as error:
            raise ConfigError(f"embodiment '{self.name}', actions: {representation}: {error}") from error


def _check_rule(kind: str, rule: str) -> None:
    if rule == "sin_cos" and kind != "joints":
        raise ValueError(f"normalizer: sin_cos is for joints, not for kind: {kind}")
    if (rule == "binary") != (kind == "binary") and rule:
        raise ValueError(f"normalizer: {rule} does not go with kind: {kind}; binary goes with binary")


def _check_cover(what: str, parts: Mapping[str, Part]) -> None:
    at, before = 0, ""
    for name, part in sorted(parts.items(), key=lambda item: item[1].start):
        if part.start < at:
            raise ValueError(f"{what} parts '{before}' and '{name}' overlap at dimension {part.start}")
        if part.start > at:
            raise ValueError(f"{what} dimensions {at}..{part.start} belong to no part (before '{name}')")
        at, before = part.end, name
