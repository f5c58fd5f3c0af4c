"""What labelling gave: the result of the verb ``label``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyramid.jobs import Quarantined
from pyramid.progress import format_seconds


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """What labelling gave."""

    labeler: str
    """Name of the labeler; of several, with commas between."""
    clips: int
    """Clips with labels; with several labelers, the sum over them."""
    rows: int
    """Labelled time steps, likewise."""
    shards: int
    """Tables, one per shard and labeler."""
    skipped_done: int
    """Tables that a former run had finished."""
    quarantined: dict[str, int]
    """Clips and shards set aside, by reason."""
    seconds: float
    """Wall time of this run."""
    frames_per_s: float
    """Frames of the shards labelled in this run, per second; 0 when all was there already."""
    out: str = ""
    """The folder of the tables; of several labelers, with commas between; empty on a dry run."""
    items: list[Quarantined] = field(default_factory=list)
    """What was set aside, with its reason."""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per labeler: ``out``, ``clips``, ``rows``, ``shards``, ``skipped_done``, ``quarantined``."""

    def __repr__(self) -> str:
        if not self.out:
            left = format_seconds(self.seconds)
            return f"{self.labeler}: {self.shards} shards to label, {self.skipped_done} done, about {left}"
        aside = f", {sum(self.quarantined.values())} clips set aside" if self.quarantined else ""
        again = f", {self.skipped_done} shards were done" if self.skipped_done else ""
        what = f"{self.rows} labels of {self.clips} clips in {self.shards} tables"
        return f"{self.labeler}: {what}{aside}{again} -> {self.out}"
