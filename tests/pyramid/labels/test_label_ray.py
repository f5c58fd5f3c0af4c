"""The executor ray, on one small cluster of this machine: the same tables, actors that die, jobs that are refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import drawing
import pytest
from labelling import SICK_MODEL, actors, check_sick, kill_while, tables, write_sick

from pyramid.errors import PyramidError
from pyramid.labels.engine import label
from pyramid.labels.result import LabelResult

FRAMES = [5, 3, 8, 4, 6, 2]
Model = Callable[..., str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started as the executor starts it, but for all tests of this file."""
    ray = pytest.importorskip("ray")
    from pyramid.labels.config import RayConfig
    from pyramid.labels.executors.ray import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUTH_DELAY_S", "0.1")  # The actors' alone.
        assert connect(RayConfig(), 2)
    yield
    ray.shutdown()


def test_ray_makes_the_tables_that_local_makes(cluster: None, model: Model, tmp_path: Path) -> None:
    shards = drawing.write_shards(tmp_path / "shards", FRAMES)
    names, path = ["truth", "prepared"], model(faults={drawing.key_of(2): "nan"})
    job = {"labeler": names, "model": [path, path]}
    here = label(shards, **job, out=str(tmp_path / "here"))
    there = label(shards, **job, out=str(tmp_path / "there"), executor="ray", workers=2, ray={"num_cpus": 0.5})
    assert (there.clips, there.rows, there.items) == (here.clips, here.rows, here.items)
    for name in names:
        assert tables(tmp_path / "there" / name) == tables(tmp_path / "here" / name) != {}
    receipts = [drawing.lasting(drawing.tree(tmp_path / where)) for where in ("here", "there")]
    assert receipts[0] == receipts[1]
    again = label(shards, **job, out=str(tmp_path / "there"), executor="ray")
    assert again.skipped_done == 6


def test_what_is_broken_is_named_and_costs_itself_only(cluster: None, model: Model, tmp_path: Path) -> None:
    shards, out = write_sick(tmp_path / "shards"), tmp_path / "out"
    job = {"labeler": "truth", "model": model(**SICK_MODEL), "out": str(out), "max_failed_share": 1.0, "retries": 1}
    check_sick(label(shards, **job, executor="ray", workers=2), out)


@pytest.mark.slow
def test_an_actor_that_dies_costs_the_unit_that_killed_it(cluster: None, model: Model, tmp_path: Path) -> None:
    shards = drawing.write_shards(tmp_path / "shards", FRAMES)
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    faults = {drawing.key_of(0): "crash once", drawing.key_of(2): "crash", drawing.key_of(4): "hang"}
    job = {"labeler": "truth", "model": model(faults=faults, marks=str(marks)), "out": str(out)}
    result = label(shards, **job, executor="ray", workers=2, retries=1, unit_timeout_s=8.0, max_failed_share=1.0)
    assert (result.quarantined, result.clips) == ({"crash": 1, "timeout": 1}, 2)
    assert [item.item for item in result.items] == ["clips-000001", "clips-000002"]


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_actors_cost_nothing(cluster: None, model: Model, tmp_path: Path, count: int) -> None:
    shards, path = drawing.write_shards(tmp_path / "shards", [4] * 8 * min(count, 5)), model()
    label(shards, labeler="truth", model=path, out=str(tmp_path / "whole"))

    def job(out: Path) -> LabelResult:
        options = {"executor": "ray", "workers": 2, "retries": count, "batch_clips": 1}
        return label(shards, labeler="truth", model=path, out=str(out), **options)

    kill_while(job, lambda: actors(os.getpid()), count, 1.0, tmp_path)


def test_a_model_that_does_not_load_ends_the_job(cluster: None, model: Model, tmp_path: Path) -> None:
    shards = drawing.write_shards(tmp_path / "shards", FRAMES[:2])
    with pytest.raises(PyramidError, match="no method 'compile'"):
        label(shards, labeler="truth", model=model(), executor="ray", out=str(tmp_path / "out"), compile=True)
