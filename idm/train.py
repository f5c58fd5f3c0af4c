"""Training of an inverse dynamics model on the demonstrations of shard folders: clips with measured actions.

Optimiser, resume and saving are `pyramid.training`'s; windows are `idm.data`'s, errors are calibrated by `idm.predict`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idm.bodies import Body, describe_embodiments
from idm.calibrate import calibrate
from idm.config import IDMConfig
from idm.data import (
    Demonstration,
    WindowGroup,
    WindowSampler,
    fit_normalizers,
    fit_states,
    load_demonstrations,
    training_rate,
)
from idm.drawing import PictureSampler, PointsModule, fit_linear
from idm.heads import FlowHead, Regressor
from idm.label import load
from idm.looks import fit_across, require_matchable, take_points
from idm.model import InverseDynamicsModel, augmented
from idm.predict import ClipInput
from idm.vision import SiglipEyes, split_views
from idm.windows import segments
from pyramid import files
from pyramid.config import resolve
from pyramid.errors import ConfigError
from pyramid.rng import rng, seed_of
from pyramid.shards.frames import ClipFrames
from pyramid.training import BatchAt, StepModule, TrainResult, plan_only, require_data, train_model

__all__ = ["IDMModule", "build_module", "hold_aside", "train_idm"]

_MOST_CALIBRATION_CLIPS = 64
_HIDDEN_SHARE = 1 / 3
"""Share of training windows whose state is hidden if the state is optional."""
_PLANNED_DIM = 7
"""Action dimension that a plan without data assumes."""


class IDMModule(StepModule):
    """An inverse dynamics model with its loss, for the trainer.

    Args:
        model: the model.
        config: sizes and training.
        finish: called with the model when training ends and before it is saved.
    """

    model: InverseDynamicsModel

    def __init__(
        self,
        model: InverseDynamicsModel,
        config: IDMConfig,
        finish: Callable[[InverseDynamicsModel], None] = lambda model: None,
    ) -> None:
        super().__init__(model, config.trainer)
        self.config, self.finish = config, finish

    def loss(self, batch: list[WindowGroup], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the head's loss of a batch in normalised units, every window counting alike, and what to log."""
        total, losses = sum(len(group.frames) for group in batch), []
        for group in batch:
            losses.append(self._group_loss(group, generator) * (len(group.frames) / total))
        return torch.stack(losses).sum(), {
            f"loss_{group.embodiment}": loss.detach() * total / len(group.frames)
            for group, loss in zip(batch, losses, strict=True)
        }

    def _group_loss(self, group: WindowGroup, generator: torch.Generator) -> Tensor:
        size, model = self.config.model, self.model
        views = split_views(group.frames, size)
        looked = model.eyes.look_all(augmented(views, size.shift_px, size.gain, generator))
        told = None if group.state is None else hidden_states(group.state[:, 0], size.state, generator)
        tokens, extra = model.context(looked, group.present, told, group.embodiment)
        if isinstance(model.head, FlowHead):
            return model.head.loss(tokens, group.action, group.embodiment, generator)
        assert isinstance(model.head, Regressor)  # noqa: S101  # `PointsModule` trains what a linear head reads
        shared, delta = model.head.shared(tokens, extra), size.head.huber_delta
        predicted = model.head.actions(shared, group.embodiment)
        loss = nn.functional.huber_loss(predicted, group.action, delta=delta)
        if group.state is not None and group.embodiment in model.head.told.embodiments:
            truth = torch.cat([group.state[:, 0], group.state[:, 1] - group.state[:, 0]], dim=1)
            there = torch.isfinite(truth)
            told = model.head.told(shared, group.embodiment).float()
            error = nn.functional.huber_loss(told, torch.nan_to_num(truth), delta=delta, reduction="none")
            loss = loss + size.head.auxiliary * (error * there).sum() / there.sum().clamp(min=1)
        return loss

    def on_fit_end(self) -> None:
        """Calibrates the errors; also when a resumed run had no step left to do."""
        self.model.eval()
        self.finish(self.model)


def build_module(
    config: IDMConfig,
    dims: Mapping[str, tuple[int, int]],
    finish: Callable[[InverseDynamicsModel], None] = lambda model: None,
) -> IDMModule | PointsModule:
    """Builds the untrained model; its initial weights are a pure function of ``config.trainer.seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.trainer.seed, "idm-init"))
        of_pictures = config.model.head.kind == "linear"
        return (PointsModule if of_pictures else IDMModule)(InverseDynamicsModel(config, dims), config, finish)


def hidden_states(states: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Hides a third of the states, float [B, S], where the model must do without them as well."""
    if policy != "optional":
        return states
    hidden = torch.rand(len(states), 1, generator=generator) < _HIDDEN_SHARE
    return states.masked_fill(hidden.to(states.device), torch.nan)


