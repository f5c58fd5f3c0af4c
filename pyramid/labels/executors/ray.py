"""The executor ``ray``: actors of a Ray cluster that hold the models, a shard per call, on as many machines as it has.

Only names of shards and counts of rows pass through Ray: an actor reads its shard and writes its table itself, so that
folders must be reachable from every machine (``s3://``, or a shared disk).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pyramid.errors import MissingDependencyError, PyramidError
from pyramid.labels.config import RayConfig
from pyramid.labels.executors import Ended, attempt
from pyramid.labels.plan import Task
from pyramid.labels.station import Spec, Station

_MOST_DEATHS = 10
"""Times in a row that an actor may die before its models are loaded."""
_LOOK_S = 1.0
_MOST_NODES = 5
"""Nodes that may die under one unit before it is taken to be what kills them."""
_NODE_DIED = "node has died"
"""What Ray says in the cause of an actor's death when that of its node was it."""
_MIB = 2**20


class LabelActor:
    """What lives in an actor: the models, loaded once.

    Args:
        spec: the job.
        paths: where the driver imports from, for labelers that are not installed on the cluster.
    """

    def __init__(self, spec: Spec, paths: Sequence[str]) -> None:
        sys.path += [path for path in paths if path not in sys.path]
        self._fatal: PyramidError | None = None
        try:
            self._station = Station(spec)
        except PyramidError as error:
            self._fatal = error  # An error here would be one of Ray's, and be tried again.

    def ready(self) -> None:
        """Returns once the models are loaded."""

    def label(self, task: Task) -> Ended:
        """Labels a shard."""
        if self._fatal is not None:
            return Ended(task=task, fatal=self._fatal)
        return attempt(self._station, task)


