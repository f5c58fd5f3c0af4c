"""What the demo leaves is read with other people's tools alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.sim


def test_shards_with_plain_webdataset(small_demo: Path) -> None:
    import webdataset

    folder = small_demo / "demo/shards/robot"
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    import pandas as pd

    index = pd.read_parquet(folder / "shards.parquet")
    assert [s["__key__"] for s in samples] == index["key"].tolist()
    for sample, row in zip(samples, index.itertuples(), strict=True):
        action = np.load(io.BytesIO(sample["action.npy"]), allow_pickle=False)
        assert action.shape == (row.frames, row.action_dim)
        assert np.load(io.BytesIO(sample["t_s.npy"]), allow_pickle=False).shape == (row.frames,)
        assert json.loads(sample["json"])["clip_id"] == row.clip_id
        assert sample["mp4"][4:8] == b"ftyp"


def test_label_tables_with_plain_pandas_and_pyarrow(small_demo: Path) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    folder = small_demo / "demo/shards/generated"
    index = pd.read_parquet(folder / "shards.parquet").set_index("key")
    for run, columns in (("lam", ["latent", "codes", "recon_gain"]), ("idm", ["action", "action_std", "n_votes"])):
        paths = sorted((folder / "labels" / run).glob("*.parquet"))
        assert [p.stem for p in paths] == sorted(p.stem for p in folder.glob("*.tar"))
        table = pd.concat([pd.read_parquet(path) for path in paths])
        assert set(columns) <= set(table.columns)
        assert (table.groupby("key")["t_s"].diff().dropna() > 0).all()
        assert (table["frame"] < table["key"].map(index["frames"])).all()
        stored = json.loads(pq.read_schema(paths[0]).metadata[b"latent_pyramid"])
        assert {"labeler", "labeler_digest", "index_digest", "config"} <= set(stored)
    kinds = pq.read_schema(folder / "labels/lam/clips-000000.parquet")
    assert str(kinds.field("codes").type) == "fixed_size_list<element: uint16>[4]"


def test_onnx_files_with_plain_onnxruntime(small_demo: Path) -> None:
    import onnx
    import onnxruntime

    folder = small_demo / "demo/deploy"
    policy = json.loads((folder / "policy.json").read_text())
    assert policy
    for name in ("system2", "system1"):
        onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    for name in ("system2", "system1"):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for spec in session.get_inputs():
            feeds.setdefault(spec.name, outputs.get(spec.name, draw(spec, rng)))
        found = session.run(None, {spec.name: feeds[spec.name] for spec in session.get_inputs()})
        outputs |= {spec.name: value for spec, value in zip(session.get_outputs(), found, strict=True)}
    assert all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == "f")


def draw(spec: object, rng: np.random.Generator) -> np.ndarray:
    shape = [n if isinstance(n, int) else 1 for n in spec.shape]  # type: ignore[attr-defined]
    kind = spec.type  # type: ignore[attr-defined]
    if "uint8" in kind:
        return rng.integers(0, 255, shape, dtype=np.uint8)
    if "int64" in kind:
        return rng.integers(0, 50, shape)
    if "bool" in kind:
        return np.ones(shape, bool)
    return rng.standard_normal(shape).astype(np.float32)
