"""Makes single episodes: finds a seed that the expert solves, runs it, writes its files.

Which episodes are made, and in what order, is left to `plan` and `dataset`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pyramid import files
from pyramid.errors import DataError
from pyramid.jobs import Outcome
from pyramid.lerobot.write import EpisodeData, EpisodeWriter
from pyramid.rng import rng
from pyramid.sim.config import SimConfig
from pyramid.sim.degrade import degrade
from pyramid.sim.env import MetaWorldEnv
from pyramid.sim.episodes import Episode, rollout_expert
from pyramid.sim.looks import Look, apply_look
from pyramid.sim.plan import Item, Part, fps_of, robot_layout, stride_of
from pyramid.sim.render import Renderer
from pyramid.sim.tasks import instruction
from pyramid.video.encode import encode_mp4

MAX_ATTEMPTS = 100
"""Seeds that are tried for one episode."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to make one episode."""

    out: str
    """The data set's folder."""
    config: SimConfig
    """The data set's config."""
    item: Item
    """Which episode."""
    seed: int = -1
    """For robot episodes: the seed that `cast` found."""
    first_frame: int = -1
    """For robot episodes: frames in the episodes before it."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How a scene is looked at."""

    look: Look
    """How the acting body looks."""
    size_px: int
    """Height and width of the pictures."""
    camera: str
    """Name of the camera."""
    fovy_deg: float
    """The camera's vertical field of view."""
    look_at: tuple[float, float, float] | None = None
    """Where it is turned to, metres."""
    light: float = 1.0
    """Gain of all lights."""
    oversample: int = 1
    """How many times as large pictures are drawn before they are averaged."""


def view_of(config: SimConfig, part: Part) -> View:
    """Returns how a part of a data set is looked at."""
    look: Look = "hand" if part == "hand" else "robot"
    camera, light = config.camera, 1.0
    if part == "robot":
        look = config.robot_look
    if look == "hand":
        camera, light = config.hand.camera or camera, config.hand.light
    return View(
        look=look,
        size_px=config.size_px,
        camera=camera,
        fovy_deg=config.fovy_deg,
        look_at=config.look_at,
        light=light,
        oversample=config.oversample,
    )


class Stage:
    """An environment in one look with its renderer; a process keeps one, because opening it takes half a second."""

    def __init__(self) -> None:
        self._key: tuple[str, View] | None = None
        self._env: MetaWorldEnv | None = None
        self._renderer: Renderer | None = None

    def env(self, task: str, view: View) -> MetaWorldEnv:
        """Returns the environment of a task, opened if another one was open."""
        if self._env is None or self._key != (task, view):
            self.close()
            self._env, self._key = MetaWorldEnv(task), (task, view)
            apply_look(self._env.model, view.look, view.light)
        return self._env

    def renderer(self, env: MetaWorldEnv, view: View) -> Renderer:
        """Returns the renderer of the environment that is open."""
        if self._renderer is None:
            self._renderer = Renderer(
                env.model,
                size_px=view.size_px,
                camera=view.camera,
                fovy_deg=view.fovy_deg,
                look_at=view.look_at,
                oversample=view.oversample,
            )
        return self._renderer

    def close(self) -> None:
        """Frees what is open."""
        if self._renderer is not None:
            self._renderer.close()
        if self._env is not None:
            self._env.close()
        self._key = self._env = self._renderer = None


STAGE = Stage()
"""This process's stage; it holds no randomness, only what is slow to open."""


def cast(job: Job) -> Outcome:
    """Finds the first of an episode's seeds that the expert solves, and how long it takes; draws nothing."""
    config, item = job.config, job.item
    env = STAGE.env(item.task, view_of(config, item.part))
    for attempt in range(MAX_ATTEMPTS):
        seed = item.seed(config.seed, attempt)
        episode = rollout_expert(env, seed=seed, action_noise=config.action_noise, max_steps=config.max_steps)
        if episode.success or not config.success_only:
            return Outcome(facts={"seed": seed, "attempts": attempt + 1, "steps": len(episode)})
    raise DataError(
        f"the expert of {item.task} failed {MAX_ATTEMPTS} times within {config.max_steps} steps at noise "
        f"{config.action_noise}; raise max_steps or lower action_noise"
    )


def make(job: Job) -> Outcome:
    """Makes one episode's files; the facts are those of `cast` and the frames drawn."""
    if job.item.part == "robot":
        return _make_robot(job)
    facts = cast(job).facts
    episode = _run(job, int(facts["seed"]))
    frames = episode.frames
    if job.item.part == "generated":
        frames = degrade(frames, rng(episode.seed, "degrade"), job.config.degrade)
    files.write_bytes(files.join(job.out, job.item.file), encode_mp4(frames, fps_of(job.item.part)))
    return Outcome(facts={**facts, "frames": len(frames)}, output=job.item.file)


def _make_robot(job: Job) -> Outcome:
    episode = _run(job, job.seed)
    writer = robot_writer(job.out, job.config)
    data = EpisodeData(
        state=episode.state,
        action=episode.action,
        frames={writer.layout.cameras[0]: episode.frames},
        task=episode.instruction,
        facts={"env": episode.task, "seed": episode.seed, "success": episode.success},
    )
    writer.write(job.item.index, data, first_frame=job.first_frame)
    return Outcome(facts={"frames": len(episode.frames)}, output=job.item.file)


def _run(job: Job, seed: int) -> Episode:
    config, part = job.config, job.item.part
    view = view_of(config, part)
    env = STAGE.env(job.item.task, view)
    return rollout_expert(
        env,
        seed=seed,
        action_noise=config.action_noise,
        max_steps=config.max_steps,
        renderer=STAGE.renderer(env, view),
        frame_stride=stride_of(config, part),
    )


def probe_s(job: Job) -> float:
    """Makes one episode, writes nothing, and returns the seconds it took once everything was open."""
    config, item = job.config, job.item
    env = STAGE.env(item.task, view_of(config, item.part))
    env.reset(0)
    STAGE.renderer(env, view_of(config, item.part)).frame(env.data)
    start = time.monotonic()
    episode = _run(job, int(cast(job).facts["seed"]))
    encode_mp4(episode.frames, fps_of(item.part))
    return time.monotonic() - start


def robot_writer(out: str, config: SimConfig) -> EpisodeWriter:
    """Returns the writer of the data set's robot part."""
    tasks = [instruction(task) for task in config.tasks]
    return EpisodeWriter(files.join(out, "robot"), robot_layout(config), tasks)
