"""Jobs: every unit once, whatever stops them; receipts that are stale, short or broken count for nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyramid import files, jobs
from pyramid.errors import InterruptedJobError, PyramidError, SkipItemError
from pyramid.jobs import RECEIPTS, Outcome, Quarantined, Unit, count_reasons, pending, run_job

HELD: list[Any] = []
"""What a worker keeps to its end."""


def work(task: dict[str, Any]) -> Outcome:
    """Writes a file, notes that it ran, and does what the task says besides."""
    folder, name = task["folder"], task["name"]
    with (Path(folder).parent / "ran.txt").open("a") as log:
        log.write(name + "\n")
    time.sleep(task.get("sleep", 0))
    if task.get("linger"):
        threading.Thread(target=time.sleep, args=(task["linger"],)).start()
    if task.get("hold"):
        HELD.append(multiprocessing.get_context("spawn").Lock())
    if task.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("skip"):
        raise SkipItemError("decode_error", f"{name} is damaged")
    if task.get("fail"):
        raise PyramidError(f"{name} failed")
    aside = (Quarantined(item=f"{name}/3", reason="static", detail="nothing moves"),) if task.get("aside") else ()
    files.write_text(files.join(folder, f"{name}.txt"), f"made by {name}")
    return Outcome(facts={"letters": len(name)}, output=f"{name}.txt", quarantined=aside)


def units(folder: Path, names: str = "abcd", **tasks: dict[str, Any]) -> list[Unit]:
    base = {"folder": str(folder)}
    return [
        Unit(name=n, digest=f"digest of {n}", task={**base, "name": n, **tasks.get(n, {})}, amount=1.0) for n in names
    ]


def ran(folder: Path) -> list[str]:
    log = folder.parent / "ran.txt"
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "job"


def run(folder: Path, plan: list[Unit], **options: Any):
    return run_job(plan, work, folder=str(folder), label="test", **options)


def test_every_unit_runs_once_and_never_again(folder: Path) -> None:
    plan = units(folder)
    report = run(folder, plan)
    assert ran(folder) == list("abcd")
    assert report.skipped_done == 0
    assert [o.output for o in report.outcomes] == ["a.txt", "b.txt", "c.txt", "d.txt"]
    again = run(folder, plan)
    assert ran(folder) == []
    assert again.skipped_done == 4
    assert again.outcomes == report.outcomes
    assert not list(pending(plan, folder=str(folder)))
    assert run(folder, plan, resume=False).outcomes == report.outcomes
    assert ran(folder) == list("abcd")


def test_outcomes_come_in_the_order_of_the_plan_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    slow_first = {"a": {"sleep": 0.3}, "c": {"aside": True}}
    one = run(folder, units(folder, **slow_first))
    other = tmp_path / "other" / "job"
    other.parent.mkdir()
    two = run(other, units(other, **slow_first), workers=3)
    assert one.outcomes == two.outcomes
    assert [q.item for q in two.quarantined] == ["c/3"]
    assert sorted(ran(other)) == list("abcd")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "b.txt").unlink(),
        lambda folder: (folder / "b.txt").write_text("short"),
        lambda folder: (folder / RECEIPTS / "b.json").unlink(),
        lambda folder: (folder / RECEIPTS / "b.json").write_text(""),
        lambda folder: (folder / RECEIPTS / "b.json").write_text('{"digest"'),
        lambda folder: (folder / RECEIPTS / "b.json").write_text("[]"),
        lambda folder: (folder / RECEIPTS / "b.json").write_text("{}"),
        lambda folder: (folder / RECEIPTS / "b.json").write_bytes(b"\xff"),
        lambda folder: (folder / RECEIPTS / "b.json").write_text(
            json.dumps({"digest": "digest of b", "output": "b.txt", "bytes": 9, "facts": {}, "quarantined": [{"x": 1}]})
        ),
    ],
    ids=["no output", "short output", "no receipt", "empty", "half", "a list", "no keys", "not text", "other fields"],
)
def test_a_unit_without_a_sound_receipt_and_output_runs_again(folder: Path, damage) -> None:
    plan = units(folder)
    first = run(folder, plan)
    ran(folder)
    damage(folder)
    assert [u.name for u in pending(plan, folder=str(folder))] == ["b"]
    assert run(folder, plan).outcomes == first.outcomes
    assert ran(folder) == ["b"]
    assert (folder / "b.txt").read_text() == "made by b"


def test_a_stale_digest_runs_again(folder: Path) -> None:
    plan = units(folder)
    run(folder, plan)
    ran(folder)
    changed = [Unit(name=u.name, digest=u.digest + ("!" if u.name == "c" else ""), task=u.task) for u in plan]
    run(folder, changed)
    assert ran(folder) == ["c"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_skipped_unit_is_set_aside_by_name_and_the_others_are_done(folder: Path, workers: int) -> None:
    plan = units(folder, b={"skip": True})
    report = run(folder, plan, workers=workers)
    assert report.quarantined == [Quarantined(item="b", reason="decode_error", detail="b is damaged")]
    assert sorted(p.name for p in folder.glob("*.txt")) == ["a.txt", "c.txt", "d.txt"]
    ran(folder)
    assert run(folder, plan, workers=workers).quarantined == report.quarantined
    assert ran(folder) == []  # A unit set aside is done; it is told again, not tried again.


def test_a_failure_ends_the_job_and_keeps_what_is_done(folder: Path) -> None:
    with pytest.raises(PyramidError, match="c failed"):
        run(folder, units(folder, c={"fail": True}))
    assert ran(folder) == ["a", "b", "c"]
    assert run(folder, units(folder)).skipped_done == 2
    assert ran(folder) == ["c", "d"]


def test_a_worker_that_dies_is_told(folder: Path) -> None:
    with pytest.raises(PyramidError, match="a worker process died"):
        run(folder, units(folder, b={"die": True, "sleep": 0.5}), workers=2)
    ran(folder)
    assert len(run(folder, units(folder)).outcomes) == 4


def test_a_job_leaves_nothing_of_the_system_behind(folder: Path) -> None:
    """The keeper of semaphores tells, when the whole process ends, of those that nobody gave back."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_jobs as t; "
        f"folder = t.Path({str(folder)!r}); "
        "t.run(folder, t.units(folder, **{n: {'hold': True} for n in 'abcd'}), workers=2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert sorted(ran(folder)) == list("abcd")
    assert "leaked" not in done.stderr


