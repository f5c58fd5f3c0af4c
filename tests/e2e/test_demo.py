"""The demo as a user sees it: what it prints, writes and returns, with bad input, and after SIGKILL."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest
from demo_runs import COMMAND, SMALL, artefacts, environment, run

pytestmark = pytest.mark.sim

PROMISED = {
    "scan": {"clips", "hours", "skipped"},
    "pack": {"clips", "frames", "shards", "bytes", "quarantined", "seconds", "frames_per_s"},
    "label": {"clips", "rows", "shards", "skipped_done", "quarantined", "seconds", "frames_per_s"},
    "evaluate_lam": {"perplexity", "copy_gap", "shuffle_gap", "leakage", "probe_r2", "camera_r2", "static_fraction"},
    "evaluate_idm": {"r2", "std_ratio", "lag", "coverage", "calibration"},
    "mix_simulate": {"draws", "counts", "target", "max_deviation"},
    "export": {"graphs", "max_abs_error", "opset"},
    "bench": {"p50_ms", "p99_ms", "provider", "threads"},
}


def test_result_holds_what_is_promised(small_demo: Path) -> None:
    printed = json.loads((small_demo / "result.json").read_text().splitlines()[-1])
    written = json.loads((small_demo / "demo/demo.json").read_text())
    assert printed == written
    for part, keys in PROMISED.items():
        assert keys <= set(written[part]), part
    assert written["out"] == "demo"
    assert written["mix_simulate"]["max_deviation"] < 1
    assert max(written["export"]["max_abs_error"].values()) < 1e-4
    assert np.isfinite(written["action"]).all()
    assert np.shape(written["action"]) == (8, 4)


def test_it_says_what_it_does_and_where_everything_lies(small_demo: Path) -> None:
    text = (small_demo / "printed.txt").read_text()
    assert [f"[{i}/11]" in text for i in range(1, 12)] == [True] * 11
    for verb in ("scan", "pack", "train lam", "train idm", "label", "mix show", "train vla", "export", "bench"):
        assert f"pyramid {verb}" in text
    assert "Traceback" not in text


def test_second_run_reuses_everything(small_demo: Path) -> None:
    before = artefacts(small_demo / "demo")
    kept = (small_demo / "demo/demo.json").read_text()
    done = run("demo", "--out", "demo", *SMALL, cwd=small_demo)
    assert done.returncode == 0, done.stderr[-2000:]
    assert artefacts(small_demo / "demo") == before
    assert done.stderr.count("found finished") == 3
    assert done.stderr.count("(found done)") == 3
    again = json.loads((small_demo / "demo/demo.json").read_text())
    assert again["label"]["skipped_done"] == again["label"]["shards"]
    assert again["action"] == json.loads(kept)["action"]
    assert "pyramid mix show demo/mixture.yaml" in done.stdout


def kill_in_stage(cwd: Path, stage: str, delay_s: float) -> bool:
    """Starts the demo, waits for a stage and a moment more, kills the process group. Tells if it was still alive."""
    with (cwd / "stderr.txt").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--out", "demo", *SMALL],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )
        while process.poll() is None and stage not in (cwd / "stderr.txt").read_text(errors="replace"):
            time.sleep(0.01)
        time.sleep(delay_s)
        alive = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return alive


@pytest.mark.slow  # Kills of each stage are tested beside the stage.
@pytest.mark.timeout(900)
def test_killed_demo_ends_like_an_uninterrupted_one(small_demo: Path, tmp_path: Path) -> None:
    """Six kills: three in the pack stage, three in the label stage, at random moments; then one run to the end."""
    draw = random.Random(time.time_ns())
    delays = [draw.uniform(0, 1.2) for _ in range(6)]
    shutil.copytree(small_demo / "demo/data", tmp_path / "demo/data")  # The simulator's own kills are tested beside it.
    alive = [kill_in_stage(tmp_path, "[3/11] Pack", delay) for delay in delays[:3]]
    alive += [kill_in_stage(tmp_path, "[7/11] Label", delay) for delay in delays[3:]]
    assert sum(alive) >= 5, f"too few kills hit a running demo, delays {delays}"
    done = run("demo", "--out", "demo", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert artefacts(tmp_path / "demo") == artefacts(small_demo / "demo"), f"delays {delays}"
    assert not list((tmp_path / "demo").rglob(".tmp-*"))


def write_video(path: Path, n: int = 40, size: int = 96) -> None:
    """A bright square that moves over a gradient."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(n):
            picture = np.tile(np.arange(size, dtype=np.uint8)[:, None, None], (1, size, 3)) + 40
            picture[20:40, i : i + 20] = (230, 200, 180)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def test_own_videos_with_bad_ones_among_them(small_demo: Path, tmp_path: Path) -> None:
    videos = tmp_path / "mine"
    videos.mkdir()
    for i, name in enumerate(("one", "two", "three")):
        write_video(videos / f"{name}.mp4", n=40 + i)
    (videos / "notes.mp4").write_text("this is a text file\n" * 50)
    whole = (videos / "one.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").touch()
    (videos / "copy.mp4").write_bytes(whole)
    shutil.copytree(small_demo / "demo/data", tmp_path / "demo/data")
    done = run("demo", "--videos", "mine", "--out", "demo", *SMALL, "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["scan"]["skipped"] == {"duplicate": 1, "empty_file": 1, "not_a_video": 2}
    assert result["pack"]["parts"]["human"]["clips"] == 3
    assert {Path(item["item"]).name: item["reason"] for item in result["items"]} == {
        "cut.mp4": "not_a_video",
        "empty.mp4": "empty_file",
        "notes.mp4": "not_a_video",
        "one.mp4": "duplicate",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo", "--videos", "nowhere"], 1, "'nowhere' is not there"),
        (["demo", "--videos", "bare"], 1, "holds no video"),
        (["demo", "--videos", "texts"], 1, "holds no video"),
        (["demo", "--out", "/proc/here"], 1, "cannot make the folder"),
        (["demo", "--vidoes", "x"], 2, "did you mean '--videos'?"),
        (["demo", "--lam_steps", "0"], 2, "lam_steps must be at least 1"),
        (["demo", "--lam_steps", "many"], 2, "expected int"),
        (["scan", "folder", "texts", "--out", "c.parquet"], 1, "holds no video"),
        (["scan", "fodler", "texts", "--out", "c.parquet"], 2, "did you mean 'folder'?"),
        (["pack", "none.parquet", "--out", "s"], 1, "no clip manifest"),
        (["label", "none", "--labeler", "lam", "--model", "m"], 1, "no shards"),
        (["mix", "show", "none.yaml"], 2, "no config file"),
    ],
)
def test_bad_calls_are_answered_in_one_line(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/readme.txt").write_text("no video")
    done = run(*arguments, cwd=tmp_path, timeout=60)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not (tmp_path / "demo").exists() or arguments[1:2] == ["--out"]


SHARED_VIDEOS = Path(__file__).parents[3] / "shared/data/human"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="the sample videos are not beside this checkout")
def test_real_videos_and_what_is_odd_about_them(small_demo: Path, tmp_path: Path) -> None:
    shutil.copytree(small_demo / "demo/data", tmp_path / "demo/data")
    done = run("demo", "--videos", str(SHARED_VIDEOS), "--out", "demo", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    odd = {line.split()[0]: line for line in done.stderr.splitlines() if line.strip().startswith("folder/")}
    assert "frozen at frames 230-267" in odd["folder/glitch_and_whip_pan.mp4#0.000"]
    assert "variable frame rate, longest gap 200 ms" in odd["folder/variable_frame_rate.mp4#0.000"]
    assert "moving camera" in odd["folder/pool_cleaning.mp4#0.000"]
    assert "repeat the one before" in odd["folder/flipping_a_pancake.mkv#0.000"]
