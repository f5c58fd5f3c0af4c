"""The verb ``dream prompts``: first frames and instructions as a request set for a video world model.

Where the frames are is left to `scenes`, what is asked for to `instructions`, making the videos to `generate`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neural_traj.instructions import load_instructor, read_lines
from neural_traj.scenes import Scene, first_frame, list_scenes, write_png
from neural_traj.tasks import clean_task
from neural_traj.weights import weights_digest
from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError, SkipItemError
from pyramid.jobs import Outcome, Quarantined, Unit, count_reasons, run_job
from pyramid.progress import format_seconds
from pyramid.rng import seed_of

FORMAT_VERSION = 2
REQUESTS = "requests.jsonl"
_SEEDS = 2**31
"""Generators take seeds of 31 bits."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """What is asked for in each scene."""

    own: bool = True
    """Ask for what is done in the scene, where that is known."""
    variations: int = 0
    """Further instructions for each scene, >= 0, of ``instructions`` or ``model``."""
    instructions: str = ""
    """Text file with an instruction in each line; empty for none."""
    model: str = ""
    """Causal language model of transformers, id or folder, that writes the variations; empty takes the list."""
    device: str = "cpu"
    """Torch device of the model."""
    max_new_tokens: int = 32
    """Longest answer of the model, tokens, >= 1."""
    temperature: float = 0.8
    """Of the model's sampling, > 0."""
    template: str = "{instruction}"
    """Prompt of the generator; ``{instruction}`` stands for the instruction, and nothing else is filled in."""
    camera: str = ""
    """Camera of a LeRobot data set; empty takes the first."""
    seed: int = 0
    """Decides the variations, and the seeds of the requests."""

    def __post_init__(self) -> None:
        """Refuses requests for nothing."""
        if "{instruction}" not in self.template:
            raise ValueError(f"template '{self.template}' has no {{instruction}} in it")
        if (
            self.variations < 0
            or self.max_new_tokens < 1
            or not (math.isfinite(self.temperature) and self.temperature > 0)
        ):
            raise ValueError("variations >= 0, max_new_tokens >= 1 and temperature > 0 are needed")
        if bool(self.variations) != bool(self.instructions or self.model):
            raise ValueError("variations go with a list of instructions or a text model")
        if not self.own and not self.variations:
            raise ValueError("without the scenes' own instructions, variations are needed")


@dataclass(frozen=True, kw_only=True)
class PromptsResult:
    """What is to be generated."""

    requests: int
    """Requests."""
    scenes: int
    """Pictures that they begin with."""
    instructions: int
    """Distinct instructions."""
    quarantined: dict[str, int]
    """Scenes set aside, by reason."""
    seconds: float
    """Wall time."""
    skipped_done: int = 0
    """Scenes that a former run had done."""
    out: str = ""
    """The folder; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The scenes set aside."""

    def __repr__(self) -> str:
        if not self.out:
            return f"{self.scenes} scenes; nothing written"
        what = f"{self.requests} requests, {self.instructions} different instructions in {self.scenes} scenes"
        return f"{what}, {format_seconds(self.seconds)} -> {files.join(self.out, REQUESTS)}"


