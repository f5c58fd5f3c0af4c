"""Decode processes that feed a model process: bounded queues, back-pressure, a process that dies costs its unit only.

What a clip needs is left to `pyramid.labels.clips`, labelling to `pyramid.labels.station`.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

from pyramid.errors import PyramidError
from pyramid.labels.clips import ClipInputs, clip_inputs
from pyramid.labels.plan import Task
from pyramid.labels.protocol import Prepare
from pyramid.shards.cache import ShardCache

_END = None


class _ByValue(ForkingPickler):
    """Sends tensors as numbers in the message.

    Torch's own way hands over a file descriptor for each, for which the receiver has to ask a thread of the sender: it
    waits until the decoder lets go of the interpreter, every time.
    """

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        # What has not been imported here has made no tensors.
        if "torch" in sys.modules:
            self.dispatch_table[sys.modules["torch"].Tensor] = _reduced

    @classmethod
    def message(cls, item: Any) -> memoryview:
        """Returns the bytes that `Connection.recv` reads as ``item``."""
        return cls.dumps(item)


def _reduced(tensor: Any) -> tuple[Any, ...]:
    try:
        return sys.modules["torch"].from_numpy, (tensor.detach().cpu().numpy(),)
    except TypeError:  # A type that NumPy lacks, such as bfloat16.
        return tuple(tensor.__reduce_ex__(5))


class DecoderDiedError(PyramidError):
    """A decode process was killed or crashed; its unit can be tried again."""


def quiet_child() -> None:
    """Makes a worker process leave Ctrl-C to its parent, use one thread, and end when its parent has."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _decode(conn: Connection, folder: str, prepares: Mapping[int, Prepare | None], cache: ShardCache | None) -> None:
    quiet_child()
    while True:
        try:
            task = conn.recv()
        except EOFError:
            return
        try:
            for clip in clip_inputs(folder, task, prepares, decode=True, cache=cache):
                conn.send_bytes(_ByValue.message(clip))
            conn.send(_END)
        except PyramidError as error:
            conn.send(error)


class Decoders:
    """Decode processes; each serves one unit at a time.

    Args:
        count: processes.
        folder: the shard folder.
        prepares: each labeler's first step, which runs there.
        queue_clips: decoded clips that wait at most for each unit.
        cache: copies of remote shards.
    """

    def __init__(
        self,
        count: int,
        folder: str,
        prepares: Mapping[int, Prepare | None],
        queue_clips: int,
        cache: ShardCache | None = None,
    ) -> None:
        self._start = (folder, dict(prepares), cache)
        self._queue_clips = queue_clips
        # A forked child would inherit locked decoder and torch threads.
        self._context = multiprocessing.get_context("spawn")
        self._idle: queue.Queue[tuple[Any, Connection]] = queue.Queue()
        for _ in range(count):
            self._idle.put(self._spawn())

    def _spawn(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_decode, args=(theirs, *self._start), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def clips(self, task: Task) -> Iterator[tuple[ClipInputs, float]]:
        """Yields a shard's clips in order, each with the share of the queue that was full when it was taken.

        Raises:
            DecoderDiedError: the process that decoded the shard is gone.
        """
        process, conn = self._idle.get()
        waiting: queue.Queue[Any] = queue.Queue(self._queue_clips)
        stop = threading.Event()
        reader = threading.Thread(target=_pump, args=(conn, waiting, stop), daemon=True)
        whole = False
        try:
            conn.send(task)
            reader.start()
            while True:
                fill = waiting.qsize() / self._queue_clips
                item = waiting.get()
                whole = item is _END or isinstance(item, PyramidError)
                if item is _END:
                    return
                if isinstance(item, PyramidError):
                    raise item
                if isinstance(item, BaseException):
                    raise DecoderDiedError(f"a decode process died on {task.shard}") from item
                yield item, fill
        except OSError as error:
            raise DecoderDiedError(f"a decode process died before {task.shard}") from error
        finally:
            stop.set()
            self._idle.put((process, conn) if whole else self._replaced(process, conn, reader))

    def _replaced(self, process: Any, conn: Connection, reader: threading.Thread) -> tuple[Any, Connection]:
        process.kill()
        process.join()
        if reader.is_alive():
            reader.join()
        conn.close()
        return self._spawn()


def _pump(conn: Connection, waiting: queue.Queue[Any], stop: threading.Event) -> None:
    """Moves what a decode process sends into a bounded queue; while that is full the process has to wait."""
    while True:
        try:
            item = conn.recv()
        except (EOFError, OSError) as error:
            item = error
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if stop.is_set() or not isinstance(item, ClipInputs):
            return
