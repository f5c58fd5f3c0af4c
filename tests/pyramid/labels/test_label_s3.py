"""Labelling from and to S3: shards fetched ahead, a store that fails for a while, one that fails for good."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import drawing
import faulty
import pytest
import s3fs

from pyramid import files, remote
from pyramid.errors import OutputError, UnreachableError
from pyramid.labels.engine import label
from pyramid.labels.plan import Plan

Model = Callable[..., str]
FRAMES = [5, 3, 8, 4, 6, 2]
TABLES = [f"clips-{n:06d}.parquet" for n in range(3)]


@pytest.fixture
def proxy(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[faulty.Proxy]:
    """A proxy in front of the store; requests are tried twice, copies of shards lie in a folder of the test's own."""
    place = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    assert place.hostname
    assert place.port
    with faulty.proxied(place.hostname, place.port) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(remote, "READ_TIMEOUT_S", 1.0)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def shards(s3: str, proxy: faulty.Proxy, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A shard folder in the store."""
    drawing.write_shards(tmp_path / "shards", FRAMES)
    url = f"{s3}/label-{abs(hash(request.node.name))}"
    for path in (tmp_path / "shards").iterdir():
        files.write_bytes(f"{url}/{path.name}", path.read_bytes())
    proxy.seen.clear()
    return url


@pytest.fixture
def whole(shards: str, model: Model, tmp_path: Path) -> dict[str, bytes]:
    """The tables of a run on a disk."""
    label(str(tmp_path / "shards"), labeler="truth", model=model(), out=str(tmp_path / "whole"))
    return {name: (tmp_path / "whole" / name).read_bytes() for name in TABLES}


class Stored(NamedTuple):
    """Shards in the store, the proxy before it, the tables that they are to have, a model file."""

    shards: str
    proxy: faulty.Proxy
    whole: dict[str, bytes]
    model: str


@pytest.fixture
def stored(shards: str, proxy: faulty.Proxy, whole: dict[str, bytes], model: Model) -> Stored:
    return Stored(shards, proxy, whole, model())


def held(out: str) -> dict[str, bytes]:
    return {name: files.read_bytes(f"{out}/{name}") for name in TABLES if files.exists(f"{out}/{name}")}


@pytest.mark.parametrize("options", [{}, {"cache_mb": 0}, pytest.param({"decoders": 1}, marks=pytest.mark.slow)])
def test_shards_are_fetched_ahead_into_copies_that_do_not_stay(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    monkeypatch.setenv("TRUTH_DELAY_S", "0.3")
    label(stored.shards, labeler="truth", model=stored.model, **options)
    names = [(kind, Path(urlsplit(path).path).name) for kind, path in stored.proxy.seen]
    fetched = [name for kind, name in names if kind == "GET" and name.endswith(".tar")]
    assert fetched == ["clips-000000.tar", "clips-000001.tar", "clips-000002.tar"], "each once, in order"
    ahead = names.index(("GET", "clips-000001.tar")) < names.index(("PUT", "clips-000000.parquet"))
    assert ahead == (options != {"cache_mb": 0}) or "decoders" in options
    assert held(f"{stored.shards}/labels/truth") == stored.whole
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_copies_that_would_push_each_other_out_are_not_made(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "largest_bytes", lambda _: 2**31 + 1)
    label(stored.shards, labeler="truth", model=stored.model)
    assert held(f"{stored.shards}/labels/truth") == stored.whole
    assert not (tmp_path / "cache").exists()


def test_a_disk_without_room_for_copies_costs_time_only(stored: Stored, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    label(stored.shards, labeler="truth", model=stored.model)
    assert held(f"{stored.shards}/labels/truth") == stored.whole


@pytest.mark.parametrize("fault", ["500", "503", "timeout", "reset", pytest.param("short", marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_passes_is_not_noticed(stored: Stored, fault: str, workers: int) -> None:
    for number in [1] if fault == "timeout" else range(3):
        stored.proxy.fail(fault, 1, kind="GET", path=f"clips-{number:06d}.tar")
        if fault not in ("reset", "short"):
            stored.proxy.fail(fault, 1, kind="PUT", path=f"clips-{number:06d}.parquet")
            stored.proxy.fail(fault, 1, kind="PUT", path=f"_receipts/clips-{number:06d}.json")
    result = label(stored.shards, labeler="truth", model=stored.model, workers=workers)
    assert (result.quarantined, result.clips) == ({}, 6)
    assert not any(rule.times for rule in stored.proxy.rules), "each got in the way"
    assert held(result.out) == stored.whole


@pytest.mark.parametrize(
    "fault", ["500", "reset", *(pytest.param(f, marks=pytest.mark.slow) for f in ("503", "timeout"))]
)
@pytest.mark.parametrize("options", [{}, {"cache_mb": 0}])
def test_a_shard_that_cannot_be_read_is_tried_again_then_set_aside(stored: Stored, fault: str, options: dict) -> None:
    stored.proxy.fail(fault, 999, kind="GET", path="clips-000001.tar")
    job = {"labeler": "truth", "model": stored.model, **options}
    result = label(stored.shards, **job, retries=1)
    assert (result.quarantined, result.clips) == ({"unreachable": 1}, 4)
    (item,) = result.items
    assert item.item == "clips-000001"
    assert f"labeler 'truth' failed 2 times on clips-000001.tar: '{stored.shards}/clips-000001.tar'" in item.detail
    assert {name for name, data in held(result.out).items() if data == stored.whole[name]} == {TABLES[0], TABLES[2]}
    stored.proxy.rules.clear()
    again = label(stored.shards, **job, retry_quarantined=True)
    assert (again.quarantined, again.skipped_done) == ({}, 2)
    assert held(result.out) == stored.whole


def test_a_table_that_cannot_be_written_ends_the_job_which_goes_on_later(stored: Stored) -> None:
    stored.proxy.fail("503", 999, kind="PUT", path="clips-000001.parquet")
    with pytest.raises(OutputError, match=r"cannot write 's3://.*clips-000001\.parquet': .*no usable answer"):
        label(stored.shards, labeler="truth", model=stored.model, retries=1)
    tried = [path for kind, path in stored.proxy.seen if kind == "PUT" and "clips-000001.parquet" in path]
    assert len(tried) == 3 * 2, "twice as a unit, then as one set aside; each request twice"
    out = f"{stored.shards}/labels/truth"
    assert TABLES[1] not in held(out)
    stored.proxy.rules.clear()
    assert label(stored.shards, labeler="truth", model=stored.model).skipped_done == 1
    assert held(out) == stored.whole


def test_a_store_that_does_not_answer_at_all_plans_nothing(stored: Stored) -> None:
    stored.proxy.fail("refused", 999)
    with pytest.raises(UnreachableError, match="no usable answer after 2 tries"):
        label(stored.shards, labeler="truth", model=stored.model)


def test_a_plan_says_what_comes_soon(tmp_path: Path) -> None:
    plan = Plan.open(drawing.write_shards(tmp_path / "shards", FRAMES))
    task = plan.task(0, (0,), [2])
    ((name, digest, size),) = task.ahead
    assert (name, digest) == ("clips-000002.tar", plan.shards[2].digest)
    assert 0 <= (tmp_path / "shards" / name).stat().st_size - size <= 20 * 512
    sizes = [(tmp_path / "shards" / shard.name).stat().st_size for shard in plan.shards]
    assert 0 <= max(sizes) - plan.largest_bytes() <= 20 * 512
