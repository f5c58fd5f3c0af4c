"""Runs work on strangers' videos in a process of its own, which is killed when it hangs, grows too large or dies.

What is done there is left to the functions that are handed in, the process's own side to `pyramid.video.guarded`.
A limit of the system on address space alone would not do: libraries set aside far more than they use, and a decoder
that gets no memory reports damage as often as want of memory. So this side watches what the process really holds.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, cast

import psutil

from pyramid import errors
from pyramid.errors import PyramidError, SkipItemError
from pyramid.video.probe import VideoLimits

Send = Callable[..., None]
"""``send(facts, blobs)``: hands plain data, and bytes by name, to the other side; everything sent renews the time."""
Work = Callable[[Any, Send], None]
"""A function of a module, called with a task of plain data; it sends what it finds."""
Message = tuple[dict[str, Any], dict[str, bytes]]

_TICK_S = 0.05
"""How often memory and time are looked at."""
_LONGEST_TICK_S = 1.0
"""Most that one look counts for: a machine that was asleep is not the video's fault, one that is busy counts."""
_START_S = 300.0
"""Longest that the process may take to start and to import the work; none of it is the video's fault."""
_HEADER_BYTES = 4
_MAX_BYTES = 2**31
_local = threading.local()
inside = False
"""Whether this is the guarded process."""


def run(work: Work, task: Any, limits: VideoLimits, *, name: str) -> Iterator[Message]:
    """Runs ``work(task, send)`` in the guarded process and yields what it sends, as it comes.

    Args:
        work: a function at the top of a module.
        task: plain data, as JSON has it.
        limits: ``max_decode_s`` between two messages, and ``max_decode_mb``.
        name: the video, for messages.

    Raises:
        SkipItemError: ``decode_timeout``, ``decode_memory``, ``decode_crashed``, or what the work raised.
        PyramidError: what else the work raised, or the process does not start.
    """
    child, done = _borrow(limits), False
    try:
        yield from child.run(work, task, limits, name)
        done = True
    except SkipItemError as error:
        done = error.reason not in _FATAL
        raise
    finally:
        if done and getattr(_local, "idle", None) is None:
            _local.idle = child
        else:
            child.kill()


def warm_up(work: Work) -> None:
    """Starts the process and imports the work there, for those who are about to measure its speed."""
    for _ in run(work, None, VideoLimits(), name="nothing"):
        pass


_FATAL = ("decode_timeout", "decode_memory", "decode_crashed")


def _borrow(limits: VideoLimits) -> _Child:
    """Returns this thread's idle process, or a new one.

    It dies with the thread that started it, and knows no other access to stores than it was started with.
    """
    child: _Child | None = getattr(_local, "idle", None)
    _local.idle = None
    if child is not None and child.usable(limits):
        return child
    if child is not None:
        child.kill()
    return _Child()


def _forget() -> None:
    _local.idle = None


def _close() -> None:
    if (child := getattr(_local, "idle", None)) is not None:
        child.kill()
    _forget()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)


def _access() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "FSSPEC_"))}


