"""Progress goes to stderr, a line at a time; sizes, times and tables read well."""

from __future__ import annotations

import io
import sys

import pytest

from pyramid import progress
from pyramid.progress import Progress, format_bytes, format_seconds, say
from pyramid.table import format_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (18120, "5 h 02 min"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3.2 * 2**20, "3.2 MiB"), (2**41, "2.0 TiB")]
)
def test_sizes(n: float, text: str) -> None:
    assert format_bytes(n) == text


def test_results_stay_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    with Progress("pack", 3) as bar:
        bar.add()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "hello\n"  # No bar where nobody looks, and no line before ten seconds.


def test_a_line_every_ten_seconds_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("pack", 40) as bar:
        for _ in range(40):
            now[0] += 1
            bar.add(amount=30)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pack: 10/40, 30 frames/s, 30 s left",
        "pack: 20/40, 30 frames/s, 20 s left",
        "pack: 30/40, 30 frames/s, 10 s left",
        "pack: 40/40, 30 frames/s, 0.0 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("label", 4) as bar:
        bar.add(2)
    assert terminal.getvalue().endswith("[############............]\n")


def test_an_empty_job_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("pack", 0):
        pass
    assert capsys.readouterr().err == ""


def test_numbers_to_the_right_words_to_the_left() -> None:
    assert format_table(["source", "n"], [["arm", 1234], ["human", 5]]).splitlines() == [
        "source      n",
        "------  -----",
        "arm     1,234",
        "human       5",
    ]


def test_a_table_without_rows_is_its_head() -> None:
    assert format_table(["a", "bc"], []).splitlines() == ["a  bc", "-  --"]
