"""Ways of training a policy: two processes, half precision, compiled blocks; and what the hub is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import vla_ddp_driver
import vla_kill_driver
from tiny_policy import TINY, make_bodies, make_group

from pyramid.errors import ConfigError, DataError
from pyramid.nn.checkpoint import load_model_files
from pyramid.nn.hub import local_folder
from vla.card import model_card
from vla.objectives.total import batch_loss
from vla.policy import Policy, build_policy
from vla.train import train_vla
from vla.tuning.memory import compile_blocks

# AdamW's first steps blow rounding up, so few and small ones are compared.
FEW = {
    "trainer.max_steps": 3,
    "trainer.checkpoint_every": 3,
    "trainer.batch_size": 3,
    "tune.validation.every": 0,
    "policy.head.dropout": 0.0,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model_files(str(folder), "vla")[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does_with_both_their_batches(strategy: str, tmp_path: Path) -> None:
    mixture = vla_kill_driver.write_mixture(tmp_path)
    together = {**FEW, "trainer.devices": 2, "trainer.strategy": strategy}
    assert in_two(mixture, tmp_path / "two", together).count("train vla: parameters:") == 1
    train_vla(mixture, out=str(tmp_path / "one"), config=vla_kill_driver.config(**FEW, **{"trainer.accumulate": 2}))
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        assert torch.allclose(tensor, one[name], atol=2e-4), name
    still = vla_kill_driver.config(**FEW, **{"trainer.lr": 1e-9})
    train_vla(mixture, out=str(tmp_path / "start"), config=still)
    start = weights(tmp_path / "start")
    assert max(float((two[n] - start[n]).abs().max()) for n in two) > 1e-3
    # What is left is to read the last checkpoint and to write the model again.
    (tmp_path / "two" / "config.json").unlink()
    in_two(mixture, tmp_path / "two", together)
    again = weights(tmp_path / "two")
    assert all(torch.equal(again[name], tensor) for name, tensor in two.items())


def in_two(mixture: str, out: Path, options: dict) -> str:
    """Trains in two processes; returns what they said."""
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, vla_ddp_driver.__file__, mixture, str(out), json.dumps(options)],
        env=env,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_shared_weights_go_with_what_they_can() -> None:
    with pytest.raises(ConfigError, match="devices above 1"):
        vla_kill_driver.config(**{"trainer.strategy": "fsdp"})
    with pytest.raises(ConfigError, match=r"tune\.validation\.every: 0"):
        vla_kill_driver.config(**{"trainer.strategy": "fsdp", "trainer.devices": 2})


def test_half_precision_trains_and_keeps_full_weights(tmp_path: Path) -> None:
    mixture = vla_kill_driver.write_mixture(tmp_path)
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        options = {**FEW, "trainer.precision": precision}
        result = train_vla(mixture, out=str(tmp_path / precision), config=vla_kill_driver.config(**options))
        found[precision] = (result.loss, weights(tmp_path / precision))
    assert found["bf16-mixed"][0] == pytest.approx(found["32-true"][0], rel=0.05)
    assert found["bf16-mixed"][0] != found["32-true"][0]
    assert all(t.dtype == torch.float32 for t in found["bf16-mixed"][1].values() if t.is_floating_point())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_loss_and_gradients() -> None:
    batch = [make_group(make_bodies(), name, 4, 0) for name in ("arm", "human_latent")]
    found = []
    for compiled in (False, True):
        policy = build_policy(TINY, make_bodies(), seed=2).train()
        if compiled:
            assert compile_blocks(policy) == TINY.head.layers + TINY.backbone.tap_layer
        loss, _ = batch_loss(policy, batch, torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    assert all(torch.allclose(found[0][1][n], g, atol=1e-4) for n, g in found[1][1].items())


def test_only_what_can_be_an_id_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (str(tmp_path), "/no/such/folder", "no-such-folder", "a/b/c", "../a/b"):
        assert local_folder(path) == path
    with pytest.raises(DataError, match="no folder 'nobody/nothing', and the hub gives no model of that id"):
        local_folder("nobody/nothing")
    with pytest.raises(DataError, match="no vla model in '/no/such/folder'"):
        Policy.from_pretrained("/no/such/folder")


def test_the_card_names_embodiments_and_says_when_the_data_are_not_known() -> None:
    card = model_card(build_policy(TINY, make_bodies()))
    assert card.startswith("---\nlibrary_name: latent-pyramid")
    assert "| arm | measured | 3 | 2 | 4 | 10 Hz |" in card
    assert "| human_latent | latent | 0 | 5 | 3 | 2 Hz |" in card
    assert "## Training data\n\nNot known." in card
    assert 'embodiment="arm"' in card
