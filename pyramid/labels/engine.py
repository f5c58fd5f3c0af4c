"""The verb ``label``: plans units of a shard each, runs those without a receipt, writes one Parquet table per shard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.config import provenance, resolve
from pyramid.errors import DataError, SkipItemError
from pyramid.jobs import Outcome, Quarantined, Unit, count_reasons, pending, run_job
from pyramid.labels.protocol import Labeler, load_labeler
from pyramid.labels.table import check_labels, check_schema
from pyramid.progress import format_seconds
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.layout import table_name
from pyramid.shards.reader import Sample, ShardSet

FORMAT_VERSION = 1
_FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a stranger's labeler may fail with on one clip, which costs that clip only; pyarrow's errors are among them."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How a labeler is run over shards."""

    device: str = "cpu"
    """Torch device that the labeler's model runs on."""
    batch_clips: int = 8
    """Clips handed to the labeler at a time; labels do not depend on it."""

    def __post_init__(self) -> None:
        """Refuses an empty batch."""
        if self.batch_clips < 1:
            raise ValueError(f"batch_clips must be at least 1, got {self.batch_clips}")


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """What labelling gave."""

    labeler: str
    """Name of the labeler."""
    clips: int
    """Clips with labels."""
    rows: int
    """Labelled time steps."""
    shards: int
    """Tables, one per shard."""
    skipped_done: int
    """Shards that a former run had finished."""
    quarantined: dict[str, int]
    """Clips set aside, by reason."""
    seconds: float
    """Wall time of this run."""
    frames_per_s: float
    """Frames of the clips labelled in this run, per second; 0 when all was there already."""
    out: str = ""
    """The folder of the tables; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """The clips set aside, with their reasons."""

    def __repr__(self) -> str:
        if not self.out:
            left = format_seconds(self.seconds)
            return f"{self.labeler}: {self.shards} shards to label, {self.skipped_done} done, about {left}"
        aside = f", {sum(self.quarantined.values())} clips set aside" if self.quarantined else ""
        again = f", {self.skipped_done} shards were done" if self.skipped_done else ""
        what = f"{self.rows} labels of {self.clips} clips in {self.shards} tables"
        return f"{self.labeler}: {what}{aside}{again} -> {self.out}"


def label(
    shards: str,
    *,
    labeler: str,
    model: str,
    out: str | None = None,
    config: LabelConfig | str | Mapping[str, Any] | None = None,
    workers: int = 1,
    limit: int | None = None,
    resume: bool = True,
    retry_quarantined: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> LabelResult:
    """Labels every clip of a shard folder.

    Args:
        shards: the shard folder.
        labeler: name of an installed labeler, such as lam or idm.
        model: the labeler's model folder.
        out: folder of the label run; by default labels/LABELER in the shard folder.
        config: a preset, a YAML file or options.
        workers: processes, each with a model of its own; the tables do not depend on it.
        limit: label the first shards only.
        resume: keep tables that are done; False labels all again.
        retry_quarantined: try again the shards in which clips were set aside.
        dry_run: plan, time a probe, write nothing.
        options: fields of `LabelConfig`.

    Raises:
        DataError: no shards, no model, or a labeler without the columns that all tables have.
    """
    cfg = resolve(LabelConfig, config, **options)
    found = ShardSet.open(shards)
    out = out or files.join(shards, "labels", labeler)
    _cached_labeler.cache_clear()  # The model folder may hold another model than at the last call.
    engine = _cached_labeler(labeler, model, cfg.device)
    check_schema(engine.schema(), labeler)
    units = _plan(found, engine, cfg, name=labeler, model=model, out=out)[:limit]
    if dry_run:
        return _plan_only(found, engine, units, cfg, out=out, resume=resume)
    report = run_job(
        units,
        label_shard,
        folder=out,
        label=f"label {labeler}",
        workers=workers,
        resume=resume,
        retry_quarantined=retry_quarantined,
    )
    facts = [outcome.facts for outcome in report.outcomes]
    if report.quarantined and not any(f.get("clips", 0) for f in facts):
        raise DataError(f"none of the clips could be labelled: {report.quarantined[0].detail}")
    fresh = sum(unit.amount for unit in units) if report.skipped_done < len(units) else 0
    return LabelResult(
        labeler=labeler,
        clips=sum(f.get("clips", 0) for f in facts),
        rows=sum(f.get("rows", 0) for f in facts),
        shards=len(units),
        skipped_done=report.skipped_done,
        quarantined=count_reasons(report.quarantined),
        seconds=round(report.seconds, 3),
        frames_per_s=round(fresh / max(report.seconds, 1e-9), 1),
        out=out,
        items=report.quarantined,
    )


def _plan(shards: ShardSet, labeler: Labeler, config: LabelConfig, *, name: str, model: str, out: str) -> list[Unit]:
    units = []
    for shard in shards.shards:
        metadata = _metadata(shards, shard, labeler)
        task = {
            "folder": shards.folder,
            "shard": shard,
            "labeler": name,
            "model": model,
            "device": config.device,
            "batch_clips": config.batch_clips,
            "out": out,
            "index": shards.digest,
            "metadata": metadata,
        }
        frames = float(sum(shards.rows[i]["frames"] for i in shards.of_shard(shard)))
        digest = files.digest([FORMAT_VERSION, metadata])
        units.append(Unit(name=shard.removesuffix(".tar"), digest=digest, task=task, amount=frames))
    return units


def _metadata(shards: ShardSet, shard: str, labeler: Labeler) -> dict[str, Any]:
    """Returns what the table of a shard says of itself."""
    inputs = {"index": shards.shard_digest(shard), "model": labeler.digest()}
    return {
        **provenance(config=labeler.metadata(), inputs=inputs),
        "labeler": labeler.name,
        "labeler_digest": labeler.digest(),
        "index_digest": shards.shard_digest(shard),
    }


@lru_cache(maxsize=4)
def _cached_labeler(name: str, model: str, device: str) -> Labeler:
    """Loads a model once per process."""
    return load_labeler(name, model, device)


@lru_cache(maxsize=4)
def _cached_shards(folder: str, _digest: str) -> ShardSet:
    return ShardSet.open(folder)


def label_shard(task: Mapping[str, Any]) -> Outcome:
    """Labels one shard; runs in a worker. Clips that cannot be read or labelled are set aside by name."""
    labeler = _cached_labeler(task["labeler"], task["model"], task["device"])
    shards = _cached_shards(task["folder"], task["index"])
    aside: list[Quarantined] = []
    tables: list[pa.Table] = []
    for batch in _batches(shards, task["shard"], task["batch_clips"], aside):
        tables += _label_batch(labeler, batch, aside)
    schema = labeler.schema()
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    name = table_name(task["shard"])
    # One chunk, so that the bytes do not show how the clips were batched.
    parquet.write(files.join(task["out"], name), table.combine_chunks(), task["metadata"])
    return Outcome(facts={"clips": len(tables), "rows": table.num_rows}, output=name, quarantined=tuple(aside))


def _batches(shards: ShardSet, shard: str, size: int, aside: list[Quarantined]) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    ahead = ReadAhead()
    for i in shards.of_shard(shard):
        try:
            batch.append(shards.read(i, ahead))
        except DataError as error:
            aside.append(Quarantined(item=shards.rows[i]["key"], reason="bad_sample", detail=str(error)))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _label_batch(labeler: Labeler, batch: Sequence[Sample], aside: list[Quarantined]) -> list[pa.Table]:
    """Labels a batch; when it fails, each clip by itself, so that one bad clip costs itself only."""
    try:
        return _checked(labeler, batch)
    except (DataError, *_FAILURES) as error:
        if len(batch) > 1:
            return [table for sample in batch for table in _label_batch(labeler, [sample], aside)]
        reason = error.reason if isinstance(error, SkipItemError) else "label_error"
        detail = str(error) if isinstance(error, DataError) else f"{labeler.name}: {type(error).__name__}: {error}"
        aside.append(Quarantined(item=batch[0].key, reason=reason, detail=detail))
        return []


def _checked(labeler: Labeler, batch: Sequence[Sample]) -> list[pa.Table]:
    tables = labeler.label(batch)
    check_labels(tables, batch, labeler.schema(), labeler.name)
    return tables


def _plan_only(
    shards: ShardSet, labeler: Labeler, units: Sequence[Unit], config: LabelConfig, *, out: str, resume: bool
) -> LabelResult:
    todo = list(pending(units, folder=out, resume=resume))
    seconds = 0.0
    if todo:
        start, aside = time.monotonic(), list[Quarantined]()
        batch = next(_batches(shards, todo[0].task["shard"], min(config.batch_clips, 2), aside), [])
        _label_batch(labeler, batch, aside)
        frames = sum(len(sample) for sample in batch)
        seconds = (time.monotonic() - start) / max(frames, 1) * sum(unit.amount for unit in todo)
    return LabelResult(
        labeler=labeler.name,
        clips=sum(len(shards.of_shard(unit.task["shard"])) for unit in todo),
        rows=0,
        shards=len(todo),
        skipped_done=len(units) - len(todo),
        quarantined={},
        seconds=round(seconds, 3),
        frames_per_s=0.0,
    )
