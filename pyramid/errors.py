"""The exception tree, and the exit code that each branch ends a command with.

What a message says is left to whoever raises it: what happened, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")


class ExitCode(IntEnum):
    """How a command ends; promised to scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    QUARANTINED = 3
    INTERRUPTED = 130


class PyramidError(Exception):
    """Anything that this toolkit refuses or fails at, with a message for a person."""

    exit_code = ExitCode.FAILED


class ConfigError(PyramidError):
    """A wrong option, config file or call; nothing was started."""

    exit_code = ExitCode.USAGE


class DataError(PyramidError):
    """An input file or folder is not what it should be."""


class UnsafeInputError(DataError):
    """An input asks for something that data must never do: run code, reach other files, exhaust memory."""


class OutputError(PyramidError):
    """A result cannot be written where it was asked for."""


class UnreachableError(PyramidError):
    """A store does not answer. No `DataError`: the data may be good, so that nothing is set aside for it."""


class MissingDependencyError(PyramidError):
    """An optional package or system library is not there; the message names it."""


class InterruptedJobError(PyramidError):
    """A person stopped the job; what is done stays done."""

    exit_code = ExitCode.INTERRUPTED


class SkipItemError(DataError):
    """One item is set aside and the job goes on.

    Args:
        reason: a short slug that results count by, such as ``decode_error``.
        detail: the sentence for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SkipItemError], tuple[str, str]]:
        # Exceptions cross process borders by their args; two arguments need to be told.
        return (SkipItemError, (self.reason, self.detail))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``; did you mean 'x'?`` for a mistyped name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""


def told(items: Iterable[T]) -> Iterator[T | PyramidError]:
    """Yields items, and the error that ends them: what is raised in a worker comes out as the text of a traceback."""
    try:
        yield from items
    except PyramidError as error:
        yield error


def raised(items: Iterable[T | PyramidError]) -> Iterator[T]:
    """Yields items that come from `told` in another process, and raises the error that ended them there."""
    for item in items:
        if isinstance(item, PyramidError):
            raise item
        yield item
