"""The clip manifest: written and read as a stream, wrong rows named, in the same memory whatever its length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid import parquet
from pyramid.corpora.manifest import GROUP_ROWS, OPTIONAL, iter_manifest, read_manifest, write_manifest
from pyramid.errors import DataError, UnsafeInputError
from pyramid.types import Clip


def clips_of(n: int) -> list[Clip]:
    return [Clip(clip_id=f"f/{i}", corpus="f", video="v", start_s=i, end_s=i + 1) for i in range(n)]


def test_a_manifest_is_read_back_and_wrong_ones_are_named(tmp_path: Path) -> None:
    clips = [
        Clip(clip_id=f"f/{i}", corpus="f", video="v", start_s=i, end_s=i + 1, source_hz=[None, 5.0][i])
        for i in range(2)
    ]
    path = str(tmp_path / "clips.parquet")
    write_manifest(path, clips, {"tool": "x"})
    assert read_manifest(path) == clips
    table = parquet.read(path)
    parquet.write(path, table.take([0, 0]))
    with pytest.raises(DataError, match="row 1: the clip id 'f/0' stands twice"):
        read_manifest(path)
    for name, value, message in (
        ("end_s", -1.0, "row 1"),
        ("end_s", None, "row 1"),
        ("tier", "x", "row 1"),
        ("corpus", None, "row 1"),
    ):
        cells = table[name].to_pylist()
        cells[1] = value
        parquet.write(path, table.set_column(table.column_names.index(name), table.schema.field(name), [cells]))
        with pytest.raises(DataError, match=message):
            read_manifest(path)
    parquet.write(path, table.drop_columns(["video"]))
    with pytest.raises(DataError, match="no column video"):
        read_manifest(path)
    with pytest.raises(DataError, match="pyramid scan"):
        read_manifest(str(tmp_path / "none"))


def test_it_is_written_in_groups_as_clips_come(tmp_path: Path) -> None:
    path = str(tmp_path / "clips.parquet")
    clips = clips_of(2 * GROUP_ROWS + 5)
    told: list[int] = []
    write_manifest(path, (told.append(1) or clip for clip in clips), lambda: {"seen": len(told)})
    assert parquet.metadata(path) == {"seen": len(clips)}
    file = pq.ParquetFile(path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == [GROUP_ROWS, GROUP_ROWS, 5]
    for batch in (1000, GROUP_ROWS, 10**6):
        assert list(iter_manifest(path, batch)) == clips


def test_an_empty_one_is_a_manifest_too(tmp_path: Path) -> None:
    write_manifest(str(tmp_path / "c"), [], {"tool": "x"})
    assert read_manifest(str(tmp_path / "c")) == []
    assert parquet.metadata(tmp_path / "c") == {"tool": "x"}


def test_who_and_what_are_columns_and_the_rest_is_json(tmp_path: Path) -> None:
    extra = json.dumps({"critical_s": {"pnr": 1.5}, "nouns": ["cup"]})
    clip = Clip(
        clip_id="e/1", corpus="e", video="v", start_s=0, end_s=1, person="P01", verb="take", noun="cup", extra=extra
    )
    write_manifest(str(tmp_path / "c"), [clip], {})
    assert read_manifest(str(tmp_path / "c")) == [clip]
    assert clip.facts() == {"critical_s": {"pnr": 1.5}, "nouns": ["cup"]}
    assert pq.read_table(tmp_path / "c", columns=["person", "verb", "noun"]).to_pylist() == [
        {"person": "P01", "verb": "take", "noun": "cup"}
    ]
    for wrong in ("[]", "{", "3", "[" * 100_000):
        with pytest.raises(DataError, match="e/1"):
            Clip(clip_id="e/1", corpus="e", video="v", start_s=0, end_s=1, extra=wrong)


def test_manifests_without_the_optional_columns_are_read(tmp_path: Path) -> None:
    write_manifest(str(tmp_path / "c"), clips_of(3), {})
    parquet.write(tmp_path / "old", pq.read_table(tmp_path / "c").drop_columns(list(OPTIONAL)))
    assert read_manifest(str(tmp_path / "old")) == clips_of(3)


def test_other_widths_of_text_and_number_are_read(tmp_path: Path) -> None:
    """As pandas and polars write them."""
    write_manifest(str(tmp_path / "c"), clips_of(3), {})
    table = pq.read_table(tmp_path / "c")
    wide = pa.schema([pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema])
    parquet.write(tmp_path / "wide", table.cast(wide))
    assert read_manifest(str(tmp_path / "wide")) == clips_of(3)


def test_a_generator_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    def some() -> object:
        yield from clips_of(GROUP_ROWS + 1)
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_manifest(str(tmp_path / "c"), some(), {})
    assert list(tmp_path.iterdir()) == []


def test_ids_far_apart_that_are_equal_are_found_before_the_first_clip(tmp_path: Path) -> None:
    clips = clips_of(5 * GROUP_ROWS)
    write_manifest(str(tmp_path / "c"), [*clips, clips[7]], {})
    with pytest.raises(DataError, match=rf"row {len(clips)}: the clip id 'f/7' stands twice"):
        next(iter_manifest(str(tmp_path / "c")))


def test_a_file_that_repeats_itself_for_ever_is_refused(tmp_path: Path) -> None:
    """A few kB that claim half a million rows of a long text."""
    write_manifest(str(tmp_path / "c"), clips_of(1), {})
    table = pq.read_table(tmp_path / "c")
    columns = {
        name: pa.array(table[name].to_pylist() * 500_000, table.schema.field(name).type) for name in table.column_names
    }
    columns["text"] = pa.DictionaryArray.from_arrays(pa.array([0] * 500_000, pa.int32()), ["x" * 100_000])
    pq.write_table(pa.table(columns), tmp_path / "bomb", compression="zstd")
    assert (tmp_path / "bomb").stat().st_size < 200_000
    for read in (lambda: read_manifest(str(tmp_path / "bomb")), lambda: next(iter_manifest(str(tmp_path / "bomb")))):
        with pytest.raises(DataError, match="stands twice"):
            read()
    columns["clip_id"] = pa.array([f"f/{i}" for i in range(500_000)])
    pq.write_table(pa.table(columns), tmp_path / "bomb", compression="zstd")
    with pytest.raises(UnsafeInputError, match="unpacks to"):
        next(iter_manifest(str(tmp_path / "bomb")))


MEASURE = """
import resource, sys
from pyramid.corpora.manifest import iter_manifest, write_manifest
from pyramid.types import Clip

def clips(n):
    for i in range(n):
        yield Clip(clip_id=f"ego4d/{i:036d}#{i}", corpus="ego4d", video=f"/data/{i // 400:036d}.mp4",
                   start_s=i % 400, end_s=i % 400 + 1, text=f"picks up thing number {i}",
                   content=f"{i // 400:064d}", person=str(i // 9000),
                   extra='{"who":"wearer","narration_s":%d,"scenarios":["Cooking"]}' % i)

path, n = sys.argv[1], int(sys.argv[2])
write_manifest(path, clips(n), {})
assert sum(1 for _ in iter_manifest(path)) == n
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(path: Path, n: int) -> int:
    env = {**os.environ, "ARROW_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, str(path), str(n)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def test_memory_does_not_grow_with_the_manifest(tmp_path: Path) -> None:
    """A hundred thousand clips more would take 80 MB and more, were they kept; their ids' hashes take 0.8."""
    small, large = (peak_kib(tmp_path / str(n), n) for n in (4 * GROUP_ROWS, 4 * GROUP_ROWS + 100_000))
    assert large - small < 24 * 1024, (small, large)
