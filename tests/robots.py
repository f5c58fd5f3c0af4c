"""Shard folders of a made-up robot whose states and actions a test chooses; pictures say which step they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import drawing
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import parquet
from pyramid.rng import rng
from pyramid.shards.layout import ACTION, INDEX_FILE, INDEX_SCHEMA, STATE, dump_array
from pyramid.shards.writer import write_shard

Episode = tuple[NDArray[np.float32], NDArray[np.float32]]
"""State [T, S] and action [T, D]."""


def reaching(n: int, seed: int, *, joints: int = 2) -> list[Episode]:
    """Episodes of joints that run up, each from elsewhere, and a gripper that is shut half way.

    The action is where the joints are a step later: 0.1 further, whatever they are at.
    """
    draw = rng(seed, "reaching")
    found = []
    for _ in range(n):
        length = int(draw.integers(12, 17))
        path = draw.uniform(-5, 5, joints) + 0.1 * np.arange(length + 1)[:, None]
        grip = (np.arange(length + 1) > length / 2).astype(float)[:, None]
        rows = np.concatenate([path, grip], 1).astype(np.float32)
        found.append((rows[:-1].copy(), rows[1:].copy()))
    return found


def write_robot_shards(
    folder: Path, episodes: Sequence[Episode], *, rate_hz: float = 10.0, embodiment: str = "arm", n_val: int = 0
) -> str:
    """Writes a shard folder with one shard that holds an episode a clip; the last ``n_val`` are held out."""
    samples, facts = [], {}
    for clip, (state, action) in enumerate(episodes):
        key, split = drawing.key_of(clip), "val" if clip >= len(episodes) - n_val else "train"
        members = drawing.sample_members(clip, len(action), rate_hz=rate_hz, split=split)
        samples.append((key, members | {STATE: dump_array(state), ACTION: dump_array(action)}))
        facts[key] = {
            "clip_id": f"robot/{clip}",
            "corpus": "drawn",
            "tier": "top",
            "embodiment": embodiment,
            "split": split,
            "text": "reach",
            "frames": len(action),
            "rate_hz": rate_hz,
            "duration_s": len(action) / rate_hz,
            "height_px": 32,
            "width_px": 32,
            "state_dim": state.shape[1],
            "action_dim": action.shape[1],
            "cuts": [],
        }
    written = write_shard(str(folder / "clips-000000.tar"), samples)
    rows = [{**facts[row["key"]], **row} for row in written]
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    return str(folder)
