"""What the tests of jobs share: tables and events of a run, the command in a process of its own, who it has started."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import pyarrow.parquet as pq

from pyramid import files
from pyramid.labels.result import LabelResult
from pyramid.shards.reader import ShardSet

SICK = [5, 3, 8, 4, 6, 2, 3, 3, 4, 4, 5, 2, 3, 4]
"""Frames of the clips of a folder in which much goes wrong."""
_AILMENTS = {
    2: "nan",
    4: "more columns",
    5: "past the end",
    6: "too few",
    8: "ValueError",
    9: "SystemExit",
    13: "schema",
}
SICK_MODEL = {"faults": {drawing.key_of(clip): fault for clip, fault in _AILMENTS.items()}}
"""The model file of a labeler that falls ill over these clips, two of which are in each shard."""


def write_sick(folder: Path) -> str:
    """Writes shards of which the fourth is cut in its second clip, and the sixth is not there."""
    drawing.write_shards(folder, SICK)
    cut, row = folder / "clips-000003.tar", ShardSet.open(str(folder)).rows[7]
    cut.write_bytes(cut.read_bytes()[: row["offset"] + 600])
    (folder / "clips-000005.tar").unlink()
    return str(folder)


def check_sick(result: LabelResult, out: Path) -> None:
    """Sees to it that each fault is named, and has cost its clip or its shard only."""
    assert result.quarantined == {"bad_labels": 4, "bad_sample": 3, "label_error": 2, "error": 1}
    assert result.clips == 3
    told = {item.item: item.detail for item in result.items}
    words = {
        2: "'action' holds NaN",
        4: "instead of",
        5: "frame 2 of a clip with 2 frames",
        6: "gave 0 tables for 1 clips",
        7: "clips-000003.tar",
        8: "ValueError: broken",
        9: "SystemExit: over",
        10: "clips-000005.tar",
        11: "clips-000005.tar",
    }
    for clip, text in words.items():
        assert text in told[drawing.key_of(clip)]
    assert (
        "labeler 'truth' failed 2 times on clips-000006.tar: RuntimeError: no schema any more" in told["clips-000006"]
    )
    labelled = {name: set(pq.read_table(out / name)["key"].to_pylist()) for name in tables(out)}
    keys = [[0, 1], [3], [], [], [], [], []]
    assert labelled == {
        f"clips-{n:06d}.parquet": {drawing.key_of(clip) for clip in clips} for n, clips in enumerate(keys)
    }


def tables(out: Path) -> dict[str, str]:
    """The tables of a run and what they hold, without receipts and logs."""
    return {path.name: files.sha256_file(path) for path in sorted(out.glob("*.parquet"))}


def events(out: Path, name: str = "") -> list[dict]:
    """The events of a run, or those of one kind."""
    lines = [json.loads(line) for line in (out / "_events.jsonl").read_text().splitlines()]
    return [line for line in lines if not name or line["event"] == name]


def command(
    shards: str, path: str, out: Path, *more: str, delay_s: float = 0.0, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """Starts ``pyramid label`` in a session of its own, so that a signal to its group reaches nobody else.

    ``before`` runs in the new process, ahead of the command.
    """
    arguments = ["label", shards, "--labeler", "truth", "--model", path, "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TRUTH_DELAY_S": str(delay_s)}
    return subprocess.Popen(
        [sys.executable, "-m", "pyramid.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,  # noqa: PLW1509
    )


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something is the case."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Worker processes that a process has started, by the system's own list."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def gone(pids: list[int]) -> bool:
    """Tells whether processes have ended; one that nobody has waited for yet has."""
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Tells whether a process runs."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def actors(root: int) -> list[int]:
    """The label actors' processes below a process."""
    return [pid for pid, words in below(root).items() if words.startswith("ray::LabelActor")]


def below(root: int) -> dict[int, str]:
    """All processes that a process, or one of its, has started, with their command lines."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            parents[pid] = int(path.read_text().rpartition(")")[2].split()[1])
            lines[pid] = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return {pid: lines[pid] for pid in parents if root in _lineage(pid, parents)}


def _lineage(pid: int, parents: dict[int, int]) -> list[int]:
    found = []
    while pid in parents:
        pid = parents[pid]
        found.append(pid)
    return found


class Killer:
    """Kills one of the processes that ``find`` names at each moment: seconds after one is seen.

    Between two kills a table must be written, so that a busy machine does not spend them all on processes that start.
    """

    def __init__(self, find: Callable[[], list[int]], moments: list[float], out: Path) -> None:
        self.killed: list[int] = []
        self._out = out
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill, args=(find, moments), daemon=True)

    def _kill(self, find: Callable[[], list[int]], moments: list[float]) -> None:
        for moment in moments:
            before = len(list(self._out.glob("*.parquet"))) if self.killed else -1
            while not (found(find) and len(list(self._out.glob("*.parquet"))) > before) and not self._stop.wait(0.05):
                continue
            if self._stop.wait(moment):
                return
            some = found(find)
            if some:
                self.killed.append(random.choice(some))
                with contextlib.suppress(OSError):
                    os.kill(self.killed[-1], signal.SIGKILL)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def found(find: Callable[[], list[int]]) -> list[int]:
    """Asks for processes; one may end while it is looked at."""
    with contextlib.suppress(OSError):
        return find()
    return []


def kill_while(
    job: Callable[[Path], LabelResult], find: Callable[[], list[int]], count: int, longest_s: float, folder: Path
) -> None:
    """Runs a job, again from the start where it ends too early, until so many of its processes have been killed.

    Each time it must make the tables that lie in ``whole``.
    """
    killed = 0
    for number in range(10 * count):
        out = folder / f"out-{number}"
        moments = [random.uniform(0, longest_s) for _ in range(count - killed)]
        with Killer(find, moments, out) as killer:
            result = job(out)
        assert result.quarantined == {}, moments
        assert tables(out) == tables(folder / "whole"), moments
        killed += len(killer.killed)
        if killed >= count:
            return
    raise AssertionError(f"{killed} of {count} were killed")
