"""A small training on real shards in forked processes, killed while a step's batch is read; prints JSON.

Run by `test_vla_tuning`, with a folder as its argument.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import drawing
from tiny_policy import TINY

from pyramid.config import dump_yaml, resolve, to_dict
from pyramid.mixture.batch import MixtureStream
from vla.config import VLAConfig
from vla.train import train_vla

STEPS = 6
OPTIONS = {
    "policy": to_dict(TINY),
    "policy.head.future_tokens": 4,
    "policy.head.dropout": 0.2,
    "policy.head.state_dropout": 0.2,
    "objectives.flare": {"weight": 0.2, "target": "qformer", "qformer_width": 16, "qformer_heads": 2},
    "trainer": {
        "max_steps": STEPS,
        "batch_size": 6,
        "warmup_steps": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "threads": 1,
    },
    "tune.validation": {"every": 3, "batches": 1},
}


def config(**options: object) -> VLAConfig:
    return resolve(VLAConfig, {}, **{**OPTIONS, **options})


def write_mixture(folder: Path) -> str:
    """Writes shards of a robot with actions and of videos without, and a mixture of both."""
    arm = drawing.write_shards(folder / "arm", [9, 8, 9], n_val=1)
    human = drawing.write_shards(folder / "human", [9, 9, 9], actions=False, first_clip=9, embodiment="human", n_val=1)
    spec = {
        "tiers": {
            "base": {"weight": 1, "sources": {"seen": {"shards": human, "use": "video"}}},
            "top": {"weight": 2, "sources": {"robot": {"shards": arm, "use": "action"}}},
        },
        "horizon": 3,
        "future_s": 0.3,
    }
    (folder / "mix.yaml").write_text(dump_yaml(spec))
    return str(folder / "mix.yaml")


def in_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(step: int) -> None:
    """Has this process killed when the batch of a step is read."""
    whole = MixtureStream.batch

    def batch(self: MixtureStream, number: int) -> list:
        if number == step:
            os.kill(os.getpid(), 9)
        return whole(self, number)

    MixtureStream.batch = batch


def main(folder: Path) -> None:
    mixture = write_mixture(folder)

    def run(name: str) -> object:
        return train_vla(mixture, out=str(folder / name), config=config())

    found = {"whole": in_child(lambda: run("whole")), "killed": [], "last": 99}
    for step in (3, 5):
        found["killed"].append(in_child(lambda step=step: (killed_at(step), run("parts"))))
        found["killed"].append((folder / "parts" / "config.json").exists())
    found["last"] = in_child(lambda: run("parts"))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
