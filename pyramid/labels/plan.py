"""The plan of a labelling job: a unit for each shard and labeler, from the index alone; and which of them are done.

It holds a few hundred bytes for each shard and reads receipts in bulk, so that a million units are planned in seconds.
Running the units is left to `pyramid.labels.run`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pyramid import files, receipts
from pyramid.config import provenance
from pyramid.jobs import Outcome, Quarantined
from pyramid.labels.protocol import Labeler
from pyramid.remote import Entry
from pyramid.shards.layout import INDEX_SCHEMA
from pyramid.shards.reader import read_index

FORMAT_VERSION = 2
COLUMNS = pa.schema([INDEX_SCHEMA.field(n) for n in ("shard", "key", "offset", "size", "frames", "sha256")])
"""What of the index the plan needs."""
_BLOCK = 8_192
_HALF = 32


@dataclass(frozen=True, slots=True)
class Row:
    """Where one sample lies, and how it is recognised."""

    key: str
    """Unique key."""
    offset: int
    """First byte in the shard."""
    size: int
    """Bytes."""
    sha256: str
    """Digest of those bytes."""


@dataclass(frozen=True, slots=True)
class Task:
    """One shard to be labelled by one or more labelers; plain data that crosses to a worker."""

    number: int
    """Place of the shard in the plan."""
    shard: str
    """File name of the shard."""
    digest: str
    """Digest of the shard's keys and contents."""
    frames: int
    """Frames of all its clips."""
    rows: tuple[Row, ...]
    """Its samples, in order."""
    labelers: tuple[int, ...]
    """Which labelers of the job are to label it."""
    ahead: tuple[tuple[str, str, int], ...] = ()
    """Shards that will be wanted soon: file name, digest, bytes."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of the plan."""

    name: str
    """File name."""
    first: int
    """Row of the index that its first sample has."""
    count: int
    """Samples."""
    frames: int
    """Frames of all its clips."""
    digest: str
    """Digest of its keys and contents."""


class Plan:
    """The shards of a folder in order.

    Args:
        folder: the shard folder.
        index: rows with the columns of `COLUMNS`, those of one shard next to each other.
        limit: plan the first shards only.
    """

    def __init__(self, folder: str, index: pa.Table, limit: int | None = None) -> None:
        self.folder, self._index = folder, index
        self.shards = _shards(index, limit)

    @classmethod
    def open(cls, folder: str, limit: int | None = None) -> Plan:
        """Plans over a shard folder from its index; no shard is opened.

        Raises:
            DataError: no index there, or one that cannot be what it says it is.
        """
        return cls(str(folder), _grouped(read_index(folder, COLUMNS)), limit)

    def __len__(self) -> int:
        return len(self.shards)

    def task(self, number: int, labelers: tuple[int, ...], ahead: Sequence[int] = ()) -> Task:
        """Returns the work on one shard; ``ahead`` are the numbers of others that will be wanted soon."""
        shard = self.shards[number]
        part = self._index.slice(shard.first, shard.count)
        rows = zip(*(part[name].to_pylist() for name in ("key", "offset", "size", "sha256")), strict=True)
        soon = tuple((self.shards[n].name, self.shards[n].digest, self._bytes(n)) for n in ahead)
        return Task(number, shard.name, shard.digest, shard.frames, tuple(Row(*row) for row in rows), labelers, soon)

    def largest_bytes(self) -> int:
        """Returns the size of the largest shard, without what ends a tar."""
        ends = self._index["offset"].to_numpy() + self._index["size"].to_numpy()
        return int(ends.max(initial=0))

    def _bytes(self, number: int) -> int:
        """Returns where the last sample of a shard ends."""
        part = self._index.slice(self.shards[number].first, self.shards[number].count)
        return int((part["offset"].to_numpy() + part["size"].to_numpy()).max())


def _grouped(index: pa.Table) -> pa.Table:
    """Returns the rows with those of a shard next to each other, shards in order of first appearance."""
    codes = index["shard"].combine_chunks().dictionary_encode().indices.to_numpy()
    return index if (np.diff(codes) >= 0).all() else index.take(pa.array(np.argsort(codes, kind="stable")))


def _shards(index: pa.Table, limit: int | None) -> list[Shard]:
    if not len(index):
        return []
    codes = index["shard"].combine_chunks().dictionary_encode()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(codes.indices.to_numpy())) + 1, [len(index)]])
    frames = np.concatenate([[0], np.cumsum(index["frames"].to_numpy(), dtype=np.int64)])
    names = codes.dictionary.to_pylist()[:limit]
    found: list[Shard] = []
    for block in range(0, len(names), _BLOCK):
        ends = starts[block : block + _BLOCK + 1].tolist()
        part = index.slice(ends[0], ends[-1] - ends[0])
        contents = list(map(list, zip(part["key"].to_pylist(), part["sha256"].to_pylist(), strict=True)))
        for name, first, last in zip(names[block : block + _BLOCK], ends, ends[1:], strict=False):
            digest = files.digest(contents[first - ends[0] : last - ends[0]])
            found.append(Shard(name, first, last - first, int(frames[last] - frames[first]), digest))
    return found


