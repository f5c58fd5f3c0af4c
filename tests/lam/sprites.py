"""Synthetic shards: a disc moved by known actions over a textured background, written through the real shard writer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from pyramid import parquet
from pyramid.rng import rng
from pyramid.shards.layout import ACTION, INDEX_FILE, INDEX_SCHEMA, META, STATE, TIMES, VIDEO, dump_array
from pyramid.shards.reader import Sample
from pyramid.shards.writer import write_shard
from pyramid.video.encode import encode_mp4

SIDE = 64
_RADIUS = 6.0


def episode(
    number: int,
    *,
    n_frames: int = 48,
    speed: float = 1.5,
    still: bool = False,
    background_of: int | None = None,
    errand: bool = False,
    hand: bool = False,
):
    """Returns pixels uint8 [T, 64, 64, 3], positions [T, 2] and actions float32 [T, 3] (dx, dy in pixels, and 1).

    On an errand the disc goes from the same place to any in a far corner, then to the nearer edge; a hand is smaller,
    pale, and has no arm above it, which the robot of errands has.
    """
    generator = rng(number, "sprites")
    behind = generator if background_of is None else rng(background_of, "sprites-background")
    background = behind.integers(70, 130, (16, 16, 3)).repeat(4, 0).repeat(4, 1).astype(np.float32)
    colour = np.array([240.0, 190.0, 170.0] if hand else [255.0, 255.0, 60.0], np.float32)
    radius, arm = _RADIUS - hand, errand and not hand
    position, velocity = generator.uniform(16, 48, 2), generator.normal(size=2) * speed
    goal = second = position
    if errand:
        goal, second = generator.uniform((30, 12), (54, 46)), generator.uniform((20, 48), (40, 56))
        position = np.array([12.0, 30.0])
    frames, positions, actions = [], [], []
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1)
    for step in range(n_frames):
        inside = np.clip(radius - np.linalg.norm(grid - position, axis=-1) + 0.5, 0, 1)[..., None]
        seen = background * (1 - inside) + colour * inside
        if arm:
            column = np.clip(3.5 - np.abs(grid[..., :1] - position[0]), 0, 1) * (grid[..., 1:] < position[1] - radius)
            seen = seen * (1 - column) + np.array([200.0, 30.0, 30.0], np.float32) * column
        frames.append(seen.astype(np.uint8))
        velocity = np.clip(0.9 * velocity + 0.45 * speed * generator.normal(size=2), -1.5 * speed, 1.5 * speed)
        velocity = np.where((position + velocity < 8) | (position + velocity > 56), -velocity, velocity)
        if errand:
            way = (goal if step < n_frames // 2 else second) - position
            velocity = speed * way / max(np.linalg.norm(way), 4.0) + 0.3 * speed * generator.normal(size=2)
        moved = np.zeros(2) if still else velocity
        positions.append(position)
        actions.append([*moved, 1.0])
        position = position + moved
    return np.stack(frames), np.array(positions, np.float32), np.array(actions, np.float32)


def make_sample(number: int, *, rate_hz: float = 80.0, embodiment: str = "sprite", split: str = "train", **options):
    """Returns a sample as a shard would give it."""
    pixels, state, action = episode(number, **options)
    meta = {"clip_id": f"sprites/{number}", "embodiment": embodiment, "split": split, "rate_hz": rate_hz, "scores": {}}
    times = np.arange(len(pixels)) / rate_hz
    return Sample(f"sprites-{number:012x}-0000", meta, times, encode_mp4(pixels, rate_hz), state, action)


def write_shards(folder: Path, samples: list[Sample], per_shard: int = 1000) -> str:
    """Writes samples as shards of so many with their index."""
    members = [
        (
            sample.key,
            {META: json.dumps(sample.meta).encode(), VIDEO: sample.video, TIMES: dump_array(sample.times_s)}
            | ({} if sample.state is None else {STATE: dump_array(sample.state)})
            | ({} if sample.action is None else {ACTION: dump_array(sample.action)}),
        )
        for sample in samples
    ]
    groups = [members[first : first + per_shard] for first in range(0, len(members), per_shard)]
    rows = [row for n, group in enumerate(groups) for row in write_shard(str(folder / f"clips-{n:06d}.tar"), group)]
    facts = [
        {
            **sample.meta,
            "corpus": "sprites",
            "tier": "top",
            "text": "",
            "frames": len(sample),
            "duration_s": len(sample) / sample.meta["rate_hz"],
            "height_px": SIDE,
            "width_px": SIDE,
            "state_dim": 0 if sample.state is None else sample.state.shape[1],
            "action_dim": 0 if sample.action is None else sample.action.shape[1],
            "cuts": sample.meta["scores"].get("cuts", []),
        }
        for sample in samples
    ]
    table = pa.Table.from_pylist([{**f, **r} for f, r in zip(facts, rows, strict=True)], schema=INDEX_SCHEMA)
    parquet.write(folder / INDEX_FILE, table, {})
    return str(folder)


def make_shards(folder: Path, *, n_train: int = 12, n_val: int = 4, **options) -> str:
    """Writes train and val episodes of one kind."""
    samples = [make_sample(i, split="train" if i < n_train else "val", **options) for i in range(n_train + n_val)]
    return write_shards(folder, samples)
