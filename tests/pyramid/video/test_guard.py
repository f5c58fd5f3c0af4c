"""The guarded process: all it sends arrives; a hang, too much memory and every death have reasons of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import psutil
import pytest

from pyramid.errors import PyramidError, SkipItemError, UnreachableError
from pyramid.video import guard
from pyramid.video.probe import VideoLimits

LIMITS = VideoLimits(max_decode_s=1.0, max_decode_mb=600)
PATIENT = VideoLimits(max_decode_s=60.0, max_decode_mb=600)


def work(task: dict[str, Any], send: guard.Send) -> None:
    """Does one thing of many to the process that it runs in."""
    kind = task["kind"]
    send({"pid": os.getpid()})
    if kind == "loop":
        while True:
            pass
    if kind == "grow":
        held = []
        while True:
            held.append(bytearray(b"x") * 2**23)
            time.sleep(0.01)
    if kind == "burst":  # Faster than anybody can look.
        len(bytearray(2**34))
    if kind == "signal":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), task["signal"])
    if kind == "exit":
        os._exit(7)
    if kind == "print":
        os.write(1, b"what a library has to say\n")
    if kind == "raise":
        raise {"skip": SkipItemError("odd", "so"), "store": UnreachableError("gone"), "bug": KeyError("x")}[
            task["what"]
        ]
    if kind == "slow":
        for _ in range(4):
            time.sleep(0.5)
            send({"alive": True})
    send({"kind": kind}, {"large": bytes(range(256)) * task.get("n", 1), "empty": b""})


def run(kind: str, **more: Any) -> list[guard.Message]:
    return list(guard.run(work, {"kind": kind, **more}, LIMITS, name="v.mp4"))


@pytest.mark.parametrize("n", [1, 100_000])
def test_what_is_sent_arrives(n: int) -> None:
    (first, _), (facts, blobs) = run("plain", n=n)
    assert psutil.Process(first["pid"]).ppid() == os.getpid()
    assert (facts, blobs) == ({"kind": "plain"}, {"large": bytes(range(256)) * n, "empty": b""})
    assert run("print")[-1][0] == {"kind": "print"}
    assert run("plain")[0][0] == first  # The same process again.


@pytest.mark.parametrize(
    ("kind", "reason", "words"),
    [
        ({"kind": "loop"}, "decode_timeout", "1 s"),
        ({"kind": "signal", "signal": signal.SIGSTOP}, "decode_timeout", "max_decode_s"),
        ({"kind": "grow"}, "decode_memory", "600 MiB"),
        ({"kind": "burst"}, "decode_memory", "memory"),
        ({"kind": "signal", "signal": signal.SIGSEGV}, "decode_crashed", "SIGSEGV"),
        ({"kind": "signal", "signal": signal.SIGKILL}, "decode_crashed", "SIGKILL"),
        ({"kind": "exit"}, "decode_crashed", "exit code 7"),
    ],
    ids=["endless loop", "stopped", "grows", "bursts", "SIGSEGV", "SIGKILL", "exit"],
)
def test_a_process_that_misbehaves_is_gone_and_the_next_task_is_done(
    kind: dict[str, Any], reason: str, words: str
) -> None:
    found = []
    limits = LIMITS if reason == "decode_timeout" else PATIENT
    with pytest.raises(SkipItemError, match=words) as caught:
        found.extend(
            facts["pid"] for facts, _ in guard.run(work, kind, limits, name="v.mp4") if found.append(facts["pid"])
        )
    assert caught.value.reason == reason
    assert caught.value.detail.startswith("v.mp4: ")
    assert not psutil.pid_exists(found[0])
    assert run("plain")[0][0]["pid"] != found[0]


def test_everything_that_is_sent_renews_the_time() -> None:
    assert run("slow")[-1][0] == {"kind": "slow"}


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [("skip", SkipItemError, "so"), ("store", UnreachableError, "gone"), ("bug", PyramidError, "v.mp4: KeyError")],
)
def test_errors_cross_by_their_kind(what: str, kind: type[PyramidError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        run("raise", what=what)
    assert type(caught.value) is kind
    if what == "skip":
        assert caught.value.reason == "odd"


def test_a_task_that_is_left_in_the_middle_is_stopped() -> None:
    messages = guard.run(work, {"kind": "loop"}, VideoLimits(), name="v.mp4")
    pid = next(messages)[0]["pid"]
    messages.close()
    assert not psutil.pid_exists(pid)


def test_each_thread_has_a_process_of_its_own() -> None:
    pids = {run("plain")[0][0]["pid"]}
    thread = threading.Thread(target=lambda: pids.add(run("plain")[0][0]["pid"]))
    thread.start()
    thread.join()
    assert len(pids) == 2


def test_other_access_to_stores_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run("plain")[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert run("plain")[0] != before


@pytest.mark.parametrize("wrong", [{"max_decode_s": 0}, {"max_decode_s": float("nan")}, {"max_decode_mb": 0}])
def test_limits_that_nothing_keeps_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        VideoLimits(**wrong)