@dataclass(kw_only=True)
class Run:
    """One labeler of a job: what its tables say of themselves, where they lie, and which are done."""

    name: str
    """The entry point's name."""
    model: str
    """Model folder."""
    out: str
    """Folder of the tables."""
    labeler_name: str
    """What the labeler calls itself."""
    labeler_digest: str
    """Digest of all in the labeler that decides a label."""
    schema: pa.Schema
    """Columns of the tables."""
    metadata: dict[str, Any]
    """What every table says of where it comes from, without its shard."""
    digest: str = ""
    """Digest of ``metadata``: of labeler, config and library versions."""
    done: bytearray = field(default_factory=bytearray)
    """1 for every shard that is done."""
    stale: set[int] = field(default_factory=set)
    """Shards with a receipt that does not hold any more."""
    skipped: int = 0
    """Shards that a former run had finished."""
    clips: int = 0
    """Clips with labels."""
    rows: int = 0
    """Labelled time steps."""
    aside: dict[int, tuple[Quarantined, ...]] = field(default_factory=dict)
    """What was set aside, by shard."""

    @classmethod
    def of(cls, labeler: Labeler, *, name: str, model: str, out: str, options: dict[str, Any]) -> Run:
        """Describes a labeler's run; ``options`` are those of the job that decide a label."""
        digest = labeler.digest()
        metadata = {
            **provenance(config=labeler.metadata(), inputs={"model": digest}),
            **({"options": options} if options else {}),
            "labeler": labeler.name,
            "labeler_digest": digest,
        }
        return cls(
            name=name,
            model=model,
            out=out,
            labeler_name=labeler.name,
            labeler_digest=digest,
            schema=labeler.schema(),
            metadata=metadata,
            digest=files.digest([FORMAT_VERSION, metadata]),
        )

    def unit_digest(self, shard: Shard) -> str:
        """Digest of all that decides a table: half of it the labeler's side, half the shard's."""
        return self.digest[:_HALF] + shard.digest[:_HALF]

    def count(self, number: int, outcome: Outcome) -> None:
        """Takes a finished shard into the sums."""
        self.done[number] = 1
        self.clips += int(outcome.facts.get("clips", 0))
        self.rows += int(outcome.facts.get("rows", 0))
        if outcome.quarantined:
            self.aside[number] = outcome.quarantined

    def items(self) -> Iterator[Quarantined]:
        """Yields what was set aside, in the order of the plan."""
        for number in sorted(self.aside):
            yield from self.aside[number]


def look_up(plan: Plan, run: Run, *, resume: bool = True, retry_quarantined: bool = False) -> None:
    """Finds out which shards a former run has finished: by a receipt that holds, and a table of the size it names."""
    run.done = bytearray(len(plan))
    if not resume:
        run.stale = {plan_number for plan_number, _ in _receipts(plan, run)}
        return
    there = files.entries(run.out)
    clips, rows = np.zeros(len(plan), np.int64), np.zeros(len(plan), np.int64)
    for number, data in _receipts(plan, run):
        outcome = _outcome(data, run.unit_digest(plan.shards[number]), there, retry=retry_quarantined)
        run.done[number] = outcome is not None
        # The latest counts: one of another model says that the table is no longer what an older receipt says.
        if outcome is None:
            run.stale.add(number)
            run.aside.pop(number, None)
            clips[number] = rows[number] = 0
            continue
        run.stale.discard(number)
        clips[number], rows[number] = outcome.facts["clips"], outcome.facts["rows"]
        if outcome.quarantined:
            run.aside[number] = outcome.quarantined
    run.skipped, run.clips, run.rows = sum(run.done), int(clips.sum()), int(rows.sum())


def _receipts(plan: Plan, run: Run) -> Iterator[tuple[int, Any]]:
    numbers = {shard.name.removesuffix(".tar"): number for number, shard in enumerate(plan.shards)}
    for name, data in receipts.read_each(run.out):
        if name in numbers:
            yield numbers[name], data


def _outcome(data: Any, digest: str, there: Mapping[str, Entry], *, retry: bool) -> Outcome | None:
    """Returns what a receipt says if it holds."""
    try:
        sound = data["digest"] == digest and there[data["output"]].size == data["bytes"]
        if not sound or (retry and data["quarantined"]):
            return None
        facts = {name: int(data["facts"][name]) for name in ("clips", "rows")}
        aside = tuple(Quarantined(**item) for item in data["quarantined"])
        return Outcome(facts=facts, output=data["output"], quarantined=aside)
    except (KeyError, TypeError, ValueError):
        return None
