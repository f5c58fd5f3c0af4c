"""Value types that travel between rooms: clips, frames, action chunks, embodiments.

They hold and check; reading, decoding and computing is left to the rooms that need it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyramid.actions import BodySpec, ChunkCodec, StateHistory
from pyramid.actions.history import past_steps
from pyramid.config import from_dict, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.normalize import Normalizer

Tier = Literal["base", "middle", "top"]
TIERS: tuple[Tier, ...] = ("base", "middle", "top")
Split = Literal["train", "val"]

KEY_PATTERN = re.compile(r"[a-z0-9_]+-[0-9a-f]{12}-[0-9]{4}")
"""What a sample's key in a shard looks like: corpus, digest of the clip id, part."""

NAME_PATTERN = re.compile(r"[a-z0-9_]+")
_MOST_STATES, _MOST_STEPS = 1024, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One stretch of one video, a row of the clip manifest."""

    clip_id: str
    """Stable name, unique in a manifest; the same input gives the same id on every machine."""
    corpus: str
    """Where it comes from, ``[a-z0-9_]+``; the first part of the sample's key."""
    video: str
    """Path or URL of the video file."""
    start_s: float
    """Start in the video's presentation time, seconds."""
    end_s: float
    """End (exclusive), seconds."""
    source_hz: float | None = None
    """True frame rate where the container's is wrong; None trusts the container."""
    text: str = ""
    """Instruction or caption; empty when none is known."""
    text_origin: str = ""
    """Where the text comes from: ``caption``, ``file_name``, ``task``; empty without text."""
    tier: Tier = "base"
    """Level of the pyramid: base (human), middle (generated), top (robot)."""
    embodiment: str = "human"
    """Whose body is seen or acts, ``[a-z0-9_]+``."""
    split: Split = "train"
    """Held-out clips are ``val``; a video is never in both."""
    licence: str = ""
    """Licence of the source; empty when unknown."""
    episode: str = ""
    """Parquet file with the clip's states and actions; empty when there are none."""
    content: str = ""
    """sha256 of the video file."""
    person: str = ""
    """Who wears the camera or acts, as the publisher names them; empty when unknown. Never in two splits."""
    verb: str = ""
    """The action's class in the publisher's words; empty when unknown."""
    noun: str = ""
    """What is acted on, in the publisher's words; empty when unknown."""
    extra: str = ""
    """What else the publisher says of this clip: a JSON object as text; empty when there is nothing."""
    first_row: int | None = None
    """Row of ``episode`` that belongs to the clip's first frame, in a file that episodes share; None: the rows follow
    from ``start_s``."""
    n_rows: int | None = None
    """Rows of ``episode`` that belong to the clip, one for each frame, where ``first_row`` is given."""

    def __post_init__(self) -> None:
        """Refuses values that no later stage could make sense of."""
        rows = (self.first_row, self.n_rows)
        if rows != (None, None) and (None in rows or not self.episode or rows[0] < 0 or rows[1] < 1):  # type: ignore[operator]
            raise DataError(f"clip '{self.clip_id}': first_row {rows[0]} and n_rows {rows[1]} are no rows of a file")
        if not (np.isfinite(self.start_s) and np.isfinite(self.end_s) and 0 <= self.start_s < self.end_s):
            raise DataError(f"clip '{self.clip_id}': times {self.start_s}..{self.end_s} s are not a stretch of a video")
        for name in (self.corpus, self.embodiment):
            if not NAME_PATTERN.fullmatch(name):
                raise DataError(f"clip '{self.clip_id}': '{name}' is not a name; use a-z, 0-9 and _")
        if self.tier not in TIERS:
            raise DataError(f"clip '{self.clip_id}': tier '{self.tier}' is none of {', '.join(TIERS)}")
        if self.source_hz is not None and not (np.isfinite(self.source_hz) and self.source_hz > 0):
            raise DataError(f"clip '{self.clip_id}': a rate of {self.source_hz} Hz is not a rate")
        self.facts()

    def facts(self) -> dict[str, Any]:
        """Returns ``extra`` as data.

        Raises:
            DataError: it is no JSON object.
        """
        try:
            found = json.loads(self.extra) if self.extra else {}
        except (ValueError, RecursionError) as error:
            raise DataError(f"clip '{self.clip_id}': its extra data is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"clip '{self.clip_id}': its extra data is no JSON object")
        return found

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s

    @classmethod
    def columns(cls) -> list[str]:
        """Returns the names of the manifest's columns, in order."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True)
class Frames:
    """Decoded pictures with their times."""

    pixels: NDArray[np.uint8]
    """uint8 [T, H, W, 3], RGB."""
    times_s: NDArray[np.float64]
    """float64 [T], seconds, ascending."""

    def __post_init__(self) -> None:
        """Checks ranks and lengths."""
        if self.pixels.ndim != 4 or self.pixels.shape[-1] != 3 or self.pixels.dtype != np.uint8:
            raise DataError(f"frames must be uint8 [T, H, W, 3], got {self.pixels.dtype} {self.pixels.shape}")
        if self.times_s.shape != (len(self.pixels),):
            raise DataError(f"{len(self.pixels)} frames but times of shape {self.times_s.shape}")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"Frames({self.pixels.shape}, {self.times_s[0]:.3f}..{self.times_s[-1]:.3f} s)"


@dataclass(frozen=True)
class ActionChunk:
    """The next actions of one embodiment."""

    values: NDArray[np.float32]
    """float32 [H, D], physical units."""
    rate_hz: float
    """Steps per second."""
    embodiment: str
    """Whose actions these are."""

    def __post_init__(self) -> None:
        """Checks the rank."""
        if self.values.ndim != 2:
            raise DataError(f"an action chunk is [H, D], got shape {self.values.shape}")


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One body, or one way of labelling, with its own encoders and decoder in a policy."""

    name: str
    """``[a-z0-9_]+``; label sources are embodiments of their own, such as ``human_latent``."""
    state_dim: int
    """Numbers of proprioception; 0 when there are none."""
    action_dim: int
    """Numbers per action step; 0 for videos without actions."""
    horizon: int
    """Steps per action chunk; for latent actions the number of latent tokens."""
    rate_hz: float
    """Action steps per second; for latent actions 1 / gap."""
    label: Literal["action", "latent", "pseudo", "video"] = "action"
    """What its actions are: measured, latent, inferred by an inverse dynamics model, or not there at all."""
    declaration: BodySpec | None = field(default=None, hash=False)
    """Its parts and how a network is given them; None gives it the numbers as they are. May be given as plain data."""
    state_history: int = 1
    """States that a network is given, oldest first, the present one last; 1 .. 1024, above 1 only with a state."""
    state_gap_s: float = 0.0
    """Seconds between them, rounded to whole steps; 0 without a history, or where nobody says."""
    padded: tuple[int, ...] = ()
    """State dimensions, action dimensions and steps of the network where it has more than the body: the rest is filled
    with zeros and left out of answers, as in published checkpoints. Empty: as many as the body."""

    def __post_init__(self) -> None:
        """Refuses names and sizes that cannot be a network's slot, and declarations of another size."""
        given: Any = self.declaration
        if isinstance(given, Mapping):
            object.__setattr__(self, "declaration", _declared(given, self.name))
        if not NAME_PATTERN.fullmatch(self.name):
            raise DataError(f"embodiment '{self.name}': use a-z, 0-9 and _")
        fewest = 0 if self.label == "video" else 1
        if self.state_dim < 0 or self.action_dim < fewest or self.horizon < 1 or not self.rate_hz > 0:
            raise DataError(f"embodiment '{self.name}': sizes {self.to_dict()} are not positive")
        most = _MOST_STATES if self.state_dim else 1
        steps = self.state_gap_s * self.rate_hz
        if self.state_history not in range(1, most + 1) or not 0 <= steps <= _MOST_STEPS:
            raise DataError(
                f"embodiment '{self.name}': a history is of 1 .. {most} states, up to {_MOST_STEPS:,} steps apart, got "
                f"{self.state_history} and {self.state_gap_s} s"
            )
        if self.declaration is not None:
            self._check_declaration(self.declaration)
        if self.padded:
            self._check_padding()

    def _check_padding(self) -> None:
        object.__setattr__(self, "padded", tuple(self.padded))
        least = (*self.encoded, self.horizon)
        if len(self.padded) != 3 or any(type(n) is not int or n < m for n, m in zip(self.padded, least, strict=False)):
            raise DataError(f"embodiment '{self.name}': padded to {self.padded}, its encoded sizes are {least}")

    def _check_declaration(self, spec: BodySpec) -> None:
        for what, declared, found in (
            ("action", spec.action_dim, self.action_dim),
            ("state", spec.state_dim, self.state_dim),
        ):
            if declared != found:
                raise DataError(
                    f"embodiment '{self.name}': '{spec.name}' declares {declared} {what} dimensions, there are {found}"
                )
        if spec.rate_hz and abs(spec.rate_hz - self.rate_hz) > 0.01 * spec.rate_hz:
            raise DataError(
                f"embodiment '{self.name}': '{spec.name}' declares {spec.rate_hz:g} Hz, the data have "
                f"{self.rate_hz:g} Hz; copy the declaration and set its rate_hz, or 0"
            )

    @cached_property
    def codec(self) -> ChunkCodec | None:
        """Between the numbers on disk and those that a network is given; None when they are the same."""
        return None if self.declaration is None else ChunkCodec(self.declaration)

    @property
    def encoded(self) -> tuple[int, int]:
        """Dimensions of encoded states and actions, without padding."""
        return (self.state_dim, self.action_dim) if self.codec is None else self.codec.widths

    @property
    def network(self) -> Embodiment:
        """The sizes that a network sees: those of encoded states and actions, and of what they are padded to."""
        if self.codec is None and not self.padded:
            return self
        state, action, steps = self.padded or (*self.encoded, self.horizon)
        return replace(self, declaration=None, padded=(), state_dim=state, action_dim=action, horizon=steps)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the states of a sample: ``(S,)``, or with a history ``(H, S)``."""
        return (self.state_dim,) if self.state_history == 1 else (self.state_history, self.state_dim)

    @property
    def state_steps(self) -> NDArray[np.int64]:
        """Steps after the present (0 or less) of each state of a sample, int64 [H], oldest first."""
        return past_steps(self.state_history, self.state_gap_s, self.rate_hz)

    def history(self) -> StateHistory:
        """Returns what keeps the states of this body in a control loop, spaced as in training.

        Raises:
            DataError: nobody says how far apart they are.
        """
        if self.state_history > 1 and not self.state_gap_s:
            raise DataError(f"embodiment '{self.name}' takes {self.state_history} states, how far apart is not known")
        gap_s = int(self.state_steps[-1] - self.state_steps[-2]) / self.rate_hz if self.state_history > 1 else 0.0
        return StateHistory(self.state_dim, n=self.state_history, gap_s=gap_s)

    def check_statistics(self, state: Normalizer | None, action: Normalizer) -> None:
        """Refuses normalisers of another body, another declaration or another horizon.

        Raises:
            DataError: what differs is named.
        """
        state_dim, action_dim = self.encoded
        if action.width != action_dim or (state_dim and state is None):
            wanted = f"{state_dim} and {action_dim} dimensions"
            raise DataError(f"embodiment '{self.name}': no statistics for its {wanted}")
        if action.steps not in (0, self.horizon):
            found = f"action statistics have {action.steps} steps, its chunks {self.horizon}"
            raise DataError(f"embodiment '{self.name}': {found}; they are of another config")
        if state is not None and state.width != state_dim:
            found = f"state statistics have {state.width} dimensions"
            raise DataError(f"embodiment '{self.name}': {found}, not {state_dim}")

    def encode_state(self, state: NDArray[np.floating]) -> NDArray[np.float32]:
        """Maps states [..., S] to what a network is given, float32 [..., E], not yet normalised; each for itself."""
        return np.asarray(state, np.float32) if self.codec is None else self.codec.encode_state(state)

    def encode_action(
        self, action: NDArray[np.floating], state: NDArray[np.floating] | None, valid: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Maps action chunks [..., T, D] to what a network is taught; see `ChunkCodec.encode_action`."""
        return np.asarray(action, np.float32) if self.codec is None else self.codec.encode_action(action, state, valid)

    def decode_action(self, encoded: NDArray[np.floating], state: NDArray[np.floating] | None) -> NDArray[np.float32]:
        """Maps what a network gave, denormalised, [..., T, E], to actions float32 [..., T, D]; ``state``: [..., S].

        ``state`` is the present one alone, as in `encode_action`.
        """
        return np.asarray(encoded, np.float32) if self.codec is None else self.codec.decode_action(encoded, state)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        spec = plain.pop("declaration")
        for name in ("state_history", "state_gap_s", "padded"):  # One without is told as it always was.
            if plain[name] == type(self).__dataclass_fields__[name].default:
                del plain[name]
        return plain if spec is None else {**plain, "declaration": to_dict(spec)}


def _declared(data: Mapping[str, Any], name: str) -> BodySpec:
    try:
        return from_dict(BodySpec, data, f"the declaration of embodiment '{name}'")
    except ConfigError as error:
        raise DataError(str(error)) from error
