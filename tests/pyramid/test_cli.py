"""The command: exit codes, one-line messages, one JSON object, and options that are what the functions take."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import drawing
import pytest

from pyramid import __all__ as functions
from pyramid import __version__, command, parquet
from pyramid.cli import find_verb, main, overview
from pyramid.config import load_yaml, presets, resolve, to_dict
from pyramid.corpora.source import ScanConfig
from pyramid.errors import ExitCode
from pyramid.jobs import Quarantined
from pyramid.shards.pack import PackConfig
from pyramid.verbs import VERBS, Verb

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns a function that runs the command: exit code, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for i in range(3):
        drawing.write_video(tmp_path / "videos" / f"v{i}.mp4", range(100 * i, 100 * i + 12), rate=10)
    return tmp_path / "videos"


def one_line(text: str) -> bool:
    return len(text.splitlines()) == 1 and "Traceback" not in text


def test_help_lists_every_verb(run: Run) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert all(f"  {verb.name} " in out for verb in VERBS)
    assert run("--version") == (0, f"latent-pyramid {__version__}\n", "")
    assert max(map(len, overview().splitlines())) <= 120


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.name)
def test_every_verb_explains_itself(run: Run, verb: Verb) -> None:
    code, out, _ = run(*verb.name.split(), "--help")
    assert code == 0
    assert f"pyramid {verb.name}" in out
    module, _, name = verb.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert name in functions
    parameters = command._parameters(function)
    assert set(parameters) == set(command.argument_help(function)) - {"config", "options", "overrides"}
    for parameter in parameters:
        assert parameter in out.lower() or parameter.replace("_", "-") in out.lower()
    assert "--json" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pakc"], "no verb 'pakc'; did you mean 'pack'?"),
        (["zebra"], "no verb 'zebra'; see pyramid --help"),
        (["train"], "say what: lam, idm, vla"),
        (["mix", "shwo"], "say what: show, what-if, simulate, audit, tune"),
        (["scan"], "KIND and ROOT is missing"),
        (["scan", "folder", ".", "--clip-ss", "3"], "unknown option '--clip-ss'; did you mean '--clip_s'"),
        (["scan", "folder", ".", "--clip_s", "many"], "clip_s"),
        (["scan", "folder", ".", "--clip-s=-1"], "min_clip_s"),
        (["scan", "folder", ".", "--limit", "x"], "limit"),
        (["scan", "folder", "."], "--out"),
        (["pack", "none.parquet", "--out", "x", "--size-px", "33"], "size_px must be even"),
        (["pack", "none.parquet", "--out", "x", "--config", "none.yaml"], "no config file 'none.yaml'"),
        (["pack", "none.parquet", "--out", "x", "--config", "lam/tny"], "did you mean 'lam/tiny'"),
        (["pack", "--size_px"], "size_px"),
        (["verify"], "PATH is missing"),
        (["label", "x", "--model", "y"], "--labeler is missing"),
        (["mix", "simulate", "none.yaml", "--draws", "0"], "draws"),
    ],
)
def test_wrong_usage_is_told_in_one_line_with_code_2(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == ExitCode.USAGE
    assert out == ""
    assert message in err
    assert one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scan", "folder", "nowhere", "--out", "x.parquet"], "'nowhere' is not there"),
        (["pack", "nowhere.parquet", "--out", "x"], "pyramid scan"),
        (["verify", "nowhere"], "no shards in 'nowhere'"),
        (["status", "nowhere"], "'nowhere' is no folder"),
        (["scan", "folder", "gs://bucket/x", "--out", "x"], "scheme 'gs'"),
    ],
)
def test_failures_are_told_in_one_line_with_code_1(run: Run, arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == ExitCode.FAILED
    assert out == ""
    assert message in err
    assert one_line(err)
    assert err.startswith(f"pyramid {arguments[0]}: ")
    debugged = run(*arguments, "--debug")
    assert debugged[0] == ExitCode.FAILED
    assert "Traceback" in debugged[2]


def test_from_videos_to_verified_shards(run: Run, videos: Path, tmp_path: Path) -> None:
    clips, out = tmp_path / "clips.parquet", tmp_path / "shards"
    code, text, err = run("scan", "folder", videos, "--out", clips, "--json")
    assert (code, err) == (0, "")
    assert {"clips": 3, "skipped": {}}.items() <= json.loads(text.splitlines()[-1]).items()
    code, text, _ = run("pack", clips, "--out", out, "--size-px", "32", "--json")
    assert code == 0
    found = json.loads(text.splitlines()[-1])
    assert {"clips": 3, "frames": 36, "shards": 1, "quarantined": {}}.items() <= found.items()
    assert {"bytes", "seconds", "frames_per_s"} <= set(found)
    code, text, _ = run("verify", out, "--json")
    assert code == 0
    assert {"shards": 1, "samples": 3, "bad": []}.items() <= json.loads(text.splitlines()[-1]).items()
    code, text, _ = run("verify", out)
    assert (code, text) == (0, "1 shards, 3 samples: all as the index says\n")
    code, text, _ = run("status", tmp_path, "--json")
    assert json.loads(text)["jobs"][0]["units"] == 1


def test_what_is_set_aside_ends_with_code_3_and_is_listed(run: Run, videos: Path, tmp_path: Path) -> None:
    (videos / "broken.mp4").write_text("no video")
    code, text, err = run("scan", "folder", videos, "--out", tmp_path / "c.parquet", "--json")
    assert code == ExitCode.QUARANTINED
    found = json.loads(text.splitlines()[-1])
    assert found["skipped"] == {"not_a_video": 1}
    assert found["items"][0]["item"] == str(videos / "broken.mp4")
    assert "set aside (not_a_video)" in err
    (tmp_path / "s").mkdir()
    shards = Path(drawing.write_shards(tmp_path / "s", [3, 3], per_shard=1))
    (shards / "clips-000001.tar").write_bytes(b"")
    assert run("verify", shards)[0] == ExitCode.FAILED
    assert run("verify", shards, "--quarantine")[0] == ExitCode.QUARANTINED
    assert run("verify", shards)[0] == ExitCode.DONE


def test_printed_config_is_read_back_equal(run: Run, tmp_path: Path) -> None:
    options = ["--clip-s", "7.5", "--licence", "on", "--source_hz=1e1", "--limits.max_pixels", "5000", "--seed=3"]
    code, text, err = run("scan", "--print-config", *options)
    assert (code, err) == (0, "")
    (tmp_path / "c.yaml").write_text(text)
    expected = resolve(ScanConfig, clip_s=7.5, licence="on", source_hz=10.0, seed=3, **{"limits.max_pixels": 5000})
    assert resolve(ScanConfig, str(tmp_path / "c.yaml")) == expected
    again = run("scan", "--config", tmp_path / "c.yaml", "--print-config", "--clip_s", "8")[1]
    assert load_yaml(again) == to_dict(resolve(expected.__class__, expected, clip_s=8.0))


@pytest.mark.parametrize("verb", [v for v in VERBS if v.config], ids=lambda v: v.name)
def test_every_verb_prints_a_config_that_it_takes(run: Run, tmp_path: Path, verb: Verb) -> None:
    code, text, _ = run(*verb.name.split(), "--print-config")
    assert code == 0
    (tmp_path / "c.yaml").write_text(text)
    assert run(*verb.name.split(), "--config", tmp_path / "c.yaml", "--print-config")[:2] == (0, text)
    folder = verb.name.split()[-1]
    for preset in (p for p in presets() if p.split("/")[0] == folder):
        assert run(*verb.name.split(), "--config", preset, "--print-config")[0] == 0


def test_options_of_the_command_line_win_over_the_file(run: Run, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("size_px: 64\ncrf: 30\n")
    run("scan", "folder", videos, "--out", tmp_path / "clips.parquet")
    run("pack", tmp_path / "clips.parquet", "--out", tmp_path / "o", "--config", tmp_path / "c.yaml", "--size-px", "32")

    config = parquet.metadata(tmp_path / "o" / "shards.parquet")["config"]
    assert config == to_dict(PackConfig(size_px=32, crf=30))


def test_a_dry_run_writes_nothing(run: Run, videos: Path, tmp_path: Path) -> None:
    before = drawing.tree(tmp_path)
    code, text, _ = run("scan", "folder", videos, "--out", tmp_path / "c.parquet", "--dry-run")
    assert code == 0
    assert "nothing written" in text
    assert drawing.tree(tmp_path) == before


@dataclass(frozen=True)
class Result:
    """A result with many items set aside."""

    n: int
    items: list[Quarantined] = field(default_factory=list)


def many() -> Result:
    """Sets many aside."""
    return Result(3, [Quarantined(item=str(i), reason="bad", detail=f"item {i}") for i in range(25)])


def breaks() -> Result:
    """Has a defect."""
    raise ZeroDivisionError("a defect\nof two lines")


def stopped() -> Result:
    """Is stopped by Ctrl-C."""
    raise KeyboardInterrupt


def verb_of(function: Callable[[], Result]) -> Verb:
    return Verb(function.__name__, f"{__name__}:{function.__name__}", "a test")


def test_a_long_list_is_shortened_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_verb(verb_of(many), []) == 3
    assert len(capsys.readouterr().err.splitlines()) == command.MOST_ITEMS_SHOWN + 1
    assert command.run_verb(verb_of(many), ["--json"]) == 3
    assert len(json.loads(capsys.readouterr().out)["items"]) == 25


def test_a_defect_is_one_line_and_debug_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_verb(verb_of(breaks), []) == 1
    err = capsys.readouterr().err
    assert err == "pyramid breaks: unexpected ZeroDivisionError: a defect of two lines (--debug shows where)\n"
    assert command.run_verb(verb_of(breaks), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_ends_with_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_verb(verb_of(stopped), []) == 130
    assert one_line(capsys.readouterr().err)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_pack_goes_on_where_it_was(tmp_path: Path, sign: signal.Signals) -> None:
    """A process of its own, stopped by a signal from outside once its first shard is done."""
    for i in range(12):
        drawing.write_video(tmp_path / "videos" / f"v{i:02d}.mp4", range(100 * i, 100 * i + 90), rate=30)
    assert main(["scan", "folder", str(tmp_path / "videos"), "--out", str(tmp_path / "clips.parquet")]) == 0
    out = tmp_path / "shards"
    call = [sys.executable, "-m", "pyramid.cli", "pack", str(tmp_path / "clips.parquet"), "--out", str(out), "--json"]
    call += ["--size-px=256", "--frames-per-shard=90"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("_receipts/*.json")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(sign)
        printed, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed == ""
    assert one_line(err)
    assert "run the same command again" in err
    assert not (out / "shards.parquet").exists()
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["clips"] == 12
    assert 1 <= found["skipped_done"] < 12


def test_a_reader_that_leaves_is_no_failure() -> None:
    """`pyramid --help | head -1`."""
    script = "import sys; from pyramid.cli import main; sys.exit(main(['scan', '--print-config']))"
    pipe = f'{sys.executable} -c "{script}" | true; exit ${{PIPESTATUS[0]}}'
    call = subprocess.run(["/bin/bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert call.returncode == 0
    assert call.stderr == ""


def test_verbs_of_two_words_are_found() -> None:
    assert find_verb(["mix", "show", "x.yaml"])[0].name == "mix show"
    assert find_verb(["mix", "show", "x.yaml"])[1] == ["x.yaml"]
    assert find_verb(["mix"])[0] is None
    assert len({verb.name for verb in VERBS}) == len(VERBS)