def hold_aside(
    demonstrations: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Splits demonstrations into those to train on and those to calibrate with, the same share of each embodiment.

    Where the share comes to less than half a clip, training clips serve for both: their errors are a lower bound.
    """
    aside: set[int] = set()
    for name in sorted({d.embodiment for d in demonstrations}):
        own = [d.clip for d in demonstrations if d.embodiment == name]
        chosen = rng(seed, "calibration", name).permutation(own)[: round(share * len(own))]
        aside |= {int(clip) for clip in chosen}
    kept = [d for d in demonstrations if d.clip not in aside]
    lacking = {d.embodiment for d in demonstrations} - {d.embodiment for d in demonstrations if d.clip in aside}
    return kept, [d for d in demonstrations if d.clip in aside or d.embodiment in lacking]


def train_idm(
    shards: str | Sequence[str] | None = None,
    *,
    out: str | None = None,
    config: str | Path | Mapping[str, Any] | IDMConfig = "idm/tiny",
    resume: bool = True,
    limit: int | None = None,
    dry_run: bool = False,
    modality: str | Sequence[str] = (),
    videos: str | Sequence[str] = (),
    points: str = "",
    robot: str = "",
    robot_videos: str | Sequence[str] = (),
    **overrides: Any,
) -> TrainResult:
    """Trains an inverse dynamics model on the ``train`` clips that have measured actions.

    Args:
        shards: one or more shard folders; none, with ``videos``, learns points alone (see ``points``).
        out: model folder to write.
        config: preset name, YAML file, mapping or config.
        resume: go on from the last checkpoint, or reuse a finished model of this config and data.
        limit: use the first clips with actions only.
        dry_run: plan and time the training, write nothing; works without shards too.
        modality: `modality.json` of the demonstrations' data set (or its folder), which says what is a rotation or a
            gripper and names the joint groups; ``NAME=PATH`` for one of several embodiments.
        videos: shard folders whose clips need no actions: their pictures teach a model with a linear head where things
            are, beside those of ``shards``.
        points: a model with a linear head, of the same pictures, whose points are taken as they are; nothing is trained
            but the head.
        robot: a trained model with a linear head of the robot in ``shards``. ``videos`` then show the same tasks in
            another look, such as a hand's, and are what this model labels, with the robot's actions (`idm.looks`).
        robot_videos: with ``robot``, shard folders of more clips in its own look, which need no actions.
        **overrides: dotted options on top of the config, such as ``{"trainer.max_steps": 20}``.

    Raises:
        ConfigError: an option that does not exist or is out of range, no shards, no ``out``, clips of several rates,
            rotations that are to be told from states, or ``videos``, ``points`` or ``robot`` for a model that learns
            from actions alone.
        DataError: no clip with actions at the rate that is as long as a window.
    """
    resolved = resolve(IDMConfig, config, **overrides)
    if dry_run and not shards:
        return plan_only(build_module(resolved, {"robot": (_PLANNED_DIM, _PLANNED_DIM)}), None, kind="idm")
    of_pictures = resolved.model.head.kind == "linear"
    if (videos or points or robot) and not of_pictures:
        raise ConfigError("videos teach points to a model with model.head.kind linear, such as --config idm/pictures")
    require_data(shards or videos, out or ("" if dry_run else None), what="one or more shard folders")
    if robot and not (shards and videos):
        raise ConfigError("robot needs the robot's demonstrations, and --videos of the other look")
    if robot_videos and not robot:
        raise ConfigError("robot_videos are for videos of another look: name the --robot model; else use --videos")
    run = _Run(resolved, str(out), resume=resume, dry_run=dry_run, points=points)
    if not shards:
        seen = run.clips(videos)
        return run.train({}, lambda model: None, {}, pictures=[seen])
    clips = run.clips(shards, limit=limit, with_actions=True)
    rate_hz = training_rate(clips.rows, resolved.windows.rate_hz)
    run.config = resolved = replace(resolved, windows=resolved.windows.at_rate(rate_hz))
    size, trainer = resolved.model, resolved.trainer
    found = load_demonstrations(clips, resolved.windows, rate_hz, size.target)
    inputs = {**clips.digests(), "limit": str(limit)}
    if robot:
        return _train_across(run, (clips, found), inputs, robot=robot, videos=videos, robot_videos=robot_videos)
    kept, aside = hold_aside(found, size.calibration_share, trainer.seed)
    actions, states = fit_normalizers(kept), fit_states(kept)
    about = describe_embodiments(kept, actions, states, modality)
    if size.target == "from_state":
        about = {name: {**one, "groups": _differences(name, one["groups"])} for name, one in about.items()}
    sampler = WindowSampler(
        clips, kept, actions, states, resolved.windows, seed=trainer.seed, batch_size=trainer.batch_size
    )

    def finish(model: InverseDynamicsModel) -> None:
        if of_pictures:
            fit_linear(model, sampler)
        _calibrate(model, clips, aside, about, resolved)

    more = [run.clips(videos)] if videos else []
    return run.train(about, finish, inputs, batch_at=sampler.batch_at, pictures=[clips, *more] if of_pictures else ())


@dataclass
class _Run:
    """What the ways to train a model have in common."""

    config: IDMConfig
    out: str
    resume: bool
    dry_run: bool
    points: str

    def clips(self, shards: str | Sequence[str], **options: Any) -> ClipFrames:
        size = self.config.model
        return ClipFrames.open(shards, split="train", size_px=size.picture_px, cache_mb=size.cache_mb, **options)

    def train(
        self,
        about: Mapping[str, Mapping[str, Any]],
        finish: Callable[[InverseDynamicsModel], None],
        inputs: Mapping[str, str],
        *,
        batch_at: BatchAt | None = None,
        pictures: Sequence[ClipFrames] = (),
    ) -> TrainResult:
        """Trains a model that knows some embodiments, from windows or from the pictures of clips."""
        size, trainer = self.config.model, self.config.trainer
        inputs = {**inputs, "embodiments": files.digest(about)}
        prepare: Callable[[], None] | None = None
        dims = {name: (one["action_dim"], one["state_dim"]) for name, one in about.items()}
        module = build_module(self.config, dims, finish)
        if pictures:
            sources = [source for clips in pictures for source in clips.sources]
            seen = ClipFrames(sources, size_px=size.picture_px, cache_mb=size.cache_mb)
            inputs |= {f"seen_{name}": digest for name, digest in seen.digests().items()}
            sampler = PictureSampler(seen, seed=trainer.seed, batch_size=trainer.batch_size)
            batch_at = sampler.batch_at
            if isinstance(module, PointsModule) and not self.points:
                prepare = functools.partial(module.start_from, sampler)
        if self.points:
            inputs |= {"points": take_points(module.model, self.points)}
        if self.dry_run:
            return plan_only(module, batch_at, kind="idm")
        assert batch_at is not None  # noqa: S101  # windows or pictures: every way to train has one
        if size.vision.weights and isinstance(module.model.eyes, SiglipEyes):
            module.model.eyes.load_published(size.vision.weights)
        return train_model(
            module,
            batch_at,
            kind="idm",
            out=self.out,
            config=self.config,
            inputs=inputs,
            extra={"embodiments": about},
            resume=self.resume,
            prepare=prepare,
            fit=not self.points,
        )


def _train_across(
    run: _Run,
    demonstrations: tuple[ClipFrames, list[Demonstration]],
    inputs: Mapping[str, str],
    *,
    robot: str,
    videos: str | Sequence[str],
    robot_videos: str | Sequence[str],
) -> TrainResult:
    known, seed = load(robot), run.config.trainer.seed
    bodies = {d.embodiment for d in demonstrations[1]}
    if len(bodies) > 1 or not bodies <= known.embodiments.keys():
        raise ConfigError(
            f"demonstrations of {', '.join(sorted(bodies))} for a model of {', '.join(known.embodiments)}: one robot "
            "is needed that the model knows"
        )
    if known.config.windows != run.config.windows or known.config.model.head.kind != "linear":
        raise ConfigError(f"'{robot}' has other windows or no linear head; train it with the same --config")
    others = run.clips(videos)
    more = run.clips(robot_videos) if robot_videos else ClipFrames([], size_px=others.size_px, cache_mb=0)
    require_matchable(others, more, demonstrations[1], run.config.windows)
    (body,) = bodies
    names = sorted({str(row["embodiment"]) for row in others.rows})
    # What a label of theirs is off by is not measured.
    about = {name: {**known.embodiments[body], "calibrated": False, "actions_of": body} for name in names}
    inputs = {**inputs, "robot": known.weights_sha256}
    inputs |= {f"robot_{name}": digest for name, digest in more.digests().items()}

    def finish(model: InverseDynamicsModel) -> None:
        fit_across(model, names, others, robot=known, demonstrations=demonstrations, robot_videos=more, seed=seed)

    return run.train(about, finish, inputs, pictures=[others])


def _differences(name: str, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the groups of what actions differ from states by: of a switch that is no switch, of a rotation none."""
    turned = [group["name"] for group in groups if group["kind"] not in ("linear", "binary")]
    if turned:
        raise ConfigError(
            f"model.target from_state cannot tell the rotations of '{name}' ({', '.join(turned)}) from its states; "
            "use model.target action"
        )
    return [{**group, "kind": "linear"} for group in groups]


def _calibrate(
    model: InverseDynamicsModel,
    clips: ClipFrames,
    demonstrations: Sequence[Demonstration],
    about: Mapping[str, Mapping[str, Any]],
    config: IDMConfig,
) -> None:
    for name, one in about.items():
        body = Body.of(one)
        own = [d for d in demonstrations if d.embodiment == name][:_MOST_CALIBRATION_CLIPS]
        seen = (
            (
                ClipInput(
                    clips.frames(d.clip, d.frames),
                    segments(d.frames, clips.rows[d.clip]["cuts"] or ()),
                    body.state_of(d.state) if config.model.state != "none" else None,
                ),
                body.normalizer.normalize(d.action),
            )
            for d in own
        )
        calibrate(model, name, seen, config.windows, body.rule)
