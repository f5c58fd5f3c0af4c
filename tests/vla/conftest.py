"""Fixtures that the tests of the policy share."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_folder import Calls
from tiny_policy import TINY, make_bodies

from vla.policy import Policy, build_policy
from vla.processor import BodyStatistics


@pytest.fixture
def bodies() -> dict[str, BodyStatistics]:
    return make_bodies()


@pytest.fixture
def policy(bodies: dict[str, BodyStatistics]) -> Policy:
    return build_policy(TINY, bodies, seed=3).eval()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Counts the frames that pass a backbone."""
    return Calls(monkeypatch)
