"""Decoding and packing: frames per second of CPU time, against plain loops over the same files."""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import decord
import numpy as np
import psutil

from pyramid import pack, scan
from pyramid.table import format_table
from pyramid.video.decode import DecodeRequest, decode_source

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", help="video files; without any, two are made")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = arguments.videos or [make_video(folder, 456, 256, 250), make_video(folder, 1920, 1080, 50)]
        for path in paths:
            report(path, folder, arguments.runs)


def make_video(folder: str, width: int, height: int, gop: int, n: int = 400) -> str:
    """Moving texture, which is neither free nor impossible to compress."""
    path = str(Path(folder, f"{height}p-gop{gop}.mp4"))
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    texture = small.repeat(8, 0).repeat(8, 1)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.options = {"preset": "veryfast"}
        for i in range(n):
            view = texture[i % 512 : i % 512 + height, (2 * i) % 512 : (2 * i) % 512 + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def with_us(path: str) -> int:
    return len(decode_source(path, DecodeRequest(size_px=(SIZE, SIZE))))


def with_pyav(path: str) -> int:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = [f.reformat(SIZE, SIZE, "rgb24").to_ndarray() for f in container.decode(stream)]
    return len(np.stack(frames))


def with_decord(path: str) -> int:
    reader = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
    return len(np.stack([frame.asnumpy() for frame in reader]))


def with_ffmpeg(path: str) -> int:
    """The limit: ffmpeg decoding and scaling into nothing."""
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", path, "-vf", f"scale={SIZE}:{SIZE}", "-pix_fmt", "rgb24"]
    subprocess.run([*command, "-f", "null", "-"], check=True)
    return with_decord_count(path)


def with_decord_count(path: str) -> int:
    return len(decord.VideoReader(path, num_threads=1))


def cpu_s() -> float:
    """CPU time of this process and its children, those included that still live: packing decodes in one."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    alive = [child.cpu_times() for child in psutil.Process().children()]
    return sum(use.ru_utime + use.ru_stime for use in uses) + sum(times.user + times.system for times in alive)


def rate(work: Callable[[], int], runs: int) -> float:
    """Frames per CPU-second, median of ``runs``."""
    found = []
    for _ in range(runs):
        start = cpu_s()
        frames = work()
        found.append(frames / (cpu_s() - start))
    return statistics.median(found)


def report(path: str, folder: str, runs: int) -> None:
    ours = rate(lambda: with_us(path), runs)
    rows: list[list[object]] = [["this project: decode", round(ours), 1.0]]
    peers = {"plain PyAV loop": with_pyav, "plain decord loop": with_decord}
    if shutil.which("ffmpeg"):
        peers["ffmpeg to nothing (limit)"] = with_ffmpeg
    for name, peer in peers.items():
        speed = rate(lambda peer=peer: peer(path), runs)
        rows.append([name, round(speed), round(ours / speed, 2)])
    pack_once(path, folder)  # Starts the process that decodes; it stays.
    packed = rate(lambda: pack_once(path, folder), runs)
    rows.append(["this project: pack (decode, score, encode, write)", round(packed), round(packed / ours, 2)])
    print(f"\n{Path(path).name} -> {SIZE} px")
    print(format_table(["what", "frames / CPU-s", "decode : this (last row: pack : decode)"], rows))


def pack_once(path: str, folder: str) -> int:
    place = Path(folder, f"pack-{time.monotonic_ns()}")
    (place / "in").mkdir(parents=True)
    shutil.copy(path, place / "in")
    scan("folder", str(place / "in"), out=str(place / "clips.parquet"), clip_s=60)
    return pack(str(place / "clips.parquet"), out=str(place / "shards"), size_px=SIZE).frames


if __name__ == "__main__":
    main()
