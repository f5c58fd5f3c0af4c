"""Jobs: a plan of units, a receipt for each finished unit, resume, quarantine.

A unit's work is a function of its own; this file decides which units run, records how they ended, and never runs
one twice. Which worker does what has no influence on any result.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from pyramid import files, receipts
from pyramid.errors import InterruptedJobError, PyramidError, SkipItemError
from pyramid.progress import Progress
from pyramid.receipts import RECEIPTS

__all__ = ["RECEIPTS", "JobReport", "Outcome", "Quarantined", "Unit", "attempt", "count_reasons", "pending", "run_job"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work whose outcome is a pure function of ``task`` and the files it names."""

    name: str
    """Names the receipt; unique in a plan; letters, digits, - and _."""
    digest: str
    """Digest of everything that decides the outcome; a receipt with another digest is stale."""
    task: Any
    """What the work function gets; plain data that can cross to another process."""
    amount: float = 0.0
    """Size of the work in what the rate counts, such as frames; for progress only."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """One item that was set aside."""

    item: str
    """Path or id."""
    reason: str
    """Short slug that results count by."""
    detail: str
    """The sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a unit's work returns: facts for the result, and items set aside on the way."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Plain data; what the receipt keeps."""
    output: str = ""
    """Name of the file it wrote, relative to the job's folder; empty when there is none."""
    quarantined: tuple[Quarantined, ...] = ()
    """Items of this unit that were set aside."""


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """How a job went, in the order of the plan."""

    outcomes: list[Outcome]
    """One for each unit of the plan; none if they were handed out."""
    units: int
    """Units of the plan."""
    skipped_done: int
    """Units that a former run had finished."""
    seconds: float
    """Wall time of this run."""

    @property
    def quarantined(self) -> list[Quarantined]:
        """All items set aside, in the order of the plan."""
        return [q for outcome in self.outcomes for q in outcome.quarantined]


_AHEAD = 4
"""Units in work, for each worker, beyond the oldest that is not done."""
_CHUNK = 32
"""Units that are looked up at a time."""
_END_S = 10.0
"""How long workers with nothing left to do may take to end."""
_Receipt = Mapping[str, Any]
_Looked = tuple[Unit, tuple[Outcome, _Receipt] | None]


def count_reasons(items: Sequence[Quarantined]) -> dict[str, int]:
    """Counts quarantined items by reason."""
    return dict(sorted(Counter(item.reason for item in items).items()))


def run_job(
    units: Iterable[Unit],
    work: Callable[[Any], Outcome],
    *,
    folder: str,
    label: str,
    workers: int = 1,
    resume: bool = True,
    retry_quarantined: bool = False,
    unit_name: str = "frames",
    n_units: int | None = None,
    each: Callable[[Outcome], None] | None = None,
) -> JobReport:
    """Runs the units that have no valid receipt in ``folder`` and returns the outcome of all.

    A receipt is written after its unit's output bears its final name, so a unit is done or not done, whenever the
    process dies. A unit that raises `SkipItemError` is quarantined whole; any other error of the toolkit ends the job.
    With ``retry_quarantined``, units that set items aside are run again.

    Args:
        units: the plan; of an iterator a few units at a time are taken.
        work: a function of a unit's task, at the top of a module.
        folder: where outputs and receipts lie.
        label: what is being done, for messages.
        workers: processes; nothing depends on it.
        resume: whether receipts count.
        retry_quarantined: see above.
        unit_name: what amounts count, for progress.
        n_units: length of the plan, where it has none itself.
        each: gets every outcome in the order of the plan; the report then holds none, and memory stays flat.

    Raises:
        InterruptedJobError: Ctrl-C or SIGTERM; what is done stays done.
    """
    start, outcomes, done, fresh = time.monotonic(), list[Outcome](), 0, 0
    take = each or outcomes.append
    files.make_dirs(folder)
    files.remove_temporaries(folder)
    files.remove_temporaries(files.join(folder, RECEIPTS))
    total = n_units if n_units is not None else len(units) if isinstance(units, Sized) else 0
    looked = _looked_up(units, folder if resume else None, retry_quarantined=retry_quarantined)
    gathering = receipts.Gathering(folder)
    with Progress(label, total, unit_name) as progress, _interruptible(label), _gathered(gathering):
        for unit, outcome, receipt in _execute(looked, work, min(workers, total or workers)):
            done += 1
            if receipt is None:
                fresh += 1
                gathering.add(unit.name, _write_receipt(folder, unit, outcome), new=True)
                progress.add(amount=unit.amount)
            else:
                gathering.add(unit.name, receipt, new=False)
                progress.total -= 1
            take(outcome)
    return JobReport(outcomes=outcomes, units=done, skipped_done=done - fresh, seconds=time.monotonic() - start)


def pending(
    units: Iterable[Unit], *, folder: str, resume: bool = True, retry_quarantined: bool = False
) -> Iterator[Unit]:
    """Yields the units that `run_job` would run: those without a valid receipt, and if asked those with bad items."""
    for unit, done in _looked_up(units, folder if resume else None, retry_quarantined=retry_quarantined):
        if done is None:
            yield unit


@contextlib.contextmanager
def _gathered(gathering: receipts.Gathering) -> Iterator[None]:
    """However the job ends, leaves its receipts where the next run finds them quickly."""
    try:
        yield
    finally:
        with contextlib.suppress(PyramidError):  # What ended the job counts; nothing needs the gathered copy.
            gathering.write()


