"""A small demo, run once for all end-to-end tests the way a user runs it: as a command, in an empty directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_runs import SMALL, run

from pyramid.errors import MissingDependencyError


@pytest.fixture(scope="session")
def simulator() -> None:
    from pyramid.sim import backend

    try:
        backend.environments()
        backend.check_display()
    except MissingDependencyError as error:
        pytest.skip(f"no simulator: {error}")


@pytest.fixture(scope="session")
def small_demo(simulator: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished small demo in ``demo/``, and what it printed in ``printed.txt``."""
    del simulator
    cwd = tmp_path_factory.mktemp("user")
    done = run("demo", "--out", "demo", *SMALL, "--json", cwd=cwd)
    (cwd / "printed.txt").write_text(done.stderr)
    (cwd / "result.json").write_text(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd
