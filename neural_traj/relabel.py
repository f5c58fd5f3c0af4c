"""The verb ``dream relabel``: accepted clips become two label sources, latent and pseudo-actions, and LeRobot episodes.

The work is that of `pyramid.shards.pack`, `pyramid.labels`, `neural_traj.framewise` and `pyramid.conversion`, each of
which goes on where it stopped; here they are put in order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from neural_traj.framewise import Meaning, label_frames
from neural_traj.selection import Selection, select
from neural_traj.sources import FACTS, LabelSource, found_sources, rates_of, write_facts, write_mixture
from pyramid import files
from pyramid.config import provenance, resolve, to_dict
from pyramid.conversion.convert import ConvertResult, convert
from pyramid.corpora.manifest import write_manifest
from pyramid.errors import ConfigError, DataError
from pyramid.jobs import Quarantined, count_reasons
from pyramid.labels.config import LabelConfig
from pyramid.labels.engine import label
from pyramid.labels.protocol import load_labeler
from pyramid.progress import format_seconds
from pyramid.shards.options import PackConfig
from pyramid.shards.pack import PackResult, pack
from pyramid.types import NAME_PATTERN

FORMAT_VERSION = 1
PLAN, MANIFEST, SHARDS = "relabel.json", "clips.parquet", "shards"
_FORMATS = ("lerobot-v2.1", "lerobot-v3.0")


@dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """How accepted clips are packed, labelled and written."""

    embodiment: str = ""
    """Whose body the clips show, as the inverse dynamics model names it, [a-z0-9_]+; empty takes the clips' own."""
    actions: Meaning = "declared"
    """What pseudo-actions are where the model does not declare it: a value at a time, a delta over a step, a velocity;
    needed where frames come at another rate than the model's steps."""
    states: Literal["absent", "previous_action"] = "absent"
    """States of the LeRobot data sets: none, as nobody measured any; or the action before, marked as inferred, which is
    right where actions are positions that the robot reaches."""
    formats: tuple[Literal["lerobot-v2.1", "lerobot-v3.0"], ...] = _FORMATS  # type: ignore[assignment]
    """LeRobot versions to write; may be empty."""
    prompts: tuple[str, ...] = ()
    """Words around instructions that were meant for the generator; they are taken off."""
    pack: PackConfig = field(default_factory=lambda: PackConfig(split_grid="auto"))
    """How clips are packed; 2x2 grids with a black quadrant are split into their views unless it says otherwise."""
    label: LabelConfig = field(default_factory=LabelConfig)
    """How labelers run."""

    def __post_init__(self) -> None:
        """Refuses names that are none."""
        if self.embodiment and not NAME_PATTERN.fullmatch(self.embodiment):
            raise ValueError(f"embodiment '{self.embodiment}': use a-z, 0-9 and _")


