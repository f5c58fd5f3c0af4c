"""One cell: its policy is trained through the verb, then plays fresh starts; what is done is found done."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from proofs.arms import Cell, make_labels, mixture_of, models_of, options_of
from proofs.config import ProofConfig
from proofs.corpus import BODY, corpus_of, draw_part

from pyramid import files
from pyramid.actions import StateHistory
from pyramid.config import dump_yaml, to_dict
from pyramid.jobs import Outcome, Unit
from pyramid.rng import seed_of
from pyramid.sim import RolloutConfig, play
from vla.observation import resize_images
from vla.policy import Policy
from vla.train import train_vla


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker needs for one piece of work."""

    out: str
    config: ProofConfig
    task: str
    piece: str
    """An arm, a label model or a part of the data."""
    subset: int

    def unit(self) -> Unit:
        """Returns it as a piece of a job."""
        name = f"{self.task}-{self.piece}-{self.subset}"
        digest = self.config.digest(models_of(self.piece))
        return Unit(name=name, digest=files.digest([digest, name]), task=self, amount=1)


class Robot:
    """A policy asked for the robot's own actions, whatever else it knows; pictures may be larger than it takes."""

    def __init__(self, model: str) -> None:
        self._policy = Policy.from_pretrained(model)
        self._size_px = self._policy.config.backbone.image_size_px

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        """Returns the next actions; see `pyramid.sim.Player`."""
        images = observation["images"]
        if images.shape[1] != self._size_px:
            images = resize_images(images, self._size_px)
        return self._policy.act({**observation, "images": images}, embodiment=BODY, seed=seed)

    def history(self) -> StateHistory:
        """Returns what keeps the states that the policy takes."""
        return self._policy.history(BODY)


def run_drawing(task: Task) -> Outcome:
    """Draws the part of the data that ``piece`` names."""
    draw_part(files.join(task.out, task.task), task.task, task.config, task.piece)
    return Outcome()


def run_labels(task: Task) -> Outcome:
    """Trains the label model that ``piece`` names, and labels with it."""
    place = files.join(task.out, task.task)
    make_labels(task.piece, Cell(place, corpus_of(place, task.config), task.subset, task.config))
    return Outcome()


def run_cell(task: Task) -> Outcome:
    """Trains and tries one policy; the facts are those of its tries."""
    config, place = task.config, files.join(task.out, task.task)
    cell = Cell(place, corpus_of(place, config), task.subset, config)
    folder = files.join(place, "cells", f"{task.piece}-{task.subset}")
    mixture, model = files.join(folder, "mixture.yaml"), files.join(folder, "model")
    files.write_text(mixture, dump_yaml(mixture_of(task.piece, cell)))
    trained = train_vla(mixture, out=model, config=to_dict(config.policy_config()), **options_of(task.piece, cell))
    tried = play(
        functools.partial(Robot, model),
        files.sha256_file(files.join(model, "model.safetensors")),
        out=files.join(folder, "rollouts"),
        config=rollouts(task.task, config),
    )
    facts: dict[str, Any] = {"solved": list(tried.solved), "steps": list(tried.steps), "loss": trained.loss}
    return Outcome(facts=facts)


def rollouts(task: str, config: ProofConfig) -> RolloutConfig:
    """Returns how a policy is tried; all of a task on the same starts."""
    return RolloutConfig(
        task=task,
        n_starts=config.n_starts,
        seed=seed_of(config.seed, "proof", "starts"),
        max_steps=config.max_steps,
        execute=config.execute,
        size_px=config.size_px,
        fovy_deg=config.fovy_deg,
        look_at=config.look_at,
        oversample=config.oversample,
    )
