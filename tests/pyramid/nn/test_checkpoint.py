"""Model folders: complete or not there; never another model, never other weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pyramid.errors import DataError
from pyramid.nn.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_model_files, read_model_config, save_model


def net() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer("steps", torch.tensor(7))
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(str(tmp_path), kind="lam", config={"a": 1}, module=net(), provenance={"run": "x"}, extra={"b": [2]})
    return tmp_path


def test_everything_comes_back(tmp_path: Path) -> None:
    module = net()
    module[0].weight = nn.Parameter(module[0].weight.detach().t().contiguous().t())  # Not contiguous in memory.
    sha = save_model(
        str(tmp_path), kind="lam", config={"a": 1}, module=module, provenance={"run": "x"}, extra={"b": [2]}
    )
    description, state = load_model_files(str(tmp_path), "lam")
    assert (description["config"], description["extra"], description["weights_sha256"]) == ({"a": 1}, {"b": [2]}, sha)
    assert set(state) == set(module.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    save_model(str(tmp_path), kind="lam", config={}, module=module, provenance={})
    state = load_model_files(str(tmp_path), "lam")[1]
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="holds a model of kind 'lam', not 'idm'"):
        load_model_files(str(folder), "idm")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / CONFIG_FILE).unlink(), "no lam model"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), WEIGHTS_FILE),
        (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-1]), "copy it again"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), "copy it again"),
        (lambda f: (f / CONFIG_FILE).write_text("{}"), "describes no model"),
        (lambda f: (f / CONFIG_FILE).write_text("[]"), "describes no model"),
        (lambda f: (f / CONFIG_FILE).write_text("{"), "not JSON"),
    ],
)
def test_what_is_broken_is_named(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_model_files(str(folder), "lam")


def test_weights_that_are_no_safetensors_are_named(folder: Path) -> None:
    import hashlib

    data = b"\xff" * 100
    (folder / WEIGHTS_FILE).write_bytes(data)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(DataError, match="not a safetensors file"):
        load_model_files(str(folder), "lam")


def test_a_failed_save_leaves_no_model_that_looks_complete(folder: Path) -> None:
    class Full(nn.Module):
        def state_dict(self, *args: object, **kwargs: object) -> dict:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        save_model(str(folder), kind="lam", config={}, module=Full(), provenance={})
    with pytest.raises(DataError, match="no lam model"):
        read_model_config(str(folder), "lam")
