"""The pseudo-action labeler: an action with its uncertainty for every step of a clip, needing no measured actions.

Writing tables, resuming and spreading the work is left to `pyramid.labels`; this file is its entry point ``idm``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from idm.bodies import Body
from idm.config import GateConfig, IDMConfig, ModelConfig, WindowConfig
from idm.fitness import Shape, check_pictures, check_robot, check_views
from idm.model import InverseDynamicsModel, Predictor
from idm.other_rates import FrameTimes, declares_all, windows_at_frames
from idm.predict import ClipActions, ClipInput, predict_clips
from idm.published import is_published
from idm.windows import Steps, clip_steps, segments
from pyramid import files
from pyramid.config import from_dict, to_dict
from pyramid.errors import ConfigError, DataError, SkipItemError, nearest
from pyramid.labels.protocol import BASE_FIELDS, FLAG_GATED, FLAG_SHORT
from pyramid.nn.checkpoint import load_model_files
from pyramid.normalize import Normalizer
from pyramid.shards.frames import cuts_of, resized_frames
from pyramid.shards.reader import Sample

__all__ = ["IDMLabeler", "doubts", "load", "physical"]

_TINY = 1e-6
"""Spread, relative to the action's size, below which a dimension counted as constant in training."""


class ClipSteps(NamedTuple):
    """What the network needs of one clip."""

    key: str
    """Unique key."""
    embodiment: str
    """Whose actions are wanted."""
    times_s: NDArray[np.float64]
    """float64 [T]: times of the clip's frames, seconds from its start."""
    steps: Steps
    """The model's steps in the clip."""
    spans: list[tuple[int, int]]
    """Stretches of steps without a cut, (first, past the last)."""
    pixels: Tensor
    """uint8 [steps, 3, P, P], RGB."""
    state: NDArray[np.float32] | None
    """float32 [steps, S], physical units; None where the clip has none or the model asks for none."""
    windows: WindowConfig | None = None
    """Windows in frames of a clip whose frames are no steps of the model; None: those of the model."""


@dataclass(frozen=True)
class StepFrames:
    """The labeler's first step: finds the model's steps in a clip and decodes their frames; holds no weights."""

    windows: WindowConfig
    """The shape of a window."""
    rate_hz: float
    """The model's rate, Hz."""
    model: ModelConfig
    """Size of the frames, and what else is asked for."""
    embodiments: Mapping[str, Shape]
    """Those that the model knows."""
    resampled: tuple[str, ...] = ()
    """Those of them whose actions are known well enough to be told at other rates."""

    def __call__(self, sample: Sample) -> ClipSteps:
        """Returns the steps of a clip.

        Raises:
            SkipItemError: see `IDMLabeler.label`.
        """
        embodiment, windows, own = self.embodiment_of(sample), self.windows, None
        check_views(sample, self.model, self.embodiments[embodiment])
        check_robot(sample, embodiment, self.embodiments[embodiment])
        try:
            steps = clip_steps(sample.times_s, self.rate_hz, windows.frames, windows.horizon, windows.rate_tolerance)
        except SkipItemError as error:
            if embodiment in self.resampled:
                own = windows_at_frames(windows, self.rate_hz, sample.times_s)
            if own is None:
                raise SkipItemError(error.reason, f"{sample.key}: {error.detail}") from error
            steps, windows = Steps(list(range(len(sample))), 1), own
        spans = steps.trim(segments(steps.frames, cuts_of(sample)))
        if max(last - first for first, last in spans) <= windows.horizon:
            raise SkipItemError(
                "short",
                f"{sample.key}: no shot of it has the {windows.horizon + 1} frames of a window at {self.rate_hz:g} Hz",
            )
        pixels = resized_frames(sample, steps.frames, self.model.picture_px)
        check_pictures(sample.key, pixels, self.model)
        return ClipSteps(
            sample.key, embodiment, sample.times_s, steps, list(spans), pixels, self._state(sample, steps.frames), own
        )

    def _state(self, sample: Sample, frames: Sequence[int]) -> NDArray[np.float32] | None:
        if self.model.state == "none" and not self.model.needs_state:
            return None
        if sample.state is None and self.model.needs_state:
            raise SkipItemError("state", f"{sample.key} has no states, and the model was trained to need them")
        if sample.state is None:
            return None
        state = sample.state[frames]
        bad = np.flatnonzero(~np.isfinite(state).all(1))
        if len(bad) and self.model.needs_state:
            raise SkipItemError("state", f"{sample.key}: the state at frame {frames[bad[0]]} is not a finite number")
        return state

    def embodiment_of(self, sample: Sample) -> str:
        """Returns the embodiment whose output network a sample needs, or skips the sample by name."""
        name = str(sample.meta.get("embodiment", ""))
        if name in self.embodiments:
            return name
        raise SkipItemError(
            "embodiment",
            f"{sample.key} shows '{name}'{nearest(name, self.embodiments)}; "
            f"the model knows {', '.join(self.embodiments)}",
        )


