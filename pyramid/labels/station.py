"""A station holds the models of a job and labels units with them: what every worker of every executor does.

It writes tables under their final names; receipts, retries and the order of units are left to `pyramid.labels.run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pyramid import files, parquet
from pyramid.errors import ConfigError
from pyramid.jobs import Outcome, Quarantined
from pyramid.labels.clips import ClipInputs, clip_inputs, fault_of
from pyramid.labels.config import LabelConfig
from pyramid.labels.decoding import Decoders
from pyramid.labels.plan import Run, Task
from pyramid.labels.protocol import Labeler, load_labeler
from pyramid.labels.table import check_labels
from pyramid.shards.cache import ShardCache
from pyramid.shards.layout import table_name


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every worker of a job needs to know; plain data that crosses to other processes and machines."""

    folder: str
    """The shard folder."""
    runs: tuple[dict[str, Any], ...]
    """Per labeler: ``name``, ``model``, ``out``, ``digest``, ``metadata``."""
    config: LabelConfig
    """How the job runs."""
    device: str = "cpu"
    """Torch device of this worker's models."""
    decoders: int = 0
    """Decode processes of this worker."""

    @classmethod
    def of(cls, folder: str, runs: Sequence[Run], config: LabelConfig) -> Spec:
        """Describes a job; device and decoders are the executor's to set."""
        plain = tuple(
            {
                "name": run.name,
                "model": run.model,
                "out": run.out,
                "digest": run.labeler_digest,
                "metadata": run.metadata,
            }
            for run in runs
        )
        return cls(folder=folder, runs=plain, config=config)


