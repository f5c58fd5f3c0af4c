"""The proof's arithmetic on planted cells, and, slowly, the guard: pseudo-actions must beat cloning beyond noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from proof import wanted  # noqa: E402
from proofs.arms import ARMS, HAND_ALONE, LABELS  # noqa: E402
from proofs.config import ProofConfig  # noqa: E402
from proofs.quality import probe_quality, pseudo_quality  # noqa: E402
from proofs.table import pooled, repeated, summary  # noqa: E402

from pyramid.config import dump_yaml, resolve  # noqa: E402


def proof(*options: str) -> dict[str, Any]:
    """Runs the benchmark; the last option is the file of results."""
    subprocess.run([sys.executable, "benchmarks/proof.py", *options], cwd=ROOT, check=True, timeout=5300)
    return json.loads(Path(options[-1]).read_text())


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
    # A subset that one arm was tried on alone weighs no task more than others.
    more = summary({**CELLS, ("push", "behaviour_cloning", 4): cell(60)}, ["push", "reach"], [*found["push"]])
    assert more["push"]["behaviour_cloning"]["n"] == 300
    assert more["all"] == found["all"]
    assert found["all"]["behaviour_cloning"]["n"] == 480
    # An arm that was tried on some tasks only is not told beside those of all.
    cells = {place: solved for place, solved in CELLS.items() if place[:2] != ("reach", "full_pyramid")}
    found = summary(cells, ["push", "reach"], ["behaviour_cloning", "full_pyramid"])
    assert found["push"]["full_pyramid"]["n"] == 240
    assert found["all"]["full_pyramid"]["n"] == found["reach"]["full_pyramid"]["n"] == 0


def test_a_run_is_told_from_one_that_found_something_else() -> None:
    arms = ["behaviour_cloning", "full_pyramid"]
    former = summary(CELLS, ["push"], arms)
    assert [row[-1] for row in repeated(former, former)] == ["yes", "yes"]
    nearly = {**CELLS, ("push", "full_pyramid", 0): cell(30)}
    assert [row[-1] for row in repeated(summary(nearly, ["push"], arms), former)] == ["yes", "yes"]
    less = {**CELLS, **{("push", "full_pyramid", i): cell(n) for i, n in enumerate((24, 32, 23, 35))}}
    rows = repeated(summary(less, ["push", "reach"], arms), former)
    assert [(row[0], row[1], row[-1]) for row in rows] == [("push", arms[0], "yes"), ("push", arms[1], "NO")]
    assert rows[1][2:4] == ["63%", "48%"]
    better = {**CELLS, **{("push", "behaviour_cloning", i): cell(40) for i in range(4)}}
    assert repeated(summary(better, ["push"], arms), former)[0][-1] == "NO"
    both = summary(CELLS, ["push", "reach"], arms)
    assert {row[0] for row in repeated(both, both)} == {"push", "reach", "all"}
    three = summary({**CELLS, ("button", arms[0], 0): cell(60)}, ["push", "reach", "button"], arms)
    assert {row[0] for row in repeated(both, three)} == {"push", "reach"}  # "all" would be of other tasks


def test_other_tasks_may_have_fewer_arms() -> None:
    tasks = ("push-v3", "reach-v3")
    arms = ("behaviour_cloning", "latent_hand_look")
    config = ProofConfig(tasks=tasks, arms=arms, elsewhere=arms[:1], subsets=2, hand_subsets=3)
    labels, cells = wanted("out", config)
    assert [(one.task, one.piece) for one in labels] == [("push-v3", "lam-hand")]
    found = [(one.task, one.piece, one.subset) for one in cells]
    assert found == [
        *((tasks[0], arm, subset) for arm in arms for subset in range(2)),
        *((tasks[0], arm, 2) for arm in arms),
        *((tasks[1], arms[0], subset) for subset in range(2)),
    ]
    assert {one.unit().name for one in cells} == {"-".join(map(str, place)) for place in found}
    assert [one.task for one in wanted("out", ProofConfig(tasks=tasks, arms=arms))[0]] == list(tasks)
    # What is drawn over hands is made for each subset of what other label models have to be there for.
    drawn = ProofConfig(tasks=tasks[:1], arms=(arms[0], "redrawn_hand_look"), subsets=1, hand_subsets=2)
    labels, cells = wanted("out", drawn)
    assert [(one.piece, one.subset) for one in labels] == [
        ("points-hand", 0),
        ("points-robot", 0),
        *((kind, subset) for kind in ("idm", "redrawn") for subset in range(2)),
    ]
    assert len(cells) == 4


@pytest.mark.parametrize("name", ["proof/cpu", "proof/guard"])
def test_every_preset_names_arms_that_there_are(name: str) -> None:
    config = resolve(ProofConfig, name)
    assert {*config.arms, *config.elsewhere} <= set(ARMS)
    assert set(LABELS) <= set(ARMS)
    assert config.hand_subsets >= config.subsets


def test_what_else_is_tried_changes_no_cell() -> None:
    config = ProofConfig()
    assert ProofConfig(arms=("flare",), tasks=("reach-v3",), elsewhere=("flare",)).digest() == config.digest()
    assert ProofConfig(updates=config.updates + 1).digest() != config.digest()


def test_labels_are_measured_against_the_truth(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    truth = {f"clip-{i}": draw.normal(size=(23, 2)) for i in range(12)}
    weights = draw.normal(size=(2, 5))
    rows = [(key, frame) for key in truth for frame in draw.permutation(19)]
    means = np.stack([truth[key][frame : frame + 4].mean(0) for key, frame in rows])
    columns = {"key": [key for key, _ in rows], "frame": [int(frame) for _, frame in rows], "gap_s": [0.05] * len(rows)}
    said = [(0.5 * truth[key][frame]).tolist() for key, frame in rows]
    pq.write_table(pa.table({**columns, "action": said, "latent": (means @ weights).tolist()}), tmp_path / "a.parquet")
    found = pseudo_quality(str(tmp_path), truth)
    assert found["std_ratio"] == pytest.approx([0.5, 0.5])
    assert found["r2"] == pytest.approx([0.75, 0.75], abs=0.02)
    assert probe_quality(str(tmp_path), truth, 80.0)["probe_r2"] == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_all_arms_run_and_what_is_done_is_found_and_told(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    toy = {"n_demos": 2, "subsets": 1, "hand_subsets": 2, "n_videos": 7, "n_hand": 8, "n_starts": 2, "updates": 12}
    config = {**toy, "arms": list(ARMS), "label_updates": 10, "max_steps": 24, "seed": 11}
    (tmp_path / "toy.yaml").write_text(dump_yaml(config))
    options = ["--config", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "out")]
    first, again, told = (
        proof(*options, *more, "--results", str(tmp_path / f"{number}.json"))
        for number, more in enumerate(([], [], ["--report"]))
    )
    assert {arm: found["n"] for arm, found in first["arms"].items()} == {
        arm: 4 if arm in HAND_ALONE else 2 for arm in ARMS
    }
    assert set(first["labels"]["push-v3"]) == {"idm-0", "idm-1", "lam-few-0", "lam-robot"}
    assert first["arms"] == again["arms"] == told["arms"]
    assert again["seconds"] < first["seconds"]


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(5400)
def test_the_full_pyramid_beats_cloning(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    options = ["--config", "proof/guard", "--out", str(tmp_path / "proof")]
    arms = proof(*options, "--results", str(tmp_path / "r.json"))["arms"]
    table = [
        [round(arms[arm]["success"] * arms[arm]["n"]), round((1 - arms[arm]["success"]) * arms[arm]["n"])]
        for arm in ("full_pyramid", "behaviour_cloning")
    ]
    assert stats.fisher_exact(table, alternative="greater").pvalue < 0.05, table
