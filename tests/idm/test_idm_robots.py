"""What the `tiny` preset reaches on Meta-World, and labels from many processes; minutes of work, so slow."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import random_models
import sprites

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import idm_robots

from pyramid import parquet
from pyramid.labels.engine import label
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.sim import SimConfig, make_dataset

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_tiny_reads_metaworlds_actions_from_25_episodes(tmp_path):
    data = str(tmp_path / "data")
    make_dataset(data, SimConfig(tasks=("push-v3",), n_hand=0, n_generated=0, n_robot=50, action_noise=0.0, seed=2000))
    found = idm_robots.fit(tmp_path, f"{data}/robot", slice(1, None, 2), "idm/tiny", {})
    assert found.clips == 25
    assert found.r2.mean >= 0.85
    assert found.r2.mean > found.r2_unvoted.mean
    assert found.error < 0.1 * found.baseline_error
    (ratios,) = found.std_ratio.values()
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios)
    assert found.lag == 0
    assert 0.8 <= found.coverage <= 0.97
    assert found.risk["0.25"] < found.risk["0.5"] < found.risk["1"]


def several_shards(folder: Path, n: int) -> str:
    """Writes n shards of a clip each, without actions, with one index."""
    tables = []
    for number in range(n):
        part = folder / f"part-{number}"
        part.mkdir(parents=True)
        made = sprites.make_sample(number, n_frames=12 + number)
        sprites.write_shards(part, [replace(made, action=None, state=None)])
        name = f"clips-{number:06d}.tar"
        (part / "clips-000000.tar").rename(folder / name)
        table = parquet.read(part / INDEX_FILE)
        place = table.schema.get_field_index("shard")
        tables.append(table.set_column(place, "shard", pa.array([name], pa.string())))
    parquet.write(folder / INDEX_FILE, pa.concat_tables(tables).cast(INDEX_SCHEMA), {})
    return str(folder)


@pytest.mark.timeout(900)
def test_labels_are_the_same_bytes_from_1_2_and_8_workers(tmp_path):
    shards, tables = several_shards(tmp_path / "shards", 8), []
    model_dir = random_models.idm_model(tmp_path / "model", ("sprite",), rate_hz=80.0)
    for workers in (1, 2, 8):
        out = tmp_path / str(workers)
        result = label(shards, labeler="idm", model=model_dir, out=str(out), workers=workers)
        assert (result.shards, result.rows) == (8, sum(11 + number for number in range(8)))
        tables.append([path.read_bytes() for path in sorted(out.glob("clips-*.parquet"))])
    assert len(tables[0]) == 8
    assert tables[0] == tables[1] == tables[2]
