"""A job of many units of which all but a hundredth are done: made cheaply, planned and looked up as at a restart.

Run as a program with a folder and a number of shards; prints processor seconds and the most memory as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import drawing
import pyarrow as pa

from pyramid import files, parquet, receipts
from pyramid.labels.engine import todo_count
from pyramid.labels.plan import COLUMNS, Plan, Run, look_up
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.labels.run import seal_loose

_LINKS = 50_000
"""Names for one file; a file system may allow 65 000."""


def write_index(folder: Path, n_shards: int, piece: int = 50_000) -> None:
    """Writes the index of shards of one clip each, which are not there."""

    def rows(first: int) -> pa.Table:
        numbers = range(first, min(first + piece, n_shards))
        keys = [drawing.key_of(n) for n in numbers]
        return pa.table(
            {
                "shard": [f"clips-{n:06d}.tar" for n in numbers],
                "key": keys,
                "offset": pa.array([0] * len(keys), pa.int64()),
                "size": pa.array([1] * len(keys), pa.int64()),
                "frames": pa.array([100] * len(keys), pa.int32()),
                "sha256": [files.sha256_bytes(key.encode()) for key in keys],
            },
            schema=COLUMNS,
        )

    parquet.write_groups(folder / "shards.parquet", COLUMNS, map(rows, range(0, n_shards, piece)), dict)


def run_of(out: Path) -> Run:
    """A run of a labeler that is not there."""
    return Run(
        name="truth",
        model="",
        out=str(out),
        labeler_name="honest",
        labeler_digest="0" * 64,
        schema=pa.schema(BASE_FIELDS),
        metadata={},
        digest=files.digest("a run"),
    )


def peak_kib() -> int:
    """Most memory that this program has held; getrusage would count what its parent held when it was forked."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


def finish(plan: Plan, run: Run, n_done: int, per_file: int = 4096) -> None:
    """Leaves what a job leaves that has done the first units: sealed receipts, and tables, all of them links."""
    out, source = Path(run.out), Path(run.out)
    (out / receipts.RECEIPTS / receipts.SEALED).mkdir(parents=True)
    some = {}
    for number in range(n_done):
        table = f"clips-{number:06d}.parquet"
        if number % _LINKS == 0:
            source = out / table
            source.write_bytes(b"1234")
        else:
            os.link(source, out / table)
        digest = run.unit_digest(plan.shards[number])
        facts = {"clips": 1, "rows": 100}
        some[table[:-8]] = {"digest": digest, "bytes": 4, "facts": facts, "output": table, "quarantined": []}
        if len(some) == per_file or number == n_done - 1:
            path = out / receipts.RECEIPTS / receipts.SEALED / f"{number // per_file:06d}.json"
            path.write_text(files.canonical_json(some))
            some = {}


def main(folder: Path, n_shards: int) -> None:
    """Makes the job in a process of its own, whose memory is not counted, and measures its restart."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            write_index(folder, n_shards)
            finish(Plan.open(str(folder)), run_of(folder / "out"), n_shards * 99 // 100)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the job could not be made")
    start = time.process_time()
    plan, run = Plan.open(str(folder)), run_of(folder / "out")
    planned = time.process_time()
    look_up(plan, run)
    for place in (run.out, files.join(run.out, receipts.RECEIPTS)):
        files.remove_temporaries(place)
    seal_loose(run.out)
    left = todo_count(plan, [run])
    following = plan.task(run.done.index(0), (0,))
    ended = time.process_time()
    facts = {
        "done": n_shards - left,
        "clips": run.clips,
        "rows": run.rows,
        "next": following.shard,
        "plan_s": round(planned - start, 3),
        "restart_s": round(ended - start, 3),
        "peak_gib": round(peak_kib() / 2**20, 3),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
