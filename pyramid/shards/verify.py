"""The verb ``verify``: holds shards and label tables against their index, and sets the bad ones aside.

What is wrong with a LeRobot data set is left to `pyramid.lerobot.verify`, with a clip manifest to
`pyramid.corpora.verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow.compute as pc

from pyramid import files, parquet
from pyramid.corpora.verify import check_manifest
from pyramid.errors import ConfigError, DataError, ExitCode
from pyramid.jobs import Quarantined
from pyramid.lerobot.schema import INFO
from pyramid.lerobot.verify import check_dataset
from pyramid.progress import Progress
from pyramid.receipts import path_of
from pyramid.remote import Entry
from pyramid.shards.ahead import ReadAhead
from pyramid.shards.features import notes_on
from pyramid.shards.layout import INDEX_FILE, JPEGS, VIDEO, table_name
from pyramid.shards.reader import Sample, ShardSet
from pyramid.video.packed import count_mp4

QUARANTINE = "_quarantine"
LABELS = "labels"
Kind = Literal["shards", "lerobot", "manifest"]
_NOUNS: dict[Kind, tuple[str, str]] = {
    "shards": ("shards", "samples"),
    "lerobot": ("data files", "episodes"),
    "manifest": ("manifest", "clips"),
}
_NO_QUARANTINE: dict[Kind, str] = {
    "lerobot": "a LeRobot data set counts its episodes: 'pyramid convert SRC DST' writes one without those that "
    "cannot be used",
    "manifest": "a clip manifest is written by 'pyramid scan', which sets aside what cannot be used; scan again",
}


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What verifying found."""

    shards: int
    """Shards that the index names; of a LeRobot data set its files of rows."""
    samples: int
    """Samples that the index names; episodes, or clips of a manifest."""
    bad: list[dict[str, str]] = field(default_factory=list)
    """``path`` and ``reason`` of each bad shard, table, episode or row."""
    quarantined: bool = False
    """Whether the bad ones were set aside."""
    kind: Kind = "shards"
    """What was looked at: a shard folder, a LeRobot data set or a clip manifest."""
    notes: list[str] = field(default_factory=list)
    """What is claimed and not so, and hurts no reader, as sentences."""

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
        files_, items = _NOUNS[self.kind]
        size = f"{self.shards} {files_}, {self.samples} {items}"
        odd = f", {len(self.notes)} notes" if self.notes else ""
        if not self.bad:
            return f"{size}: all as {'the index' if self.kind == 'shards' else 'it'} says{odd}"
        if self.kind != "shards":
            return f"{size}: {len(self.bad)} faults{odd}"
        what = "set aside" if self.quarantined else "bad; set them aside with --quarantine"
        return f"{size}: {len(self.bad)} files {what}"


def verify(path: str, *, deep: bool = False, quarantine: bool = False) -> VerifyResult:
    """Checks shards and label tables, a LeRobot data set or a clip manifest against what it says of itself.

    Args:
        path: the shard folder, the folder of a LeRobot data set, or a manifest such as clips.parquet.
        deep: read every sample and decode every frame, too, which takes as long as decoding does; shards only.
        quarantine: move bad files into _quarantine and take their samples out of the index; shards only.

    Raises:
        ConfigError: quarantine of something that has none.
        DataError: nothing there that can be verified.
    """
    kind = _kind_of(path)
    if kind == "shards":
        return _verify_shards(path, deep=deep, quarantine=quarantine)
    if quarantine:
        raise ConfigError(f"'{path}' has no quarantine: {_NO_QUARANTINE[kind]}")
    if deep:
        raise ConfigError(f"'{path}': --deep decodes the frames of shards; pack it first")
    found = check_dataset(path) if kind == "lerobot" else check_manifest(path)
    return VerifyResult(shards=found.files, samples=found.items, bad=found.all_bad(), kind=kind, notes=found.notes)


def _kind_of(path: str) -> Kind:
    if path.endswith(".parquet") and files.exists(path) and not files.is_dir(path):
        return "manifest"
    if not files.exists(files.join(path, INDEX_FILE)) and files.exists(files.join(path, "meta", INFO)):
        return "lerobot"
    return "shards"


def _verify_shards(shards: str, *, deep: bool, quarantine: bool) -> VerifyResult:
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
        notes=list(notes_on(found)),
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
