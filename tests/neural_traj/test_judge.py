"""Which generated clips to keep, and why not the others."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pandas as pd
import pytest
from guarding import sent_while_decoding

from neural_traj.ingest import ingest
from neural_traj.judge import SCHEMA, judge
from neural_traj.scores import ClipScores
from neural_traj.verdict import JudgeConfig, objection
from pyramid import parquet
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.video.apart import decode_apart
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.encode import encode_mp4

REAL = Path(__file__).parents[3] / "shared" / "data"
GOOD = ClipScores(
    flicker=0.3, frozen_share=0.1, damaged=False, cuts=0, black_quadrant=0.2, colour_drift=4.0, motion=3.0, pace=6.0
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"flicker": 2.5}, "flicker 2.5 > 2"),
        ({"frozen_share": 0.75}, "frozen_share 0.75 > 0.5"),
        ({"cuts": 1}, "cuts 1 > 0"),
        ({"colour_drift": 30.0}, "colour_drift 30 > 25"),
        ({"motion": 0.05}, "motion 0.05 < 0.1"),
        ({"black_quadrant": 1.0}, ""),
        ({"damaged": True, "flicker": 9.0}, "damaged (a frozen run between broken pictures)"),
    ],
)
def test_the_first_objection_is_told_with_both_numbers(change: dict[str, float], reason: str) -> None:
    assert objection(replace(GOOD, **change), JudgeConfig()) == reason


def test_limits_are_inclusive_and_can_be_moved() -> None:
    assert objection(replace(GOOD, flicker=2.0), JudgeConfig()) == ""
    assert objection(GOOD, JudgeConfig(max_flicker=0.2)) == "flicker 0.3 > 0.2"
    assert objection(replace(GOOD, damaged=True), JudgeConfig(drop_damaged=False)) == ""
    assert objection(replace(GOOD, black_quadrant=0.99), JudgeConfig(max_black_quadrant=0.95)).startswith("black")


@pytest.mark.parametrize("wrong", [{"max_flicker": -1.0}, {"max_frozen_share": 1.5}, {"max_cuts": -1}])
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        JudgeConfig(**wrong)


def test_a_folder_is_judged(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    result = judge(str(folder), out=str(out))
    assert (result.clips, result.kept) == (4, 2)
    assert result.dropped == {"flicker": 1, "frozen_share": 1}
    assert result.quarantined == {"not_a_video": 1}
    assert [item.item for item in result.items] == [str(folder / "4_read_the_letter.mp4")]
    table = pd.read_parquet(out)
    assert list(table.columns) == SCHEMA.names
    assert table["text"].tolist() == ["push the cup", "open the drawer", "close the drawer", "wait"]
    assert table["verdict"].tolist() == ["keep", "keep", "drop", "drop"]
    assert table["reason"].str.split(" ").str[0].tolist() == ["", "", "flicker", "frozen_share"]
    assert table["frames"].tolist() == [24] * 4
    assert table["duration_s"].tolist() == pytest.approx([23 / 8] * 4, abs=1e-3)
    kept = parquet.metadata(out)
    assert kept["config"]["max_flicker"] == 2.0
    assert [item["reason"] for item in kept["skipped"]] == ["not_a_video"]


def test_the_same_clips_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        judge(str(folder), out=str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_manifest_is_judged_like_its_folder(folder: Path, tmp_path: Path) -> None:
    ingest(str(folder), out=str(tmp_path / "clips.parquet"))
    judge(str(tmp_path / "clips.parquet"), out=str(tmp_path / "a.parquet"))
    judge(str(folder), out=str(tmp_path / "b.parquet"))
    assert pd.read_parquet(tmp_path / "a.parquet").equals(pd.read_parquet(tmp_path / "b.parquet"))


def test_packed_shards_are_judged(folder: Path, tmp_path: Path) -> None:
    pack = pytest.importorskip("pyramid.shards.pack").pack
    ingest(str(folder), out=str(tmp_path / "clips.parquet"))
    pack(str(tmp_path / "clips.parquet"), out=str(tmp_path / "shards"))
    result = judge(str(tmp_path / "shards"), out=str(tmp_path / "scores.parquet"))
    table = pd.read_parquet(tmp_path / "scores.parquet").set_index("text")
    assert result.clips == 4
    assert table["verdict"].to_dict() == {
        "push the cup": "keep",
        "open the drawer": "keep",
        "close the drawer": "drop",
        "wait": "drop",
    }


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = judge(str(folder), dry_run=True)
    assert (result.clips, result.kept, result.out) == (4, 0, "")
    assert sorted(tmp_path.rglob("*")) == before


def test_limits_and_options(folder: Path, tmp_path: Path) -> None:
    result = judge(str(folder), out=str(tmp_path / "s.parquet"), limit=3, max_flicker=50.0)
    assert (result.clips, result.kept) == (3, 3)


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        judge(str(folder))
    with pytest.raises(ConfigError, match="max_flicker"):
        judge(str(folder), out="x", max_fliker=3)
    with pytest.raises(DataError, match="not there"):
        judge(str(tmp_path / "nowhere"), out="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no clip"):
        judge(str(tmp_path / "empty"), out="x")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real clips are not at {REAL}")
def test_real_clips(tmp_path: Path) -> None:
    """Published GR00T-Dreams clips are kept, one of two equal ones; baked-in damage of a real video is found."""
    result = judge(str(REAL / "generated"), out=str(tmp_path / "g.parquet"))
    assert (result.kept, result.quarantined) == (7, {"duplicate": 1})
    table = pd.read_parquet(tmp_path / "g.parquet").set_index("item")
    assert table["black_quadrant"].idxmax() == "generated/14_0_robocasa_multiview.mp4#0.000"
    assert (table["black_quadrant"] > 0.95).sum() == 1
    judge(str(REAL / "human"), out=str(tmp_path / "h.parquet"))
    human = pd.read_parquet(tmp_path / "h.parquet").set_index("item")
    assert human["damaged"].to_dict() == {name: "glitch" in name for name in human.index}


def test_a_video_that_kills_its_decoder_costs_itself_only(tmp_path: Path) -> None:
    """The manifest is made before, so that judging alone opens the video."""
    for name, numbers in {
        "1_pour_tea": range(20),
        "2_stir_it": range(100, 3100),
        "3_wash_up": range(4000, 4020),
    }.items():
        drawing.write_video(tmp_path / "made" / f"{name}.mp4", numbers, rate=30)
    manifest = ingest(str(tmp_path / "made"), out=str(tmp_path / "clips.parquet"), clip_s=1000).out
    with sent_while_decoding(signal.SIGSEGV, "2_stir_it.mp4") as hit:
        result = judge(manifest, out=str(tmp_path / "scores.parquet"))
    assert len(hit) == 1
    assert (result.clips, result.quarantined) == (2, {"decode_crashed": 1})
    assert "2_stir_it.mp4: the decoder died (SIGSEGV)" in result.items[0].detail


def test_decoding_apart_gives_what_decoding_here_gives(tmp_path: Path) -> None:
    path = str(drawing.write_video(tmp_path / "v.mp4", range(40), rate=10))
    for request in (
        DecodeRequest(),
        DecodeRequest(start_s=1, end_s=2.5, rate_hz=4.0, size_px=(32, 48)),
        DecodeRequest(source_hz=5.0, start_s=2.0),
    ):
        here, apart = decode_source(path, request), decode_apart(path, request)
        assert np.array_equal(here.pixels, apart.pixels)
        assert np.array_equal(here.times_s, apart.times_s)
    with pytest.raises(SkipItemError) as caught:
        decode_apart(path, DecodeRequest(start_s=50))
    assert caught.value.reason == "no_frames"


def test_motion_outside_of_a_references_range_is_told(tmp_path: Path) -> None:
    """Real clips of 16 Hz whose brightness rises by 8 to 24 levels a second; generated ones of 8 Hz."""

    def write(path: Path, speed: float, rate_hz: int) -> None:
        levels = 60 + speed * np.arange(3 * rate_hz) / rate_hz
        pixels = np.broadcast_to(levels[:, None, None, None], (3 * rate_hz, 64, 64, 3)).round().astype(np.uint8)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_mp4(pixels, rate_hz))

    for number, speed in enumerate((8, 12, 16, 20, 24)):
        write(tmp_path / f"real/{number}_push_the_cup.mp4", speed, 16)
    for number, speed in enumerate((4, 16, 48)):
        write(tmp_path / f"made/{number}_push_the_cup.mp4", speed, 8)
    given: dict[str, Any] = {"max_colour_drift": 255.0, "max_frozen_share": 1.0, "min_motion": 0.0, "copy_levels": 0.0}
    for name, reference in (("free", ""), ("held", str(tmp_path / "real"))):
        judge(str(tmp_path / "made"), out=str(tmp_path / name), reference=reference, **given)
    assert set(pd.read_parquet(tmp_path / "free")["verdict"]) == {"keep"}
    held = pd.read_parquet(tmp_path / "held")
    assert held["verdict"].tolist() == ["drop", "keep", "drop"]
    assert held["reason"].str.split(" ").str[::2].str[:2].tolist() == [["pace", "<"], [""], ["pace", ">"]]
    told = parquet.metadata(tmp_path / "held")["reference"]
    assert (told["clips"], told["gap_s"]) == (5, 0.25)
    assert told["low"] == pytest.approx(2, abs=0.5)
    assert told["high"] == pytest.approx(6, abs=0.5)
    assert parquet.metadata(tmp_path / "free")["reference"] is None
    write(tmp_path / "only/0_push_the_cup.mp4", 8, 16)
    with pytest.raises(DataError, match="2 are needed"):
        judge(str(tmp_path / "made"), out=str(tmp_path / "x"), reference=str(tmp_path / "only"))
