"""Passes of lam and idm: filled across clips, of one shape, and no clip sees another; autocast and compile say so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_models
import torch

from pyramid import parquet
from pyramid.labels.engine import label
from pyramid.labels.protocol import load_labeler
from pyramid.shards.reader import Sample, ShardSet

FRAMES = [12, 7, 9, 20, 6, 11]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES, per_shard=3)


@pytest.fixture
def samples(shards: str) -> list[Sample]:
    """Clips of two embodiments by turns."""
    opened = ShardSet.open(shards)
    found = [opened.read(i) for i in range(len(opened))]
    meta = [{**sample.meta, "embodiment": ("arm", "hand")[i % 2]} for i, sample in enumerate(found)]
    return [dataclasses.replace(sample, meta=own) for sample, own in zip(found, meta, strict=True)]


def loaded(name: str, folder: Path) -> Any:
    path = random_models.lam_model(folder) if name == "lam" else random_models.idm_model(folder, ("arm", "hand"))
    return load_labeler(name, path)


def passes(labeler: Any, work: Callable[[], object]) -> list[int]:
    """Rows of each pass through the first network of a labeler's model."""
    rows: list[int] = []
    network = labeler.model.quantizer if labeler.name == "lam" else labeler.model
    hook = network.register_forward_hook(lambda _module, inputs, _out: rows.append(len(inputs[0])))
    work()
    hook.remove()
    return rows


@pytest.mark.parametrize("name", ["lam", "idm"])
def test_a_clip_is_labelled_the_same_in_any_company(name: str, samples: list[Sample], tmp_path: Path) -> None:
    labeler = loaded(name, tmp_path / "model")
    alone = [labeler.label([sample])[0] for sample in samples]
    together = labeler.label(samples)
    backwards = labeler.label(samples[::-1])[::-1]
    for sample, *tables in zip(samples, alone, together, backwards, strict=True):
        assert tables[0]["key"].to_pylist() == [sample.key] * tables[0].num_rows
        assert tables[0].num_rows == len(sample) - (2 if name == "lam" else 1)
        assert tables[0].equals(tables[1])
        assert tables[0].equals(tables[2])
    said = {json.dumps(table.select([-1, 5]).slice(0, 1).to_pylist()) for table in alone}
    assert len(said) > 1, "labels that are all the same would prove nothing"


def test_passes_are_filled_across_clips(samples: list[Sample], tmp_path: Path) -> None:
    lam, idm = loaded("lam", tmp_path / "lam"), loaded("idm", tmp_path / "idm")
    pairs, windows = sum(FRAMES) - 2 * len(FRAMES), [sum(FRAMES[i::2]) - 4 * 3 for i in (0, 1)]
    assert passes(lam, lambda: lam.label(samples)) == [16] * -(-pairs // 16)
    assert passes(idm, lambda: idm.label(samples)) == [16] * sum(-(-n // 16) for n in windows)
    assert passes(idm, lambda: [idm.label([sample]) for sample in samples]) == [16] * len(samples)


def column(out: Path, name: str) -> np.ndarray:
    tables = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    return np.array(pa.concat_tables(tables)[name].to_pylist(), np.float64)


def differs_a_little(shards: str, tmp_path: Path, tolerance: float, **options: Any) -> None:
    """Labels with and without an option: another digest, other bits, about the same numbers."""
    models = [random_models.lam_model(tmp_path / "lam"), random_models.idm_model(tmp_path / "idm")]
    job = {"shards": shards, "labeler": ["lam", "idm"], "model": models}
    label(**job, out=str(tmp_path / "plain"))
    label(**job, out=str(tmp_path / "fast"), **options)
    for name, numbers in (("lam", "latent"), ("lam", "recon_gain"), ("idm", "action"), ("idm", "action_std")):
        plain, fast = (column(tmp_path / kind / name, numbers) for kind in ("plain", "fast"))
        assert plain.shape == fast.shape
        assert np.abs(plain - fast).max() <= tolerance * max(1.0, np.abs(plain).max()), (name, numbers)
    for name in ("lam", "idm"):
        plain, fast = (
            parquet.metadata(str(tmp_path / kind / name / "clips-000000.parquet")) for kind in ("plain", "fast")
        )
        assert plain["labeler_digest"] == fast["labeler_digest"]
        assert "options" not in plain
        assert fast["options"] == options
    again = label(**job, out=str(tmp_path / "fast"))
    assert again.skipped_done == 0, "labels of another precision are no labels of this job"
    assert label(**job, out=str(tmp_path / "fast")).skipped_done == 4
    for name in ("lam", "idm"):
        assert drawing.lasting(drawing.tree(tmp_path / "fast" / name)) == drawing.lasting(
            drawing.tree(tmp_path / "plain" / name)
        )


def test_bfloat16_changes_digest_and_rounding_only(shards: str, tmp_path: Path) -> None:
    differs_a_little(shards, tmp_path, 0.02, autocast="bfloat16")
    # The tables above were made anew without it; that it does something is seen in the network's own numbers.
    labeler = load_labeler("idm", str(tmp_path / "idm"))
    clip = ShardSet.open(shards).read(0)
    plain = labeler.label([clip])[0]["action"].to_pylist()
    with torch.autocast("cpu", torch.bfloat16):
        assert labeler.label([clip])[0]["action"].to_pylist() != plain


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_networks_change_digest_and_rounding_only(shards: str, tmp_path: Path) -> None:
    import shutil

    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    differs_a_little(shards, tmp_path, 1e-4, compile=True)
