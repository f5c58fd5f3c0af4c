"""`make_dataset`: a small data pyramid from the simulator, resumable at any moment, the same bytes every time.

What one episode is and how it is made is left to `plan` and `stage`, the folder's ownership to `folder`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError, MissingDependencyError
from pyramid.jobs import JobReport, Unit, run_job
from pyramid.progress import format_bytes, format_seconds
from pyramid.sim import backend
from pyramid.sim.config import SimConfig
from pyramid.sim.folder import CAPTIONS, COUNTS, EPISODES, claim, prepare
from pyramid.sim.plan import PARTS, Item, items
from pyramid.sim.stage import STAGE, Job, cast, make, probe_s, robot_writer
from pyramid.sim.tasks import instruction


@dataclass(frozen=True, kw_only=True)
class SimReport:
    """What a simulated data set holds, or with ``dry_run`` would hold."""

    out: str
    """The folder."""
    hand: int
    """Hand videos."""
    generated: int
    """Generated-looking clips."""
    robot: int
    """Robot episodes."""
    frames: int
    """Frames of all of them; 0 in a dry run."""
    bytes: int
    """Bytes of the three parts; 0 in a dry run."""
    failed_experts: int
    """Runs of experts that were thrown away; 0 in a dry run."""
    skipped_done: int
    """Episodes that a former run had made."""
    seconds: float
    """Wall time; in a dry run the estimate, from one episode of each part made and thrown away."""

    def __repr__(self) -> str:
        parts = f"{self.hand} hand videos, {self.generated} generated clips, {self.robot} robot episodes"
        made = f"{self.frames} frames, {format_bytes(self.bytes)}, {self.skipped_done} found done"
        return f"SimReport({self.out}: {parts}, {made}, {format_seconds(self.seconds)})"


def make_dataset(
    out: str,
    config: SimConfig | str | Mapping[str, Any] | None = None,
    *,
    resume: bool = True,
    limit: int | None = None,
    dry_run: bool = False,
) -> SimReport:
    """Makes ``out/hand`` (videos, `captions.jsonl`), ``out/generated`` (DreamGen names), ``out/robot`` (LeRobot v2.1).

    A folder only grows: asked for fewer episodes than it has, it keeps what it has. One machine gives the same bytes
    every time; another graphics driver may round pixels differently.

    Args:
        out: the folder, local or ``s3://``.
        config: a config, a preset's name, a YAML file or a mapping.
        resume: keep the episodes that a former run with the same config made; False makes all anew.
        limit: at most so many episodes in each of the three parts.
        dry_run: write nothing; return counts and an estimate.

    Raises:
        ConfigError: the folder holds something else, or was made with another config.
        MissingDependencyError: the extra ``sim`` or EGL is missing.
        DataError: an expert never succeeds.
        InterruptedJobError: stopped by a person; the same call goes on.
    """
    start = time.monotonic()
    versions = _simulator()
    wanted = claim(out, _limited(resolve(SimConfig, config), limit), versions, resume=resume)
    try:
        if dry_run:
            return _dry_report(out, wanted, versions, resume=resume)
        prepare(out, wanted, versions, resume=resume)
        return _make(out, wanted, versions, start=start)
    finally:
        STAGE.close()


def _limited(config: SimConfig, limit: int | None) -> SimConfig:
    if limit is None:
        return config
    if limit < 0:
        raise ConfigError(f"limit must be 0 or more, got {limit}")
    return replace(config, **{name: min(limit, getattr(config, name)) for name in COUNTS})


def _simulator() -> dict[str, str]:
    backend.environments()
    try:
        return {name: metadata.version(name) for name in ("metaworld", "mujoco")}
    except metadata.PackageNotFoundError as error:
        raise MissingDependencyError(f"'{error.name}' is importable but not installed; install it with pip") from error


def _units(out: str, config: SimConfig, versions: dict[str, str], chosen: Sequence[Item]) -> list[Unit]:
    """Returns the work, ordered so that a process seldom has to open another environment."""
    decides = {key: value for key, value in to_dict(config).items() if key not in COUNTS} | {"simulator": versions}
    return [
        Unit(
            name=item.name,
            digest=files.digest([decides, item.name, item.file]),
            task=Job(out=str(out), config=config, item=item),
            amount=1,
        )
        for item in sorted(chosen, key=lambda item: (PARTS.index(item.part), item.task, item.index))
    ]


def _make(out: str, config: SimConfig, versions: dict[str, str], *, start: float) -> SimReport:
    videos = _units(out, config, versions, [*items(config, "hand"), *items(config, "generated")])
    robots = _units(out, config, versions, items(config, "robot"))
    casts = [replace(unit, name=f"cast-{unit.name}") for unit in robots]
    casting = run_job(casts, cast, folder=out, label="sim cast", unit_name="episodes")
    units = [*videos, *_told(robots, casting)]
    job = run_job(units, make, folder=out, label="sim", unit_name="episodes")
    rows = _rows(units, job, {unit.name: o.facts for unit, o in zip(robots, casting.outcomes, strict=True)})
    _write_documents(out, config, rows)
    return SimReport(
        out=str(out),
        hand=config.n_hand,
        generated=config.n_generated,
        robot=config.n_robot,
        frames=sum(row["frames"] for row in rows),
        bytes=sum(files.size_bytes(path) for part in PARTS for path in files.walk_files(files.join(out, part))),
        failed_experts=sum(row["attempts"] - 1 for row in rows),
        skipped_done=job.skipped_done,
        seconds=time.monotonic() - start,
    )


def _told(robots: Sequence[Unit], casting: JobReport) -> list[Unit]:
    """Tells the robot's episodes their seeds and, from the lengths of those before them, their first frames."""
    facts = {unit.name: outcome.facts for unit, outcome in zip(robots, casting.outcomes, strict=True)}
    told, first_frame = {}, 0
    for unit in sorted(robots, key=lambda unit: int(unit.task.item.index)):
        job = replace(unit.task, seed=facts[unit.name]["seed"], first_frame=first_frame)
        told[unit.name] = replace(unit, task=job, digest=files.digest([unit.digest, job.seed, job.first_frame]))
        first_frame += facts[unit.name]["steps"]
    return [told[unit.name] for unit in robots]


