"""Copies, ranks and the best of several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_traj.judge import judge
from neural_traj.ranking import find_copies, keep_best, thumbnail
from neural_traj.verdict import JudgeConfig, strain
from pyramid.video.encode import encode_mp4


def clip_of(seed: int, n: int = 24) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 180, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    clip = np.repeat(noise[None], n, axis=0)
    for t in range(n):
        clip[t, 20:40, t + 2 : t + 22] = 230
    return clip


def test_a_clip_encoded_again_is_a_copy_and_another_of_the_same_scene_is_not(tmp_path: Path) -> None:
    clip, other = clip_of(0), clip_of(0)
    other[:] = other[:1]
    other[:, 20:40, 2:22] = clip[:1, 20:40, 40:60]
    for t in range(24):
        other[t, t + 2 : t + 22, 20:40] = 230
    root = tmp_path / "dreams"
    root.mkdir()
    (root / "0_push_the_cup.mp4").write_bytes(encode_mp4(clip, 8, crf=18))
    (root / "1_push_the_cup.mp4").write_bytes(encode_mp4(clip, 8, crf=26))
    (root / "2_push_the_cup.mp4").write_bytes(encode_mp4(other, 8, crf=18))
    result = judge(str(root), out=str(tmp_path / "s.parquet"))
    table = pd.read_parquet(result.out)
    assert result.dropped == {"duplicate": 1}
    assert table["duplicate_of"].tolist() == ["", table["item"][0], ""]
    assert judge(str(root), out=str(tmp_path / "t.parquet"), copy_levels=0.0).kept == 3
    best = judge(str(root), out=str(tmp_path / "u.parquet"), best_of=1)
    assert (best.kept, best.dropped) == (1, {"duplicate": 1, "not_best": 1})


def test_copies_of_copies_name_the_first() -> None:
    look = thumbnail(clip_of(0))
    looks = [look + 20, look, look + 2, look - 1, look + 100]
    assert find_copies(looks, 3.0) == {2: 1, 3: 1}
    assert find_copies(looks, 0.5) == {}


def test_frozen_and_damaged_clips_come_last(tmp_path: Path) -> None:
    root = tmp_path / "dreams"
    root.mkdir()
    frozen, glitch, flicker = clip_of(1), clip_of(2), clip_of(3)
    frozen[2:] = frozen[1]
    glitch[8:17] = 255 - glitch[8]
    flicker[::2] = flicker[::2] // 8 * 7
    clips = {"frozen": frozen, "glitch": glitch, "flicker": flicker, "good": clip_of(4), "fine": clip_of(5)}
    for number, (name, clip) in enumerate(clips.items()):
        (root / f"{number}_{name}.mp4").write_bytes(encode_mp4(clip, 8))
    table = pd.read_parquet(judge(str(root), out=str(tmp_path / "s.parquet")).out).sort_values("rank")
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert set(table["text"][:2]) == {"good", "fine"}
    assert table["text"].tolist()[-1] == "glitch"
    assert table["verdict"].tolist() == ["keep", "keep", "drop", "drop", "drop"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, 0.3), ({"flicker": 1.6}, 0.8), ({"motion": 0.05}, 2.0), ({"cuts": 1}, np.inf), ({"damaged": True}, np.inf)],
)
def test_strain_is_the_largest_share_of_a_limit(change: dict[str, float], expected: float) -> None:
    row = {"flicker": 0.6, "frozen_share": 0.1, "cuts": 0, "colour_drift": 5.0, "motion": 3.0, "damaged": False}
    assert strain({**row, **change}, JudgeConfig()) == pytest.approx(expected)


def test_clips_without_instruction_do_not_compete() -> None:
    rows = [{"text": "", "verdict": "keep", "reason": "", "rank": n} for n in (1, 2)]
    keep_best(rows, 1)
    assert [row["verdict"] for row in rows] == ["keep", "keep"]
