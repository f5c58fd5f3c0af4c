"""The verb ``redraw``: videos of hands become videos of the robot, for everything that learns from the robot's look.

What is drawn where is `idm.redrawing`'s; states of both looks are told by what `idm.looks` finds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from idm.config import IDMConfig
from idm.data import Demonstration, load_demonstrations
from idm.label import IDMLabeler, load
from idm.looks import Joined, join_looks, look_at, require_matchable, shots, shots_of, take_points
from idm.model import InverseDynamicsModel
from idm.redrawing import RedrawConfig, Redrawer
from pyramid import files
from pyramid.config import from_dict, provenance, resolve, to_dict
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.jobs import Outcome, Quarantined, Unit, count_reasons, pending, run_job
from pyramid.nn.checkpoint import load_model_files
from pyramid.progress import format_seconds
from pyramid.shards.frames import ClipFrames
from pyramid.video.encode import encode_mp4

__all__ = ["RedrawConfig", "RedrawResult", "redraw"]

FORMAT_VERSION = 1
MARK, CAPTIONS = "redraw.json", "captions.jsonl"
_CACHE_MB = 512


@dataclass(frozen=True, kw_only=True)
class RedrawResult:
    """What was drawn."""

    out: str
    """The folder."""
    clips: int
    """Clips of hands that were drawn over."""
    videos: int
    """Their videos, one for each shot; with ``dry_run`` 0."""
    frames: int
    """Frames of all of them."""
    skipped_done: int
    """Clips that a former run had done."""
    quarantined: dict[str, int]
    """Clips set aside, by reason."""
    seconds: float
    """Wall time."""
    items: list[Quarantined] = field(default_factory=list)
    """The clips set aside."""

    def __repr__(self) -> str:
        if not self.videos:
            return f"{self.clips} clips to draw over, {self.skipped_done} of them done; nothing written"
        aside = f", {sum(self.quarantined.values())} clips set aside" if self.quarantined else ""
        made = f"{self.frames} frames{aside}, {self.skipped_done} clips found done"
        return f"{self.videos} videos of {self.clips} clips, {made} -> {self.out} ({format_seconds(self.seconds)})"


def redraw(
    shards: str | Sequence[str],
    *,
    demos: str | Sequence[str] = (),
    robot: str = "",
    points: str = "",
    robot_videos: str | Sequence[str] = (),
    out: str | None = None,
    config: RedrawConfig | str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    resume: bool = True,
    dry_run: bool = False,
    **options: Any,
) -> RedrawResult:
    """Draws the robot over the hands of videos, so that what learns from the robot's look can learn from them.

    Writes a video for each shot and their texts in `captions.jsonl`, for ``scan folder``; then they are packed and
    labelled as the robot's own videos are. No action, pose or pair of the hands is needed.

    Args:
        shards: one or more shard folders of hand videos, of which the ``train`` clips are taken.
        demos: one or more shard folders of the robot's demonstrations, with states.
        robot: a model of the robot with a linear head (``train idm DEMOS --config idm/pictures --videos VIDEOS``).
        points: a model of the hands' points (``train idm --config idm/pictures --videos HANDS``).
        robot_videos: shard folders of more of the robot's videos, which need no actions.
        out: the folder to write.
        config: a preset, a YAML file or options.
        limit: take the first clips of hands only.
        resume: keep the clips that are done.
        dry_run: look at everything, write nothing.
        options: fields of `RedrawConfig`.

    Raises:
        ConfigError: something is not named, or models that do not fit each other.
        DataError: no clips, no states, too few clips to match, or looks that are not of one scene.
    """
    start, cfg = time.monotonic(), resolve(RedrawConfig, config, **options)
    for name, value in {"demos": demos, "robot": robot, "points": points}.items():
        if not value:
            raise ConfigError(f"redraw needs --{name}; see pyramid redraw --help")
    if not dry_run and not out:
        raise ConfigError("say where the videos go: --out DIR")
    work = _Work.open(shards, demos, robot=robot, points=points, robot_videos=robot_videos, config=cfg, limit=limit)
    units = work.units(str(out or ""))
    if dry_run:
        done = len(units) - len(list(pending(units, folder=out))) if out and files.is_dir(out) else 0
        return RedrawResult(
            out="",
            clips=len(units),
            videos=0,
            frames=0,
            skipped_done=done,
            quarantined={},
            seconds=time.monotonic() - start,
        )
    folder = str(out)
    _claim(folder, work, cfg)
    if not resume or next(iter(pending(units, folder=folder)), None) is not None:
        work.prepare()
    report = run_job(
        units,
        partial(_draw, work, folder),
        folder=folder,
        label="redraw",
        unit_name="clips",
        resume=resume,
        n_units=len(units),
    )
    made = [video for outcome in report.outcomes for video in outcome.facts.get("videos", [])]
    lines = [json.dumps({"file": video["file"], "text": video["text"]}, ensure_ascii=False) for video in made]
    files.write_text(files.join(folder, CAPTIONS), "".join(line + "\n" for line in lines))
    if not made:
        raise DataError(f"none of the clips could be drawn over: {count_reasons(report.quarantined)}")
    return RedrawResult(
        out=folder,
        clips=len({video["clip"] for video in made}),
        videos=len(made),
        frames=sum(video["frames"] for video in made),
        skipped_done=report.skipped_done,
        quarantined=count_reasons(report.quarantined),
        seconds=round(time.monotonic() - start, 3),
        items=report.quarantined,
    )


@dataclass
class _Work:
    """Both looks, what sees them, and what draws; the last two are made when the first clip is wanted of them."""

    hands: ClipFrames
    """At the side that is drawn."""
    small: ClipFrames
    """The same as their model sees them."""
    demonstrations: tuple[ClipFrames, list[Demonstration]]
    robot_videos: ClipFrames
    """As the robot's model sees them."""
    banks: tuple[ClipFrames, ...]
    """Demonstrations and the robot's videos at the side that is drawn."""
    robot: IDMLabeler
    eyes: InverseDynamicsModel
    eyes_sha256: str
    config: RedrawConfig

    @classmethod
    def open(
        cls,
        shards: str | Sequence[str],
        demos: str | Sequence[str],
        *,
        robot: str,
        points: str,
        robot_videos: str | Sequence[str],
        config: RedrawConfig,
        limit: int | None,
    ) -> _Work:
        known = load(robot)
        windows, size = known.config.windows, known.config.model.picture_px
        if known.config.model.head.kind != "linear":
            raise ConfigError(f"'{robot}' tells no points: train it with --config idm/pictures")
        eyes, digest = _eyes(points, known)
        hands = ClipFrames.open(shards, split="train", size_px=_side(shards), limit=limit)
        side = hands.size_px
        clips = ClipFrames.open(demos, split="train", size_px=size, cache_mb=_CACHE_MB, with_actions=True)
        found = load_demonstrations(clips, windows, known.rate_hz, known.config.model.target)
        more = ClipFrames([], size_px=size, cache_mb=0)
        if robot_videos:
            more = ClipFrames.open(robot_videos, split="train", size_px=size, cache_mb=_CACHE_MB)
        small = ClipFrames.open(shards, split="train", size_px=eyes.config.model.picture_px, cache_mb=_CACHE_MB)
        require_matchable(small, more, found, windows)
        banks = tuple(ClipFrames(one.sources, size_px=side, cache_mb=0) for one in (clips, more))
        return cls(hands, small, (clips, found), more, banks, known, eyes, digest, config)

    def inputs(self) -> dict[str, str]:
        """Returns the digests of everything that is read."""
        named = {"hands": self.small, "demos": self.demonstrations[0], "robot_videos": self.robot_videos}
        told = {f"{name}_{key}": value for name, one in named.items() for key, value in one.digests().items()}
        return {**told, "robot": self.robot.weights_sha256, "points": self.eyes_sha256}

    def units(self, out: str) -> list[Unit]:
        """Returns a piece of work for each clip of hands."""
        deciding = files.digest([FORMAT_VERSION, to_dict(self.config), self.inputs(), self.hands.size_px])
        return [
            Unit(
                name=f"clip-{number:06d}",
                digest=files.digest([deciding, row["key"]]),
                task={"clip": number, "key": row["key"], "text": row["text"]},
                amount=1,
            )
            for number, row in enumerate(self.hands.rows)
        ]

    def prepare(self) -> None:
        """Makes what draws, which takes longer than a clip."""
        assert self.redrawer.empty.numel()  # noqa: S101

    @cached_property
    def joined(self) -> Joined:
        return join_looks(
            self.eyes,
            self.small,
            robot=self.robot,
            demonstrations=self.demonstrations,
            robot_videos=self.robot_videos,
            seed=self.config.seed,
        )

    @cached_property
    def redrawer(self) -> Redrawer:
        frames, states, clips = [], [], []
        looked = zip((self.demonstrations[0], self.robot_videos), self.banks, strict=True)
        for place, (seen, drawn) in enumerate(looked):
            if not len(seen):
                continue
            found = list(shots(seen, self.robot.config.windows))
            step = _every(found, drawn.size_px, self.config.bank_mb)
            for clip, steps in found:
                told = self.joined.of_robot(look_at(self.robot.model, seen.frames(clip, steps)))
                frames.append(drawn.frames(clip, steps[::step], keep=False))
                states.append(told[::step])
                clips += [2 * clip + place] * len(steps[::step])
        # Of all clips, whatever the limit: what is drawn in one must not depend on which others are wanted.
        scene = ClipFrames(self.small.sources, size_px=self.hands.size_px, cache_mb=0)
        hands = [scene.frames(clip, steps[::8], keep=False) for clip, steps in shots(scene, self.robot.config.windows)]
        return Redrawer(torch.cat(hands), torch.cat(frames), np.concatenate(states), clips, self.config)


