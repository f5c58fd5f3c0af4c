"""What a training run was given: logged exactly across stops and numbers of workers, and held against the plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_policy import TINY

from pyramid import files, parquet
from pyramid.config import dump_yaml, to_dict
from pyramid.errors import DataError, ExitCode
from pyramid.mixture.audit import mix_audit
from pyramid.mixture.batch import MixtureStream
from pyramid.mixture.verbs import mix_simulate
from pyramid.nn.trainer import TrainerConfig
from vla.config import VLAConfig
from vla.train import train_vla

STEPS, BATCH = 11, 6
TRAINER = TrainerConfig(
    max_steps=STEPS, batch_size=BATCH, lr=1e-3, warmup_steps=2, checkpoint_every=4, log_every=1, threads=1
)
CONFIG = VLAConfig(policy=TINY, trainer=TRAINER)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    sources = {
        name: {"shards": drawing.write_shards(tmp_path / name, [6] * 6, first_clip=c), "use": "action", "weight": w}
        for name, c, w in (("arm", 0, 1), ("lab", 30, 2))
    }
    change = {"step": 5, "sources": {"arm": 2.0}}
    tiers = {"top": {"weight": 1, "sources": sources}}
    spec = {"tiers": tiers, "horizon": 3, "schedule": [change], "schedule_batch": BATCH, "max_bad_share": 0.5}
    (tmp_path / "mix.yaml").write_text(dump_yaml(spec))
    return str(tmp_path / "mix.yaml")


def stopped(mixture: str, out: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until the batch of a step is asked for."""
    whole = MixtureStream.batch

    def failing(self: MixtureStream, step: int) -> list:
        if step == at:
            raise DataError("the disk went away")
        return whole(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(MixtureStream, "batch", failing)
        with pytest.raises(DataError, match="went away"):
            train_vla(mixture, out=out, config=CONFIG)


def test_a_run_that_was_stopped_and_resumed_is_audited_to_the_sample(
    mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train_vla(mixture, out=whole, config=CONFIG)
    stopped(mixture, parts, 7, monkeypatch)
    stopped(mixture, parts, 10, monkeypatch)
    train_vla(mixture, out=parts, config=CONFIG, workers=2)
    assert drawing.tree(Path(parts, "drawn")) == drawing.tree(Path(whole, "drawn"))
    weights = [files.read_bytes(f"{out}/model.safetensors") for out in (whole, parts)]
    assert weights[0] == weights[1]
    found, plan = mix_audit(parts), mix_simulate(mixture, draws=STEPS * BATCH)
    assert found.counts == found.planned == plan.counts
    assert (found.draws, found.differences, found.replaced) == (STEPS * BATCH, 0, 0)
    assert found.same_data
    assert found.exit_code == ExitCode.DONE
    assert "as planned, to the sample" in repr(found)
    assert found.epochs == {name: count / 36 for name, count in plan.counts.items()}
    assert [(o["source"], o["not_finite"], o["dead"]) for o in found.outliers] == [("arm", 0, []), ("lab", 0, [])]


def test_training_logs_what_was_decoded_for_what_was_used(mixture: str, tmp_path: Path) -> None:
    """Twelve clips of six frames are decoded once and held, whoever reads them: 72 frames for 66 samples."""
    for workers in (0, 2):
        out = tmp_path / f"run-{workers}"
        train_vla(mixture, out=str(out), config=CONFIG, workers=workers)
        events = EventAccumulator(str(out / "logs"))
        events.Reload()
        ratios = [event.value for event in events.Scalars("decoded_per_used")]
        assert len(ratios) == STEPS
        assert ratios[-1] == pytest.approx(72 / (STEPS * BATCH), rel=0.1)
        assert ratios[0] > ratios[-1]


KILLED = """
import os, sys
from vla.train import VLAModule, train_vla
mixture, config, out, curve, workers, stop = sys.argv[1:]
loss_of = VLAModule.loss
def loss(self, batch, generator):
    found = loss_of(self, batch, generator)
    with open(curve, "a") as stream:
        print(self.global_step, float(found[0].detach()).hex(), file=stream)
    if self.global_step == int(stop):
        os.kill(os.getpid(), 9)
    return found
VLAModule.loss = loss
train_vla(mixture, out=out, config=config, workers=int(workers))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_was_killed_at_random_steps_has_a_bit_equal_loss_curve(mixture: str, tmp_path: Path) -> None:
    """SIGKILL, then the same command with another number of workers, four times over."""
    (tmp_path / "policy.yaml").write_text(dump_yaml(to_dict(CONFIG)))

    def train(name: str, workers: int, stop: int) -> int:
        places = [mixture, str(tmp_path / "policy.yaml"), str(tmp_path / name), str(tmp_path / f"{name}.txt")]
        command = [sys.executable, "-c", KILLED, *places, str(workers), str(stop)]
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False
        ).returncode

    assert train("whole", 0, -1) == 0
    stops = sorted(np.random.default_rng().choice(np.arange(1, STEPS), 3, replace=False).tolist())
    print("killed at", stops)
    for workers, stop in zip((2, 0, 3), stops, strict=True):
        assert train("parts", workers, stop) == -9
    assert train("parts", 1, -1) == 0
    curve, parts = ((tmp_path / f"{name}.txt").read_text().splitlines() for name in ("whole", "parts"))
    assert [int(line.split()[0]) for line in curve] == list(range(STEPS))
    assert len(parts) > STEPS
    assert set(parts) == set(curve)
    assert drawing.tree(tmp_path / "parts" / "drawn") == drawing.tree(tmp_path / "whole" / "drawn")
    found, plan = mix_audit(str(tmp_path / "parts")), mix_simulate(mixture, draws=STEPS * BATCH)
    assert found.counts == found.planned == plan.counts
    assert (found.draws, found.differences) == (STEPS * BATCH, 0)


def rewrite(run: str, number: int, **change: object) -> None:
    """Changes a row of the first file of a log."""
    path = f"{run}/drawn/{sorted(files.listdir(f'{run}/drawn'))[0]}"
    rows, facts = parquet.read(path).to_pylist(), parquet.metadata(path)
    rows[number].update(change)
    parquet.write(path, pa.Table.from_pylist(rows), facts)


def test_an_audit_finds_every_sample_that_was_not_planned(mixture: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train_vla(mixture, out=run, config=CONFIG)
    first = parquet.read(f"{run}/drawn/{sorted(files.listdir(f'{run}/drawn'))[0]}").to_pylist()
    other = "lab" if first[3]["source"] == "arm" else "arm"
    rewrite(run, 3, source=other)
    rewrite(run, 5, key=drawing.key_of(99))
    rewrite(run, 9, position=8)
    rewrite(run, 11, key=drawing.key_of(99), replaced=True)
    found = mix_audit(run)
    text = "\n".join(found.first_differences)
    assert found.exit_code == ExitCode.FAILED
    assert "position 8 was drawn 2 times" in text
    assert "position 9 was drawn 0 times" in text
    assert f"position 3: source '{other}', planned was" in text
    assert f"position 5: clip {drawing.key_of(99)}, planned was {first[5]['key']}" in text
    assert "position 11" not in text
    assert found.replaced == 1
    with pytest.raises(DataError, match="no log of drawn samples"):
        mix_audit(str(tmp_path))


def test_a_bad_sample_of_a_run_is_in_its_log(mixture: str, tmp_path: Path) -> None:
    shard = tmp_path / "arm" / "clips-000001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 255
    shard.write_bytes(data)
    run = str(tmp_path / "run")
    train_vla(mixture, out=run, config=CONFIG, workers=1)
    found = mix_audit(run)
    assert found.replaced > 0
    assert found.differences == 0
    assert found.counts == found.planned
    assert not mix_audit(run, mixture=mixture).first_differences
    (tmp_path / "mix.yaml").write_text((tmp_path / "mix.yaml").read_text().replace("weight: 2", "weight: 3"))
    assert not mix_audit(run).same_data
    assert mix_audit(run).differences


def test_odd_actions_are_told(mixture: str, tmp_path: Path) -> None:
    from pyramid.mixture.audit import _odd
    from pyramid.mixture.sketch import Summary

    draw = np.random.default_rng(0).normal(size=(4000, 3))
    pooled = Summary.of(draw)
    assert _odd(pooled, pooled)["odd"] == ""
    assert _odd(pooled, pooled)["beyond"] == pytest.approx(0.02, abs=2e-3)
    still = draw.copy()
    still[:, 1] = 0.25
    still[7, 0] = np.nan
    still[:400, 2] += 100
    found = _odd(Summary.of(still), pooled)
    assert found["not_finite"] == 1
    assert found["dead"] == [1]
    assert found["beyond"] == pytest.approx(0.1 + 0.9 * 0.02, abs=5e-3)
    assert found["odd"] == "not finite, dead, dimension 2"
    assert found["furthest"] > 40