def connect(config: RayConfig, workers: int) -> bool:
    """Connects to a cluster, or starts a small one on this machine; returns whether it is to be ended with the job.

    Raises:
        MissingDependencyError: Ray is not installed.
        PyramidError: no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Nothing is told to anybody.
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("the executor ray needs Ray: pip install 'latent-pyramid[ray]'") from error
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if config.address:
        options |= {"address": config.address}
    else:
        # Without limits Ray would take a third of the memory for objects that are not there.
        options |= {
            "num_cpus": max(1, round(workers * config.num_cpus + 0.499)),
            "object_store_memory": config.object_store_mb * _MIB,
            "include_dashboard": False,
            "address": "local",
        }
        if config.num_gpus:
            options |= {"num_gpus": max(1, round(workers * config.num_gpus + 0.499))}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster '{config.address}'" if config.address else "a Ray cluster on this machine"
        raise PyramidError(f"cannot reach {where}: {' '.join(str(error).split())}") from error
    return True


@dataclasses.dataclass
class _Seat:
    """One actor and the one unit in its hands."""

    actor: Any
    ready: Any
    """Pending until the models are loaded; None from then on."""
    task: Task | None = None
    call: Any = None
    begun: float = 0.0
    late: bool = False
    deaths: int = 0


class RayExecutor:
    """Actors of a Ray cluster.

    Args:
        spec: the job.
        workers: actors; those that the cluster has no room for yet wait until it grows.
    """

    def __init__(self, spec: Spec, workers: int) -> None:
        self._config, self._timeout_s = spec.config.ray, spec.config.unit_timeout_s
        # Ray tells of dead nodes on stdout, where only results belong.
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._nodes_lost: Counter[int] = Counter()
        try:
            self._start(spec, workers)
        except BaseException:
            self._quiet.close()
            raise

    def _start(self, spec: Spec, workers: int) -> None:
        self._ours = connect(self._config, workers)
        import ray

        self._ray = ray
        device, decoders = spec.config.devices[0], spec.config.decoders
        # An actor sees only the GPUs that are its own, the first of which is the device.
        spec = dataclasses.replace(
            spec, device=device.partition(":")[0], decoders=decoders if decoders is not None else int(device != "cpu")
        )
        # A dead actor is replaced, not restarted: while Ray restarts one, calls to it fail for no fault of theirs.
        self._class = ray.remote(LabelActor).options(
            num_cpus=self._config.num_cpus, num_gpus=self._config.num_gpus, max_restarts=0, max_task_retries=0
        )
        self._arguments = (spec, [os.path.abspath(path) for path in sys.path])
        self._seats = [_Seat(*self._actor()) for _ in range(workers)]

    def _actor(self) -> tuple[Any, Any]:
        actor = self._class.remote(*self._arguments)
        return actor, actor.ready.remote()

    def room(self) -> bool:
        """Tells whether another task can be taken now: one for every actor, so that none waits behind a slow one."""
        return any(seat.task is None and seat.ready is None for seat in self._seats) or not any(
            seat.task is not None for seat in self._seats
        )

    def submit(self, task: Task) -> None:
        """Takes a task; waits for the first actor that has its models loaded.

        Raises:
            PyramidError: none came up in time.
        """
        end = time.monotonic() + self._config.wait_s
        while not (free := [seat for seat in self._seats if seat.task is None and seat.ready is None]):
            self._look_at([seat.ready for seat in self._seats if seat.ready is not None], _LOOK_S)
            if time.monotonic() > end:
                wanted = f"{self._config.num_cpus:g} CPUs and {self._config.num_gpus:g} GPUs"
                raise PyramidError(
                    f"no actor came up in {self._config.wait_s:g} s; each needs a node with {wanted} free: "
                    "look at 'ray status', ask for less (--ray.num-cpus) or wait longer (--ray.wait-s)"
                )
        self._call(free[0], task)

    def _call(self, seat: _Seat, task: Task) -> None:
        seat.task, seat.call, seat.begun, seat.late = task, seat.actor.label.remote(task), time.monotonic(), False

    def wait(self, timeout_s: float) -> list[Ended]:
        """Returns tasks that have ended; waits for one up to ``timeout_s`` seconds."""
        open_calls = [seat.call for seat in self._seats if seat.call is not None]
        ended = self._look_at([*open_calls, *(s.ready for s in self._seats if s.ready is not None)], timeout_s)
        if self._timeout_s is not None:
            for seat in self._seats:
                if seat.call is not None and not seat.late and time.monotonic() - seat.begun > self._timeout_s:
                    seat.late = True
                    self._ray.kill(seat.actor)
        return ended

    def _look_at(self, calls: list[Any], timeout_s: float | None) -> list[Ended]:
        found, _ = self._ray.wait(calls, num_returns=1, timeout=timeout_s)
        ended = []
        for seat in self._seats:
            if seat.ready in found:
                self._is_ready(seat)
            if seat.call in found:
                ended.append(self._ended(seat))
        return ended

    def _is_ready(self, seat: _Seat) -> None:
        try:
            self._ray.get(seat.ready)
            seat.ready, seat.deaths = None, 0
        except self._ray.exceptions.RayError as error:
            seat.deaths += _NODE_DIED not in str(error)
            if seat.deaths >= _MOST_DEATHS:
                text = " ".join(str(error).split())
                raise PyramidError(
                    f"an actor died {seat.deaths} times before its models were loaded: {text}"
                ) from error
            seat.actor, seat.ready = self._actor()

    def _ended(self, seat: _Seat) -> Ended:
        task, call, seat.task, seat.call = seat.task, seat.call, None, None
        assert task is not None  # noqa: S101
        try:
            ended: Ended = self._ray.get(call)
            return ended
        except self._ray.exceptions.RayError as error:
            # The next one may come up on another node; units are given to it once it is there.
            seat.actor, seat.ready = self._actor()
            if seat.late:
                return Ended(task=task, reason="timeout", detail=f"not done after {self._timeout_s:g} s")
            if _NODE_DIED in str(error):
                self._nodes_lost[task.number] += 1
                if self._nodes_lost[task.number] < _MOST_NODES:
                    return Ended(task=task)  # Preempted, most likely: the unit is not to blame.
            return Ended(task=task, reason="crash", detail=f"its actor died ({type(error).__name__})")

    def close(self, *, kill: bool = False) -> None:
        """Ends all actors, and the cluster if it was started for this job."""
        del kill  # Without a unit in hand there is nothing to wait for.
        with self._quiet:
            for seat in self._seats:
                self._ray.kill(seat.actor)
            if self._ours:
                self._ray.shutdown()
