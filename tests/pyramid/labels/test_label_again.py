"""Labels lie beside the shards: labelling again changes no byte of the pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing

from pyramid import label, verify


def test_labelling_again_leaves_the_pixels_alone(tmp_path: Path, model: Callable[..., str]) -> None:
    folder = tmp_path / "shards"
    drawing.write_shards(folder, [5, 3, 8])
    before = drawing.tree(folder)
    for run in ("one", "two", "two"):
        label(str(folder), labeler="truth", model=model(), out=str(folder / "labels" / run), resume=False)
        after = drawing.tree(folder)
        assert {name: sha for name, sha in after.items() if not name.startswith("labels/")} == before
        assert any(name.startswith(f"labels/{run}/") for name in after)
    assert verify(str(folder)).bad == []
