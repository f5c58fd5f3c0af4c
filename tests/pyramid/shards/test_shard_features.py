"""The file that keeps rows of numbers for the frames of a shard: what is read is what was written, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pyramid.errors import DataError, OutputError
from pyramid.rng import rng
from pyramid.shards.features import ClipRows, FeatureFile, RowLayout, clip_digest, write_features

LAYOUT = RowLayout(maker="a" * 64, dtype="F32", width=2)
CLIPS = [
    ClipRows(key="x-000000000001-0000", of=clip_digest("1", "go"), frames=3, tokens=2),
    ClipRows(key="x-000000000002-0000", of=clip_digest("2", ""), frames=2, tokens=1),
]
GAP = 4
"""The row that cannot be made."""


def rows() -> list[bytes | None]:
    sizes = [clip.tokens * LAYOUT.token_bytes for clip in CLIPS for _ in range(clip.frames)]
    draw = rng(0, "rows")
    return [None if i == GAP else draw.random(n // 4, np.float32).tobytes() for i, n in enumerate(sizes)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_features(str(tmp_path / "f.safetensors"), LAYOUT, CLIPS, rows(), {"shard": "clips-000000.tar"})
    return tmp_path / "f.safetensors"


def read(path: Path) -> list[bytes | None]:
    """Returns every row as a reader gets it who knows what he wants; None where he gets nothing."""
    found: list[bytes | None] = []
    try:
        opened = FeatureFile.open(str(path))
    except DataError:
        return [None] * sum(clip.frames for clip in CLIPS)
    for clip in CLIPS:
        for frame in range(clip.frames):
            try:
                found.append(opened.row(clip, frame) if opened.holds(clip, LAYOUT) else None)
            except DataError:
                found.append(None)
    return found


def test_rows_come_back_and_other_programs_read_them(path: Path) -> None:
    assert read(path) == rows()
    tensors = load_file(path)
    assert set(tensors) == {*(clip.key for clip in CLIPS), "_known", "_crc32"}
    assert tensors[CLIPS[0].key].tobytes() == b"".join(row or b"" for row in rows()[:3])
    assert tensors["_known"].tolist() == [1, 1, 1, 1, 0]


def test_a_row_outside_of_its_clip_is_none(path: Path) -> None:
    opened = FeatureFile.open(str(path))
    assert [opened.row(CLIPS[0], frame) for frame in (-1, 3, 99)] == [None] * 3


def test_cut_anywhere_it_gives_nothing(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read(path) == [None] * 5, size
    path.write_bytes(whole + b"x")
    assert read(path) == [None] * 5


def test_with_any_byte_changed_it_gives_what_was_written_or_nothing(path: Path) -> None:
    whole, wanted = path.read_bytes(), rows()
    spoiled = 0
    for at in range(len(whole)):
        for flip in (1, 0x80, 0x20):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            found = read(path)
            spoiled += found != wanted
            assert all(
                row in (None, want) for i, (row, want) in enumerate(zip(found, wanted, strict=True)) if i != GAP
            ), (at, flip)
            # Even if the file now says that the row is there, it is zeros and not somebody's numbers.
            assert found[GAP] in (None, bytes(8)), (at, flip)
    assert spoiled > len(whole)


def test_another_clip_or_maker_is_not_held(path: Path) -> None:
    opened = FeatureFile.open(str(path))
    own = CLIPS[0]
    assert opened.holds(own, LAYOUT)
    for clip in (
        ClipRows(key=own.key, of=clip_digest("1", "come"), frames=3, tokens=2),
        ClipRows(key=own.key, of=own.of, frames=4, tokens=2),
        ClipRows(key=own.key, of=own.of, frames=3, tokens=3),
        ClipRows(key="x-000000000003-0000", of=own.of, frames=3, tokens=2),
    ):
        assert not opened.holds(clip, LAYOUT)
    for layout in (
        RowLayout(maker="b" * 64, dtype="F32", width=2),
        RowLayout(maker="a" * 64, dtype="F16", width=2),
        RowLayout(maker="a" * 64, dtype="F32", width=4),
    ):
        assert not opened.holds(own, layout)


def test_what_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(DataError, match="row 0 has 3 bytes, 16 are needed"):
        write_features(str(path), LAYOUT, CLIPS, [b"abc"] * 5, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_features(str(tmp_path / "file" / "f.safetensors"), LAYOUT, CLIPS, rows(), {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