def test_a_worker_that_does_not_end_holds_no_job_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_END_S", 0.2)
    start = time.monotonic()
    assert run(folder, units(folder, "ab", a={"linger": 60}), workers=2).units == 2
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_and_the_job_goes_on_later(folder: Path, sign: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), sign))
    timer.start()
    with pytest.raises(InterruptedJobError, match="run the same command again"):
        run(folder, units(folder, b={"sleep": 30}))
    timer.join()
    assert ran(folder) == ["a", "b"]
    assert not (folder / "b.txt").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert run(folder, units(folder)).skipped_done == 1


def test_leftovers_of_a_killed_writer_are_removed(folder: Path) -> None:
    folder.mkdir()
    (folder / f"{files.TEMPORARY_PREFIX}x").write_bytes(b"half")
    run(folder, units(folder))
    assert not list(folder.rglob(f"{files.TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_plan_may_be_an_iterator_that_is_taken_a_little_at_a_time(folder: Path, workers: int) -> None:
    names = [f"u{i:03d}" for i in range(3 * jobs._CHUNK)]
    taken, ahead, given = 0, [0], list[Outcome]()

    def plan() -> Iterator[Unit]:
        nonlocal taken
        for name in names:
            taken += 1
            yield Unit(name=name, digest=name, task=name)

    def take(outcome: Outcome) -> None:
        ahead.append(taken - len(given))
        given.append(outcome)

    report = run_job(plan(), echo, folder=str(folder), label="t", workers=workers, n_units=len(names), each=take)
    assert [outcome.facts["name"] for outcome in given] == names
    assert (report.units, report.skipped_done, report.outcomes) == (len(names), 0, [])
    assert max(ahead) <= jobs._CHUNK + workers * jobs._AHEAD + 1
    (folder / RECEIPTS / "u007.json").unlink()
    before = given.copy()
    taken, ahead = 0, [0]
    given.clear()
    report = run_job(plan(), echo, folder=str(folder), label="t", workers=workers, n_units=len(names), each=take)
    assert given == before
    assert report.skipped_done == len(names) - 1
    assert max(ahead) <= 2 * jobs._CHUNK + 1


def echo(name: str) -> Outcome:
    return Outcome(facts={"name": name})


def test_an_empty_plan_is_done(folder: Path) -> None:
    assert run(folder, [], workers=4).outcomes == []


def test_reasons_are_counted() -> None:
    items = [Quarantined(item=str(i), reason=r, detail="") for i, r in enumerate(["b", "a", "b"])]
    assert count_reasons(items) == {"a": 1, "b": 2}
    assert list(count_reasons(items)) == ["a", "b"]


def test_a_job_on_s3(s3: str) -> None:
    plan = [Unit(name=n, digest=n, task={"folder": f"{s3}/job", "name": n}, amount=1.0) for n in "ab"]
    first = run_job(plan, remote_work, folder=f"{s3}/job", label="test")
    assert first.skipped_done == 0
    assert run_job(plan, remote_work, folder=f"{s3}/job", label="test").skipped_done == 2
    files.write_text(f"{s3}/job/a.txt", "s")
    assert [u.name for u in pending(plan, folder=f"{s3}/job")] == ["a"]


def remote_work(task: dict[str, Any]) -> Outcome:
    files.write_text(files.join(task["folder"], f"{task['name']}.txt"), "made here")
    return Outcome(output=f"{task['name']}.txt")
