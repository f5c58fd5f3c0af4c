"""Memory for corpora of millions of clips: scanning and planning, each in a process of its own, against a limit.

Three stages: ``scan`` cuts few videos with very many annotations each, ``videos`` very many videos of one clip each
(a tenth of the clips), and ``plan`` reads, checks and deals a manifest's clips to shards, as packing does first.
"""

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

from pyramid import parquet
from pyramid.corpora.cutting import cut_into_clips
from pyramid.corpora.manifest import GROUP_ROWS, SCHEMA, iter_rows, write_manifest
from pyramid.corpora.source import Found, ScanConfig, Source, Window
from pyramid.shards.pack import PackConfig, pack, plan
from pyramid.table import format_table

LIMIT_MIB = 2048
SECONDS = 40
"""Length of the videos that are scanned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000, help="10000000 takes about half an hour")
    parser.add_argument("--videos", type=int, default=20, help="that the clips of the stage scan lie in")
    parser.add_argument("--stages", nargs="*", default=["scan", "videos", "plan"], choices=["scan", "videos", "plan"])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in arguments.stages:
            most = arguments.clips // 10 if stage == "videos" else arguments.clips
            for clips in (most // 10, most):
                seconds, mib = apart(stage, folder, clips, arguments.videos)
                rows.append([stage, f"{clips:,}", round(seconds), round(mib), round(mib / LIMIT_MIB, 2)])
                print(rows[-1], file=sys.stderr, flush=True)
    print(format_table(["stage", "clips", "CPU seconds", "peak MiB", f"peak : {LIMIT_MIB} MiB"], rows))


def apart(stage: str, folder: str, clips: int, videos: int) -> tuple[float, float]:
    """CPU time and peak of resident memory of one stage."""
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
    start = time.process_time()
    if stage == "plan":
        planned(manifest, clips)
    else:
        write_manifest(manifest, scanned(folder, clips, videos) if stage == "scan" else episodes(folder, clips), {})
    seconds = time.process_time() - start
    Path(manifest).unlink()
    # Not getrusage: its peak counts what the parent held before this process was started.
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    answer.send((seconds, peak_kib / 2**10))


def planned(manifest: str, clips: int) -> None:
    """Does what packing does before the first video is opened, and then deals all clips to shards."""
    found = pack(manifest, out=str(Path(manifest).with_suffix("")), dry_run=True)
    assert found.clips == clips
    units = plan(iter_rows(manifest, again=True), PackConfig(), "shards")
    assert sum(len(unit.task["clips"]) for unit in units) == clips


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


def episodes(folder: str, clips: int) -> Iterator[object]:
    """Clips of very many videos, which lie in one file as the episodes of LeRobot v3.0 do: none has to be probed."""
    path = video(folder, 0)
    sources = [
        Source(name=f"episode_{i:07d}", video=path, text=f"do thing {i % 977}", stretch=(i * 3.0, i * 3.0 + 3))
        for i in range(clips)
    ]
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
