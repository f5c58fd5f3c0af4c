"""Strikes the process that decodes a video, while it does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import psutil


def decoders(of: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in of.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "pyramid.video.guarded" in process.cmdline():
                found.append(process)
    return found


@contextlib.contextmanager
def sent_while_decoding(sign: signal.Signals, name: str) -> Iterator[list[int]]:
    """Sends one signal to the process that has the video open."""
    hit, over = list[int](), threading.Event()

    def wait() -> None:
        while not (hit or over.wait(0.002)):
            for process in decoders(psutil.Process()):
                with contextlib.suppress(psutil.Error):
                    if not hit and any(name in file.path for file in process.open_files()):
                        process.send_signal(sign)
                        hit.append(process.pid)

    thread = threading.Thread(target=wait)
    thread.start()
    yield hit
    over.set()
    thread.join()
