"""What a person sees of a job that was stopped and went on: the message, `status`, the log, counts per labeler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing
import pytest

from pyramid.errors import InterruptedJobError
from pyramid.labels.engine import label
from pyramid.report.status import status

FRAMES = [5, 3, 8, 4, 6, 2]


def told(folder: Path) -> list[tuple[int, int, str]]:
    return [(job["units"], job["of"], job["state"].split(";")[0]) for job in status(str(folder)).jobs]


def test_a_stopped_job_says_how_far_it_is(tmp_path: Path, model: Callable[..., str]) -> None:
    shards, out = drawing.write_shards(tmp_path / "shards", FRAMES), tmp_path / "out"
    path = model(faults={drawing.key_of(4): "KeyboardInterrupt"})
    with pytest.raises(InterruptedJobError, match=r"^truth: stopped at 2 of 3 tables.*run the same command again"):
        label(shards, labeler="truth", model=path, out=str(out))
    assert told(out) == [(2, 3, "interrupted")]
    assert "2 of 3" in repr(status(str(out)))
    log = (out / "_events.jsonl").read_bytes()
    (out / "_events.jsonl").write_bytes(b"".join(log.splitlines(keepends=True)[:-1]))
    assert told(out) == [(2, 3, "running, or killed")]
    (out / "_events.jsonl").write_bytes(log + log[:20])
    assert told(out) == [(2, 0, "")], "a line that was cut says nothing"
    label(shards, labeler="truth", model=model("good.json"), out=str(out))
    (out / "_events.jsonl").unlink()
    assert told(out) == [(3, 0, "")]


def test_a_finished_job_tells_of_each_labeler(tmp_path: Path, model: Callable[..., str]) -> None:
    shards, path = drawing.write_shards(tmp_path / "shards", FRAMES), model()
    result = label(shards, labeler=["truth", "prepared"], model=[path, path], out=str(tmp_path / "out"))
    assert {name: run["quarantined"] for name, run in result.runs.items()} == {"truth": {}, "prepared": {"short": 1}}
    assert told(tmp_path / "out") == [(3, 3, "finished")] * 2
