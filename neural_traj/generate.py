"""The verb ``dream generate``: has a video world model, or any program, make videos of requests.

How each kind of generator is run is left to `generators`; what is made lies as GR00T-Dreams splits its clips, which
``dream ingest`` reads: ``videos/N.mp4`` with the instruction in ``labels/N.txt``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from neural_traj.generation import GenerateConfig
from neural_traj.generators import Generator, load_generator
from neural_traj.requests import Request, read_requests
from neural_traj.weights import weights_digest
from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError, SkipItemError
from pyramid.jobs import Outcome, Quarantined, Unit, count_reasons, run_job
from pyramid.progress import format_seconds
from pyramid.rng import seed_of

__all__ = ["GenerateConfig", "GenerateResult", "generate", "run_requests"]

FORMAT_VERSION = 2
_SEEDS = 2**31
_DECIDES_NOTHING = ("device", "offload", "timeout_s")


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """What was generated."""

    requests: int
    """Requests."""
    videos: int
    """Videos that are there."""
    skipped_done: int
    """Batches of videos that a former run had made."""
    quarantined: dict[str, int]
    """Requests without a video, by reason."""
    seconds: float
    """Wall time of this run."""
    out: str = ""
    """The folder; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """What was set aside."""

    def __repr__(self) -> str:
        aside = f", {sum(self.quarantined.values())} set aside" if self.quarantined else ""
        if not self.out:
            return f"{self.videos} videos of {self.requests} requests to make; nothing written"
        again = f", {self.skipped_done} batches were done" if self.skipped_done else ""
        what = f"{self.videos} videos of {self.requests} requests{aside}{again}"
        return f"{what}, {format_seconds(self.seconds)} -> {self.out}"


def generate(
    requests: str,
    *,
    out: str | None = None,
    config: GenerateConfig | str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> GenerateResult:
    """Makes videos of requests, for dream ingest to take in.

    Args:
        requests: the request set that dream prompts wrote, folder or requests.jsonl.
        out: the folder of the videos.
        config: a preset, a YAML file or options.
        limit: take the first requests only.
        resume: keep videos that are done.
        retry_quarantined: try again what was set aside.
        dry_run: count, write nothing.
        options: fields of `GenerateConfig`.

    Raises:
        ConfigError: no place for the videos, or a generator that cannot be loaded.
        DataError: no request set.
        MissingDependencyError: diffusers is not installed.
    """
    start = time.monotonic()
    cfg = resolve(GenerateConfig, config, **options)
    if not dry_run and (out is None or files.is_remote(out)):
        raise ConfigError("say where the videos go, on this machine: --out DIR")
    if cfg.generator != "command" and not cfg.model:
        raise ConfigError(f"generator {cfg.generator} needs a model, id or folder: --model")
    wanted = read_requests(requests)[:limit]
    if dry_run:
        counts: dict[str, Any] = {"requests": len(wanted), "videos": len(wanted) * cfg.samples, "skipped_done": 0}
        return GenerateResult(**counts, quarantined={}, seconds=time.monotonic() - start)
    run = partial(run_requests, wanted, out=str(out), config=cfg, resume=resume, retry_quarantined=retry_quarantined)
    return run(_Lazy(cfg))


class _Lazy:
    """A generator that is loaded when the first video is wanted of it: not when all are there."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config, self.name = config, config.generator
        self._loaded: Generator | None = None

    def generate(self, request: Request, seeds: Sequence[int], outs: Sequence[str]) -> None:
        self._loaded = self._loaded or load_generator(self.config)
        self._loaded.generate(request, seeds, outs)


def run_requests(
    wanted: Sequence[Request],
    generator: Generator,
    *,
    out: str,
    config: GenerateConfig,
    resume: bool = True,
    retry_quarantined: bool = False,
) -> GenerateResult:
    """Has any generator make the videos of requests; `generate` does it with those of `neural_traj.generators`.

    Args:
        wanted: the requests.
        generator: what makes the videos.
        out: folder of the videos, on this machine.
        config: how many, and what decides them.
        resume: keep videos that are done.
        retry_quarantined: try again what was set aside.
    """
    start = time.monotonic()
    for name in ("videos", "labels"):
        files.make_dirs(files.join(out, name))
        files.remove_temporaries(files.join(out, name))
    deciding = {key: value for key, value in to_dict(config).items() if key not in _DECIDES_NOTHING}
    weights = [weights_digest(config.model), weights_digest(config.lora)]
    units = [unit for request in wanted for unit in _units(request, config, [generator.name, deciding, weights])]
    _refuse_others(out, {f"{number}.mp4" for unit in units for number in unit.task["numbers"]})
    work = partial(_make, generator, out)
    report = run_job(
        units,
        work,
        folder=out,
        label="dream generate",
        resume=resume,
        retry_quarantined=retry_quarantined,
        unit_name="videos",
    )
    return GenerateResult(
        requests=len(wanted),
        videos=sum(len(outcome.facts.get("videos", [])) for outcome in report.outcomes),
        skipped_done=report.skipped_done,
        quarantined=count_reasons(report.quarantined),
        seconds=round(time.monotonic() - start, 3),
        out=out,
        items=report.quarantined,
    )


def _units(request: Request, config: GenerateConfig, deciding: list[Any]) -> list[Unit]:
    """Returns a unit for each batch of a request's samples; the n-th has the same seed in any batch."""
    image = files.sha256_file(request.image) if files.exists(request.image) else ""
    units = []
    for first in range(0, config.samples, config.batch):
        samples = range(first, min(first + config.batch, config.samples))
        seeds = [request.seed if s == 0 else seed_of(request.seed, "sample", s) % _SEEDS for s in samples]
        numbers = [request.index * config.samples + s for s in samples]
        told = [FORMAT_VERSION, request.instruction, request.prompt, image, seeds, numbers, deciding]
        task = {"request": request, "seeds": seeds, "numbers": numbers}
        name = f"video-{numbers[0]:09d}"
        units.append(Unit(name=name, digest=files.digest(told), task=task, amount=len(seeds)))
    return units


def _refuse_others(out: str, known: set[str]) -> None:
    """Refuses a folder with videos that are not of these requests: none of them shall be overwritten or mixed in."""
    other = next((n for n in files.listdir(files.join(out, "videos")) if n not in known and n.endswith(".mp4")), None)
    if other is not None:
        raise ConfigError(f"'{out}' holds the video of other requests (videos/{other}); choose another folder")


def _make(generator: Generator, out: str, task: Mapping[str, Any]) -> Outcome:
    """Makes the videos of one unit and labels them; the label comes last and makes a video whole.

    Raises:
        SkipItemError: ``no_picture``, or why the generator made none.
    """
    request, numbers = task["request"], task["numbers"]
    if not files.exists(request.image):
        raise SkipItemError("no_picture", f"request {request.index}: its first frame '{request.image}' is not there")
    videos = [files.join(out, "videos", f"{number}.mp4") for number in numbers]
    try:
        generator.generate(request, task["seeds"], videos)
    except SkipItemError as error:
        raise SkipItemError(error.reason, f"request {request.index} ({request.instruction}): {error.detail}") from error
    for number in numbers:
        files.write_text(files.join(out, "labels", f"{number}.txt"), request.instruction + "\n")
    return Outcome(facts={"videos": numbers}, output=f"videos/{numbers[-1]}.mp4")
