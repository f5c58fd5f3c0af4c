"""Runs all loaders on the same clips in turn, so that a busy machine is busy for all of them, and compares them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from environments import PACKAGES, python_of, version_of

from pyramid.shards.reader import ShardSet
from pyramid.table import format_table

HERE = Path(__file__).parent
NAMES = ("ours", *PACKAGES)
TIMEOUT_S = 900
Found = dict[str, list[dict[str, float]]]


def compare(
    shards: list[str], *, workers: list[int], stores: list[str], runs: int, batches: int, size_px: int, names: list[str]
) -> None:
    """Prints a table for each store and number of workers."""
    pythons = {name: python_of(name) for name in names}
    missing = {name: why for name, (python, why) in pythons.items() if why}
    with tempfile.TemporaryDirectory() as folder:
        own, failed = _converted(shards, {n: p for n, (p, why) in pythons.items() if not why}, folder)
        missing |= failed
        for store in stores:
            with _served(store) as (environment, root):
                places = {name: _uploaded(parts, name, environment, root) for name, parts in own.items()}
                for n in workers:
                    task = {"workers": n, "batches": batches, "size_px": size_px}
                    found, more = _in_turn(places, pythons, task, environment, runs)
                    print(f"\n{store}, {n} worker{'s' * (n > 1)}")
                    print(_table(found, {n: version_of(n, pythons[n][0]) for n in found}))
                    for name, why in (missing | more).items():
                        print(f"missing: {name}: {why}")


def _converted(shards: list[str], pythons: dict[str, str], folder: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Brings the clips into every loader's own format; returns the folders, and what failed."""
    own, failed = {}, {}
    for name, python in pythons.items():
        if name in ("ours", "webdataset"):
            own[name] = shards
            continue
        outs = [f"{folder}/{name}/{i}" for i in range(len(shards))]
        for source, out in zip(shards, outs, strict=True):
            code, _, error = _run([python, str(HERE / "loaders.py"), "convert", name, source, out], {})
            if code:
                failed[name] = error
                break
        else:
            own[name] = outs
    return own, failed


def _in_turn(
    places: dict[str, list[str]],
    pythons: dict[str, tuple[str, str]],
    task: dict[str, Any],
    environment: dict[str, str],
    runs: int,
) -> tuple[Found, dict[str, str]]:
    found: Found = {}
    failed: dict[str, str] = {}
    for turn in range(runs):
        # The other way round every other time.
        for name in list(places) if turn % 2 == 0 else list(places)[::-1]:
            if name in failed:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                whole = {**task, "folders": places[name], "weights": [0.7, 0.3], "batch_size": 64, "horizon": 16}
                whole |= {"warm_up": 64, "scratch": scratch}
                text = json.dumps(whole)
                fresh = {**environment, "XDG_CACHE_HOME": scratch}
                code, out, error = _run([pythons[name][0], str(HERE / "loaders.py"), "run", name], fresh, text)
            if code:
                failed[name] = error
            else:
                found.setdefault(name, []).append(json.loads(out.splitlines()[-1]))
    return found, failed


def _run(command: list[str], environment: dict[str, str], text: str = "") -> tuple[int, str, str]:
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    everything = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    try:
        done = subprocess.run(
            command, input=text, env=everything, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"nothing within {TIMEOUT_S} s"
    lines = done.stderr.strip().splitlines() or ["nothing said"]
    return done.returncode, done.stdout, lines[-1][:300]


def _table(found: Found, versions: dict[str, str]) -> str:
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    own, rows = middle.get("ours"), []
    for name, m in middle.items():
        ratios = [f"{own[key] / m[key]:.2f}" if own else "" for key in ("wall", "cpu")]
        rows.append([name, versions[name], f"{m['first_s']:.1f}", f"{m['wall']:,.0f}", f"{m['cpu']:,.0f}", *ratios])
    head = ["loader", "version", "first batch, s", "samples / s", "samples / CPU-s", "ours to it", "ours to it, CPU"]
    return format_table(head, rows)


@contextlib.contextmanager
def _served(store: str) -> Iterator[tuple[dict[str, str], str]]:
    """Yields the environment variables of a store and where its buckets are; nothing for the local disk."""
    if store == "local":
        yield {}, ""
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        yield (
            {
                "AWS_ENDPOINT_URL": url,
                "S3_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            "s3://bench",
        )
    finally:
        server.stop()


def _uploaded(parts: list[str], name: str, environment: dict[str, str], root: str) -> list[str]:
    """Brings folders to a store; returns where they lie."""
    if name == "webdataset":
        os.environ["SHARDS"] = json.dumps(ShardSet.open(parts[0]).shards)
    if not root:
        return parts
    import boto3

    client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
                          aws_access_key_id="bench", aws_secret_access_key="bench")  # fmt: skip # noqa: S106
    client.create_bucket(Bucket="bench")
    for i, part in enumerate(parts):
        for path in sorted(p for p in Path(part).rglob("*") if p.is_file()):
            client.upload_file(str(path), "bench", f"{name}/{i}/{path.relative_to(part)}")
    return [f"{root}/{name}/{i}" for i in range(len(parts))]
