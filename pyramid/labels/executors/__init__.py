"""Executors: where the units of a labelling job run. What they have in common is here; each has a file of its own.

An executor takes tasks while it has room and says how they ended, in any order. What to do about a unit that failed is
left to `pyramid.labels.run`; an executor only sees to it that every task it took ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pyramid.errors import PyramidError, UnreachableError
from pyramid.labels.decoding import DecoderDiedError
from pyramid.labels.plan import Task
from pyramid.labels.station import Labelled, Station


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a task ended: ``labelled``, or with a ``reason``, or ``fatal`` for the job; or none of them: given back."""

    task: Task
    """The task."""
    labelled: Labelled | None = None
    """What it gave."""
    reason: str = ""
    """Slug of why it failed: ``crash``, ``timeout``, ``unreachable``, ``error``."""
    detail: str = ""
    """The same for a person."""
    fatal: PyramidError | None = None
    """An error that no other unit would escape, such as a full disk."""


class Executor(Protocol):
    """A place where units run."""

    def room(self) -> bool:
        """Tells whether another task can be taken now."""
        ...

    def submit(self, task: Task) -> None:
        """Takes a task."""
        ...

    def wait(self, timeout_s: float) -> list[Ended]:
        """Returns tasks that have ended; waits for one up to ``timeout_s`` seconds."""
        ...

    def close(self, *, kill: bool = False) -> None:
        """Ends all processes; with ``kill``, those with a unit in hand too."""
        ...


def attempt(station: Station, task: Task, at: Callable[[str], None] = lambda _: None) -> Ended:
    """Labels a task; sorts what goes wrong into what may pass, what the unit is to blame for, and what ends the job."""
    try:
        return Ended(task=task, labelled=station.label(task, at))
    except DecoderDiedError as error:
        return Ended(task=task, reason="crash", detail=str(error))
    except UnreachableError as error:
        return Ended(task=task, reason="unreachable", detail=str(error))
    except PyramidError as error:
        if isinstance(error.__cause__, UnreachableError):
            return Ended(task=task, reason="unreachable", detail=str(error))
        return Ended(task=task, fatal=error)
    except Exception as error:
        return Ended(task=task, reason="error", detail=f"{type(error).__name__}: {error}")


class InlineExecutor:
    """Runs units in this very process, one at a time; nothing can be killed."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._task: Task | None = None

    def room(self) -> bool:
        """Tells whether another task can be taken now."""
        return self._task is None

    def submit(self, task: Task) -> None:
        """Takes a task."""
        self._task = task

    def wait(self, timeout_s: float) -> list[Ended]:
        """Runs the task, however long that takes."""
        del timeout_s
        task, self._task = self._task, None
        return [attempt(self._station, task)] if task else []

    def close(self, *, kill: bool = False) -> None:
        """Nothing is to be ended."""