@dataclass(frozen=True, kw_only=True)
class RelabelResult:
    """What relabelling gave."""

    clips: int
    """Clips accepted."""
    rejected: dict[str, int]
    """Clips that the judge had not kept, by reason."""
    samples: int
    """Samples in the shards; a grid has one for each view."""
    frames: int
    """Their frames."""
    sources: dict[str, dict[str, Any]]
    """Label sources by name: ``use``, ``embodiment``, ``labels`` (folder), ``rows``."""
    datasets: list[dict[str, Any]]
    """LeRobot data sets: ``path``, ``to``, ``rate_hz``, ``episodes``, ``frames``."""
    quarantined: dict[str, int]
    """Clips and views set aside, by reason."""
    seconds: float
    """Wall time."""
    mixture: str = ""
    """Mixture file with the sources; empty on a dry run."""
    out: str = ""
    """The folder; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """What was set aside."""

    def __repr__(self) -> str:
        left = ", ".join(f"{n} {reason}" for reason, n in self.rejected.items())
        what = f"{self.clips} clips accepted{f' (rejected: {left})' if left else ''}"
        if not self.out:
            return f"{what}; nothing written"
        lines = [f"{what}, {self.samples} samples, {self.frames} frames, {format_seconds(self.seconds)} -> {self.out}"]
        lines += [
            f"  source {name}: {one['rows']} labels, embodiment {one['embodiment']}"
            for name, one in self.sources.items()
        ]
        lines += [f"  {one['to']}: {one['episodes']} episodes -> {one['path']}" for one in self.datasets]
        return "\n".join(lines)


def relabel(
    source: str,
    *,
    scores: str,
    out: str | None = None,
    labeler: str | Sequence[str] = ("lam", "idm"),
    model: str | Sequence[str] = (),
    config: RelabelConfig | str | Mapping[str, Any] | None = None,
    workers: int = 1,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> RelabelResult:
    """Packs the clips that were judged fit, labels them, and writes them as label sources and LeRobot data sets.

    Args:
        source: the manifest that dream ingest wrote, or the folder of generated clips.
        scores: the table that dream judge wrote of it.
        out: a new folder, or that of the same relabelling, which goes on.
        labeler: names of installed labelers, such as lam and idm.
        model: each labeler's model folder, in the same order.
        config: a preset, a YAML file or options.
        workers: processes; nothing that is written depends on it.
        limit: take the first accepted clips only.
        resume: keep what is done; False makes all again.
        retry_quarantined: try again what was set aside.
        dry_run: sort the clips out, write nothing.
        options: fields of `RelabelConfig`.

    Raises:
        ConfigError: no place, no model, a folder that holds another relabelling, or a body that the model has not seen.
        DataError: no clip is accepted, or a labeler labels none.
    """
    start = time.monotonic()
    cfg = resolve(RelabelConfig, config, **options)
    if out is None and not dry_run:
        raise ConfigError("say where the labels and data sets go: --out DIR")
    names = [labeler] if isinstance(labeler, str) else list(labeler)
    models = [model] if isinstance(model, str) else list(model)
    chosen = select(source, scores, embodiment=cfg.embodiment, prompts=cfg.prompts, limit=limit)
    digests = _known_bodies(names, models, chosen)
    if dry_run:
        return _result(chosen, None, [], [], seconds=time.monotonic() - start)
    out = str(out)
    _claim(out, chosen, cfg, digests)
    run: dict[str, Any] = {"workers": workers, "resume": resume}
    manifest, shards = files.join(out, MANIFEST), files.join(out, SHARDS)
    contents = {"clips": files.digest([clip.content for clip in chosen.clips]), "scores": files.sha256_file(scores)}
    write_manifest(manifest, chosen.clips, provenance(config=cfg, inputs=contents))
    packed = pack(manifest, out=shards, config=cfg.pack, retry_quarantined=retry_quarantined, **run)
    labelled = label(shards, labeler=names, model=models, config=cfg.label, retry_quarantined=retry_quarantined, **run)
    aside = [*packed.items, *labelled.items]
    sources = found_sources(shards, names)
    for one in sources:
        if not one.rows:
            why = next((item.detail for item in labelled.items), "its tables are empty")
            raise DataError(f"labeler '{one.name}' labelled none of the {packed.clips} samples: {why}")
    pseudo = next((one for one in sources if one.use == "pseudo"), None)
    if pseudo is not None:
        frames = label_frames(shards, pseudo.folder, pseudo.frames_folder, meaning=cfg.actions, **run)
        aside += frames.quarantined
    write_facts(files.join(out, FACTS), shards, chosen, sources)
    datasets, odd = _datasets(out, shards, sources, cfg, **run)
    mixture = write_mixture(out, shards, sources)
    return _result(
        chosen,
        packed,
        sources,
        datasets,
        seconds=time.monotonic() - start,
        aside=[*aside, *odd],
        mixture=mixture,
        out=out,
    )


def _known_bodies(names: Sequence[str], models: Sequence[str], chosen: Selection) -> list[str]:
    """Returns the labelers' digests; refuses bodies that none of them could label, before anything is packed."""
    if len(names) != len(models):
        raise ConfigError(f"{' and '.join(names)} need as many models, in the same order: --model; got {len(models)}")
    digests = []
    for name, model in zip(names, models, strict=True):
        one = load_labeler(name, model)
        known = getattr(one, "embodiments", None)
        shown = sorted({clip.embodiment for clip in chosen.clips})
        if known and not set(shown) & set(known):
            raise ConfigError(
                f"the clips show '{', '.join(shown)}' and '{model}' knows {', '.join(known)}; say whose body it is: "
                f"--embodiment {next(iter(known))}"
            )
        digests.append(one.digest())
    return digests


