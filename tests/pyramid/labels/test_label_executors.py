"""Executors: the same bytes from each; a process that crashes, hangs or is killed costs its unit at most."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import drawing
import pyarrow.parquet as pq
import pytest
import torch
from labelling import events, tables

from pyramid.errors import ConfigError, DataError
from pyramid.labels.decoding import _ByValue
from pyramid.labels.engine import label

FRAMES = [5, 3, 8, 4, 6, 2]
Model = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES)


@pytest.fixture
def whole(shards: str, model: Model, tmp_path: Path) -> dict[str, str]:
    """The tables of an uninterrupted run in this process."""
    label(shards, labeler="truth", model=model("whole.json"), out=str(tmp_path / "whole"))
    return tables(tmp_path / "whole")


def test_decode_processes_change_no_byte(shards: str, model: Model, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    path = model(decoded_by=str(marks))
    names = ["truth", "prepared"]
    job = {"labeler": names, "model": [path, path], "max_failed_share": 1.0}
    here = label(shards, **job, out=str(tmp_path / "here"))
    there = label(shards, **job, out=str(tmp_path / "there"), decoders=2, workers=2, queue_clips=1, batch_clips=2)
    assert here.quarantined == there.quarantined == {"short": 1}
    for name in names:
        assert tables(tmp_path / "here" / name) == tables(tmp_path / "there" / name) != {}
    pids = {tuple(path.name.split("-")) for path in marks.iterdir()}
    elsewhere = {decoder for decoder, labeler in pids if decoder != labeler}
    assert len(elsewhere) == 2, f"two processes decode, a third labels: {pids}"
    assert len({labeler for _, labeler in pids} - {str(os.getpid())}) == 1


def test_frames_are_decoded_once_for_all_labelers(
    shards: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyramid.labels import clips

    decoded = []
    real = clips.decode_mp4
    monkeypatch.setattr(clips, "decode_mp4", lambda data: decoded.append(len(data)) or real(data))
    path = model()
    result = label(shards, labeler=["truth", "prepared"], model=[path, path], out=str(tmp_path / "out"))
    assert len(decoded) == len(FRAMES)
    assert (result.shards, result.clips, result.rows) == (6, 11, 2 * sum(FRAMES) - 2)
    assert {name: run["clips"] for name, run in result.runs.items()} == {"truth": 6, "prepared": 5}


def test_labelers_of_one_pass_may_be_done_in_part(shards: str, model: Model, tmp_path: Path) -> None:
    path, out = model(), tmp_path / "out"
    label(shards, labeler="truth", model=path, out=str(out / "truth"))
    label(shards, labeler="prepared", model=path, out=str(out / "prepared"), limit=1)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    result = label(shards, labeler=["truth", "prepared"], model=[path, path], out=str(out))
    assert {name: run["skipped_done"] for name, run in result.runs.items()} == {"truth": 3, "prepared": 1}
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    assert before.items() <= after.items()
    assert len(after) == 6


def test_a_labeler_that_kills_or_hangs_its_process_costs_one_shard(shards: str, model: Model, tmp_path: Path) -> None:
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    faults = {drawing.key_of(0): "crash once", drawing.key_of(2): "crash", drawing.key_of(4): "hang"}
    path = model(faults=faults, marks=str(marks))
    job = {"labeler": "truth", "model": path, "out": str(out), "max_failed_share": 1.0}
    result = label(shards, **job, workers=2, retries=1, unit_timeout_s=4.0, batch_clips=1)
    assert result.quarantined == {"crash": 1, "timeout": 1}
    for item, shard, clip in zip(result.items, (1, 2), (2, 4), strict=True):
        assert f"labeler 'truth' failed 2 times on clips-00000{shard}.tar" in item.detail
        assert drawing.key_of(clip) in item.detail
    assert [pq.read_table(out / name).num_rows for name in tables(out)] == [8, 0, 0]
    assert (len(events(out, "unit_retried")), len(events(out, "unit_quarantined"))) == (3, 2)
    assert label(shards, **job).skipped_done == 3


def test_a_crash_of_one_labeler_costs_the_others_of_its_pass_nothing(
    shards: str, model: Model, tmp_path: Path, whole: dict[str, str]
) -> None:
    good, bad = model("whole.json"), model("bad.json", faults={drawing.key_of(2): "crash"})
    out = tmp_path / "out"
    result = label(shards, labeler=["truth", "prepared"], model=[good, bad], out=str(out), workers=2, retries=0)
    assert result.quarantined == {"crash": 1, "short": 1}
    assert tables(out / "truth") == whole
    assert events(out / "truth", "unit_quarantined") == []


def test_too_many_failures_stop_the_job(shards: str, model: Model, tmp_path: Path) -> None:
    path = model(faults={drawing.key_of(i): "crash" for i in (0, 2)})
    job = {"labeler": "truth", "model": path, "out": str(tmp_path / "out"), "workers": 2, "retries": 0}
    with pytest.raises(DataError, match=r"2 of 3 units failed, more than max_failed_share=0\.5 allows"):
        label(shards, **job, max_failed_share=0.5)
    assert events(tmp_path / "out")[-1]["event"] == "job_failed"


def test_labelers_may_be_given_one_by_one_on_the_command_line(
    shards: str, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyramid.cli import main

    path, out = model(), str(tmp_path / "out")
    each = ["--labeler", "truth", "--model", path, "--labeler", "prepared", "--model", path]
    assert main(["label", shards, *each, "--out", out, "--limit", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {name: run["out"] for name, run in result["runs"].items()} == {
        n: f"{out}/{n}" for n in ("truth", "prepared")
    }
    log = events(Path(out, "prepared"))
    assert [line["event"] for line in log] == ["job_started", "unit_done", "job_finished"]
    assert (log[1]["shard"], log[1]["clips"], log[1]["frames"]) == ("clips-000000.tar", 2, 8)


def test_wrong_jobs_are_refused(shards: str, model: Model, tmp_path: Path) -> None:
    path = model()
    with pytest.raises(ConfigError, match="no executor 'rya'; did you mean 'ray'"):
        label(shards, labeler="truth", model=path, executor="rya")
    with pytest.raises(ConfigError, match="2 labelers need as many models"):
        label(shards, labeler=["truth", "prepared"], model=path)
    with pytest.raises(ConfigError, match="'truth' stands twice"):
        label(shards, labeler=["truth", "truth"], model=[path, path])
    with pytest.raises(ConfigError, match="no method 'compile'"):
        label(shards, labeler="truth", model=path, compile=True, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="no method 'compile'"):
        label(shards, labeler="truth", model=path, compile=True, out=str(tmp_path / "out"), workers=2)
    assert not tables(tmp_path / "out")


def test_tensors_cross_as_numbers() -> None:
    """A file descriptor for each would have to be asked for, one after the other."""
    ours, theirs = multiprocessing.Pipe()
    half = torch.tensor([0.5, 2.0], dtype=torch.bfloat16)
    want = {"pixels": torch.arange(6, dtype=torch.uint8).reshape(2, 3)[:, 1:], "half": half, "key": "a"}
    message = _ByValue.message(want)
    assert bytes(want["pixels"].numpy().tobytes()) in bytes(message)
    theirs.send_bytes(message)
    got = ours.recv()
    assert torch.equal(got["pixels"], want["pixels"])
    assert torch.equal(got["half"], half)
    got["pixels"] += 1  # It is the receiver's own, and can be written to.
    assert got["key"] == "a"