class IDMLabeler:
    """Labels clips with a trained inverse dynamics model; a `pyramid.labels` Labeler.

    A clip's rows depend on that clip alone: passes always have one shape, and no row of one sees another.

    Args:
        model: a trained model.
        config: what it was trained with; ``windows.rate_hz`` is its rate.
        embodiments: what the checkpoint says of each embodiment.
        weights_sha256: digest of its weights.
    """

    name = "idm"

    def __init__(
        self,
        model: Predictor,
        config: IDMConfig,
        embodiments: Mapping[str, Mapping[str, Any]],
        weights_sha256: str,
    ) -> None:
        if config.windows.rate_hz is None:
            raise ConfigError("the model does not state the rate it was trained at; train it again")
        self.model, self.config, self.weights_sha256 = model.eval(), config, weights_sha256
        self.rate_hz = config.windows.rate_hz
        self.embodiments = {name: dict(description) for name, description in embodiments.items()}
        shapes = {name: Shape.of(about) for name, about in self.embodiments.items()}
        self.bodies = {name: Body.of(about) for name, about in self.embodiments.items()}
        # What is told as a difference to a step's state cannot be told between two states.
        can = config.model.target != "from_state"
        known = tuple(n for n, body in self.bodies.items() if can and declares_all(body.groups, len(body.mean)))
        self.prepare = StepFrames(config.windows, self.rate_hz, config.model, shapes, known)

    def digest(self) -> str:
        """Returns the digest of everything that decides a label: weights, sizes, windows, normalisers."""
        return files.digest(self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Returns what a reader of a label table must know."""
        return {
            "labeler": self.name,
            "model": self.weights_sha256,
            "config": to_dict(self.config),
            "rate_hz": self.rate_hz,
            "gap_policy": {
                "gap_s": 1 / self.rate_hz,
                "horizon": self.config.windows.horizon,
                "frames_s": list(self.config.windows.offsets_s),
                "clamped": False,
            },
            "units": "physical",
            "normaliser": {name: body.normalizer.to_dict() for name, body in self.bodies.items()},
            "groups": {name: [group.to_dict() for group in body.groups] for name, body in self.bodies.items()},
            "calibrated": {name: about.get("calibrated", True) for name, about in self.embodiments.items()},
        }

    def schema(self) -> pa.Schema:
        """Returns the columns; ``action`` and ``action_std`` in physical units.

        ``flags``: `FLAG_SHORT` for a single vote, `FLAG_GATED` for a label outside the limits; ``doubt`` says which.
        """
        return pa.schema(
            [
                *BASE_FIELDS,
                ("action", pa.list_(pa.float32())),
                ("action_std", pa.list_(pa.float32())),
                ("n_votes", pa.uint8()),
                ("doubt", pa.string()),
            ]
        )

    def compile(self) -> None:
        """Hands the network to torch.compile."""
        self.model.compile()

    def label(self, clips: Sequence[Sample | ClipSteps]) -> list[pa.Table]:
        """Labels clips, one table each, rows in time order; the last frame of a shot has no row.

        Args:
            clips: what ``prepare`` returned, or samples.

        Raises:
            SkipItemError: a clip of another embodiment (``embodiment``) or robot (``robot``), with other views
                (``views``), without frames at the model's rate (``rate``) or states that it needs (``state``), or with
                no whole window (``short``).
        """
        ready = [clip if isinstance(clip, ClipSteps) else self.prepare(clip) for clip in clips]
        found = self._predict(ready, self.config.windows)
        return [self._table(clip, actions) for clip, actions in zip(ready, found, strict=True)]

    def predict(self, sample: Sample) -> tuple[Steps, ClipActions, ClipActions]:
        """Returns the model's steps in a clip, the labels in normalised units, and those that it gives without votes.

        Without votes, windows lie side by side and each step is told by one of them; only the last two may overlap.
        """
        clip = self.prepare(sample)
        apart = replace(self.config.windows, stride=self.config.windows.horizon)
        return clip.steps, self._predict([clip], self.config.windows)[0], self._predict([clip], apart)[0]

    def _predict(self, clips: Sequence[ClipSteps], windows: WindowConfig) -> list[ClipActions]:
        """Returns the labels of each clip; those of one embodiment, whose networks they share, go together."""
        found: dict[int, ClipActions] = {}
        for embodiment, own in dict.fromkeys((clip.embodiment, clip.windows) for clip in clips):
            body = self.bodies[embodiment]
            alike = [n for n, clip in enumerate(clips) if (clip.embodiment, clip.windows) == (embodiment, own)]
            seen = [
                ClipInput(clips[n].pixels, clips[n].spans, body.state_of(clips[n].state), clips[n].steps.every)
                for n in alike
            ]
            shape = windows if own is None else replace(own, stride=min(windows.stride, own.horizon))
            told = None if own is None else self._at_frames(own, body)
            found |= zip(alike, predict_clips(self.model, seen, shape, embodiment, body.rule, told=told), strict=True)
        return [found[n] for n in range(len(clips))]

    def _at_frames(self, own: WindowConfig, body: Body) -> FrameTimes:
        return FrameTimes(own, self.rate_hz, body.groups, body.normalizer)

    def embodiment_of(self, sample: Sample) -> str:
        """Returns the embodiment whose output network a sample needs, or skips the sample by name."""
        return self.prepare.embodiment_of(sample)

    def _table(self, clip: ClipSteps, actions: ClipActions) -> pa.Table:
        steps, body = clip.steps, self.bodies[clip.embodiment]
        mean, std = physical(actions, body.normalizer)
        # The limits are those of one step of the model.
        longer = 1.0 if clip.windows is None else self._at_frames(clip.windows, body).lengths(mean.shape[1])
        steps_of = np.asarray(1 / np.asarray(longer), np.float32)
        why = doubts(mean * steps_of, std * steps_of, body, self.config.gate)
        if clip.state is not None and self.config.model.target == "from_state":
            mean = mean + clip.state[actions.step]
        told = None if clip.state is None else body.state_of(clip.state[actions.step])
        if told is not None:
            # A row that is not known is all NaN, and past every limit.
            why["state"] = np.asarray(~(np.abs(told) <= self.config.gate.max_state).all(1))
        gated = np.any(list(why.values()), axis=0)
        first = np.asarray(steps.frames)[actions.step]
        # A step between two frames of a slow clip lies its share of a frame after the first.
        times = clip.times_s[steps.frames] + np.arange(len(steps.frames)) % steps.every / self.rate_hz
        lonely = (actions.n_votes == 1) & (self.config.windows.horizon > 1)
        columns = [
            pa.array([clip.key] * len(first), pa.string()),
            pa.array(times[actions.step], pa.float64()),
            pa.array(first, pa.int32()),
            pa.array(times[actions.step + 1] - times[actions.step], pa.float32()),
            pa.array(np.where(lonely, FLAG_SHORT, 0) | np.where(gated, FLAG_GATED, 0), pa.uint16()),
            pa.array(list(mean), pa.list_(pa.float32())),
            pa.array(list(std), pa.list_(pa.float32())),
            pa.array(actions.n_votes, pa.uint8()),
            pa.array([",".join(name for name in why if why[name][row]) for row in range(len(first))], pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema())


def physical(actions: ClipActions, normalizer: Normalizer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns means and standard deviations in physical units, float32 [P, D] each; the latter are > 0."""
    least = _TINY * np.maximum(1.0, np.abs(normalizer.center))
    std = np.maximum(actions.std * normalizer.scale, least)
    return normalizer.denormalize(actions.mean), std.astype(np.float32)


def doubts(
    mean: NDArray[np.float32], std: NDArray[np.float32], body: Body, gate: GateConfig
) -> dict[str, NDArray[np.bool_]]:
    """Returns which labels lie outside the limits of trust: reason -> bool [P].

    Args:
        mean: float32 [P, D], physical units.
        std: float32 [P, D], physical units.
        body: what the robot did in training.
        gate: the limits.
    """
    moves, room = body.moves, gate.margin * (body.high - body.low) + _TINY * np.maximum(1.0, np.abs(body.mean))
    spread = std[:, moves] / np.maximum(body.std[moves], _TINY)
    return {
        "uncertain": spread.mean(1) > gate.max_std if moves.any() else np.zeros(len(mean), bool),
        "range": np.asarray(((mean < body.low - room) | (mean > body.high + room)).any(1)),
    }


def load(model_dir: str, device: str = "cpu") -> IDMLabeler:
    """Returns the labeler of a trained model: the entry point ``idm`` of ``pyramid.labelers``.

    The folder may also be a published one of GR00T-Dreams.

    Raises:
        DataError: no complete inverse dynamics model in the folder, or one of points alone.
    """
    if is_published(model_dir):
        # Imported late: it takes seconds, and models of our own rarely need it.
        from idm.released import read_released

        found = read_released(model_dir)
        return IDMLabeler(found.model.to(device), found.config, found.embodiments, found.weights_sha256)
    description, state = load_model_files(model_dir, "idm")
    config = from_dict(IDMConfig, description["config"])
    embodiments = description["extra"]["embodiments"]
    if not embodiments:
        raise DataError(f"'{model_dir}' knows points alone and tells no actions; train a head on them with --points")
    for about in embodiments.values():
        Body.of(about)  # a model of a former version says what it lacks before its weights do not fit
    dims = {name: (one["action_dim"], one["state_dim"]) for name, one in embodiments.items()}
    model = InverseDynamicsModel(config, dims)
    model.load_state_dict(state, strict=True)
    return IDMLabeler(model.to(device), config, embodiments, str(description["weights_sha256"]))
