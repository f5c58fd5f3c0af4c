"""The verb ``convert``: between LeRobot v2.0, v2.1, v3.0 and webdataset shards.

Two jobs with receipts: look into every episode, then write the files. `meta/info.json` comes last and marks the data
set complete; a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pyramid import files
from pyramid.config import from_dict, resolve
from pyramid.conversion import target, target_v3, target_v21
from pyramid.conversion.episode import examine_episode
from pyramid.conversion.origin import Origin, kind_of, open_lerobot, open_shards
from pyramid.conversion.pseudo import with_columns
from pyramid.conversion.target import Planned
from pyramid.corpora.scan import scan
from pyramid.corpora.source import ScanConfig
from pyramid.errors import ConfigError, SkipItemError, nearest
from pyramid.jobs import RECEIPTS, Quarantined, Unit, count_reasons, run_job
from pyramid.lerobot import schema
from pyramid.progress import format_bytes, format_seconds
from pyramid.shards.pack import PackConfig, pack

FORMAT_VERSION = 1
TARGETS = ("lerobot-v2.1", "lerobot-v3.0", "webdataset")
MANIFEST = "clips.parquet"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What comes along, and how large files get."""

    camera: str = ""
    """From LeRobot to shards: the camera key to pack, empty takes the first. From shards: the short name of the
    camera, [a-z0-9_]+, empty is ``main``."""
    labels: str = ""
    """From shards: label runs whose columns come along, names or paths with commas between; empty takes all that lie
    in ``labels``, ``none`` takes none."""
    rate_hz: float | None = None
    """From shards: take the clips of this rate only, Hz; None takes them all and sets aside those unlike the most."""
    actions: Literal["measured", "pseudo"] = "measured"
    """From shards: pseudo also writes a label run's pseudo-actions as ``action``, with ``action_valid`` (false where a
    frame has none and the last is held), for readers that know no other; clips with measured actions are set aside."""
    states: Literal["measured", "previous_action"] = "measured"
    """From shards, with pseudo-actions: measured leaves out a state that nobody measured; previous_action takes the
    action before as the state, which is right where actions are positions that the robot reaches."""
    facts: str = ""
    """From shards: a Parquet table with a row per clip, told by ``key``; its other columns come along, one value for
    all frames of a clip."""
    data_file_mb: float = 100
    """Largest data file of v3.0, MiB in memory; one episode may be larger."""
    video_file_mb: float = 200
    """Largest video file of v3.0, MiB; one episode may be larger."""
    size_px: int = 128
    """To shards: height and width of the packed frames; even."""
    fit: Literal["squash", "crop"] = "squash"
    """To shards: squash keeps the whole picture and not its aspect; crop keeps the aspect and the centre."""
    clip_s: float = 3600.0
    """To shards: longest clip, seconds; longer episodes are cut into equal parts."""

    def __post_init__(self) -> None:
        """Refuses sizes that hold nothing."""
        if not (self.data_file_mb > 0 and self.video_file_mb > 0):
            raise ValueError(f"files of {self.data_file_mb} and {self.video_file_mb} MB hold no episode")
        if self.states != "measured" and self.actions != "pseudo":
            raise ValueError("states: previous_action goes with actions: pseudo")


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """What converting gave."""

    to: str
    """The format."""
    episodes: int
    """Episodes, or clips of shards."""
    frames: int
    """Frames of all episodes, of one camera."""
    tasks: int
    """Distinct instructions; 0 for shards."""
    videos: int
    """Video files; for shards, shard files."""
    bytes: int
    """Size of what was written; 0 on a dry run."""
    quarantined: dict[str, int]
    """Episodes set aside, by reason."""
    seconds: float
    """Wall time of this run; what is to be expected on a dry run."""
    skipped_done: int = 0
    """Files that a former run had finished."""
    out: str = ""
    """The new data set; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The episodes set aside, with their reasons."""

    def __repr__(self) -> str:
        what = f"{self.episodes} episodes, {self.frames} frames"
        if not self.out:
            return f"{what} to {self.to}, about {format_seconds(self.seconds)}; nothing written"
        aside = f", {sum(self.quarantined.values())} set aside" if self.quarantined else ""
        again = f", {self.skipped_done} files were done" if self.skipped_done else ""
        return f"{what} as {self.to}, {format_bytes(self.bytes)}{aside}{again} -> {self.out}"


