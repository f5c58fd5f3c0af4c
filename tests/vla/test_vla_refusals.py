"""Mixtures that cannot be trained on are refused before the first step, by name; what goes wrong later ends the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import pyarrow as pa
import pytest
from tiny_policy import TINY

from pyramid import files, parquet
from pyramid.config import dump_yaml
from pyramid.errors import DataError, PyramidError
from pyramid.labels.protocol import BASE_FIELDS
from pyramid.nn.trainer import TrainerConfig
from pyramid.shards.reader import ShardSet
from vla.config import VLAConfig
from vla.train import train_vla

CONFIG = VLAConfig(policy=TINY, trainer=TrainerConfig(max_steps=40, batch_size=8, warmup_steps=2, threads=1))


def labelled(folder: str) -> str:
    """A run of pseudo-actions over a folder."""
    opened, schema = ShardSet.open(folder), pa.schema([*BASE_FIELDS, ("action", pa.list_(pa.float32()))])
    for shard in opened.shards:
        rows = [
            {"key": opened.rows[i]["key"], "t_s": t / 10, "frame": t, "gap_s": 0.1, "flags": 0, "action": [t, 0.5]}
            for i in opened.of_shard(shard)
            for t in range(opened.rows[i]["frames"] - 1)
        ]
        facts = {"index_digest": opened.shard_digest(shard), "labeler_digest": "one", "config": {"rate_hz": 10.0}}
        name = shard.replace(".tar", ".parquet")
        parquet.write(f"{folder}/labels/run/{name}", pa.Table.from_pylist(rows, schema=schema), facts)
    return f"{folder}/labels/run"


@pytest.fixture
def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arm = drawing.write_shards(tmp_path / "arm", [6] * 24)
    dreams = drawing.write_shards(tmp_path / "dreams", [6] * 4, first_clip=50, actions=False)
    return {
        "top": {"weight": 3.0, "sources": {"arm": {"shards": arm, "use": "action"}}},
        "middle": {
            "weight": 1.0,
            "sources": {"dreams": {"shards": dreams, "use": "pseudo", "labels": labelled(dreams)}},
        },
    }


def written(tmp_path: Path, tiers: dict[str, Any]) -> str:
    (tmp_path / "mix.yaml").write_text(dump_yaml({"tiers": tiers, "horizon": 3, "cache_mb": 0}))
    return str(tmp_path / "mix.yaml")


def arm_of(tiers: dict[str, Any]) -> dict[str, Any]:
    return tiers["top"]["sources"]["arm"]  # type: ignore[no-any-return]


def dreams_of(tiers: dict[str, Any]) -> dict[str, Any]:
    return tiers["middle"]["sources"]["dreams"]  # type: ignore[no-any-return]


def of_another_index(tiers: dict[str, Any]) -> None:
    run = dreams_of(tiers)["labels"]
    other = drawing.write_shards(Path(run).parents[2] / "other", [6] * 4, first_clip=70, actions=False)
    dreams_of(tiers)["labels"] = labelled(other)


def smaller(tiers: dict[str, Any]) -> None:
    few = drawing.write_shards(Path(arm_of(tiers)["shards"]).parent / "few", [5], first_clip=90)
    arm_of(tiers)["shards"] = few


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "negative": (lambda t: t["top"].update(weight=-1.0), "tier 'top': a weight"),
    "not a number": (lambda t: arm_of(t).update(weight=float("nan")), "source 'arm': a weight"),
    "all zero": (lambda t: [tier.update(weight=0.0) for tier in t.values()], "a tier with a weight above 0"),
    "no shards": (lambda t: arm_of(t).update(shards="none"), "source 'arm': no shards in"),
    "no label run": (lambda t: dreams_of(t).update(labels="none"), "source 'dreams': .*none' has no labels for"),
    "no such embodiment": (lambda t: arm_of(t).update(filter={"embodiment": "leg"}), "source 'arm': .*'leg'.* has arm"),
    "another index": (of_another_index, "source 'dreams': .* labels other shards"),
    "a shard is gone": (lambda t: Path(arm_of(t)["shards"], "clips-000001.tar").unlink(), "source 'arm': .*not there"),
    "a shard was cut": (
        lambda t: os.truncate(Path(arm_of(t)["shards"], "clips-000001.tar"), 1024),
        "source 'arm': .* has 1024 bytes",
    ),
    "smaller than a batch": (smaller, "source 'arm' has 5 samples, a batch of 8 takes up to 6.0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_made(
    tiers: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    change, message = BAD[kind]
    change(tiers)
    with pytest.raises(PyramidError, match=message):
        train_vla(written(tmp_path, tiers), out=str(tmp_path / "out"), config=CONFIG)
    assert not (tmp_path / "out").exists()


def test_the_mixture_itself_is_good(tiers: dict[str, Any], tmp_path: Path) -> None:
    assert train_vla(written(tmp_path, tiers), out=str(tmp_path / "out"), config=CONFIG, dry_run=True).steps == 40


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_ends_the_run_with_a_sentence(
    tiers: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    """From a worker, too: not with the text of its traceback."""
    mixture, removed = written(tmp_path, tiers), []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        # Once the first shard is read, as another process would.
        if event == "open" and not removed and str(arguments[0]).startswith(str(tmp_path / "arm" / "clips-")):
            removed.append(1)
            for shard in sorted((tmp_path / "arm").glob("*.tar")):
                if str(shard) != arguments[0]:
                    shard.unlink()

    sys.addaudithook(hook)
    with pytest.raises(DataError) as caught:
        train_vla(mixture, out=str(tmp_path / "out"), config=CONFIG, workers=workers)
    said = str(caught.value)
    assert said.startswith("source 'arm': the shard ")
    assert said.endswith(" vanished during the run")
    assert "Traceback" not in said
    assert not files.exists(str(tmp_path / "out" / "config.json"))
