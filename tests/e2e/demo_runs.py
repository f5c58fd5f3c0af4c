"""Running the command in a directory, as a user does, and comparing what it leaves."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

SMALL = (
    "--sim.n_hand=6",
    "--sim.n_generated=3",
    "--sim.n_robot=4",
    "--frames_per_shard=100",
    "--lam_steps=8",
    "--idm_steps=8",
    "--evaluate_pairs=64",
    f"--policy={Path(__file__).with_name('small_policy.yaml')}",
    "--vla_steps=6",
    "--draws=1000",
    "--bench_runs=5",
)
COMMAND = (str(Path(sys.executable).with_name("pyramid")),)
# Timings, TensorBoard's and the trainer's own files; everything else is an artefact.
NOT_ARTEFACTS = ("demo.json", "_stages", "logs", "lightning", "_receipts", "_events.jsonl", "parity.json")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}


def run(*arguments: str, cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False, env=environment()
    )


def content(path: Path) -> bytes:
    """A file's bytes; of a clip manifest, all but where the videos lie."""
    if path.parent.name != "clips":
        return path.read_bytes()
    return pd.read_parquet(path).drop(columns=["video", "episode"]).to_json().encode()


def artefacts(folder: Path) -> dict[str, str]:
    """sha256 of every artefact below a demo's folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(NOT_ARTEFACTS)
    }
