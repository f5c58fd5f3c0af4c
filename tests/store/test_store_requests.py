"""What things cost on a store, in requests: a resume by the listing, a shard by the stretch, a sample by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest
from stores import Store

from pyramid import files
from pyramid.errors import DataError
from pyramid.jobs import Outcome, Quarantined, Unit, pending, run_job
from pyramid.receipts import GATHERED
from pyramid.shards import ahead
from pyramid.shards.reader import ShardSet

MANY = 200


def plan(url: str, n: int = MANY, **changed: str) -> list[Unit]:
    names = [f"u{i:04d}" for i in range(n)]
    return [Unit(name=x, digest=changed.get(x, "same"), task={"folder": url, "name": x}) for x in names]


def work(task: dict[str, Any]) -> Outcome:
    name = task["name"]
    files.write_text(files.join(task["folder"], f"{name}.txt"), name)
    aside = (Quarantined(item=name, reason="odd", detail="so"),) if name.endswith("7") else ()
    return Outcome(facts={"name": name}, output=f"{name}.txt", quarantined=aside)


def run(url: str, units: list[Unit], **options: Any) -> Any:
    return run_job(units, work, folder=url, label="test", **options)


def test_a_resume_costs_a_few_requests(store: Store) -> None:
    url = f"{store.url}/job"
    first = run(url, plan(url))
    with store.proxy.counted() as counts:
        again = run(url, plan(url))
    assert again.skipped_done == MANY
    assert again.outcomes == first.outcomes
    # One look for unfinished uploads and one listing, each of the folder and of its receipts, and the gathered file.
    assert counts == {"UPLOADS": 2, "LIST": 2, "GET": 1}
    with store.proxy.counted() as counts:
        assert not list(pending(plan(url), folder=url))
    assert counts == {"LIST": 2, "GET": 1}


def test_the_gathered_receipts_are_never_believed_against_the_store(store: Store) -> None:
    url, units = f"{store.url}/job", plan(f"{store.url}/job", 20)
    run(url, units)
    assert f"{GATHERED}" in files.listdir(url)
    receipt = f"{url}/_receipts/u0003.json"
    files.remove(receipt)  # Whoever sets an output aside takes its receipt along.
    files.write_text(f"{url}/u0005.txt", "another size")
    files.remove(f"{url}/u0006.txt")
    data = files.read_json(f"{url}/_receipts/u0008.json")
    files.write_json(f"{url}/_receipts/u0008.json", {**data, "digest": "of another plan"})
    changed = plan(url, 20, u0010="new")
    left = ["u0003", "u0005", "u0006", "u0008", "u0010"]
    assert [u.name for u in pending(changed, folder=url)] == left
    assert [u.name for u in pending(changed, folder=url, retry_quarantined=True)] == [
        *left[:3],
        "u0007",
        *left[3:],
        "u0017",
    ]
    assert len(list(pending(changed, folder=url, resume=False))) == 20
    report = run(url, changed)
    assert report.skipped_done == 15
    assert [outcome.facts["name"] for outcome in report.outcomes] == [u.name for u in changed]
    assert not list(pending(changed, folder=url))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"u0001": 1, "u0002": {"tag": "x"}}', b"\xff"])
def test_damaged_or_lost_gathered_receipts_cost_time_only(store: Store, content: bytes) -> None:
    url, units = f"{store.url}/job", plan(f"{store.url}/job", 20)
    run(url, units)
    files.write_bytes(f"{url}/{GATHERED}", content)
    with store.proxy.counted() as counts:
        assert not list(pending(units, folder=url))
    assert counts["GET"] == 21
    files.remove(f"{url}/{GATHERED}")
    assert not list(pending(units, folder=url))


def test_an_interrupted_job_gathers_what_it_did(store: Store) -> None:
    url, units = f"{store.url}/job", plan(f"{store.url}/job", 30)
    bad = Unit(name="u0020", digest="same", task={"folder": url})
    with pytest.raises(KeyError):
        run(url, [*units[:20], bad, *units[21:]])
    assert len(json.loads(files.read_text(f"{url}/{GATHERED}"))) == 20
    with store.proxy.counted() as counts:
        assert len(list(pending(units, folder=url))) == 10
    assert counts == {"LIST": 2, "GET": 1}


def test_here_nothing_is_gathered(tmp_path: Path) -> None:
    run(str(tmp_path), plan(str(tmp_path), 20))
    assert not (tmp_path / GATHERED).exists()
    assert not list(pending(plan(str(tmp_path), 20), folder=str(tmp_path)))


@pytest.fixture
def shards(store: Store, tmp_path: Path) -> ShardSet:
    """One shard of 12 samples on the store."""
    folder = Path(drawing.write_shards(tmp_path / "shards", [4] * 12, per_shard=12))
    for path in folder.iterdir():
        files.write_bytes(f"{store.url}/shards/{path.name}", path.read_bytes())
    return ShardSet.open(f"{store.url}/shards")


def test_a_sample_is_one_request_for_its_own_bytes(store: Store, shards: ShardSet) -> None:
    store.proxy.sent.clear()
    with store.proxy.counted() as counts:
        for i in (7, 2, 11):
            assert shards.read(i).key == shards.rows[i]["key"]
    assert counts == {"GET": 3}
    assert store.proxy.sent["GET"] == sum(shards.rows[i]["size"] for i in (7, 2, 11))


@pytest.mark.parametrize("samples", [1, 3, 5, 12, 100])
def test_a_shard_is_read_by_the_stretch(
    store: Store, shards: ShardSet, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [row["size"] for row in shards.rows]
    monkeypatch.setattr(ahead.ReadAhead.__init__, "__defaults__", (samples * max(sizes),))
    store.proxy.sent.clear()
    with store.proxy.counted() as counts:
        found = [(s.key, s.video) for s in shards.iter_shard(shards.shards[0])]
    assert found == [((s := shards.read(i)).key, s.video) for i in range(12)]
    assert set(counts) == {"GET"}
    assert counts["GET"] <= -(-12 // samples)
    if samples >= 12:
        assert counts["GET"] == 1


def test_a_stretch_over_a_cut_loses_only_what_is_cut(store: Store, shards: ShardSet) -> None:
    url = f"{store.url}/shards/{shards.shards[0]}"
    data = files.read_bytes(url)
    files.write_bytes(url, data[: shards.rows[9]["offset"] + 100])
    found = []
    with pytest.raises(DataError, match="truncated"):
        found.extend(s.key for s in shards.iter_shard(shards.shards[0]) if found.append(s.key))
    assert found == [row["key"] for row in shards.rows[:9]]