@contextlib.contextmanager
def _interruptible(label: str) -> Iterator[None]:
    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # Signals can be caught in the main thread only; elsewhere a job simply has no handler of its own.
    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        before = None
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedJobError(f"{label}: stopped; run the same command again to go on where it stopped") from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def attempt(work: Callable[[Any], Outcome], unit: Unit) -> Outcome:
    """Runs one unit; a `SkipItemError` becomes an outcome with the whole unit set aside."""
    try:
        return work(unit.task)
    except SkipItemError as error:
        return Outcome(quarantined=(Quarantined(item=unit.name, reason=error.reason, detail=error.detail),))


def _execute(
    looked: Iterator[_Looked], work: Callable[[Any], Outcome], workers: int
) -> Iterator[tuple[Unit, Outcome, _Receipt | None]]:
    """Yields units with their outcomes in the order of the plan, and with their receipts if they had been done."""
    if workers <= 1:
        for unit, done in looked:
            yield (unit, *done) if done else (unit, attempt(work, unit), None)
        return
    # A forked child would inherit locked decoder and torch threads.
    context = multiprocessing.get_context("spawn")
    theirs, life = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker, initargs=(theirs,)) as pool:
        try:
            yield from _windowed(looked, lambda unit: pool.submit(attempt, work, unit), workers * _AHEAD)
            _end(pool, life)
        except BrokenProcessPool as error:
            raise PyramidError(
                "a worker process died (out of memory, or killed); run the same command again, with fewer --workers"
            ) from error
        except BaseException:
            life.close()  # Nothing that they still do is wanted.
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end(pool: ProcessPoolExecutor, life: Connection) -> None:
    """Lets workers that are done give back what they hold of the system, such as semaphores; but not for ever."""
    hurry = threading.Timer(_END_S, life.close)
    hurry.start()
    try:
        pool.shutdown()
    finally:
        hurry.cancel()


def _windowed(
    looked: Iterator[_Looked], submit: Callable[[Unit], Future[Outcome]], most: int
) -> Iterator[tuple[Unit, Outcome, _Receipt | None]]:
    """Runs ahead of what is yielded, but only so far: ``most`` units in work, and `_CHUNK` in all."""
    window: deque[tuple[Unit, Future[Outcome] | tuple[Outcome, _Receipt]]] = deque()
    for unit, done in looked:
        window.append((unit, done or submit(unit)))
        while len(window) > _CHUNK or sum(isinstance(result, Future) for _, result in window) > most:
            yield _oldest(window)
    while window:
        yield _oldest(window)


def _oldest(
    window: deque[tuple[Unit, Future[Outcome] | tuple[Outcome, _Receipt]]],
) -> tuple[Unit, Outcome, _Receipt | None]:
    unit, result = window.popleft()
    return (unit, result.result(), None) if isinstance(result, Future) else (unit, *result)


def _quiet_worker(life: Connection) -> None:
    # Ctrl-C reaches the whole process group; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # By then `multiprocessing` has given back what is the system's; taking PyTorch apart would need a second more.
    atexit.register(os._exit, 0)
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()


def _end_with(life: Connection) -> None:
    """Ends this process when the parent closes its end of the pipe, or dies: what a unit leaves is always whole."""
    with contextlib.suppress(EOFError, OSError):
        life.recv_bytes()
    os._exit(1)


def _write_receipt(folder: str, unit: Unit, outcome: Outcome) -> dict[str, Any]:
    size = files.size_bytes(files.join(folder, outcome.output)) if outcome.output else 0
    data = {"digest": unit.digest, "bytes": size, **asdict(outcome)}
    files.write_json(receipts.path_of(folder, unit.name), data)
    return data


def _looked_up(units: Iterable[Unit], folder: str | None, *, retry_quarantined: bool) -> Iterator[_Looked]:
    """Yields units with the outcome and the receipt of those that are done, looking at a chunk of them at a time."""
    found = receipts.Receipts(folder) if folder is not None else None
    rest = iter(units)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        done = _valid(chunk, found, retry_quarantined=retry_quarantined) if found else {}
        yield from ((unit, done.get(unit.name)) for unit in chunk)


def _valid(
    units: Sequence[Unit], there: receipts.Receipts, *, retry_quarantined: bool
) -> dict[str, tuple[Outcome, _Receipt]]:
    """Returns the units whose receipt is for them and whose output is there at the size it had."""
    written = there.read(unit.name for unit in units)
    found: dict[str, tuple[Outcome, _Receipt]] = {}
    for unit in units:
        try:
            data = written[unit.name]
            aside = tuple(Quarantined(**q) for q in data["quarantined"])
            outcome = Outcome(facts=data["facts"], output=str(data["output"]), quarantined=aside)
            if data["digest"] == unit.digest and data["bytes"] >= 0 and not (retry_quarantined and aside):
                found[unit.name] = outcome, data
        except (KeyError, TypeError):
            continue  # None, or none that can be read.
    sizes = there.sizes(outcome.output for outcome, _ in found.values() if outcome.output)
    return {
        name: (outcome, data)
        for name, (outcome, data) in found.items()
        if not outcome.output or sizes.get(outcome.output) == data["bytes"]
    }
