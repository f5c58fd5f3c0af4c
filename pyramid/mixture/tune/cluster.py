"""Proxy runs on a Ray cluster: tasks do the work anywhere, receipts are written here, as if it had been done here.

Without Ray nothing of this file is imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyramid.errors import ConfigError, MissingDependencyError, PyramidError
from pyramid.jobs import Outcome, Unit, attempt, pending

EXECUTORS = ("local", "ray")


def check_executor(name: str) -> None:
    """Refuses an executor that there is none of, and Ray where it is not installed."""
    if name not in EXECUTORS:
        raise ConfigError(f"no executor '{name}'; there are {' and '.join(EXECUTORS)}")
    if name == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(f"--executor ray needs pip install 'latent-pyramid[ray]' ({error})") from error


@contextlib.contextmanager
def joined(executor: str, workers: int) -> Iterator[None]:
    """Joins the cluster at ``RAY_ADDRESS``, or starts one with ``workers`` processes and stops it at the end.

    A cluster that the caller has joined already is used as it is. Its machines must see the mixture's files under the
    same paths. For the executor ``local`` there is nothing to join.
    """
    if executor != "ray":
        yield
        return
    import ray

    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers}
        environment = {"env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}}
        ray.init(include_dashboard=False, log_to_driver=False, runtime_env=environment, **options)
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def on_ray(
    units: Sequence[Unit], work: Callable[[Any], Outcome], *, folder: str
) -> tuple[list[Unit], Callable[[Any], Outcome]]:
    """Starts all units without a receipt as Ray tasks; returns the plan and the work that collects their outcomes."""
    import ray

    remote = ray.remote(num_cpus=1)(attempt)
    waiting = {unit.name: remote.remote(work, unit) for unit in pending(units, folder=folder)}
    return [replace(unit, task=unit.name) for unit in units], lambda name: _collect(waiting, name)


def _collect(waiting: Mapping[str, Any], name: str) -> Outcome:
    import ray

    try:
        found: Outcome = ray.get(waiting[name])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise PyramidError(
            f"proxy run '{name}': the Ray cluster lost it ({type(error).__name__}); run again"
        ) from error
    return found
