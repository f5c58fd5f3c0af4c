"""Uploads: whole or absent, whatever stops them; what a killed writer left is withdrawn by the next run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stores import Store

from pyramid import files, uploads
from pyramid.errors import DataError, OutputError
from pyramid.jobs import Outcome, Unit, run_job

LARGE = 2 * uploads.PART_BYTES + 12345


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, uploads.PART_BYTES - 1, uploads.PART_BYTES, LARGE])
def test_what_is_read_is_what_was_written(store: Store, size: int) -> None:
    data, url = noise(size), f"{store.url}/a/b.bin"
    with files.atomic_write(url) as out:
        for start in range(0, size, 5_000_000):
            assert out.write(data[start : start + 5_000_000]) == len(data[start : start + 5_000_000])
            assert not files.exists(url)
        assert out.tell() == size
    assert files.size_bytes(url) == size
    assert files.read_bytes(url) == data
    assert files.sha256_file(url) == files.sha256_bytes(data)
    assert store.uploads() == []
    if size < uploads.PART_BYTES:
        assert store.proxy.counts["PUT"] == 1
        assert not store.proxy.counts["CREATE"]
    else:
        assert store.proxy.counts["PART"] == -(-size // uploads.PART_BYTES)


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_publishes_nothing(store: Store, size: int, error: type[BaseException]) -> None:
    url = f"{store.url}/a.bin"
    files.write_bytes(url, b"before")

    def fail() -> None:
        with files.atomic_write(url) as out:
            out.write(noise(size))
            raise error

    with pytest.raises(error):
        fail()
    assert store.uploads() == []
    assert files.read_bytes(url) == b"before"
    assert files.listdir(store.url) == ["a.bin"]


KILLED = """
import os, sys
from pyramid import files, uploads
with files.atomic_write(sys.argv[1]) as out:
    out.write(bytes(uploads.PART_BYTES))
    os.kill(os.getpid(), 9)
"""


def kill_a_writer(url: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, url], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL


def test_a_killed_writer_publishes_nothing_and_the_next_run_clears_what_it_left(store: Store) -> None:
    for name in ("job/a.txt", "job/_receipts/a.json", "job/labels/other/a.bin", "jobs"):
        kill_a_writer(f"{store.url}/{name}")
    assert store.content() == {}
    assert len(store.uploads()) == 4
    plan = [Unit(name="a", digest="a", task={"url": f"{store.url}/job/a.txt"})]
    run_job(plan, write_a, folder=f"{store.url}/job", label="test")
    # Neither the job in the folder below nor the one beside is this job's to clear.
    assert sorted(store.uploads()) == ["job/labels/other/a.bin", "jobs"]
    assert store.content("job")["a.txt"] == b"made here"
    assert files.remove_temporaries(f"{store.url}/job/labels/other") == 1
    assert files.remove_temporaries(store.url) == 1
    assert store.uploads() == []


def write_a(task: dict[str, str]) -> Outcome:
    files.write_text(task["url"], "made here")
    return Outcome(output="a.txt")


def test_two_writers_of_one_key_end_with_one_whole_object(store: Store) -> None:
    url, contents = f"{store.url}/a.bin", [noise(LARGE, seed) for seed in range(2)]
    both = threading.Barrier(2)

    def write(data: bytes) -> None:
        with files.atomic_write(url) as out:
            out.write(data[: LARGE // 2])
            both.wait()
            out.write(data[LARGE // 2 :])
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, contents))
    assert files.read_bytes(url) in contents
    assert store.uploads() == []


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(store: Store) -> None:
    url = f"{store.url}/a.bin"
    old, new = noise(20_000_000, 1), noise(20_000_000, 2)
    files.write_bytes(url, old)

    def read_on() -> None:
        with files.open_read(url) as stream:
            assert stream.read(1000) == old[:1000]
            files.write_bytes(url, new)
            stream.seek(15_000_000)
            stream.read(1000)

    with pytest.raises(DataError, match="replaced"):
        read_on()


def test_moving_keeps_the_bytes_and_can_be_repeated(store: Store) -> None:
    source, target = f"{store.url}/a.tar", f"{store.url}/_quarantine/a.tar"
    files.write_bytes(source, noise(LARGE))
    files.write_bytes(target, b"of a run that was stopped")
    files.move(source, target)
    assert store.content() == {"_quarantine/a.tar": noise(LARGE)}
    with pytest.raises(OutputError, match="cannot move"):
        files.move(source, target)
    assert store.content() == {"_quarantine/a.tar": noise(LARGE)}


def test_moving_here(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"x")
    files.move(tmp_path / "a", tmp_path / "b" / "c")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["b", "b/c"]


def test_listings_longer_than_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(7):
        files.write_bytes(f"{store.url}/many/{i}", bytes(i))
    files.write_bytes(f"{store.url}/many/deeper/x", b"")
    files.write_bytes(f"{store.url}/many/.hidden/x", b"")
    call = files.remote.call

    def paged(url: str, method: str, **options: object) -> object:
        return call(url, method, **({"MaxKeys": 2} if method == "list_objects_v2" else {}), **options)

    monkeypatch.setattr(files.remote, "call", paged)
    with store.proxy.counted() as counts:
        found = files.entries(f"{store.url}/many")
    assert {name: entry.size for name, entry in found.items()} == {
        ".hidden": 0, "deeper": 0, **{str(i): i for i in range(7)}
    }  # fmt: skip
    assert counts == {"LIST": 5}
    assert list(files.walk_files(f"{store.url}/many")) == [
        *(f"{store.url}/many/{i}" for i in range(7)),
        f"{store.url}/many/deeper/x",
    ]
