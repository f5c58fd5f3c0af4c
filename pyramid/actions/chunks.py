"""A body's states and action chunks as a network is given them, and back: poses in 6D, steps less the state.

Encoded values are not normalised yet. All arithmetic is float64; results are float32.

Shapes: ``...`` any, T chunk steps, D and S dimensions on disk, E encoded dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyramid.actions.rotations import WIDTHS, conjugate, from_quaternion, multiply, rotate, to_quaternion
from pyramid.actions.spec import ActionPart, BodySpec, Part, StatePart
from pyramid.errors import DataError

__all__ = ["ChunkCodec", "Column"]

Array = NDArray[np.float64]
_SIX = "rotation_6d"


@dataclass(frozen=True)
class Column:
    """Where the statistics of one encoded dimension come from."""

    rule: str
    """A normaliser's kind."""
    row: int = -1
    """Dimension on disk whose values it has; -1 for others."""
    by_step: bool = False
    """Whether its values depend on the step of the chunk: delta and relative ones do."""


class ChunkCodec:
    """Between the numbers on disk and the numbers of a network, for one declared body."""

    def __init__(self, spec: BodySpec) -> None:
        self.spec = spec
        self._state = _spans(spec.state)
        self._action = _spans(spec.action)
        self.state_columns = [column for part in spec.state.values() for column in _columns(part)]
        """One per encoded dimension of the state."""
        self.action_columns = [column for part in spec.action.values() for column in _columns(part)]
        """One per encoded dimension of the action."""
        self.by_step = np.flatnonzero([column.by_step for column in self.action_columns])
        """int64: encoded dimensions of the action whose statistics are taken per step."""

    @property
    def state_width(self) -> int:
        """Encoded dimensions of the state."""
        return len(self.state_columns)

    @property
    def action_width(self) -> int:
        """Encoded dimensions of the action."""
        return len(self.action_columns)

    @property
    def widths(self) -> tuple[int, int]:
        """Encoded dimensions of state and action."""
        return self.state_width, self.action_width

    def encode_state(self, state: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps states [..., S] to float32 [..., E].

        Raises:
            DataError: another number of dimensions.
        """
        x = self._checked(state, self.spec.state_dim, "state")
        out = np.zeros((*x.shape[:-1], self.state_width))
        for name, part in self.spec.state.items():
            values = x[..., part.span]
            if part.rotation:
                values = _joined(*_pose(part, values))
            elif part.normalizer == "sin_cos":
                values = np.concatenate([np.sin(values), np.cos(values)], -1)
            out[..., self._state[name]] = values
        return out.astype(np.float32)

    def decode_state(self, encoded: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps float [..., E] back to states float32 [..., S]; sines and cosines come out as angles in [-pi, pi]."""
        e = self._checked(encoded, self.state_width, "encoded state")
        out = np.zeros((*e.shape[:-1], self.spec.state_dim))
        for name, part in self.spec.state.items():
            values = e[..., self._state[name]]
            if part.rotation:
                place, turn = _split(values)
                values = _written(part, place, _upright(turn))
            elif part.normalizer == "sin_cos":
                values = np.arctan2(values[..., : part.width], values[..., part.width :])
            out[..., part.span] = values
        return out.astype(np.float32)

    def encode_action(
        self,
        action: NDArray[np.floating],
        state: NDArray[np.floating] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Maps action chunks to what a network is taught.

        Args:
            action: float [..., T, D], units on disk.
            state: float [..., S] at the chunks' starts; needed for delta and relative parts.
            valid: bool [..., T]: steps to go by; those after the last come out as some number that means nothing.

        Returns:
            float32 [..., T, E].

        Raises:
            DataError: a missing state, other dimensions, or values that are not finite; the part is named.
        """
        x, origin = self._checked(action, self.spec.action_dim, "action"), self._origin(state)
        if valid is not None:
            x = np.where(valid[..., None], x, x[..., :1, :])
        self._check_finite(x, "action", self.spec.action)
        out = np.zeros((*x.shape[:-1], self.action_width))
        for name, part in self.spec.action.items():
            out[..., self._action[name]] = self._encoded(name, part, x[..., part.span], origin)
        return out.astype(np.float32)

    def decode_action(
        self, encoded: NDArray[np.floating], state: NDArray[np.floating] | None = None
    ) -> NDArray[np.float32]:
        """Maps encoded chunks float [..., T, E] back to actions float32 [..., T, D]; the inverse of `encode_action`."""
        e, origin = self._checked(encoded, self.action_width, "encoded action"), self._origin(state)
        out = np.zeros((*e.shape[:-1], self.spec.action_dim))
        for name, part in self.spec.action.items():
            out[..., part.span] = self._decoded(name, part, e[..., self._action[name]], origin)
        return out.astype(np.float32)

    def encode_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Maps which numbers count, bool [..., T, D], to which encoded ones do, bool [..., T, E].

        A rotation counts where all of it does; a delta where the step before does too.
        """
        out = np.zeros((*mask.shape[:-1], self.action_width), bool)
        for name, part in self.spec.action.items():
            kept = mask[..., part.span].all(-1, keepdims=True) if part.rotation else mask[..., part.span]
            if part.representation == "delta":
                kept = np.logical_and.accumulate(kept, axis=-2)
            out[..., self._action[name]] = kept
        return out

    def _encoded(self, name: str, part: ActionPart, x: Array, origin: Array | None) -> Array:
        if not part.rotation:
            return x if part.representation == "absolute" else _short(part, x - self._before(name, part, x, origin))
        place, turn = _pose(part, x)
        if part.representation == "absolute":
            return _joined(place, turn)
        assert origin is not None  # noqa: S101  (`_origin` has refused)
        at = self._start(name, part)
        from_place, from_turn = (v[..., None, :] for v in _pose(at, origin[..., at.span]))
        if part.representation == "delta":
            from_place = np.concatenate([from_place, place[..., :-1, :]], -2)
            from_turn = np.concatenate([from_turn, turn[..., :-1, :]], -2)
        back = conjugate(from_turn)
        return _joined(rotate(back, place - from_place) if place.shape[-1] else place, multiply(back, turn))

    def _decoded(self, name: str, part: ActionPart, e: Array, origin: Array | None) -> Array:
        if not part.rotation:
            if part.representation == "absolute":
                return e
            assert origin is not None  # noqa: S101
            moved = np.cumsum(e, -2) if part.representation == "delta" else e
            return np.asarray(origin[..., None, self._start(name, part).span] + moved)
        place, turn = _split(e)
        if part.representation == "absolute":
            return _written(part, place, turn, _upright(turn[..., 0, :]))
        assert origin is not None  # noqa: S101
        at = self._start(name, part)
        from_place, from_turn = _pose(at, origin[..., at.span])
        first = from_turn
        places, turns = [], []
        for step in range(e.shape[-2]):
            if place.shape[-1]:
                places.append(from_place + rotate(from_turn, place[..., step, :]))
            turns.append(multiply(from_turn, turn[..., step, :]))
            if part.representation == "delta":
                from_turn = turns[-1]
                from_place = places[-1] if places else from_place
        moved = np.stack(places, -2) if places else place
        return _written(part, moved, np.stack(turns, -2), first)

    def _start(self, name: str, part: ActionPart) -> StatePart:
        return self.spec.state[part.state or name]

    def _before(self, name: str, part: ActionPart, x: Array, origin: Array | None) -> Array:
        assert origin is not None  # noqa: S101
        start = origin[..., None, self._start(name, part).span]
        return start if part.representation == "relative" else np.concatenate([start, x[..., :-1, :]], -2)

    def _origin(self, state: NDArray[np.floating] | None) -> Array | None:
        if not self.spec.needs_state:
            return None
        if state is None or not np.shape(state)[-1]:
            parts = ", ".join(n for n, part in self.spec.action.items() if part.representation != "absolute")
            raise DataError(f"embodiment '{self.spec.name}': the actions of {parts} need the state, there is none")
        x = self._checked(state, self.spec.state_dim, "state")
        self._check_finite(x, "state", self.spec.state)
        return x

    def _checked(self, values: NDArray[np.floating], width: int, what: str) -> Array:
        x = np.asarray(values, np.float64)
        if x.shape[-1:] != (width,):
            raise DataError(
                f"embodiment '{self.spec.name}': {what} of shape {x.shape}, {width} dimensions are declared"
            )
        return x

    def _check_finite(self, x: Array, what: str, parts: Mapping[str, Part]) -> None:
        if np.isfinite(x).all():
            return
        bad = ", ".join(name for name, part in parts.items() if not np.isfinite(x[..., part.span]).all())
        raise DataError(f"embodiment '{self.spec.name}': {what} values that are not finite numbers in {bad}")


def _columns(part: StatePart | ActionPart) -> list[Column]:
    """Returns what the encoded dimensions of a part are."""
    rule = part.normalizer or ("binary" if part.kind == "binary" else "q01_q99")
    if isinstance(part, ActionPart) and part.representation != "absolute":
        width = 6 + 3 * (part.kind == "pose") if part.rotation else part.width
        return [Column(rule, by_step=True)] * width
    if part.rotation:
        return [Column(rule, part.start + d) for d in range(3 * (part.kind == "pose"))] + [Column("identity")] * 6
    if rule == "sin_cos":
        return [Column("identity")] * (2 * part.width)
    return [Column(rule, d) for d in range(part.start, part.end)]


def _spans(parts: Mapping[str, StatePart] | Mapping[str, ActionPart]) -> dict[str, slice]:
    found, at = {}, 0
    for name, part in parts.items():
        width = len(_columns(part))
        found[name], at = slice(at, at + width), at + width
    return found


def _pose(part: Part, x: Array) -> tuple[Array, Array]:
    """Returns position [..., 3] (a mere rotation has none: [..., 0]) and quaternion [..., 4]."""
    split = part.width - WIDTHS[part.rotation]
    return x[..., :split], to_quaternion(x[..., split:], part.rotation)


def _joined(place: Array, turn: Array) -> Array:
    return np.concatenate([place, from_quaternion(turn, _SIX)], -1)


def _split(e: Array) -> tuple[Array, Array]:
    return e[..., :-6], to_quaternion(e[..., -6:], _SIX)


def _written(part: Part, place: Array, turn: Array, first: Array | None = None) -> Array:
    """Writes positions and rotations; of two signs of a quaternion, a chunk takes the one nearer to the step before."""
    if first is not None:
        steps = np.concatenate([first[..., None, :], turn], -2)
        flips = np.where((steps[..., 1:, :] * steps[..., :-1, :]).sum(-1) < 0, -1.0, 1.0)
        turn = turn * np.cumprod(flips, -1)[..., None]
    return np.concatenate([place, from_quaternion(turn, part.rotation)], -1)


def _upright(turn: Array) -> Array:
    """Returns the same turns with w >= 0."""
    return turn * np.where(turn[..., :1] < 0, -1.0, 1.0)


def _short(part: Part, x: Array) -> Array:
    """Returns differences the short way round."""
    return np.asarray((x + part.period / 2) % part.period - part.period / 2) if part.period else x
