"""Data sets that the tests of conversions read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversion_data import write_v20


@pytest.fixture
def v20(tmp_path: Path) -> Path:
    return write_v20(tmp_path / "v20")


@pytest.fixture
def change_info() -> Callable[..., None]:
    def change(root: Path, **changes: Any) -> None:
        path = root / "meta" / "info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change
