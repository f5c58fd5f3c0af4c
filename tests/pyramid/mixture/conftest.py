"""Fixtures of the mixture's tests: a proxy that is installed as a stranger's would be, and a mixture file for it."""

from __future__ import annotations

from pathlib import Path

import pytest

PLANTED_MIXTURE = """\
tiers:
  top:
    weight: 0.4
    sources: {steady: {shards: a, use: action}, noisy: {shards: b, use: action}}
  middle: {weight: 0.3, sources: {middle: {shards: c, use: action}}}
  base: {weight: 0.3, sources: {junk: {shards: d, use: action}}}
"""


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
