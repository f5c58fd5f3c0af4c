"""The mixture's own cost: start-up with many shards, resuming far on, the schedule's share of a step; and its peers.

``mixture.py peers`` compares samples per second with webdataset's RandomMix, mosaicml-streaming, litdata and
Megatron-Energon, each in an environment of its own below ``~/.cache/latent-pyramid-bench``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pyramid import parquet
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.loader import MixtureLoader
from pyramid.mixture.spec import MixtureSpec, SourceSpec, TierSpec
from pyramid.shards.layout import ACTION, INDEX_FILE, INDEX_SCHEMA, META, STATE, TIMES, VIDEO, dump_array
from pyramid.shards.writer import write_shard
from pyramid.table import format_table
from pyramid.video.encode import encode_mp4

T = TypeVar("T")
FRAMES, SIDE, RATE = 48, 64, 10.0
FAR = 10**9
"""Position to resume at, samples."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["own", "peers"], default="own")
    parser.add_argument("--shards", type=int, default=100_000, help="own: shards in the large index")
    parser.add_argument("--batch-size", type=int, default=64, help="own: samples of a batch")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="peers: numbers of workers")
    parser.add_argument("--stores", nargs="+", choices=["local", "s3"], default=["local", "s3"], help="peers")
    parser.add_argument("--loaders", nargs="+", help="peers: ours, webdataset, streaming, litdata, energon")
    parser.add_argument("--batches", type=int, default=128, help="peers: batches of 64 that are timed")
    parser.add_argument("--data", help="peers: where the shards lie or, if they do not, are made and left")
    parser.add_argument("--size-px", type=int, default=128, help="peers: side of the frames")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "peers":
            against_peers(folder, arguments)
            return
        rows = start_up(folder, arguments.shards, arguments.runs)
        rows += step_cost(folder, arguments.batch_size, arguments.runs)
        print(format_table(["what", "seconds of the clock", "CPU seconds", "ratio"], rows))


def against_peers(folder: str, arguments: argparse.Namespace) -> None:
    """Compares loaders on two sources of real shards."""
    from peers.compare import NAMES, compare

    shards = []
    for name in ("a", "b"):
        place = Path(arguments.data or folder, f"{name}-{arguments.size_px}")
        if not (place / INDEX_FILE).exists():
            small_shards(place, 32, clips=8, side=arguments.size_px, frames=64)
        shards.append(str(place))
    compare(
        shards,
        workers=arguments.workers,
        stores=arguments.stores,
        runs=arguments.runs,
        batches=arguments.batches,
        size_px=arguments.size_px,
        names=arguments.loaders or list(NAMES),
    )


def start_up(folder: str, n_shards: int, runs: int) -> list[list[str]]:
    """Times opening and resuming with an index of many shards, whose files are there but hold nothing."""
    spec = two_sources(large_index(Path(folder, "large"), n_shards))
    opened, resumed = [], []
    for _ in range(runs):
        opened.append(timed(lambda: items(open_mixture(spec, batch_size=256, image_size=64), 0))[1])
        fresh = open_mixture(spec, batch_size=256, image_size=64)
        resumed.append(timed(lambda fresh=fresh: items(fresh, FAR))[1])
    return [
        [f"start-up, {n_shards:,} shards, to the first batch's items", *middle(opened, 2), ""],
        [f"resume at sample {FAR:,}, to its batch's items", *middle(resumed, 3), ""],
    ]


def middle(times: list[tuple[float, float]], digits: int) -> list[str]:
    return [f"{statistics.median(column):.{digits}f}" for column in zip(*times, strict=True)]


def items(stream: MixtureStream, first: int) -> list[int]:
    return [drawn.item for drawn in stream.draw(first, 256)]


def step_cost(folder: str, batch_size: int, runs: int) -> list[list[str]]:
    """Times batches, and what of them is spent on saying which samples they are made of."""
    shards = small_shards(Path(folder, "small"), 24)
    whole, schedule = [], []
    for _ in range(runs):
        stream = open_mixture(two_sources(shards), batch_size=batch_size, image_size=SIDE)
        loader = MixtureLoader(stream, batch_size=batch_size)
        whole.append(timed(lambda loader=loader: list(itertools.islice(loader, 40)), 40)[1])
        again = open_mixture(two_sources(shards), batch_size=batch_size, image_size=SIDE)

        def names(again: MixtureStream = again) -> None:
            for step in range(40):
                for drawn in again.draw(step * batch_size, batch_size):
                    drawn.source.locate(drawn.item)

        schedule.append(timed(names, 40)[1])
    share = statistics.median(s[1] for s in schedule) / statistics.median(w[1] for w in whole)
    return [
        [f"a batch of {batch_size} at {SIDE} px", *middle(whole, 4), ""],
        ["its schedule and order", *middle(schedule, 6), f"{share:.2%} of the batch's CPU time"],
        ["decoded frames per used frame", "", "", f"{stream.decoded_per_used:.2f}"],
    ]


def timed(work: Callable[[], T], n: int = 1) -> tuple[T, tuple[float, float]]:
    """Returns a result, and the seconds of the clock and of the processor that each of its ``n`` parts took."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, ((time.perf_counter() - clock) / n, (time.process_time() - cpu) / n)


def two_sources(shards: str) -> MixtureSpec:
    """The same shards twice, 3 : 1."""
    sources = {name: SourceSpec(shards=shards, use="action", weight=w) for name, w in (("one", 3.0), ("two", 1.0))}
    return MixtureSpec(tiers={"top": TierSpec(weight=1.0, sources=sources)}, window_shards=2, shuffle_frames=512)


def facts(clip: int, side: int = SIDE, frames: int = FRAMES) -> dict[str, object]:
    return {
        "clip_id": f"made/{clip}",
        "corpus": "made",
        "tier": "top",
        "embodiment": "arm",
        "split": "train",
        "text": "move",
        "frames": frames,
        "rate_hz": RATE,
        "duration_s": frames / RATE,
        "height_px": side,
        "width_px": side,
        "state_dim": 7,
        "action_dim": 7,
        "cuts": [],
    }


def large_index(folder: Path, n_shards: int) -> str:
    """An index of a clip per shard; the shards are empty, since nothing of them is read."""
    folder.mkdir()
    rows = []
    for number in range(n_shards):
        name = f"clips-{number:06d}.tar"
        (folder / name).touch()
        place = {"shard": name, "key": f"made-{number:012x}-0000", "offset": 0, "size": 1, "sha256": f"{number:064x}"}
        rows.append({**facts(number), **place, "shard_sha256": f"{number:064x}", "shard_bytes": 0})
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    return str(folder)


def small_shards(folder: Path, n_shards: int, clips: int = 4, side: int = SIDE, frames: int = FRAMES) -> str:
    """Real shards of moving noise."""
    folder.mkdir(parents=True)
    random, rows = np.random.default_rng(0), []
    for number in range(n_shards):
        samples = []
        for clip in range(number * clips, (number + 1) * clips):
            pictures = random.integers(0, 255, (frames, side // 4, side // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
            values = random.normal(size=(frames, 7)).astype(np.float32)
            members = {
                META: b"{}",
                VIDEO: encode_mp4(pictures, RATE, gop=12),
                TIMES: dump_array(np.arange(frames) / RATE),
                STATE: dump_array(values),
                ACTION: dump_array(values),
            }
            samples.append((f"made-{clip:012x}-0000", members))
        written = write_shard(str(folder / f"clips-{number:06d}.tar"), samples)
        rows += [{**facts(number * clips + i, side, frames), **row} for i, row in enumerate(written)]
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    return str(folder)


if __name__ == "__main__":
    main()
