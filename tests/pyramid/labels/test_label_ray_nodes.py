"""Ray clusters of more than one node: nodes that die cost nothing; a job begins and ends what it has started itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest
from labelling import below, command, events, gone, tables, wait_for

from pyramid.labels.engine import label

Model = Callable[..., str]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# A dead node is noticed after about a second, not fifteen.
HASTY = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for an actor; each other node has room for one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HASTY}
    running = Cluster(head_node_args=head, initialize_head=True)
    yield running
    running.shutdown()


def raylet(node: Any) -> int:
    (process,) = node.all_processes["raylet"]
    return process.process.pid


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"the job hangs: {process.communicate()}") from None


@pytest.mark.parametrize("count", [1, pytest.param(15, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_a_killed_node_costs_nothing(cluster: Any, model: Model, tmp_path: Path, count: int) -> None:
    shards = drawing.write_shards(tmp_path / "shards", [4] * 8)
    path, whole = model(), tmp_path / "whole"
    label(shards, labeler="truth", model=path, out=str(whole))
    cluster.add_node(**NODE)
    options = ["--executor", "ray", "--workers", "2", "--ray.address", cluster.address, "--retries", "0", "--json"]
    for number in range(count):
        out, victim = tmp_path / str(number), cluster.add_node(**NODE)
        process = command(shards, path, out, *options, delay_s=0.5)
        wait_for(lambda out=out: (out / "_events.jsonl").exists())
        moment = random.uniform(0, 3)
        time.sleep(moment)
        os.kill(raylet(victim), signal.SIGKILL)
        said, told = end(process)
        assert process.returncode == 0, (moment, told)
        assert json.loads(said)["clips"] == 8, "one line of JSON and nothing of Ray's"
        assert tables(out) == tables(whole), moment
        cluster.remove_node(victim, allow_graceful=False)


@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_a_job_leaves_nothing_of_its_own_cluster(model: Model, tmp_path: Path, how: str) -> None:
    pytest.importorskip("ray")
    shards = drawing.write_shards(tmp_path / "shards", [4] * 8)
    path, whole, out = model(), tmp_path / "whole", tmp_path / "out"
    label(shards, labeler="truth", model=path, out=str(whole))
    process = command(shards, path, out, "--executor", "ray", "--workers", "2", "--json", delay_s=0.5)
    wait_for(lambda: list(out.glob("_receipts/*.json")))
    started = below(process.pid)
    assert any("raylet" in line for line in started.values())
    assert any(line.startswith("ray::LabelActor") for line in started.values())
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.kill()
    said, told = end(process)
    assert process.returncode == (130 if how == "Ctrl-C" else -9), told
    assert said == ""
    if how == "Ctrl-C":
        assert "run the same command again to go on where it stopped" in told
        assert "Traceback" not in told
        assert events(out)[-1]["event"] == "interrupted"
    wait_for(lambda: gone(list(started)))
    assert 0 < label(shards, labeler="truth", model=path, out=str(out)).skipped_done < 4
    assert tables(out) == tables(whole)


def test_a_cluster_without_room_ends_the_job_with_what_to_do(cluster: Any, model: Model, tmp_path: Path) -> None:
    shards = drawing.write_shards(tmp_path / "shards", [4])
    options = ["--executor", "ray", "--ray.address", cluster.address, "--ray.num-cpus", "5", "--ray.wait-s", "1"]
    process = command(shards, model(), tmp_path / "out", *options)
    _, told = end(process)
    assert process.returncode == 1
    assert "no actor came up in 1 s; each needs a node with 5 CPUs and 0 GPUs free" in told
