"""Real videos: a few steps of `lam/tiny` on each kind, and a report that does not call that usable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lam.evaluate import evaluate_lam
from lam.train import train_lam
from pyramid import pack, scan

DATA = Path(__file__).parents[3] / "shared" / "data"
KINDS = {
    "people": ("folder", "human"),
    "generated": ("generated", "generated"),
    "robot": ("lerobot", "robot/gr1_pick_and_place"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KINDS)
def test_a_few_steps_on_real_video_are_not_called_usable(name, tmp_path):
    kind, folder = KINDS[name]
    if not (DATA / folder).exists():
        pytest.skip(f"needs real videos in {DATA / folder}")
    scan(kind, str(DATA / folder), out=str(tmp_path / "clips.parquet"), val_share=0.3)
    shards = str(tmp_path / "shards")
    pack(str(tmp_path / "clips.parquet"), out=shards, size_px=64)
    few = {"pairs.gap_s": 0.5, "trainer.max_steps": 8, "trainer.batch_size": 16}
    model = str(tmp_path / "model")
    train_lam(shards, out=model, config="lam/tiny", **few)
    found = evaluate_lam(shards, model=model, out=str(tmp_path / "report"), n_pairs=100)
    print(found)
    assert found.verdict in ("collapsed", "weak")
    assert found.reasons
    report = json.loads((tmp_path / "report" / "lam_evaluation.json").read_text())
    assert report["verdict"] == found.verdict
    for measure in (found.copy_gap, found.shuffle_gap, found.leakage, *found.perplexity):
        assert measure is None or math.isfinite(measure)
    assert list((tmp_path / "report").glob("codes_*.png"))
