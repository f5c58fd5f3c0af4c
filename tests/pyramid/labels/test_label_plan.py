"""Plans and receipts: what is done is found in bulk, and believed only while it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import drawing
import large_job
import pytest

from pyramid import files, parquet
from pyramid.errors import InterruptedJobError
from pyramid.labels import run as run_module
from pyramid.labels.engine import label
from pyramid.labels.plan import Plan
from pyramid.report.status import status
from pyramid.shards.reader import ShardSet

FRAMES = [5, 3, 8, 4, 6, 2, 3, 3, 4, 4]
Model = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES)


def test_a_plan_says_what_the_index_says(shards: str) -> None:
    opened, plan = ShardSet.open(shards), Plan.open(shards)
    assert [shard.name for shard in plan.shards] == opened.shards
    for number, shard in enumerate(plan.shards):
        assert shard.digest == opened.shard_digest(shard.name)
        rows = [opened.rows[i] for i in opened.of_shard(shard.name)]
        assert shard.frames == sum(row["frames"] for row in rows)
        task = plan.task(number, (0,))
        assert [(r.key, r.offset, r.size, r.sha256) for r in task.rows] == [
            (row["key"], row["offset"], row["size"], row["sha256"]) for row in rows
        ]


def test_rows_of_a_shard_need_not_stand_together(shards: str) -> None:
    index = ShardSet.open(shards).index
    order = [4, 0, 2, 5, 1, 3, 9, 8, 6, 7]
    mixed = ShardSet(shards, index.take(order), {})
    parquet.write(files.join(shards, "shards.parquet"), index.take(order), {})
    plan = Plan.open(shards)
    assert [shard.name for shard in plan.shards] == mixed.shards
    assert [shard.digest for shard in plan.shards] == [mixed.shard_digest(shard) for shard in mixed.shards]
    assert [row.key for row in plan.task(1, ()).rows] == [mixed.rows[i]["key"] for i in mixed.of_shard(mixed.shards[1])]


@pytest.fixture
def sealing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SEAL_EVERY", 2)


def test_receipts_are_moved_into_files_of_many(shards: str, model: Model, tmp_path: Path, sealing: None) -> None:
    out, path = tmp_path / "out", model(faults={drawing.key_of(2): "nan"})
    first = label(shards, labeler="truth", model=path, out=str(out))
    assert sorted(p.name for p in (out / "_receipts" / "sealed").iterdir()) == ["000001.json", "000002.json"]
    assert len(list((out / "_receipts").glob("*.json"))) == 1
    again = label(shards, labeler="truth", model=path, out=str(out))
    assert again.skipped_done == 5
    assert (again.clips, again.rows, again.items) == (first.clips, first.rows, first.items)
    (job,) = status(str(tmp_path / "out")).jobs
    assert (job["units"], job["quarantined"]) == (5, {"bad_labels": 1})
    assert job["bytes"] == sum(p.stat().st_size for p in out.glob("*.parquet"))


def test_a_sealed_receipt_is_not_believed_for_another_table(
    shards: str, model: Model, tmp_path: Path, sealing: None
) -> None:
    out, one, two = str(tmp_path / "out"), model("one.json"), model("two.json", offset=1)
    label(shards, labeler="truth", model=one, out=out)
    label(shards, labeler="truth", model=two, out=out, limit=3)
    (tmp_path / "out" / "clips-000004.parquet").unlink()
    back = label(shards, labeler="truth", model=one, out=out)
    assert back.skipped_done == 1, "the fourth; three are another model's, and one is gone"
    label(shards, labeler="truth", model=one, out=str(tmp_path / "whole"))
    for path in (tmp_path / "whole").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_table_that_was_written_without_its_receipt_is_not_taken_for_the_old_one(
    shards: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other model's table has the same size, and its job dies before it can write the receipt."""
    out, one, two = str(tmp_path / "out"), model("one.json"), model("two.json", faults={drawing.key_of(99): "x"})
    label(shards, labeler="truth", model=one, out=out)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(run_module.Receipts, "write", die)
        with pytest.raises(InterruptedJobError, match="run the same command again"):
            label(shards, labeler="truth", model=two, out=out)
    again = label(shards, labeler="truth", model=one, out=out, dry_run=True)
    assert again.skipped_done == len(Plan.open(shards)) - 1


def test_a_torn_sealed_file_costs_time_only(shards: str, model: Model, tmp_path: Path, sealing: None) -> None:
    out, path = tmp_path / "out", model()
    label(shards, labeler="truth", model=path, out=str(out))
    sealed = out / "_receipts" / "sealed" / "000001.json"
    sealed.write_text(sealed.read_text()[:50])
    assert label(shards, labeler="truth", model=path, out=str(out)).skipped_done == 3


@pytest.mark.parametrize(
    "n_shards", [3000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_a_restart_of_a_large_job_finds_what_is_left(n_shards: int) -> None:
    """In a process of its own, which says what it has taken."""
    shared = Path("/dev/shm")  # noqa: S108 - a million names are made in seconds there.
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        # Stated in processor time, which a busy machine does not change.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = [sys.executable, large_job.__file__, folder, str(n_shards)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    n_done = n_shards * 99 // 100
    assert (found["done"], found["clips"], found["rows"]) == (n_done, n_done, 100 * n_done)
    assert found["next"] == f"clips-{n_done:06d}.tar"
    assert found["plan_s"] < 30
    assert found["restart_s"] < 30
    assert found["peak_gib"] < 2
