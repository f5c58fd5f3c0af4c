"""A store that fails: what passes is never noticed, what stays is one error with URL and cause, nothing is short."""

from __future__ import annotations

import random
import time
from pathlib import Path

import drawing
import pyarrow as pa
import pytest
from stores import Store

from pyramid import files, parquet, remote, uploads
from pyramid.errors import DataError, OutputError, SkipItemError, UnreachableError
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import verify
from pyramid.video.probe import probe

BODY = random.Random(0).randbytes(1_000_000)
PASSING = ("500", "503", "timeout", "refused", "reset", "short", "slow")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a silent server up after a second."""
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 1.0)


@pytest.mark.parametrize("fault", PASSING)
def test_a_read_goes_on_over_a_fault(store: Store, fault: str) -> None:
    url = f"{store.url}/a.bin"
    files.write_bytes(url, BODY)
    store.proxy.fail(fault, 2, kind="GET")
    assert files.read_range(url, 1000, 500_000) == BODY[1000:501_000]
    assert store.proxy.counts["GET"] == (1 if fault == "slow" else 3)
    store.proxy.fail(fault, 1, kind="GET")
    assert files.sha256_file(url) == files.sha256_bytes(BODY)


@pytest.mark.parametrize("fault", ["500", "503", "timeout", "refused", "lost"])
def test_a_small_write_goes_on_over_a_fault(store: Store, fault: str) -> None:
    store.proxy.fail(fault, 1, kind="PUT")
    files.write_bytes(f"{store.url}/a.bin", BODY)
    assert files.read_bytes(f"{store.url}/a.bin") == BODY
    assert store.proxy.counts["PUT"] == 2


@pytest.mark.parametrize("kind", ["CREATE", "PART", "COMPLETE"])
@pytest.mark.parametrize("fault", ["500", "503", "refused", "lost"])
def test_a_large_write_goes_on_over_a_fault(store: Store, fault: str, kind: str) -> None:
    data = bytes(uploads.PART_BYTES) + BODY
    store.proxy.fail(fault, 1, kind=kind)
    files.write_bytes(f"{store.url}/a.bin", data)
    assert files.read_bytes(f"{store.url}/a.bin") == data
    assert store.proxy.counts[kind] == {"PART": 3}.get(kind, 2)


@pytest.mark.parametrize("fault", ["500", "503", "refused", "reset", "short"])
def test_a_read_that_keeps_failing_names_url_and_cause(store: Store, fault: str) -> None:
    url = f"{store.url}/a.bin"
    files.write_bytes(url, BODY)
    store.proxy.fail(fault, 1000, kind="GET")
    start = time.monotonic()
    for read in (files.read_bytes, files.sha256_file, lambda u: files.read_range(u, 5, 10_000)):
        with pytest.raises(UnreachableError, match=f"'{url}'.* 3 t.*: .+"):
            read(url)
    # A kept connection that closes without an answer is asked once more by aiohttp itself.
    assert store.proxy.counts["GET"] == 9 or (fault == "refused" and store.proxy.counts["GET"] <= 18)
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("kind", ["PUT", "CREATE", "PART", "COMPLETE"])
def test_a_write_that_keeps_failing_names_url_and_cause_and_publishes_nothing(store: Store, kind: str) -> None:
    url = f"{store.url}/a.bin"
    data = BODY if kind == "PUT" else bytes(uploads.PART_BYTES) + BODY
    store.proxy.fail("503", 1000, kind=kind)
    with pytest.raises(OutputError, match=f"'{url}'.*3 tries.*(SlowDown|503)"):
        files.write_bytes(url, data)
    assert store.content() == {}
    assert store.uploads() == []
    assert store.proxy.counts[kind] == 3


def test_an_upload_that_cannot_be_withdrawn_does_not_hide_the_error(store: Store) -> None:
    store.proxy.fail("500", 1000, kind="ABORT")

    def fail() -> None:
        with files.atomic_write(f"{store.url}/job/a.bin") as out:
            out.write(bytes(uploads.PART_BYTES))
            raise RuntimeError("the reason")

    with pytest.raises(RuntimeError, match="the reason"):
        fail()
    store.proxy.rules.clear()
    assert store.uploads() == ["job/a.bin"]
    assert files.remove_temporaries(f"{store.url}/job") == 1
    assert store.uploads() == []


def test_questions_go_on_over_faults_and_end_with_a_name(store: Store) -> None:
    files.write_bytes(f"{store.url}/a/b.bin", b"x")
    ask = {
        "exists": (files.exists, f"{store.url}/a/b.bin", True),
        "size": (files.size_bytes, f"{store.url}/a/b.bin", 1),
        "folder": (files.is_dir, f"{store.url}/a", True),
        "list": (files.listdir, f"{store.url}/a", ["b.bin"]),
        "walk": (lambda u: list(files.walk_files(u)), f"{store.url}/a", [f"{store.url}/a/b.bin"]),
    }
    for name, (question, url, answer) in ask.items():
        store.proxy.fail("refused" if name in ("size", "walk") else "500", 1)
        assert question(url) == answer, name
    store.proxy.fail("refused", 1000)
    for question, url, _ in (ask["exists"], ask["list"]):
        with pytest.raises(UnreachableError, match=url):
            question(url)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(remote.filesystem()).clear_instance_cache()
    with pytest.raises(UnreachableError, match=r"s3://none/a.*127\.0\.0\.1:9"):
        files.read_bytes("s3://none/a")
    with pytest.raises(OutputError, match=r"s3://none/a.*127\.0\.0\.1:9"):
        files.write_bytes("s3://none/a", b"")


def test_what_is_not_there_and_what_may_not_be_read_is_asked_for_once(store: Store) -> None:
    with pytest.raises(DataError, match="cannot read"):
        files.read_bytes(f"{store.url}/none")
    with pytest.raises(DataError, match="cannot read"), files.open_read(f"{store.url}/none"):
        pass
    assert store.proxy.counts["GET"] == 1
    assert store.proxy.counts["HEAD"] == 1


def test_an_outage_sets_no_good_data_aside(store: Store, tmp_path: Path) -> None:
    """A store that fails for good ends the work; a quarantine would lose what is sound."""
    folder = Path(drawing.write_shards(tmp_path / "shards", [3, 3, 3, 3]))
    for path in folder.iterdir():
        files.write_bytes(f"{store.url}/shards/{path.name}", path.read_bytes())
    video = drawing.write_video(tmp_path / "v.mp4", range(5))
    files.write_bytes(f"{store.url}/v.mp4", video.read_bytes())
    shards = ShardSet.open(f"{store.url}/shards")
    table = pa.table({"key": [shards.rows[0]["key"]], "t_s": [0.0]})
    run = f"{store.url}/shards/labels/run/clips-000000.parquet"
    parquet.write(run, table, {"index_digest": shards.shard_digest("clips-000000.tar")})
    before = store.content()
    for path in ("clips-000001.tar", "clips-000000.parquet"):
        store.proxy.fail("reset", 1000, kind="GET", path=path)
        with pytest.raises(UnreachableError, match=path):
            verify(f"{store.url}/shards", quarantine=True)
        store.proxy.rules.clear()
    store.proxy.fail("reset", 1000, kind="GET", path="v.mp4")
    with pytest.raises(UnreachableError, match=r"v\.mp4"):
        probe(f"{store.url}/v.mp4")
    store.proxy.rules.clear()
    with pytest.raises(SkipItemError, match=r"none\.mp4"):
        probe(f"{store.url}/none.mp4")
    assert store.content() == before