def prompts(
    source: str,
    *,
    out: str | None = None,
    config: PromptsConfig | str | Mapping[str, Any] | None = None,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> PromptsResult:
    """Writes requests.jsonl, a line for each video to be generated, with its first frame as PNG.

    Args:
        source: a shard folder, a LeRobot data set, or a folder of pictures.
        out: the folder of the request set.
        config: a preset, a YAML file or options.
        limit: take the first scenes only.
        resume: keep scenes that are done.
        retry_quarantined: try again what was set aside.
        dry_run: list the scenes, write nothing.
        options: fields of `PromptsConfig`.

    Raises:
        ConfigError: no place for the requests, or no such model.
        DataError: no scene there, or a list that is none.
    """
    start = time.monotonic()
    cfg = resolve(PromptsConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the requests go: --out DIR")
    lines = tuple(read_lines(cfg.instructions)) if cfg.instructions else ()
    scenes = list_scenes(source, cfg.camera)[:limit]
    if dry_run:
        nothing: dict[str, Any] = {"requests": 0, "instructions": 0, "quarantined": {}}
        return PromptsResult(scenes=len(scenes), seconds=time.monotonic() - start, **nothing)
    out = str(out)
    told = {key: value for key, value in to_dict(cfg).items() if key not in ("device", "instructions")}
    told["weights"] = weights_digest(cfg.model)
    units = [
        _unit(number, scene, told, {"out": out, "lines": lines, "device": cfg.device})
        for number, scene in enumerate(scenes)
    ]
    report = run_job(
        units,
        write_scene,
        folder=out,
        label="dream prompts",
        resume=resume,
        retry_quarantined=retry_quarantined,
        unit_name="scenes",
    )
    rows = [row for outcome in report.outcomes for row in outcome.facts.get("requests", [])]
    numbered = [{"index": number, **row} for number, row in enumerate(rows)]
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in numbered)
    files.write_text(files.join(out, REQUESTS), text)
    return PromptsResult(
        requests=len(rows),
        scenes=len({row["image"] for row in rows}),
        instructions=len({row["instruction"] for row in rows}),
        quarantined=count_reasons(report.quarantined),
        seconds=round(time.monotonic() - start, 3),
        skipped_done=report.skipped_done,
        out=out,
        items=report.quarantined,
    )


def _unit(number: int, scene: Scene, told: Mapping[str, Any], run: Mapping[str, Any]) -> Unit:
    digest = files.digest([FORMAT_VERSION, scene.item, scene.content, scene.text, list(run["lines"]), dict(told)])
    return Unit(
        name=f"scene-{number:06d}",
        digest=digest,
        task={**run, "number": number, "scene": vars(scene), "config": dict(told)},
        amount=1,
    )


def write_scene(task: Mapping[str, Any]) -> Outcome:
    """Writes the first frame of one scene; returns its requests.

    Raises:
        SkipItemError: ``no_instruction``, or why the picture cannot be read.
    """
    scene, cfg = Scene(**task["scene"]), task["config"]
    asked = _asked(scene, cfg, task)
    pixels = first_frame(scene.place)
    image = f"images/{task['number']:06d}.png"
    files.make_dirs(files.join(task["out"], "images"))
    write_png(files.join(task["out"], image), pixels)
    rows = [
        {
            "id": f"{task['number']:06d}-{place:03d}",
            "image": image,
            "instruction": text,
            "prompt": cfg["template"].replace("{instruction}", text),
            "seed": seed_of(cfg["seed"], "request", scene.item, text) % _SEEDS,
            "origin": origin,
            "scene": scene.item,
            "scene_text": scene.text,
            "embodiment": scene.embodiment,
            "height_px": int(pixels.shape[0]),
            "width_px": int(pixels.shape[1]),
        }
        for place, (text, origin) in enumerate(asked)
    ]
    return Outcome(facts={"requests": rows}, output=image)


def _asked(scene: Scene, cfg: Mapping[str, Any], task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the instructions for a scene, each with where it comes from."""
    own = clean_task(scene.text) if scene.text else ""
    found = [(own, "scene")] if own and cfg["own"] else []
    if cfg["variations"]:
        options = (task["device"], cfg["max_new_tokens"], cfg["temperature"])
        instructor = load_instructor(tuple(task["lines"]), cfg["model"], *options, weights=cfg["weights"])
        origin = "model" if cfg["model"] else "list"
        varied = instructor.vary(own, cfg["variations"], seed_of(cfg["seed"], "vary", scene.item)) if instructor else []
        found += [(text, origin) for text in varied if not found or text != own]
    if not found:
        what = "no instruction of its own, and no list or model gives one (--instructions, --model, --variations)"
        raise SkipItemError("no_instruction", f"{scene.item}: {what}")
    return found
