"""Installs the labeler of these tests as a stranger's package would: by an entry point on the path."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "store"))  # The proxy that gets in the way lies there.


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the labelers ``truth`` and ``prepared``."""
    info = tmp_path / "site" / "truth-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: truth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyramid.labelers]\ntruth = truth:load\nprepared = truth:load_prepared\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., str]:
    """Returns a function that writes a model file for the labeler."""

    def write(name: str = "model.json", **config: object) -> str:
        (tmp_path / name).write_text(json.dumps(config))
        return str(tmp_path / name)

    return write
