"""Five real GR-1 episodes are learned by heart: 44 joints, from the published data as they lie on the disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyramid import pack, scan
from pyramid.config import dump_yaml, resolve
from pyramid.mixture.batch import open_mixture
from vla.config import VLAConfig
from vla.evaluate import evaluate_batches
from vla.policy import Policy
from vla.train import train_vla

GR1 = Path(__file__).parents[3] / "shared" / "data" / "robot" / "gr1_pick_and_place"
SIZE_PX = 32
OPTIONS = {
    "policy.backbone": {
        "image_size_px": SIZE_PX,
        "vision_width": 64,
        "vision_layers": 1,
        "text_width": 64,
        "tap_layer": 1,
        "max_text_tokens": 80,
    },
    "policy.head": {"width": 192, "hidden": 192},
    "trainer": {"max_steps": 800, "batch_size": 32, "lr": 1e-3, "warmup_steps": 100, "checkpoint_every": 800},
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not GR1.exists(), reason="the GR-1 episodes are not in ../shared/data")
def test_five_episodes_are_learned_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scan("lerobot", str(GR1), out=str(tmp_path / "gr1.parquet"), val_share=0.0)
    pack(str(tmp_path / "gr1.parquet"), out=str(tmp_path / "shards"), size_px=64)
    mixture = str(tmp_path / "mix.yaml")
    source = {"shards": str(tmp_path / "shards"), "use": "action", "embodiment": "gr1", "declaration": "gr1"}
    spec = {"tiers": {"top": {"weight": 1, "sources": {"gr1": source}}}, "horizon": 16}
    (tmp_path / "mix.yaml").write_text(dump_yaml(spec))
    start = time.process_time()
    train_vla(mixture, out=str(tmp_path / "vla"), config=resolve(VLAConfig, "vla/tiny", **OPTIONS))
    taken = time.process_time() - start
    stream = open_mixture(mixture, batch_size=64, image_size=SIZE_PX)
    drawn = [stream.batch(step) for step in range(1000, 1004)]
    score = evaluate_batches(Policy.from_pretrained(str(tmp_path / "vla")), drawn)["gr1"]
    print(
        f"\n{taken:.0f} s of CPU; mean error {score.mae:.4f} rad, of the mean action {score.baseline_mae:.4f} rad, "
        f"R2 {score.r2:.3f}, {score.samples} chunks"
    )
    assert score.mae < 0.2 * score.baseline_mae
    assert score.r2 > 0.8
