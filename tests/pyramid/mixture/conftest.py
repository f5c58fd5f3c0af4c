"""Fixtures of the mixture's tests: small mixtures, and a proxy that is installed as a stranger's would be."""

from __future__ import annotations

from pathlib import Path

import pytest
from mixture_data import make_spec

from pyramid.config import dump_yaml

PLANTED_MIXTURE = """\
tiers:
  top:
    weight: 0.4
    sources: {steady: {shards: a, use: action}, noisy: {shards: b, use: action}}
  middle: {weight: 0.3, sources: {middle: {shards: c, use: action}}}
  base: {weight: 0.3, sources: {junk: {shards: d, use: action}}}
"""


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


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mixture file whose sources the installed proxy ``planted`` knows; returns its path."""
    info = tmp_path / "site" / "planted-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyramid.proxies]\nplanted = planted_proxy:load\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    path = tmp_path / "mixture.yaml"
    path.write_text(PLANTED_MIXTURE)
    return str(path)