def _draw(work: _Work, out: str, task: Mapping[str, Any]) -> Outcome:
    """Draws over the shots of one clip and writes their videos."""
    clip, key, rate_hz = task["clip"], task["key"], work.robot.rate_hz
    made = []
    for number, (_, steps) in enumerate(shots_of(work.hands, clip, work.robot.config.windows)):
        told = work.joined.of_other(look_at(work.eyes, work.small.frames(clip, steps)))
        drawn = work.redrawer.redraw(work.hands.frames(clip, steps, keep=False), told)
        pixels: NDArray[np.uint8] = drawn.permute(0, 2, 3, 1).contiguous().numpy()
        name = f"{key}{f'-{number}' if number else ''}.mp4"
        files.write_bytes(files.join(out, name), encode_mp4(pixels, rate_hz, crf=work.config.crf))
        made.append({"file": name, "text": task["text"], "frames": len(steps), "clip": clip})
    if not made:
        raise SkipItemError("rate", f"{key}: no frames at {rate_hz:g} Hz: its rate must be a multiple of it")
    return Outcome(facts={"videos": made}, output=str(made[-1]["file"]))


def _every(found: Sequence[tuple[int, list[int]]], side: int, most_mb: int) -> int:
    """Returns every how manieth frame of shots is held."""
    return max(-(-sum(len(steps) for _, steps in found) * 3 * side**2 // (most_mb * 2**20)), 1)


def _side(shards: str | Sequence[str]) -> int:
    """Returns the side of the videos: that of the first clip's pictures, made even for H.264."""
    first = ClipFrames.open(shards, split="train", size_px=2, limit=1).rows[0]
    side = min(int(first["height_px"]), int(first["width_px"]))
    return side - side % 2


def _eyes(points: str, robot: IDMLabeler) -> tuple[InverseDynamicsModel, str]:
    """Returns what sees the hands' points, at the robot's rate, and the digest of its weights."""
    description, _ = load_model_files(points, "idm")
    config = from_dict(IDMConfig, description["config"])
    if config.model.head.kind != "linear":
        raise ConfigError(f"'{points}' tells no points: train it with --config idm/pictures")
    model = InverseDynamicsModel(replace(config, windows=robot.config.windows), {})
    return model.eval(), take_points(model, points)


def _claim(out: str, work: _Work, config: RedrawConfig) -> None:
    """Makes the folder, or refuses one with videos of something else.

    Raises:
        ConfigError: it holds something else.
    """
    mark = {"config": to_dict(config), "inputs": work.inputs()}
    path = files.join(out, MARK)
    if files.exists(path):
        found = files.read_json(path)
        if not isinstance(found, dict) or {name: found.get(name) for name in mark} != mark:
            raise ConfigError(f"'{out}' holds videos that were drawn from something else; choose another folder")
        files.remove_temporaries(out)
        return
    if any(name.endswith(".mp4") for name in files.listdir(out)):
        raise ConfigError(f"'{out}' holds videos that were not drawn here; choose another folder")
    files.make_dirs(out)
    files.write_json(path, {**mark, "provenance": provenance(config=config, inputs=work.inputs())})
