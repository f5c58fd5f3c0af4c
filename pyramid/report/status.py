"""The verb ``status``: what the jobs below a folder have done, from their receipts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pyramid import files
from pyramid.errors import DataError
from pyramid.jobs import RECEIPTS
from pyramid.nn.checkpoint import CONFIG_FILE
from pyramid.receipts import SEALED, read_each
from pyramid.table import format_table


@dataclass(frozen=True, kw_only=True)
class StatusResult:
    """Jobs and models below a folder."""

    folder: str
    """Where was looked."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """Per job: folder, finished units, bytes, items set aside by reason."""
    models: list[dict[str, Any]] = field(default_factory=list)
    """Per model folder: folder, kind, state."""

    def __repr__(self) -> str:
        if not self.jobs and not self.models:
            return f"nothing was done below {self.folder}"
        rows = [[j["folder"], j["units"], j["bytes"], _reasons(j["quarantined"])] for j in self.jobs]
        rows += [[m["folder"], m["state"], "", f"{m['kind']} model"] for m in self.models]
        return format_table(["folder", "units done", "bytes", "set aside"], rows)


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
    return {"folder": folder, "units": len(found), "bytes": total, "quarantined": dict(sorted(reasons.items()))}


def _model(path: str) -> list[dict[str, Any]]:
    found = files.read_json(path)
    if not isinstance(found, dict) or "weights_sha256" not in found:
        return []
    return [{"folder": path.rpartition("/")[0], "kind": found["kind"], "state": "finished"}]


def _unfinished(folder: str) -> list[dict[str, Any]]:
    if files.exists(files.join(folder, CONFIG_FILE)):
        return []
    return [{"folder": folder, "kind": "unfinished", "state": "training"}]
