"""The verb ``status``: what the jobs below a folder have done, from their receipts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pyramid import files
from pyramid.errors import DataError
from pyramid.jobs import RECEIPTS
from pyramid.labels.watch import EVENTS
from pyramid.nn.checkpoint import CONFIG_FILE
from pyramid.receipts import SEALED, read_each
from pyramid.table import format_table

_STATES = {
    "job_finished": "finished",
    "interrupted": "interrupted; the same command goes on",
    "job_failed": "failed",
}


@dataclass(frozen=True, kw_only=True)
class StatusResult:
    """Jobs and models below a folder."""

    folder: str
    """Where was looked."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """Per job: folder, finished units, bytes, items set aside by reason; of a label run also its units in all (0 if it
    does not say) and its state, from its event log."""
    models: list[dict[str, Any]] = field(default_factory=list)
    """Per model folder: folder, kind, state."""

    def __repr__(self) -> str:
        if not self.jobs and not self.models:
            return f"nothing was done below {self.folder}"
        rows = [[j["folder"], _done(j), j["bytes"], _reasons(j["quarantined"]), j["state"]] for j in self.jobs]
        rows += [[m["folder"], "", "", "", f"{m['kind']} model, {m['state']}"] for m in self.models]
        return format_table(["folder", "units done", "bytes", "set aside", "state"], rows)


def _done(job: dict[str, Any]) -> str:
    return f"{job['units']:,}" + (f" of {job['of']:,}" if job["of"] else "")


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items()) or "-"


def status(folder: str) -> StatusResult:
    """Shows what the jobs below a folder have done.

    Args:
        folder: any folder: a shard folder, a label run, a demo.

    Raises:
        DataError: the folder is not there.
    """
    if not files.is_dir(folder):
        raise DataError(f"'{folder}' is no folder")
    jobs: set[str] = set()
    models = []
    for path in files.walk_files(folder):
        inner, _, name = path.rpartition("/")
        outer, _, parent = inner.rpartition("/")
        if parent == RECEIPTS and name.endswith(".json"):
            jobs.add(outer)
        elif inner.endswith(f"/{RECEIPTS}/{SEALED}"):
            jobs.add(inner.removesuffix(f"/{RECEIPTS}/{SEALED}"))
        elif name == CONFIG_FILE:
            models += _model(path)
        elif name == "run.json" and parent == "lightning":
            models += _unfinished(outer)
    return StatusResult(folder=folder, jobs=[_job(job) for job in sorted(jobs)], models=models)


def _job(folder: str) -> dict[str, Any]:
    latest = dict(read_each(folder))
    found = [receipt for receipt in latest.values() if receipt.get("digest")]
    reasons = Counter(q["reason"] for receipt in found for q in receipt.get("quarantined", []))
    total = sum(receipt.get("bytes", 0) for receipt in found)
    aside = dict(sorted(reasons.items()))
    return {"folder": folder, "units": len(found), "bytes": total, "quarantined": aside, **_logged(folder)}


def _logged(folder: str) -> dict[str, Any]:
    """Returns what the event log of a label run says of its last job; logs of remote runs lie under many names."""
    path = files.join(folder, EVENTS)
    if files.is_remote(folder) or not files.exists(path):
        return {"of": 0, "state": ""}
    started, last = b"{}", b"{}"
    with files.open_read(path) as log:
        for line in log:
            started = line if b'"event":"job_started"' in line else started
            last = line
    try:
        event, shards = json.loads(last).get("event"), int(json.loads(started).get("shards", 0))
    except ValueError:
        return {"of": 0, "state": ""}  # Killed in the middle of a line.
    return {"of": shards, "state": _STATES.get(event, "running, or killed")}


def _model(path: str) -> list[dict[str, Any]]:
    found = files.read_json(path)
    if not isinstance(found, dict) or "weights_sha256" not in found:
        return []
    return [{"folder": path.rpartition("/")[0], "kind": found["kind"], "state": "finished"}]


def _unfinished(folder: str) -> list[dict[str, Any]]:
    if files.exists(files.join(folder, CONFIG_FILE)):
        return []
    return [{"folder": folder, "kind": "unfinished", "state": "training"}]