def convert(
    src: str,
    dst: str,
    *,
    to: str,
    config: ConvertConfig | str | Mapping[str, Any] | None = None,
    workers: int = 1,
    limit: int | None = None,
    resume: bool = True,
    dry_run: bool = False,
    **options: Any,
) -> ConvertResult:
    """Converts a data set into another format; between LeRobot versions no video is encoded anew.

    Args:
        src: a LeRobot data set (v2.0, v2.1, v3.0) or a shard folder.
        dst: the folder of the new data set.
        to: lerobot-v2.1, lerobot-v3.0 or webdataset.
        config: a preset, a YAML file or options.
        workers: processes; the files do not depend on it.
        limit: take the first episodes only.
        resume: keep files that are done; False writes all again.
        dry_run: look, time a probe, write nothing.
        options: fields of `ConvertConfig`.

    Raises:
        ConfigError: no such format, or a destination that holds something else.
        DataError: the source is no data set, or none of it can be used.
    """
    cfg = resolve(ConvertConfig, config, **options)
    if to not in TARGETS:
        raise ConfigError(f"unknown format '{to}'{nearest(to, TARGETS)}; known: {', '.join(TARGETS)}")
    src, dst = str(src).rstrip("/"), str(dst).rstrip("/")
    kind = kind_of(src)
    if files.join(dst) == files.join(src):
        raise ConfigError(f"'{dst}' is the source itself; choose another folder")
    if to == "webdataset":
        if kind == "shards":
            raise ConfigError(f"'{src}' holds shards already")
        return _to_shards(src, dst, cfg, workers=workers, limit=limit, resume=resume, dry_run=dry_run)
    origin = open_lerobot(src) if kind == "lerobot" else _open_shards(src, cfg)
    tasks = origin.episodes[:limit]
    if to == "lerobot-v3.0":
        target_v3.check_rate(origin.fps)
    if not tasks:
        target.refuse_empty(origin.refused, src)
    if dry_run:
        return _plan_only(tasks, origin, to)
    return _to_lerobot(src, dst, origin, tasks, cfg, to=to, workers=workers, resume=resume)


def _open_shards(src: str, cfg: ConvertConfig) -> Origin:
    origin = open_shards(src, camera=cfg.camera, labels=cfg.labels, rate_hz=cfg.rate_hz)
    return with_columns(src, origin, actions=cfg.actions, states=cfg.states, facts=cfg.facts)


def _to_lerobot(
    src: str,
    dst: str,
    origin: Origin,
    tasks: Sequence[dict[str, Any]],
    cfg: ConvertConfig,
    *,
    to: str,
    workers: int,
    resume: bool,
) -> ConvertResult:
    start = time.monotonic()
    info = files.join(dst, "meta", schema.INFO)
    if files.exists(info) and not files.exists(files.join(dst, RECEIPTS)):
        raise ConfigError(f"'{dst}' holds a data set that was not made by a conversion; choose another folder")
    looks = [_look(number, task) for number, task in enumerate(tasks)]
    run: dict[str, Any] = {"folder": dst, "workers": workers, "resume": resume}
    looked = run_job(looks, examine_episode, label="look", **run)
    planned, odd = target.arrange(origin, tasks, [outcome.facts for outcome in looked.outcomes])
    aside = [*origin.refused, *looked.quarantined, *odd]
    if not planned:
        target.refuse_empty(aside, src)
    sizes = {"data_file_mb": cfg.data_file_mb, "video_file_mb": cfg.video_file_mb}
    units = target_v21.plan(dst, planned) if to == "lerobot-v2.1" else target_v3.plan(dst, origin, planned, **sizes)
    _refuse_leftovers(dst, [*looks, *units])
    # From here to the end it is not whole, whatever a former run had made of it.
    files.remove(info)
    _remove_temporaries(dst)
    if to == "lerobot-v2.1":
        report = run_job(units, target_v21.write_episode, label="convert", **run)
        videos = target_v21.finish(dst, origin, planned, report)
    else:
        report = run_job(units, target_v3.write_file, label="convert", **run)
        videos = target_v3.finish(dst, origin, planned, report, **sizes)
    result = _result(dst, origin, planned, aside, videos)
    return replace(result, to=to, seconds=round(time.monotonic() - start, 3), skipped_done=report.skipped_done)


