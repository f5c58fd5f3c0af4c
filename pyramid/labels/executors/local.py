"""The executor ``local``: model processes on this machine, each with a pipe of its own, so that any can be killed.

On a CPU each process decodes and labels; elsewhere each device has one, fed by decode processes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from pyramid.errors import PyramidError
from pyramid.labels.decoding import quiet_child
from pyramid.labels.executors import Ended, attempt
from pyramid.labels.plan import Task
from pyramid.labels.station import Spec, Station

_MOST_DEATHS = 10
"""Times in a row that a process may die before it has begun a unit."""
_END_S = 10.0


def _serve(conn: Connection, spec: Spec, depth: int) -> None:
    """What a model process does: labels what comes through the pipe until that is closed."""
    quiet_child()
    lock = threading.Lock()

    def send(*message: Any) -> None:
        with lock:
            conn.send(message)

    def run(task: Task) -> None:
        send("at", task.number, "")
        send("ended", attempt(station, task, lambda text: send("at", task.number, text)))

    try:
        station = Station(spec)
    except PyramidError as error:
        send("fatal", error)
        return
    with ThreadPoolExecutor(depth) as pool:
        try:
            while True:
                task = conn.recv()
                if depth == 1:
                    run(task)
                else:
                    pool.submit(run, task)
        except (EOFError, OSError):
            return  # The parent has closed its end.


@dataclasses.dataclass
class _Flight:
    """A task in a process's hands."""

    task: Task
    begun: float | None = None
    """When it was begun; None while it waits."""
    over: str = ""
    """What of it is in hand."""
    touched: float = 0.0
    """When that was said."""


class _Seat:
    """One model process and what it has in hand; it is started with its first task, and again after a death."""

    def __init__(self, spec: Spec, depth: int) -> None:
        self._spec, self._depth = spec, depth
        self.process: Any = None
        self.conn: Connection | None = None
        self.flying: dict[int, _Flight] = {}
        self._deaths = 0

    def submit(self, task: Task) -> None:
        self.flying[task.number] = _Flight(task)
        if self.process is None:
            # A forked child would inherit locked decoder and torch threads.
            context = multiprocessing.get_context("spawn")
            self.conn, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, self._spec, self._depth))
            self.process.start()
            theirs.close()
        try:
            assert self.conn is not None  # noqa: S101
            self.conn.send(task)
        except OSError:
            return  # It has died; `read` will see that.

    def read(self) -> list[Ended]:
        """Takes in what the process says; if it is dead, its tasks end."""
        ended: list[Ended] = []
        try:
            while self.conn is not None and self.conn.poll():
                ended += self._take(*self.conn.recv())
        except (EOFError, OSError):
            self.process.join(_END_S)
            ended += self._bury(f"its process died (exit code {self.process.exitcode})", "crash")
        return ended

    def _take(self, kind: str, *rest: Any) -> list[Ended]:
        if kind == "fatal":
            return self._bury("", "", fatal=rest[0])
        if kind == "ended":
            self._deaths = 0
            del self.flying[rest[0].task.number]
            return [rest[0]]
        flight, now = self.flying[rest[0]], time.monotonic()
        flight.begun, flight.over, flight.touched = flight.begun or now, rest[1], now
        return []

    def overdue(self, timeout_s: float) -> list[Ended]:
        """Kills the process if a unit takes too long; only such units are to blame."""
        now = time.monotonic()
        late = [f for f in self.flying.values() if f.begun is not None and now - f.begun > timeout_s]
        if not late:
            return []
        return self._bury(f"not done after {timeout_s:g} s", "timeout", blamed=late)

    def _bury(
        self, what: str, reason: str, *, blamed: list[_Flight] | None = None, fatal: PyramidError | None = None
    ) -> list[Ended]:
        flights = list(self.flying.values())
        self.end(kill=True)
        if fatal is not None:
            return [Ended(task=flight.task, fatal=fatal) for flight in flights]
        if blamed is None:
            begun = [flight for flight in flights if flight.begun is not None]
            blamed = [max(begun, key=lambda flight: flight.touched)] if begun else []
        if not blamed:
            self._deaths += 1
            if self._deaths == _MOST_DEATHS:
                text = f"a model process died {_MOST_DEATHS} times before it began a unit: {what}; is there memory?"
                return [Ended(task=flight.task, fatal=PyramidError(text)) for flight in flights]
        return [
            Ended(task=f.task, reason=reason, detail=f"{what}{f', over {f.over}' if f.over else ''}")
            if f in blamed
            else Ended(task=f.task)
            for f in flights
        ]

    def end(self, *, kill: bool) -> None:
        """Lets the process end, or kills it."""
        if self.process is None:
            return
        if kill:
            self.process.kill()
        if self.conn is not None:
            self.conn.close()
        self.process.join(_END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()
        self.process, self.conn, self.flying = None, None, {}


class LocalExecutor:
    """Model processes of this machine.

    Args:
        spec: the job.
        workers: processes for decoding; on a CPU that decodes by itself, model processes.
    """

    def __init__(self, spec: Spec, workers: int) -> None:
        devices, decoders = spec.config.layout(workers)
        self._timeout_s = spec.config.unit_timeout_s
        # One unit more than decoders: while its clips wait for the model, none of them is idle.
        self._depth = decoders + 1 if decoders else 1
        self._seats = [
            _Seat(dataclasses.replace(spec, device=device, decoders=decoders), self._depth) for device in devices
        ]

    def room(self) -> bool:
        """Tells whether another task can be taken now."""
        return any(len(seat.flying) < self._depth for seat in self._seats)

    def submit(self, task: Task) -> None:
        """Takes a task; a process that runs already is asked first."""
        min(self._seats, key=lambda seat: (len(seat.flying), seat.process is None)).submit(task)

    def wait(self, timeout_s: float) -> list[Ended]:
        """Returns tasks that have ended; waits for one up to ``timeout_s`` seconds."""
        wait([seat.conn for seat in self._seats if seat.conn is not None], timeout=timeout_s)
        ended = [one for seat in self._seats for one in seat.read()]
        if self._timeout_s is not None:
            ended += [one for seat in self._seats for one in seat.overdue(self._timeout_s)]
        return ended

    def close(self, *, kill: bool = False) -> None:
        """Ends all processes; with ``kill``, those with a unit in hand too."""
        for seat in self._seats:
            seat.end(kill=kill)
