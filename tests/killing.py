"""Stops a verb at every file that it begins or renames, by SIGKILL or by an error of the disk, and goes on after.

Run as a program with one JSON object as its argument, so that the processes it forks hold no threads; prints a JSON
list with what lay in the output folder after each stop, and after the run that followed.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing

EVENTS = ("tempfile.mkstemp", "os.rename")


def stop_everywhere(
    call: str, *, out: Path, mode: str = "kill", points: int = 10_000, **options: Any
) -> list[dict[str, Any]]:
    """Calls ``module:function(**options, out=...)`` once for each point at which it can be stopped.

    Returns:
        For each point: ``stopped`` and ``resumed``, the files in the output folder with their sha256.
    """
    task = {"call": call, "options": options, "out": str(out), "mode": mode, "points": points, "path": sys.path}
    done = subprocess.run([sys.executable, __file__, json.dumps(task)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def stop_at(point: int, mode: str = "kill") -> None:
    """Lets the process die, or the disk fail, at the ``point``-th event."""
    seen = 0

    def hook(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen == point + 1:
                if mode == "kill":
                    os.kill(os.getpid(), 9)
                raise OSError(errno.EIO, "input/output error")

    sys.addaudithook(hook)


def _in_child(work: Callable[[], Any]) -> int:
    """Runs in a forked process; returns the exit code, negative for a signal. An error of our own is code 1."""
    from pyramid.errors import PyramidError

    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            work()
            code = 0
        except PyramidError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _main(task: dict[str, Any]) -> None:
    sys.path[:] = task["path"]
    module, _, name = task["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    expected = {"kill": -9, "error": 1}[task["mode"]]
    found = []
    for point in range(task["points"]):
        out = Path(f"{task['out']}-{point}")

        def work(out: Path = out) -> None:
            function(**task["options"], out=str(out))

        code = _in_child(lambda point=point, work=work: (stop_at(point, task["mode"]), work()))
        if code == 0:
            break
        if code != expected:
            raise SystemExit(f"point {point}: exit code {code}")
        stopped = drawing.tree(out) if out.exists() else {}
        if _in_child(work) != 0:
            raise SystemExit(f"point {point}: the second run failed")
        found.append({"stopped": stopped, "resumed": drawing.tree(out)})
    print(json.dumps(found))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
