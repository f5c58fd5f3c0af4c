"""Labels for videos of another look: a hand in place of the robot, without one action or one pair.

What sees the other look learned that from its pictures (`idm.drawing`). Here a linear map from its points to the
robot's states is found, under which the videos of both looks move alike (`idm.matching`); the robot's demonstrations
say which actions lie between two states. Both maps are linear, and so is what becomes of them: the head of an ordinary
model. It holds as far as both kinds of video show the same tasks, done alike from like starts, seen from the same side.

Shapes: T steps, F numbers of all points in all views, S of a state, K frames of a window.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idm.config import IDMConfig, WindowConfig
from idm.data import Demonstration
from idm.heads import LinearHead
from idm.label import IDMLabeler
from idm.matching import Match, match, require_clips
from idm.model import InverseDynamicsModel, Predictor
from idm.states import STATELESS, Array, Linear, by_way_of, have_states, tell_actions, tell_states
from idm.windows import segments, step_frames
from pyramid.config import from_dict
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.nn.checkpoint import load_model_files
from pyramid.nn.transfer import on_device
from pyramid.rng import rng
from pyramid.shards.frames import ClipFrames, cuts_of

__all__ = ["Joined", "fit_across", "join_looks", "look_at", "require_matchable", "shots", "shots_of", "take_points"]

_APART = 2
"""Frames whose difference says where something moves."""
_NOISE = 0.05
"""Change of a pixel, 0 to 1, that is no motion."""
_ENOUGH = 2.5e-4
"""Mean motion of a picture, beyond the noise, that says where."""
_AT_ONCE = 128
_MOST_CLIPS = 512
"""Clips of a kind that are looked at; a spread is known well enough by then."""


@dataclass(frozen=True)
class Joined:
    """What tells the robot's states of both looks."""

    across: Match
    """Of points of the other look."""
    to_state: Linear
    """Of points of the robot's look."""
    told: list[Array]
    """States told of the demonstrations, float64 [T, S] each."""

    def of_robot(self, points: Array) -> Array:
        """Returns the states that points of the robot's look, float64 [T, F], tell."""
        return np.asarray(points @ self.to_state[0] + self.to_state[1])

    def of_other(self, points: Array) -> Array:
        """Returns the states that points of the other look, float64 [T, F], tell."""
        return np.asarray(points @ self.across.weight + self.across.bias)


@torch.no_grad()
def join_looks(
    eyes: Predictor,
    videos: ClipFrames,
    *,
    robot: IDMLabeler,
    demonstrations: tuple[ClipFrames, list[Demonstration]],
    robot_videos: ClipFrames,
    seed: int,
) -> Joined:
    """Finds what tells the robot's states of pictures of either look; warns if hints speak against it.

    Args:
        eyes: a model that knows the other look, in eval mode.
        videos: clips of the other look.
        robot: a trained model of the robot's look.
        demonstrations: the robot's clips with states.
        robot_videos: clips of the robot's look, which need no actions.
        seed: of where the search starts.

    Raises:
        DataError: no states, or too few clips.
    """
    (clips, found), windows = demonstrations, robot.config.windows
    seeing = [look_at(robot.model, clips.frames(d.clip, d.frames)) for d in found]
    to_state = tell_states(seeing, found)
    told = [points @ to_state[0] + to_state[1] for points in seeing]
    there, where = _seen(robot.model, robot_videos, windows)
    states = [*told, *(points @ to_state[0] + to_state[1] for points in there)]
    hints = [*(_moving(clips.frames(d.clip, d.frames)) for d in found), *where]
    seen, own = _seen(eyes, videos, windows)
    across = match(seen, states, hints=(own, hints), seed=seed)
    if across.against:
        warnings.warn(
            f"{across.against} numbers of the state run against where things move in the picture: do the videos show "
            "the robot's tasks from the same side?",
            stacklevel=2,
        )
    return Joined(across, to_state, told)


@torch.no_grad()
def fit_across(
    model: InverseDynamicsModel,
    names: Iterable[str],
    videos: ClipFrames,
    *,
    robot: IDMLabeler,
    demonstrations: tuple[ClipFrames, list[Demonstration]],
    robot_videos: ClipFrames,
    seed: int,
) -> None:
    """Sets the linear head of a model that sees another look, so that it tells the robot's actions.

    Args:
        model: in eval mode; its eyes know the other look.
        names: embodiments that the other look's clips go by.
        videos: see `join_looks`, as of those below.
        robot: a trained model of the robot's look with a linear head and the same windows.
        demonstrations: the robot's clips with states and actions, of one embodiment.
        robot_videos: clips of the robot's look.
        seed: of where the search starts.

    Raises:
        DataError: no states, or too few clips.
    """
    joined = join_looks(model, videos, robot=robot, demonstrations=demonstrations, robot_videos=robot_videos, seed=seed)
    found, across = demonstrations[1], joined.across
    body, windows = robot.bodies[found[0].embodiment], model.config.windows
    to_action = tell_actions(
        joined.told, found, body.normalizer.normalize, windows, model.config.model.vision.difference_gain
    )
    head, (weight, constant) = _linear(model), by_way_of((across.weight, across.bias), to_action, windows)
    for name in names:
        head.set(name, weight, constant)
        # Its errors cannot be known; those on the robot are a lower bound.
        model.confidence(name).load_state_dict(robot.model.confidence(found[0].embodiment).state_dict())


