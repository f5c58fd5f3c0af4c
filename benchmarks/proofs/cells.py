"""One cell: its policy is trained through the verb, then plays fresh starts; what is done is found done."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from proofs.arms import Cell, make_labels, mixture_of, options_of
from proofs.config import ProofConfig
from proofs.corpus import make_corpus

from pyramid import files
from pyramid.config import dump_yaml, to_dict
from pyramid.jobs import Outcome, Unit
from pyramid.rng import seed_of
from pyramid.sim import RolloutConfig, play
from vla.policy import Policy
from vla.train import train_vla


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker needs for one cell."""

    out: str
    config: ProofConfig
    task: str
    arm: str
    subset: int

    def unit(self) -> Unit:
        """Returns it as a piece of a job."""
        name = f"{self.task}-{self.arm}-{self.subset}"
        return Unit(name=name, digest=files.digest([self.config.digest(), name]), task=self, amount=1)


def run_labels(task: Task) -> Outcome:
    """Trains the label model that ``arm`` names, and labels with it."""
    place = files.join(task.out, task.task)
    make_labels(task.arm, Cell(place, make_corpus(place, task.task, task.config), task.subset, task.config))
    return Outcome()


def run_cell(task: Task) -> Outcome:
    """Trains and tries one policy; the facts are those of its tries."""
    config, place = task.config, files.join(task.out, task.task)
    cell = Cell(place, make_corpus(place, task.task, config), task.subset, config)
    folder = files.join(place, "cells", f"{task.arm}-{task.subset}")
    mixture, model = files.join(folder, "mixture.yaml"), files.join(folder, "model")
    files.write_text(mixture, dump_yaml(mixture_of(task.arm, cell)))
    trained = train_vla(mixture, out=model, config=to_dict(config.policy_config()), **options_of(task.arm, config))
    tried = play(
        functools.partial(Policy.from_pretrained, model),
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
    )
