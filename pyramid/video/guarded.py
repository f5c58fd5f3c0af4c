"""The guarded process: does tasks that come on its standard input and sends plain data back, until that is closed.

When it must be stopped is left to `pyramid.video.guard`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import IO, Any

import psutil

from pyramid.errors import PyramidError
from pyramid.video import guard
from pyramid.video.guard import pack_message

_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def main() -> None:
    """Does tasks until there are no more."""
    _depend_on_parent()
    guard.inside = True
    # What libraries print must not stand between messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        _do(json.loads(tasks.get()), out)


def _depend_on_parent() -> None:
    """Asks the system to end this process with its parent, even in the midst of an endless loop; leaves no core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(tasks: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        tasks.put(line)
    os._exit(0)  # The parent is gone, or wants no more.


def _do(order: Mapping[str, Any], out: IO[bytes]) -> None:
    def send(facts: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> None:
        out.write(pack_message(facts, blobs or {}))
        out.flush()

    work = getattr(importlib.import_module(order["module"]), order["function"])
    send({"started": True})
    try:
        if order["task"] is not None:
            _bound_memory(order["mb"])
            work(order["task"], send)
    except MemoryError:
        send({"error": "MemoryError", "words": []})
    except PyramidError as error:
        send({"error": type(error).__name__, "words": error.__reduce__()[1]})
    except Exception as error:
        traceback.print_exc()
        send({"error": type(error).__name__, "words": [str(error)]})
    else:
        send({"done": True})


def _bound_memory(mb: int) -> None:
    """Sets a bound for bursts that are over before the parent looks; address space, hence wider than the limit."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    bound = psutil.Process().memory_info().vms + 2 * mb * 2**20
    with contextlib.suppress(ValueError, OSError):  # Not every system has it.
        resource.setrlimit(resource.RLIMIT_AS, (bound if hard < 0 else min(bound, hard), hard))


if __name__ == "__main__":
    main()
