"""SIGKILL of a job and of its processes, and Ctrl-C, at random moments: the tables are those of a whole run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import pytest
from labelling import children, command, events, gone, kill_while, tables, wait_for

from pyramid.labels.engine import label
from pyramid.labels.result import LabelResult

FRAMES = [5, 3, 8, 4, 6, 2]
FULL = [pytest.mark.slow, pytest.mark.timeout(900)]
Model = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES)


@pytest.fixture
def whole(shards: str, model: Model, tmp_path: Path) -> dict[str, str]:
    """The tables of an uninterrupted run in this process."""
    label(shards, labeler="truth", model=model("whole.json"), out=str(tmp_path / "whole"))
    return tables(tmp_path / "whole")


def test_ctrl_c_drops_the_units_in_hand_and_says_how_to_go_on(
    shards: str, model: Model, tmp_path: Path, whole: dict[str, str]
) -> None:
    out, path = tmp_path / "out", model("whole.json")
    process = command(shards, path, out, "--workers", "2", "--batch-clips", "1", delay_s=0.5)
    wait_for(lambda: list(out.glob("_receipts/*.json")))
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on where it stopped" in said
    assert "Traceback" not in said
    assert events(out)[-1]["event"] == "interrupted"
    assert len(workers) == 2
    assert gone(workers)
    assert 0 < label(shards, labeler="truth", model=path, out=str(out)).skipped_done < 3
    assert tables(out) == whole


def model_processes() -> list[int]:
    return children(os.getpid())


def decode_processes() -> list[int]:
    return [pid for worker in model_processes() for pid in children(worker)]


@pytest.mark.parametrize(
    "killing",
    [
        (0, model_processes, 1),
        (1, decode_processes, 1),
        pytest.param((0, model_processes, 10), marks=FULL),
        pytest.param((2, model_processes, 10), marks=FULL),
        pytest.param((2, decode_processes, 20), marks=FULL),
    ],
)
def test_killed_workers_cost_nothing(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killing: tuple[int, Callable[[], list[int]], int],
) -> None:
    decoders, victims, count = killing
    shards = drawing.write_shards(tmp_path / "many", [4] * 8 * min(count, 5))
    path = model()
    label(shards, labeler="truth", model=path, out=str(tmp_path / "whole"))
    monkeypatch.setenv("TRUTH_DELAY_S", "0.15")

    def job(out: Path) -> LabelResult:
        options = {"workers": 2, "decoders": decoders, "retries": count, "batch_clips": 1}
        return label(shards, labeler="truth", model=path, out=str(out), **options)

    kill_while(job, victims, count, 1.0, tmp_path)


@pytest.mark.parametrize("count", [1, pytest.param(25, marks=FULL)])
def test_a_killed_job_goes_on_to_the_same_tables(
    shards: str, model: Model, tmp_path: Path, whole: dict[str, str], count: int
) -> None:
    path, out = model("whole.json"), tmp_path / "out"
    delays, killed = [random.uniform(0, 2 if count > 1 else 0.5) for _ in range(count)], 0
    for delay in delays:
        process = command(shards, path, out, "--workers", "2", "--batch-clips", "1", delay_s=0.3)
        wait_for(lambda process=process: process.poll() is not None or len(children(process.pid)) == 2)
        time.sleep(delay)
        workers = children(process.pid) if process.poll() is None else []
        killed += process.poll() is None
        process.kill()
        process.communicate()
        wait_for(lambda workers=workers: gone(workers), 10)
        if label(shards, labeler="truth", model=path, out=str(out), dry_run=True).shards == 0:
            out = tmp_path / f"out-{killed}"  # All done: from the start, so that each moment is one of a job at work.
    assert killed, delays
    print(f"{killed} killed")
    for folder in tmp_path.glob("out*"):
        label(shards, labeler="truth", model=path, out=str(folder))
        assert tables(folder) == whole, delays
        assert not list(folder.rglob(".tmp-*"))
