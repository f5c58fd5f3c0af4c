"""The verb ``verify``: holds shards and label tables against their index, and sets the bad ones aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow.compute as pc

from pyramid import files, parquet
from pyramid.errors import DataError, ExitCode
from pyramid.jobs import Quarantined
from pyramid.progress import Progress
from pyramid.receipts import path_of
from pyramid.remote import Entry
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.layout import INDEX_FILE, JPEGS, VIDEO, table_name
from pyramid.shards.reader import Sample, ShardSet
from pyramid.video.packed import count_mp4

QUARANTINE = "_quarantine"
LABELS = "labels"


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What verifying found."""

    shards: int
    """Shards that the index names."""
    samples: int
    """Samples that the index names."""
    bad: list[dict[str, str]] = field(default_factory=list)
    """``path`` and ``reason`` of each bad shard or label table."""
    quarantined: bool = False
    """Whether the bad ones were set aside."""

    @property
    def items(self) -> list[Quarantined]:
        """The bad files."""
        return [Quarantined(item=b["path"], reason="bad", detail=f"{b['path']}: {b['reason']}") for b in self.bad]

    @property
    def exit_code(self) -> ExitCode:
        """Bad files that are still in their place are a failure."""
        if not self.bad:
            return ExitCode.DONE
        return ExitCode.QUARANTINED if self.quarantined else ExitCode.FAILED

    def __repr__(self) -> str:
        if not self.bad:
            return f"{self.shards} shards, {self.samples} samples: all as the index says"
        what = "set aside" if self.quarantined else "bad; set them aside with --quarantine"
        return f"{self.shards} shards, {self.samples} samples: {len(self.bad)} files {what}"


def verify(shards: str, *, deep: bool = False, quarantine: bool = False) -> VerifyResult:
    """Checks shards and label tables against their index.

    Args:
        shards: the shard folder.
        deep: read every sample and decode every frame, too; takes as long as decoding does.
        quarantine: move bad files into _quarantine and take their samples out of the index.

    Raises:
        DataError: no index there.
    """
    found = ShardSet.open(shards)
    there = files.entries(shards)
    bad_shards = {name: reason for name in _progress(found) if (reason := _shard_fault(found, name, there, deep))}
    bad_tables = dict(_table_faults(found))
    if quarantine and (bad_shards or bad_tables):
        _set_aside(found, [*bad_shards, *bad_tables], set(bad_shards))
    bad = {**bad_shards, **bad_tables}
    return VerifyResult(
        shards=len(found.shards),
        samples=len(found),
        bad=[{"path": files.join(shards, name), "reason": reason} for name, reason in bad.items()],
        quarantined=quarantine and bool(bad),
    )


def _progress(found: ShardSet) -> Iterator[str]:
    with Progress("verify", len(found.shards)) as progress:
        for shard in found.shards:
            yield shard
            progress.add()


def _shard_fault(found: ShardSet, shard: str, there: Mapping[str, Entry], deep: bool) -> str:
    """Returns what is wrong with a shard, or nothing. A store that does not answer is no fault of the shard's."""
    path = files.join(found.folder, shard)
    row = found.rows[found.of_shard(shard)[0]]
    if shard not in there:
        return "the file is missing"
    size = there[shard].size
    if size != row["shard_bytes"]:
        return f"{size} bytes, the index says {row['shard_bytes']}"
    if files.sha256_file(path) == row["shard_sha256"]:
        return _samples_fault(found, shard, deep=True) if deep else ""
    return _samples_fault(found, shard, deep=False) or "changed outside its samples"


def _samples_fault(found: ShardSet, shard: str, *, deep: bool) -> str:
    ahead = ReadAhead()
    for i in found.of_shard(shard):
        try:
            sample = found.read(i, ahead)
            if deep:
                _decode(sample, found.rows[i]["frames"])
        except DataError as error:
            return str(error)
    return ""


def _decode(sample: Sample, n_frames: int) -> None:
    """Decodes all frames of a sample in each of its codecs, a few at a time."""
    counts = {"times": len(sample), "the index": n_frames}
    if sample.video:
        counts[VIDEO] = count_mp4(sample.video)
    if sample.jpegs_at is not None:
        counts[JPEGS] = sum(len(sample.frames([i])) for i in range(len(sample)))
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise DataError(f"sample {sample.key} is not of one number of frames ({said})")


def _table_faults(found: ShardSet) -> Iterator[tuple[str, str]]:
    """Yields the label tables that do not fit the index, with the reason."""
    root = files.join(found.folder, LABELS)
    for run in files.listdir(root):
        for name in files.listdir(files.join(root, run)):
            if name.endswith(".parquet"):
                relative = f"{LABELS}/{run}/{name}"
                reason = _table_fault(found, files.join(found.folder, relative), name)
                if reason:
                    yield relative, reason


def _table_fault(found: ShardSet, path: str, name: str) -> str:
    shard = next((s for s in found.shards if table_name(s) == name), None)
    if shard is None:
        return "there is no shard of this number"
    try:
        if parquet.metadata(path).get("index_digest") != found.shard_digest(shard):
            return f"made for another {shard} than the one here; label again"
        table = parquet.read(path, ["key", "t_s"])
    except DataError as error:
        return str(error)
    strangers = set(pc.unique(table["key"]).to_pylist()) - {found.rows[i]["key"] for i in found.of_shard(shard)}
    return f"labels the clip {sorted(strangers)[0]}, which is not in {shard}" if strangers else ""


def _set_aside(found: ShardSet, names: list[str], shards: set[str]) -> None:
    """Moves files into the quarantine, drops their receipts, and writes the index without the bad shards.

    The index comes last: a run that was stopped before finds a missing file at the next time, and goes on.
    """
    for name in names:
        inner, _, file = name.rpartition("/")
        source = files.join(found.folder, name)
        if files.exists(source):
            files.move(source, files.join(found.folder, QUARANTINE, name))
        files.remove(path_of(files.join(found.folder, inner) if inner else found.folder, file.rpartition(".")[0]))
    if shards:
        kept = found.index.filter(pc.invert(pc.is_in(found.index["shard"], pc.cast(list(shards), "string"))))
        parquet.write(files.join(found.folder, INDEX_FILE), kept, found.metadata)
