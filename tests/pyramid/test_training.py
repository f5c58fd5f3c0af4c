"""Training: a run that was stopped ends bit-equal, a finished one is reused, another one's folder is refused."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_driver
from safetensors.torch import load_file

from pyramid import files
from pyramid.errors import ConfigError, DataError, InterruptedJobError, PyramidError
from pyramid.nn.checkpoint import load_model_files
from pyramid.training import TrainerConfig, lr_factor, plan_only, require_data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("training") / "whole"
    training_driver.run(str(out))
    return out


def weights(out: Path) -> str:
    return files.sha256_file(out / "model.safetensors")


def test_killed_anywhere_and_run_again_it_ends_bit_equal(tmp_path: Path) -> None:
    driver = [sys.executable, training_driver.__file__, str(tmp_path)]
    done = subprocess.run(
        driver, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] == 0
    assert [run["name"] for run in found["runs"] if run["again"] != 0 or not run["equal"]] == []
    assert {run["name"] for run in found["runs"] if run["killed"] == -9} >= {
        "step 0",
        "step 2",
        "step 7",
        "step 11",
    }
    assert not any(run["finished"] for run in found["runs"] if run["killed"] == -9)


def test_interrupted_in_this_process_it_goes_on_bit_equal(whole: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press() -> None:
        raise KeyboardInterrupt

    for stop_at in (5, 8):
        with pytest.raises(InterruptedJobError, match="run the same command again"):
            training_driver.run(str(tmp_path), stop_at=stop_at, stop=press)
        assert not (tmp_path / "config.json").exists()
    assert signal.getsignal(signal.SIGINT) == before
    result = training_driver.run(str(tmp_path))
    assert (result.steps, result.reused) == (training_driver.STEPS, False)
    assert weights(tmp_path) == weights(whole)


def test_a_finished_model_is_reused(whole: Path) -> None:
    before = weights(whole)

    def never() -> None:
        raise AssertionError("trained again")

    result = training_driver.run(str(whole), stop_at=0, stop=never)
    assert result.reused
    assert result.loss is None
    assert weights(whole) == before
    assert "found finished" in repr(result)


def test_training_again_from_the_start_gives_the_same_and_another_seed_another(whole: Path, tmp_path: Path) -> None:
    training_driver.run(str(tmp_path / "a"))
    assert weights(tmp_path / "a") == weights(whole)
    training_driver.run(str(tmp_path / "a"), resume=False)
    assert weights(tmp_path / "a") == weights(whole)
    training_driver.run(str(tmp_path / "b"), seed=1)
    assert weights(tmp_path / "b") != weights(whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"data": "other"}])
def test_the_folder_of_another_run_is_refused(tmp_path: Path, change: dict) -> None:
    with pytest.raises(PyramidError, match="enough"):
        training_driver.run(str(tmp_path), stop_at=7, stop=_raise_enough)
    before = drawing_tree(tmp_path)
    with pytest.raises(DataError, match="--no-resume"):
        training_driver.run(str(tmp_path), **change)
    assert drawing_tree(tmp_path) == before
    result = training_driver.run(str(tmp_path), resume=False, **change)
    assert not result.reused


def _raise_enough() -> None:
    raise PyramidError("enough")


def drawing_tree(folder: Path) -> dict[str, str]:
    import drawing

    return {name: sha for name, sha in drawing.tree(folder).items() if "/events" not in name and "logs" not in name}


def test_what_is_saved_is_the_trained_model(whole: Path) -> None:
    description, state = load_model_files(str(whole), "lam")
    assert description["kind"] == "lam"
    assert description["config"]["max_steps"] == training_driver.STEPS
    assert description["provenance"]["inputs"] == {"data": "digest"}
    assert set(state) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(whole / "model.safetensors").items())
    assert list((whole / "logs").glob("events.out.tfevents*"))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_stopped_after_the_last_step_it_only_saves(whole: Path, tmp_path: Path, ema_decay: float) -> None:
    training_driver.run(str(tmp_path), ema_decay=ema_decay)
    before = weights(tmp_path)
    assert (before == weights(whole)) == (ema_decay == 0)  # the average is another model
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").unlink()

    def never() -> None:
        raise AssertionError("trained again")

    result = training_driver.run(str(tmp_path), stop_at=0, stop=never, ema_decay=ema_decay)
    assert weights(tmp_path) == before
    assert result.loss is None or math.isfinite(result.loss)
    assert "nan" not in repr(result)


def test_a_checkpoint_cut_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(PyramidError, match="enough"):
        training_driver.run(str(tmp_path), stop_at=7, stop=_raise_enough)
    checkpoint = tmp_path / "lightning" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(DataError, match=r"last\.ckpt.*--no-resume"):
        training_driver.run(str(tmp_path))


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/sentinel",))

    with pytest.raises(PyramidError, match="enough"):
        training_driver.run(str(tmp_path / "run"), stop_at=7, stop=_raise_enough)
    checkpoint = tmp_path / "run" / "lightning" / "last.ckpt"
    torch.save({"global_step": Payload()}, checkpoint)
    with pytest.raises(DataError, match=r"last\.ckpt"):
        training_driver.run(str(tmp_path / "run"))
    assert not (tmp_path / "sentinel").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Broken(training_driver.Curve):
        def loss(self, batch, generator):
            loss, logs = super().loss(batch, generator)
            return loss * (math.nan if self.global_step == 4 else 1), logs

    config = TrainerConfig(max_steps=6, checkpoint_every=3)
    from pyramid.training import train_model

    with pytest.raises(PyramidError, match="the loss is nan at step 4"):
        train_model(
            Broken(torch.nn.Linear(4, 1), config),
            training_driver.batch_of,
            kind="lam",
            out=str(tmp_path),
            config=config,
            inputs={},
        )
    assert not (tmp_path / "config.json").exists()


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainerConfig(max_steps=100, warmup_steps=10)
    factors = [lr_factor(step, config) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert lr_factor(0, TrainerConfig(max_steps=5, warmup_steps=0)) == 1.0


def test_a_plan_trains_nothing() -> None:
    module = training_driver.Curve(torch.nn.Linear(4, 1), TrainerConfig(max_steps=50))
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    plan = plan_only(module, training_driver.batch_of, kind="lam")
    assert (plan.steps, plan.parameters, plan.dry_run, plan.loss) == (50, 5, True, None)
    assert plan.seconds > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in module.model.state_dict().items())
    assert plan_only(module, None, kind="lam").seconds == 0


@pytest.mark.parametrize(
    "change", [{"max_steps": 0}, {"lr": 0.0}, {"lr": 1.0}, {"lr": math.nan}, {"batch_size": 0}, {"checkpoint_every": 0}]
)
def test_what_could_not_train_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainerConfig(**change)


def test_training_needs_data_and_a_place() -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        require_data([], "out", what="shards")
    with pytest.raises(ConfigError, match="--out"):
        require_data(["x"], None, what="shards")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_numbers_are_written_in_every_logged_step_and_are_of_its_last_pass(accumulate: int, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = training_driver.logged(str(tmp_path), accumulate=accumulate)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("loss")}
    assert sorted(written) == [3, 7, 11], "every fourth of twelve steps"
    for step, value in written.items():
        assert value == pytest.approx(losses[step * accumulate + accumulate - 1])
