"""The proof's arithmetic on planted cells, and, slowly, the guard: actions on videos must beat cloning beyond noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from proofs.arms import ARMS, LABELS  # noqa: E402
from proofs.config import ProofConfig  # noqa: E402
from proofs.table import pooled, summary  # noqa: E402

from pyramid.config import resolve  # noqa: E402


def cell(solved: int, n: int = 60) -> list[bool]:
    return [i < solved for i in range(n)]


CELLS = {
    **{("push", "behaviour_cloning", i): cell(n) for i, n in enumerate((10, 20, 12, 18))},
    **{("push", "full_pyramid", i): cell(n) for i, n in enumerate((34, 40, 33, 45))},
    **{("reach", "behaviour_cloning", i): cell(30) for i in range(4)},
    **{("reach", "full_pyramid", i): cell(30) for i in range(4)},
}


def test_gains_are_paired_over_subsets() -> None:
    found = pooled(CELLS, ["push"], "full_pyramid")
    assert (found["n"], found["success"]) == (240, 152 / 240)
    gains = np.array([24, 20, 21, 27]) / 60
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert found["gain"] == pytest.approx(gains.mean())
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((interval.low, interval.high))
    assert found["low"] < found["success"] < found["high"]


def test_tasks_are_told_alone_and_together() -> None:
    found = summary(CELLS, ["push", "reach"], ["behaviour_cloning", "full_pyramid"])
    assert set(found) == {"push", "reach", "all"}
    assert found["reach"]["full_pyramid"]["gain"] == 0
    assert found["all"]["full_pyramid"]["gain"] == pytest.approx(found["push"]["full_pyramid"]["gain"] / 2)
    assert found["all"]["behaviour_cloning"]["n"] == 480


@pytest.mark.parametrize("name", ["proof/cpu", "proof/guard"])
def test_every_preset_names_arms_that_there_are(name: str) -> None:
    config = resolve(ProofConfig, name)
    assert set(config.arms) <= set(ARMS)
    assert set(LABELS) <= set(ARMS)
    assert config.hand_subsets >= config.subsets


def test_what_else_is_tried_changes_no_cell() -> None:
    config = ProofConfig()
    assert ProofConfig(arms=("flare",), tasks=("reach-v3",)).digest() == config.digest()
    assert ProofConfig(updates=config.updates + 1).digest() != config.digest()


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(3600)
def test_true_actions_on_videos_beat_cloning(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    command = [sys.executable, "benchmarks/proof.py", "--config", "proof/guard", "--out", str(tmp_path / "proof")]
    subprocess.run([*command, "--results", str(tmp_path / "r.json")], cwd=ROOT, check=True, timeout=3500)
    arms = json.loads((tmp_path / "r.json").read_text())["arms"]
    table = [
        [round(arms[arm]["success"] * arms[arm]["n"]), round((1 - arms[arm]["success"]) * arms[arm]["n"])]
        for arm in ("true_actions", "behaviour_cloning")
    ]
    assert stats.fisher_exact(table, alternative="greater").pvalue < 0.05, table
