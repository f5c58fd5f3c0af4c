"""Fixtures that the tests of the mixture share."""

from __future__ import annotations

from pathlib import Path

import pytest
from mixture_data import make_spec

from pyramid.config import dump_yaml


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps results in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A mixture of three sources, as its file has it."""
    return make_spec(tmp_path_factory.mktemp("mixture"))


@pytest.fixture
def path(spec: dict, tmp_path: Path) -> str:
    """The same as a file."""
    (tmp_path / "mix.yaml").write_text(dump_yaml(spec))
    return str(tmp_path / "mix.yaml")