def _rows(units: Sequence[Unit], job: JobReport, cast_facts: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per episode: what it is and how it came about."""
    rows = []
    for unit, outcome in zip(units, job.outcomes, strict=True):
        item: Item = unit.task.item
        facts = {**cast_facts.get(unit.name, {}), **outcome.facts}
        row = {
            "part": item.part,
            "index": item.index,
            "file": item.file,
            "env": item.task,
            "text": instruction(item.task),
        }
        rows.append({**row, **{key: facts[key] for key in ("seed", "attempts", "steps", "frames")}})
    return rows


def _write_documents(out: str, config: SimConfig, rows: Sequence[dict[str, Any]]) -> None:
    if config.n_robot:
        robot_writer(out, config).finish(config.n_robot)
    hand = sorted((row["file"].removeprefix("hand/"), row["text"]) for row in rows if row["part"] == "hand")
    _write_lines(files.join(out, "hand", CAPTIONS), [{"file": file, "text": text} for file, text in hand])
    _write_lines(files.join(out, EPISODES), rows)


def _write_lines(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _dry_report(out: str, config: SimConfig, versions: dict[str, str], *, resume: bool) -> SimReport:
    units = _units(out, config, versions, [item for part in PARTS for item in items(config, part)])
    # Files appear whole, and `claim` made sure that they are of this config.
    left = [unit for unit in units if not (resume and files.exists(files.join(out, unit.task.item.file)))]
    first = {unit.task.item.part: unit.task for unit in left}
    counts = Counter(unit.task.item.part for unit in left)
    return SimReport(
        out=str(out),
        hand=config.n_hand,
        generated=config.n_generated,
        robot=config.n_robot,
        frames=0,
        bytes=0,
        failed_experts=0,
        skipped_done=len(units) - len(left),
        seconds=sum(probe_s(job) * counts[part] for part, job in first.items()),
    )
