"""Verifying clip manifests: whoever wrote them, every row that is no clip is named, and splits tear nothing apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import drawing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid import scan, verify
from pyramid.corpora.manifest import SCHEMA
from pyramid.errors import ConfigError, DataError, ExitCode
from pyramid.findings import MAX_LISTED


def rows(n: int) -> list[dict[str, Any]]:
    empty = {name: "" for name in SCHEMA.names} | dict.fromkeys(("source_hz", "first_row", "n_rows"))
    known = {"corpus": "lab", "tier": "base", "embodiment": "human", "split": "train", "start_s": 0.0, "end_s": 2.0}
    return [{**empty, **known, "clip_id": f"lab/{i}", "video": f"/v/{i}.mp4"} for i in range(n)]


def write(path: Path, content: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(content, schema=SCHEMA), path)
    return str(path)


def reasons(path: str) -> list[str]:
    found = verify(path)
    assert (found.kind, found.shards) == ("manifest", 1)
    assert found.exit_code == (ExitCode.FAILED if found.bad else ExitCode.DONE)
    return [f"{bad['path']}: {bad['reason']}" for bad in found.bad]


def test_what_scan_wrote_passes(tmp_path: Path) -> None:
    for i in range(3):
        drawing.write_video(tmp_path / "v" / f"{i}.mp4", range(100 * i, 100 * i + 12), rate=10)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=0.5).out
    assert reasons(manifest) == []
    assert verify(manifest).samples == 9
    assert "1 manifest, 9 clips: all as it says" in repr(verify(manifest))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start_s": math.nan}, "times nan..2.0 s"),
        ({"start_s": -1.0}, "times -1.0..2.0 s"),
        ({"end_s": 0.0}, "times 0.0..0.0 s"),
        ({"end_s": math.inf}, "times 0.0..inf s"),
        ({"video": None}, "video is null"),
        ({"clip_id": None}, "clip_id is null"),
        ({"tier": "attic"}, "tier 'attic'"),
        ({"split": "test"}, "the split 'test' is neither train nor val"),
        ({"corpus": "../up"}, "'../up' is not a name"),
        ({"source_hz": -3.0}, "a rate of -3.0 Hz"),
        ({"extra": "{"}, "its extra data is not JSON"),
        ({"first_row": 3}, "are no rows of a file"),
    ],
)
def test_rows_that_are_no_clips_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    content = rows(5)
    content[3] |= change
    path = write(tmp_path / "clips.parquet", content)
    found = reasons(path)
    assert len(found) == 1
    assert "row 3: " in found[0]
    assert reason in found[0]
    assert verify(path).samples == 5


def test_ids_that_stand_twice_are_named(tmp_path: Path) -> None:
    content = rows(5)
    content[4]["clip_id"] = "lab/1"
    assert "row 4: the clip id 'lab/1' stands twice" in reasons(write(tmp_path / "c.parquet", content))[0]


def test_a_video_in_two_splits_is_a_fault_and_a_person_a_note(tmp_path: Path) -> None:
    content = rows(6)
    content[1] |= {"split": "val", "person": "P01"}
    content[4] |= {"video": "/v/1.mp4"}
    content[5] |= {"person": "P01"}
    path = write(tmp_path / "c.parquet", content)
    assert reasons(path) == [f"{path}: row 4: the video '/v/1.mp4' is in train and in val"]
    assert ["row 5: the person 'P01'" in note for note in verify(path).notes] == [True]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a readable Parquet file"),
        (b"PAR1" + bytes(50) + b"PAR1", "not a readable Parquet file"),
        (pa.table({"a": [1]}), "has no column clip_id"),
        (pa.table({"clip_id": [1.5]}), "has no column"),
        (SCHEMA.empty_table(), "it holds no clip"),
    ],
)
def test_other_files_are_named(tmp_path: Path, data: bytes | pa.Table, reason: str) -> None:
    path = tmp_path / "c.parquet"
    path.write_bytes(data) if isinstance(data, bytes) else pq.write_table(data, path)
    found = reasons(str(path))
    assert len(found) == 1
    assert reason in found[0]


def test_a_manifest_full_of_faults_is_told_in_bounded_memory(tmp_path: Path) -> None:
    content = rows(MAX_LISTED + 30)
    for row in content:
        row["tier"] = "attic"
    found = verify(write(tmp_path / "c.parquet", content))
    assert len(found.bad) == MAX_LISTED + 1
    assert found.bad[-1]["reason"] == "and 30 faults more"


def test_quarantine_is_refused_and_no_path_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scan again"):
        verify(write(tmp_path / "c.parquet", rows(1)), quarantine=True)
    with pytest.raises(DataError, match="no shards"):
        verify(str(tmp_path / "none.parquet"))
