"""What the tests that draw share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyramid.errors import MissingDependencyError
from pyramid.sim import backend
from pyramid.sim.env import MetaWorldEnv

QUICK_TASK = "button-press-topdown-v3"
"""A task that the expert solves every time, in about 65 steps."""


@pytest.fixture(scope="session")
def simulator() -> None:
    """Skips, saying so, where the extra is not installed."""
    try:
        backend.environments()
        backend.check_display()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture
def quick_env(simulator: None) -> Iterator[MetaWorldEnv]:
    env = MetaWorldEnv(QUICK_TASK)
    yield env
    env.close()
