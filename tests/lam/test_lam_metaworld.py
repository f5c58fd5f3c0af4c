"""The preset `lam/tiny` on simulated robots and hands: the figures of docs/lam-metaworld.md, with some room."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    for name in ("metaworld", "mujoco"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("lam_metaworld", ROOT / "benchmarks" / "lam_metaworld.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(bench, tmp_path_factory):
    """The benchmark's data; ``LAM_METAWORLD`` names a folder of the benchmark to go on with, models included."""
    folder = os.environ.get("LAM_METAWORLD") or str(tmp_path_factory.mktemp("metaworld"))
    return folder, bench.make_shards(folder, bench.SimConfig(n_robot=120, n_hand=96, n_generated=0, seed=1), 36)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("variant", "least", "leakage"),
    [
        ("tiny", 0.6, 0.3),
        ("continuous, 2.5 % labelled", 0.8, 0.35),
        ("bodies share, 2.5 % labelled", 0.6, 0.3),
    ],
)
def test_tiny_finds_what_the_robot_did(bench, shards, variant, least, leakage):
    folder, places = shards
    found = bench.measure(folder, places, variant, seed=4)
    probe = found.probes[bench.ROBOT]
    assert max(probe.linear, probe.mlp) >= least, found
    assert found.verdict in ("usable", "weak")
    assert found.copy_gap > 2
    assert found.shuffle_gap > 1
    assert found.leakage < leakage
    assert found.perplexity is None or min(found.perplexity) > 1.5
    if variant.startswith("bodies share"):
        crossed = next(t for t in found.transfers if (t.fitted_on, t.scored_on) == (bench.ROBOT, bench.HAND))
        assert max(crossed.linear, crossed.mlp) >= 0.4, found
