"""A Ray cluster whose head dies takes the job with it, and nothing else: the next run goes on where it stopped."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import drawing
import pytest
from labelling import command, tables, wait_for

from pyramid.labels.engine import label

Model = Callable[..., str]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# Without a head everybody gives up after seconds, not after a minute.
HASTY = {"gcs_rpc_server_reconnect_timeout_s": 3}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dead_head_ends_the_job_and_the_next_run_goes_on(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    shards = drawing.write_shards(tmp_path / "shards", [4] * 60)
    path, whole, out = model(), tmp_path / "whole", tmp_path / "out"
    label(shards, labeler="truth", model=path, out=str(whole))
    cluster = Cluster(
        head_node_args={**NODE, "include_dashboard": False, "_system_config": HASTY}, initialize_head=True
    )
    try:
        cluster.add_node(**NODE)
        options = ["--executor", "ray", "--workers", "2", "--ray.address", cluster.address, "--json"]
        process = command(shards, path, out, *options, delay_s=2.0)
        wait_for(lambda: list(out.glob("_receipts/*.json")))
        time.sleep(random.uniform(0, 1.5))
        for kind in ("gcs_server", "raylet"):
            for held in cluster.head_node.all_processes[kind]:
                os.kill(held.process.pid, signal.SIGKILL)
        said, told = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode == 1
    assert said == ""
    assert "Failed to connect to GCS" in told, "Ray says so and ends the process, whoever is waiting"
    again = label(shards, labeler="truth", model=path, out=str(out))
    assert 0 < again.skipped_done < 30
    assert tables(out) == tables(whole)
