"""Watching a labelling job: an event log in JSON lines beside the tables, and progress on stderr.

Nothing reads the log to decide anything; it may be deleted.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import Any

from pyramid import files
from pyramid.errors import OutputError
from pyramid.labels.plan import Run, Task
from pyramid.labels.station import Labelled
from pyramid.progress import Progress

EVENTS = "_events.jsonl"
_REMOTE_EVERY_S = 60.0


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class EventLog:
    """One log; a local one grows line by line, a remote one is written anew every minute under a name of its own."""

    def __init__(self, folder: str) -> None:
        self._remote = files.is_remote(folder)
        name = EVENTS.replace(".", f"-{_now().replace(':', '')}.") if self._remote else EVENTS
        self._path, self._lines, self._written = files.join(folder, name), list[str](), time.monotonic()

    def add(self, event: str, **facts: Any) -> None:
        """Adds one event with the time, UTC."""
        line = files.canonical_json({"time": _now(), "event": event, **facts}) + "\n"
        if not self._remote:
            files.append_text(self._path, line)
            return
        self._lines.append(line)
        if time.monotonic() - self._written > _REMOTE_EVERY_S:
            self.close()

    def close(self) -> None:
        """Writes what is not yet written."""
        if self._remote:
            self._written = time.monotonic()
            files.write_text(self._path, "".join(self._lines))


class Watch:
    """The logs of all labelers of a job, and its progress.

    Args:
        runs: the labelers.
        n_units: tables to be made.
    """

    def __init__(self, runs: Sequence[Run], n_units: int) -> None:
        self._logs = [EventLog(run.out) for run in runs]
        self._runs = runs
        self._progress = Progress(f"label {' '.join(run.name for run in runs)}", n_units)
        self.frames = 0
        """Frames of the shards labelled so far, each counted once for each labeler's table."""

    def job(self, event: str, **facts: Any) -> None:
        """Notes an event of the whole job in every log."""
        for log in self._logs:
            log.add(event, **facts)

    def unit(self, event: str, task: Task, place: int, **facts: Any) -> None:
        """Notes an event of one unit."""
        self._logs[place].add(event, shard=task.shard, labeler=self._runs[place].name, **facts)

    def done(self, task: Task, labelled: Labelled) -> None:
        """Notes that a shard is labelled."""
        clocks = {
            "seconds": round(labelled.seconds, 3),
            "model_s": round(labelled.model_s, 3),
            "frames": task.frames,
            "queue_fill": None if labelled.queue_fill is None else round(labelled.queue_fill, 3),
        }
        for place, outcome in labelled.outcomes.items():
            self.unit("unit_done", task, place, **outcome.facts, set_aside=len(outcome.quarantined), **clocks)
        self.frames += task.frames * len(labelled.outcomes)
        busy = labelled.model_s / max(labelled.seconds, 1e-9)
        queue = "" if labelled.queue_fill is None else f", queue {labelled.queue_fill:.0%} full"
        self._progress.note = f"model {busy:.0%} busy{queue}"
        self._progress.add(len(labelled.outcomes), amount=task.frames * len(labelled.outcomes))

    @property
    def told(self) -> str:
        """How far this job is, for a person."""
        return f"{self._progress.done} of {self._progress.total} tables"

    def set_aside(self) -> None:
        """Notes that a unit was quarantined."""
        self._progress.add(1)

    def close(self) -> None:
        """Ends the logs; a disk that is full by now costs the last lines only."""
        for log in self._logs:
            try:
                log.close()
            except OutputError:
                continue
        self._progress.__exit__(None, None, None)