class _Child:
    """A process that does one task after the other."""

    def __init__(self) -> None:
        self._access = _access()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A group of its own: Ctrl-C is for the parent, whose end is the child's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pyramid.video.guarded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
            process_group=0,
        )
        self._watched = psutil.Process(self._process.pid)
        self._tasks = cast(IO[bytes], self._process.stdin)
        self._answers = cast(IO[bytes], self._process.stdout)

    def usable(self, limits: VideoLimits) -> bool:
        # What former videos left behind must not be charged to the next.
        roomy = self._resident_mb() < limits.max_decode_mb / 2
        return roomy and self._process.poll() is None and self._access == _access()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._tasks, self._answers):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def run(self, work: Work, task: Any, limits: VideoLimits, name: str) -> Iterator[Message]:
        """Yields what the work sends; see `run` above."""
        order = {"module": work.__module__, "function": work.__qualname__, "task": task, "mb": limits.max_decode_mb}
        messages = self._messages(order, limits, name)
        for facts, blobs in messages:
            if "done" in facts:
                return
            if "error" in facts:
                raise _error(facts, name)
            yield facts, blobs

    def _messages(self, order: Mapping[str, Any], limits: VideoLimits, name: str) -> Iterator[Message]:
        held, started, left = bytearray(), False, _START_S
        try:
            self._tasks.write(json.dumps(order).encode() + b"\n")
            self._tasks.flush()
        except BrokenPipeError:
            raise self._died(name, started) from None
        while True:
            while (message := _cut(held)) is not None:
                left = limits.max_decode_s
                if started:
                    yield message
                else:
                    started = True
                    self._check(limits, name, started, left)
            since = time.monotonic()
            if select.select([self._answers], [], [], _TICK_S)[0]:
                if not (data := os.read(self._answers.fileno(), 2**20)):
                    raise self._died(name, started)
                held += data
            else:
                left -= min(time.monotonic() - since, _LONGEST_TICK_S)
            self._check(limits, name, started, left)

    def _check(self, limits: VideoLimits, name: str, started: bool, left: float) -> None:
        if left <= 0 and not started:
            raise PyramidError(f"the process that decodes videos does not start within {_START_S:.0f} s")
        if left <= 0:
            detail = f"nothing decoded for {limits.max_decode_s:g} s, the max_decode_s allowed"
            raise SkipItemError("decode_timeout", f"{name}: {detail}; the decoder was stopped")
        if started and self._resident_mb() > limits.max_decode_mb:
            detail = f"decoding takes more than the max_decode_mb {limits.max_decode_mb} MiB allowed"
            raise SkipItemError("decode_memory", f"{name}: {detail}; the decoder was stopped")

    def _resident_mb(self) -> float:
        try:
            return float(self._watched.memory_info().rss) / 2**20
        except psutil.Error:
            return 0.0  # It just ended; reading tells.

    def _died(self, name: str, started: bool) -> PyramidError:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if not started and code >= 0:
            return PyramidError(f"the process that decodes videos does not start ({how}); see the messages above")
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return SkipItemError("decode_crashed", f"{name}: the decoder died ({how}{hint})")


def _cut(held: bytearray) -> Message | None:
    """Takes the first whole message off what was received.

    Plain data only: whoever took over the decoder could send anything.
    """
    if len(held) < _HEADER_BYTES:
        return None
    size = int.from_bytes(held[:_HEADER_BYTES], "little")
    end = _HEADER_BYTES + size
    if len(held) < end:
        return None
    facts, sizes = json.loads(held[_HEADER_BYTES:end])
    if not all(0 <= n < _MAX_BYTES for n in sizes.values()):
        raise PyramidError("the process that decodes videos sends nonsense")
    if len(held) < end + sum(sizes.values()):
        return None
    blobs = {}
    for name, n in sizes.items():
        blobs[name] = bytes(held[end : end + n])
        end += n
    del held[:end]
    return facts, blobs


def pack_message(facts: Mapping[str, Any], blobs: Mapping[str, bytes]) -> bytes:
    """Returns a message as it crosses: a header of plain data, its length before it, the bytes behind it."""
    header = json.dumps([facts, {name: len(data) for name, data in blobs.items()}]).encode()
    return b"".join([len(header).to_bytes(_HEADER_BYTES, "little"), header, *blobs.values()])


def _error(facts: Mapping[str, Any], name: str) -> PyramidError:
    kind, words = str(facts["error"]), [str(word) for word in facts["words"]]
    if kind == "MemoryError":
        return SkipItemError("decode_memory", f"{name}: decoding it takes more memory than allowed")
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, PyramidError):
        return known(*words)
    return PyramidError(f"{name}: {kind}: {' '.join(words)}")