@dataclass(kw_only=True)
class Labelled:
    """How one unit went."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """Labeler -> clips and rows of its table, and what was set aside."""
    seconds: float = 0.0
    """Wall time."""
    model_s: float = 0.0
    """Of that, in the models."""
    queue_fill: float | None = None
    """Mean share of the queue that held decoded clips; near 0 the job waits for decoding, near 1 for the model."""


class Station:
    """The labelers of a job, loaded once.

    Args:
        spec: the job.
        labelers: those of ``spec.runs``, where they are loaded already.

    Raises:
        ConfigError: a labeler that is not the one the job was planned with, or cannot be compiled.
    """

    def __init__(self, spec: Spec, labelers: Sequence[Labeler] | None = None) -> None:
        self.spec, self.config = spec, spec.config
        self.labelers = list(labelers or (load_labeler(run["name"], run["model"], spec.device) for run in spec.runs))
        for run, labeler in zip(spec.runs, self.labelers, strict=True):
            if labeler.digest() != run["digest"]:
                raise ConfigError(f"the model '{run['model']}' was changed while the job ran; run the command again")
            if self.config.compile:
                _compile(labeler)
        self._prepares = {place: getattr(labeler, "prepare", None) for place, labeler in enumerate(self.labelers)}
        importlib.import_module("decord")  # Takes seconds, which are not the first unit's.
        self._model = threading.Lock()
        copied = self.config.cache_mb and files.is_remote(spec.folder)
        self._cache = ShardCache(self.config.cache_mb) if copied else None
        feed = (spec.folder, self._prepares, self.config.queue_clips, self._cache)
        self._decoders = Decoders(spec.decoders, *feed) if spec.decoders else None

    def label(self, task: Task, at: Callable[[str], None] = lambda _: None) -> Labelled:
        """Labels one shard with each of its labelers and writes their tables; clips that cannot be are set aside.

        Args:
            task: the unit.
            at: is told what is begun, so that whoever kills this process can say over what it hung.
        """
        start = time.monotonic()
        found = Labelled()
        tables: dict[int, list[pa.Table]] = {place: [] for place in task.labelers}
        aside: dict[int, list[Quarantined]] = {place: [] for place in task.labelers}
        fills: list[float] = []
        for batch in self._batches(task, fills):
            with self._model:
                began = time.monotonic()
                for place in task.labelers:
                    at(f"labeler '{self.spec.runs[place]['name']}', clips {batch[0].key} to {batch[-1].key}")
                    tables[place] += self._label_batch(place, batch, aside[place])
                found.model_s += time.monotonic() - began
        for place in task.labelers:
            found.outcomes[place] = self._write(place, task, tables[place], aside[place])
        found.queue_fill = sum(fills) / len(fills) if fills else None
        found.seconds = time.monotonic() - start
        return found

    def probe(self, task: Task, n_clips: int) -> int:
        """Labels the first clips of a shard without writing anything; returns how many there were."""
        rows = task.rows[:n_clips]
        for batch in self._batches(dataclasses.replace(task, rows=rows), []):
            for place in task.labelers:
                self._label_batch(place, batch, [])
        return len(rows)

    def _batches(self, task: Task, fills: list[float]) -> Iterator[list[ClipInputs]]:
        batch: list[ClipInputs] = []
        for clip in self._clips(task, fills):
            batch.append(clip)
            if len(batch) == self.config.batch_clips:
                yield batch
                batch = []
        if batch:
            yield batch

    def _clips(self, task: Task, fills: list[float]) -> Iterator[ClipInputs]:
        if self._decoders is None:
            yield from clip_inputs(self.spec.folder, task, self._prepares, decode=False, cache=self._cache)
            return
        with contextlib.closing(self._decoders.clips(task)) as clips:  # type: ignore[type-var]
            for clip, fill in clips:
                fills.append(fill)
                yield clip

    def _label_batch(self, place: int, batch: Sequence[ClipInputs], aside: list[Quarantined]) -> list[pa.Table]:
        aside += [clip.faults[place] for clip in batch if place in clip.faults]
        good = [clip for clip in batch if place in clip.inputs]
        return self._label_good(place, good, aside) if good else []

    def _label_good(self, place: int, clips: Sequence[ClipInputs], aside: list[Quarantined]) -> list[pa.Table]:
        """Labels clips together; when that fails, each by itself, so that one bad clip costs itself only."""
        labeler = self.labelers[place]
        try:
            with _precision(self.config, self.spec.device):
                tables = labeler.label([clip.inputs[place] for clip in clips])
            check_labels(tables, clips, labeler.schema(), labeler.name)
        except (Exception, SystemExit) as error:
            fault = fault_of(error, clips[0].key, labeler.name)
            if len(clips) > 1:
                return [table for clip in clips for table in self._label_good(place, [clip], aside)]
            aside.append(fault)
            return []
        return list(tables)

    def _write(self, place: int, task: Task, tables: list[pa.Table], aside: list[Quarantined]) -> Outcome:
        order = {row.key: number for number, row in enumerate(task.rows)}
        write_table(self.spec.runs[place], task, tables, self.labelers[place].schema())
        return Outcome(
            facts={"clips": len(tables), "rows": sum(table.num_rows for table in tables)},
            output=table_name(task.shard),
            # In the order of the shard, whatever the batches were.
            quarantined=tuple(sorted(aside, key=lambda item: order[item.item])),
        )


def write_table(run: Mapping[str, Any], task: Task, tables: Sequence[pa.Table], schema: pa.Schema) -> None:
    """Writes the label table of a shard; without tables it has no rows."""
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    metadata = {
        **run["metadata"],
        "inputs": {**run["metadata"]["inputs"], "index": task.digest},
        "index_digest": task.digest,
    }
    # One chunk, so that the bytes do not show how the clips were batched.
    parquet.write(files.join(run["out"], table_name(task.shard)), table.combine_chunks(), metadata)


def _compile(labeler: Labeler) -> None:
    hook = getattr(labeler, "compile", None)
    if hook is None:
        raise ConfigError(f"labeler '{labeler.name}' has no method 'compile'; leave out compile=true")
    hook()


def _precision(config: LabelConfig, device: str) -> contextlib.AbstractContextManager[Any]:
    if config.autocast == "off":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.partition(":")[0], getattr(torch, config.autocast))
