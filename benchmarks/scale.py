"""Memory for corpora of millions of clips: scanning and planning, each in a process of its own, against a limit."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import pyarrow as pa

from pyramid import pack, parquet
from pyramid.corpora.cutting import cut_into_clips
from pyramid.corpora.manifest import GROUP_ROWS, SCHEMA, write_manifest
from pyramid.corpora.source import Found, ScanConfig, Source, Window
from pyramid.table import format_table

LIMIT_MIB = 2048
SECONDS = 40
"""Length of the videos that are scanned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--videos", type=int, default=20, help="that the scanned clips lie in")
    parser.add_argument("--stages", nargs="*", default=["scan", "plan"])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in arguments.stages:
            for clips in (arguments.clips // 10, arguments.clips):
                seconds, mib = apart(stage, folder, clips, arguments.videos)
                rows.append([stage, f"{clips:,}", round(seconds), round(mib), round(mib / LIMIT_MIB, 2)])
                print(rows[-1], file=sys.stderr, flush=True)
    print(format_table(["stage", "clips", "seconds", "peak MiB", f"peak : {LIMIT_MIB} MiB"], rows))


def apart(stage: str, folder: str, clips: int, videos: int) -> tuple[float, float]:
    """Wall time and peak of resident memory of one stage."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(stage, folder, clips, videos, theirs))
    process.start()
    seconds, mib = ours.recv()
    process.join()
    return seconds, mib


def measure(stage: str, folder: str, clips: int, videos: int, answer: Connection) -> None:
    manifest = str(Path(folder, f"{stage}-{clips}.parquet"))
    if stage == "plan":
        parquet.write_groups(manifest, SCHEMA, tables(clips), dict)
    start = time.monotonic()
    if stage == "plan":
        planned = pack(manifest, out=str(Path(folder, "shards")), dry_run=True)
        assert planned.clips == clips
    else:
        write_manifest(manifest, scanned(folder, clips, videos), {})
    seconds = time.monotonic() - start
    Path(manifest).unlink()
    # Not getrusage: its peak counts what the parent held before this process was started.
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    answer.send((seconds, peak_kib / 2**10))


def tables(clips: int) -> Iterator[pa.Table]:
    """A manifest of clips of two seconds, a thousand in each video."""
    for first in range(0, clips, GROUP_ROWS):
        n = np.arange(first, min(first + GROUP_ROWS, clips))
        known = {
            "clip_id": [f"made/{i // 1000:07d}.mp4#{i % 1000}" for i in n],
            "corpus": ["made"] * len(n),
            "video": [f"/videos/{i // 1000:07d}.mp4" for i in n],
            "start_s": (n % 1000) * 2.0,
            "end_s": (n % 1000) * 2.0 + 2.0,
            "text": [f"somebody does thing {i % 977} with thing {i % 89}" for i in n],
            "tier": ["base"] * len(n),
            "embodiment": ["human"] * len(n),
            "split": ["train"] * len(n),
            "content": [f"{i // 1000:064x}" for i in n],
        }
        empty = {field.name: [None if field.type != pa.string() else ""] * len(n) for field in SCHEMA}
        yield pa.table({**empty, **known}, schema=SCHEMA).select(SCHEMA.names)


def scanned(folder: str, clips: int, videos: int) -> Iterator[object]:
    """Clips of videos with very many narrations each."""
    each = clips // videos

    def windows(_duration_s: float) -> Iterator[Window]:
        for i in range(each):
            start = i * (SECONDS - 2) / each
            yield Window(name=f"n{i}", start_s=start, end_s=start + 1, text=f"somebody does thing {i % 977}")

    sources = [Source(name=f"{i}.mp4", video=video(folder, i), windows=windows) for i in range(videos)]
    yield from cut_into_clips(Found(sources=sources), ScanConfig(), "made")


def video(folder: str, number: int) -> str:
    path = str(Path(folder, f"{number}.mp4"))
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(SECONDS):
            shade = np.full((64, 64, 3), (number * 5 + i) % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