def _claim(out: str, chosen: Selection, cfg: RelabelConfig, digests: Sequence[str]) -> None:
    """Notes what the folder is for; refuses one that is for something else."""
    clips = [[clip.clip_id, clip.content, clip.text, clip.embodiment] for clip in chosen.clips]
    deciding = {key: value for key, value in to_dict(cfg).items() if key != "label"}
    deciding["label"] = [cfg.label.autocast, cfg.label.compile]
    digest = files.digest([FORMAT_VERSION, clips, list(digests), deciding])
    path = files.join(out, PLAN)
    if files.exists(path):
        held = files.read_json(path)
        if not isinstance(held, Mapping) or held.get("digest") != digest:
            raise ConfigError(
                f"'{out}' holds the labels of other clips, models or options; choose another folder, nothing in it is "
                "overwritten"
            )
        return
    if files.listdir(out):
        raise ConfigError(f"'{out}' holds something else ({files.listdir(out)[0]}); choose an empty folder")
    files.write_json(path, {"digest": digest, "clips": len(clips), "labelers": list(digests), "config": to_dict(cfg)})


def _datasets(
    out: str, shards: str, sources: Sequence[LabelSource], cfg: RelabelConfig, *, workers: int, resume: bool
) -> tuple[list[dict[str, Any]], list[Quarantined]]:
    """Writes a data set for each rate and format; a LeRobot data set has one rate."""
    pseudo = any(one.use == "pseudo" for one in sources)
    options: dict[str, Any] = {
        "labels": ",".join(one.frames_folder if one.use == "pseudo" else one.folder for one in sources),
        "facts": files.join(out, FACTS),
        "actions": "pseudo" if pseudo else "measured",
        "states": "previous_action" if pseudo and cfg.states == "previous_action" else "measured",
    }
    written, aside = [], []
    for rate, labelled in rates_of(shards, [one for one in sources if one.use == "pseudo"]).items():
        if pseudo and not labelled:
            detail = f"no clip of {rate:g} Hz has pseudo-actions, so no LeRobot data set of that rate is written"
            aside.append(Quarantined(item=f"{rate:g} Hz", reason="no_labels", detail=detail))
            continue
        for to in cfg.formats:
            if to == "lerobot-v3.0" and not float(rate).is_integer():
                detail = f"LeRobot v3.0 needs whole frames per second, the clips have {rate:g}"
                aside.append(Quarantined(item=f"{to} at {rate:g} Hz", reason="rate", detail=detail))
                continue
            path = files.join(out, f"{to}_{rate:g}hz")
            done = convert(shards, path, to=to, rate_hz=rate, workers=workers, resume=resume, **options)
            written.append(_written(done, rate))
            # What has no label was set aside when it was labelled.
            aside += [one for one in done.items if one.reason != "no_labels" and one not in aside]
    return written, aside


def _written(done: ConvertResult, rate_hz: float) -> dict[str, Any]:
    return {
        "path": done.out,
        "to": done.to,
        "rate_hz": rate_hz,
        "episodes": done.episodes,
        "frames": done.frames,
    }


def _result(
    chosen: Selection,
    packed: PackResult | None,
    sources: Sequence[LabelSource],
    datasets: list[dict[str, Any]],
    *,
    seconds: float,
    aside: Sequence[Quarantined] = (),
    mixture: str = "",
    out: str = "",
) -> RelabelResult:
    items = [*chosen.aside, *aside]
    return RelabelResult(
        clips=len(chosen.clips),
        rejected=chosen.rejected,
        samples=packed.clips if packed else 0,
        frames=packed.frames if packed else 0,
        sources={f"dreams_{one.use}": one.told() for one in sources},
        datasets=datasets,
        quarantined=count_reasons(items),
        seconds=round(seconds, 3),
        mixture=mixture,
        out=out,
        items=items,
    )