def require_matchable(
    videos: ClipFrames, robot_videos: ClipFrames, demonstrations: list[Demonstration], windows: WindowConfig
) -> None:
    """Refuses before a training what `fit_across` would refuse after it.

    Raises:
        DataError: see `fit_across`.
    """
    if not have_states(demonstrations):
        raise DataError(f"{STATELESS}, which videos of another look are matched by")
    ours, theirs = ([len(steps) for _, steps in shots(clips, windows)] for clips in (videos, robot_videos))
    if not ours:
        raise DataError(
            f"none of the videos has frames at the robot's {windows.rate_hz:g} Hz: their rate must be a multiple of it"
        )
    require_clips(ours, [*theirs, *(len(d.frames) for d in demonstrations)])


def shots(clips: ClipFrames, windows: WindowConfig, most: int = _MOST_CLIPS) -> Iterator[tuple[int, list[int]]]:
    """Yields every shot of clips that come at the model's rate, as the clip and the frame of each step.

    Args:
        clips: of any rates.
        windows: the model's.
        most: clips that are looked at, in an order of their own.
    """
    for clip in rng(0, "looks").permutation(len(clips))[:most].tolist():
        yield from shots_of(clips, clip, windows)


def shots_of(clips: ClipFrames, clip: int, windows: WindowConfig) -> Iterator[tuple[int, list[int]]]:
    """Yields the shots of one clip, as `shots` does."""
    sample = clips.sample(clip)
    try:
        frames = step_frames(sample.times_s, windows.rate_hz or 0.0, windows.rate_tolerance)
    except SkipItemError:
        return
    for first, last in segments(frames, cuts_of(sample)):
        yield clip, frames[first:last]


@torch.no_grad()
def look_at(eyes: Predictor, frames: Tensor) -> Array:
    """Returns the points of pictures uint8 [T, 3, P, P], float64 [T, F]."""
    device = next(eyes.parameters()).device
    found = [eyes.look(on_device(part, device)).flatten(1).double().cpu() for part in torch.split(frames, _AT_ONCE)]
    return np.asarray(torch.cat(found).numpy())


def take_points(model: InverseDynamicsModel, folder: str) -> str:
    """Copies what another model of the same pictures has learned to see; returns the digest of that model's weights.

    Raises:
        ConfigError: a model that sees otherwise.
        DataError: no complete inverse dynamics model in the folder.
    """
    description, weights = load_model_files(folder, "idm")
    other = from_dict(IDMConfig, description["config"]).model
    own = model.config.model
    if (other.vision, other.views, other.image_size_px) != (own.vision, own.views, own.image_size_px):
        raise ConfigError(f"'{folder}' sees pictures in another way; train both with the same --config")
    model.eyes.load_state_dict({n.removeprefix("eyes."): w for n, w in weights.items() if n.startswith("eyes.")})
    return str(description["weights_sha256"])


def _linear(model: InverseDynamicsModel) -> LinearHead:
    if not isinstance(model.head, LinearHead):
        raise ConfigError("videos of another look need a model with model.head.kind linear")
    return model.head


def _seen(eyes: Predictor, clips: ClipFrames, windows: WindowConfig) -> tuple[list[Array], list[Array]]:
    """Returns the points of every shot of clips that come at the model's rate, and where something moves in it."""
    points, moving = [], []
    for clip, steps in shots(clips, windows):
        frames = clips.frames(clip, steps)
        points.append(look_at(eyes, frames))
        moving.append(_moving(frames))
    return points, moving


def _moving(frames: Tensor) -> Array:
    """Returns where something moves in pictures uint8 [T, 3, P, P]: y and x in [-1, 1], float64 [T, 2], or NaN."""
    at = torch.arange(len(frames))
    later, former = frames[(at + _APART).clamp(max=len(frames) - 1)], frames[(at - _APART).clamp(min=0)]
    change = ((later.float() - former.float()).abs().mean(1) / 255 - _NOISE).clamp(min=0).double()
    line, total = torch.linspace(-1, 1, frames.shape[-1], dtype=torch.float64), change.sum((1, 2))
    total = torch.where(total > _ENOUGH * change[0].numel(), total, torch.nan)
    return torch.stack([change.sum(2) @ line / total, change.sum(1) @ line / total], dim=1).numpy()
