"""Taking generated clips in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neural_traj.ingest import ingest
from pyramid import parquet
from pyramid.corpora.manifest import read_manifest
from pyramid.errors import ConfigError, DataError


def test_names_become_instructions(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "clips.parquet"
    result = ingest(str(folder), out=str(out))
    clips = read_manifest(str(out))
    assert [clip.text for clip in clips] == ["push the cup", "open the drawer", "close the drawer", "wait"]
    assert {(clip.tier, clip.text_origin) for clip in clips} == {("middle", "file_name")}
    assert (result.clips, result.instructions) == (4, 4)
    assert result.hours == pytest.approx(4 * 3 / 3600, rel=0.05)
    assert result.quarantined == {"not_a_video": 1}


def test_copies_and_nameless_clips_are_set_aside(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "0_push_the_cup.mp4", folder / "7_push_the_cup_again.mp4")
    (folder / "1_open_the_drawer.mp4").rename(folder / "14_0_multiview.mp4")
    result = ingest(str(folder), out=str(tmp_path / "clips.parquet"))
    assert result.quarantined == {"duplicate": 1, "no_instruction": 1, "not_a_video": 1}
    aside = {item.reason: item for item in result.items}
    assert aside["no_instruction"].item == str(folder / "14_0_multiview.mp4")
    assert "7_push_the_cup_again" in aside["duplicate"].detail
    assert [clip.text for clip in read_manifest(result.out)] == ["push the cup", "close the drawer", "wait"]
    told = parquet.metadata(result.out)["skipped"]
    assert sorted(item["reason"] for item in told) == ["duplicate", "no_instruction", "not_a_video"]


def test_nameless_clips_can_be_taken(folder: Path, tmp_path: Path) -> None:
    (folder / "1_open_the_drawer.mp4").rename(folder / "14_0_multiview.mp4")
    result = ingest(str(folder), out=str(tmp_path / "clips.parquet"), without_text=True)
    assert (result.clips, result.instructions) == (4, 3)


def test_options_of_scan_are_taken(folder: Path, tmp_path: Path) -> None:
    result = ingest(str(folder), out=str(tmp_path / "c.parquet"), embodiment="dreamed_arm", licence="CC0")
    assert {(clip.embodiment, clip.licence) for clip in read_manifest(result.out)} == {("dreamed_arm", "CC0")}


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert ingest(str(folder), dry_run=True).clips == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        ingest(str(folder))
    with pytest.raises(DataError, match="not a folder"):
        ingest(str(tmp_path / "nowhere"), out="x")
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    shutil.copy(folder / "0_push_the_cup.mp4", nameless / "clip.mp4")
    with pytest.raises(DataError, match="no instruction in its name"):
        ingest(str(nameless), out=str(tmp_path / "clips.parquet"))
    assert not (tmp_path / "clips.parquet").exists()