def _look(number: int, task: dict[str, Any]) -> Unit:
    digest = files.digest([FORMAT_VERSION, task["content"], task["length"], task["fps"], task["known_tasks"]])
    return Unit(name=f"look-{number:06d}", digest=digest, task=task, amount=task["length"])


def _refuse_leftovers(dst: str, units: Sequence[Unit]) -> None:
    """Refuses a folder with files of another conversion, which would stand among the new ones."""
    known = {f"{unit.name}.json" for unit in units}
    others = [n for n in files.listdir(files.join(dst, RECEIPTS)) if n not in known and not n.startswith("look-")]
    if others:
        raise ConfigError(f"'{dst}' holds files of another conversion ({others[0]}); choose another folder")


def _remove_temporaries(folder: str, depth: int = 4) -> None:
    files.remove_temporaries(folder)
    for name in files.listdir(folder) if depth else []:
        inner = files.join(folder, name)
        if not name.startswith(".") and not files.is_remote(inner) and files.is_dir(inner):
            _remove_temporaries(inner, depth - 1)


def _result(
    dst: str, origin: Origin, planned: Sequence[Planned], aside: list[Quarantined], videos: int
) -> ConvertResult:
    written = [path for part in ("data", "videos") for path in files.walk_files(files.join(dst, part))]
    return ConvertResult(
        to="",
        episodes=len(planned),
        frames=sum(item.length for item in planned),
        tasks=len(origin.tasks),
        videos=videos,
        bytes=sum(files.size_bytes(path) for path in written),
        quarantined=count_reasons(aside),
        seconds=0.0,
        out=dst,
        items=aside,
    )


def _plan_only(tasks: Sequence[dict[str, Any]], origin: Origin, to: str) -> ConvertResult:
    start, probed = time.monotonic(), 0
    aside = list(origin.refused)
    for task in tasks[:3]:
        try:
            probed += examine_episode(task).facts["n_rows"]
        except SkipItemError as error:
            aside.append(Quarantined(item=task["name"], reason=error.reason, detail=error.detail))
    elapsed = time.monotonic() - start
    frames = sum(task["length"] for task in tasks)
    return ConvertResult(
        to=to,
        episodes=len(tasks),
        frames=frames,
        tasks=len(origin.tasks),
        videos=0,
        bytes=0,
        quarantined=count_reasons(aside),
        # Looking takes about as long as writing.
        seconds=round(2 * elapsed * frames / probed, 3) if probed else 0.0,
        items=aside,
    )


def _to_shards(
    src: str, dst: str, cfg: ConvertConfig, *, workers: int, limit: int | None, resume: bool, dry_run: bool
) -> ConvertResult:
    start = time.monotonic()
    packing = from_dict(PackConfig, {"size_px": cfg.size_px, "fit": cfg.fit})
    cut = ScanConfig(camera=cfg.camera, clip_s=cfg.clip_s)
    if dry_run:
        seen = scan("lerobot", src, config=cut, limit=limit, dry_run=True)
        return _of_shards(seen.clips, seen.items, frames=0, shards=0, n_bytes=0, seconds=time.monotonic() - start)
    manifest = files.join(dst, MANIFEST)
    found = scan("lerobot", src, out=manifest, config=cut, limit=limit)
    done = pack(manifest, out=dst, config=packing, workers=workers, resume=resume)
    return _of_shards(
        done.clips,
        [*found.items, *done.items],
        frames=done.frames,
        shards=done.shards,
        n_bytes=done.bytes,
        seconds=time.monotonic() - start,
        out=dst,
        skipped_done=done.skipped_done,
    )


def _of_shards(
    clips: int,
    items: list[Quarantined],
    *,
    frames: int,
    shards: int,
    n_bytes: int,
    seconds: float,
    out: str = "",
    skipped_done: int = 0,
) -> ConvertResult:
    return ConvertResult(
        to="webdataset",
        episodes=clips,
        frames=frames,
        tasks=0,
        videos=shards,
        bytes=n_bytes,
        quarantined=count_reasons(items),
        seconds=round(seconds, 3),
        skipped_done=skipped_done,
        out=out,
        items=items,
    )
