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
from typing import Any

import av
import decord
import numpy as np
import psutil

from pyramid import pack, scan
from pyramid.shards.options import PackConfig
from pyramid.shards.samples import pack_clips
from pyramid.table import format_table
from pyramid.types import Clip
from pyramid.video.decode import DecodeRequest, decode_source, open_source
from pyramid.video.encode import ClipEncoder

SIZE = 224
DECODE = "this project: decode"
ENCODE = "this project: encode the scaled frames"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", help="video files; without any, two are made")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width to resize to, pixels")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = () if arguments.videos else ((456, 256, 250, 1200), (1920, 1080, 50, 400))
        for path in arguments.videos or [make_video(folder, *kind) for kind in made]:
            report(path, folder, arguments.size, arguments.runs)


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


def with_us(path: str, size: int) -> int:
    return len(decode_source(path, DecodeRequest(size_px=(size, size))))


def with_samples(path: str, size: int) -> int:
    """Packing without the job around it: no receipts, tars or index, which weigh on a short video."""
    clip = Clip(clip_id="a", corpus="bench", video=path, start_s=0, end_s=60)
    return sum(made.facts["frames"] for _, made in pack_clips([clip], PackConfig(size_px=size)))


def scaled(path: str, size: int) -> tuple[list[Any], float]:
    """Returns all frames as the encoder takes them, and the rate."""
    with open_source(path, DecodeRequest(size_px=(size, size))) as pictures:
        found = [picture for _, picture in pictures if picture is not None]
        return [picture.yuv for picture in found], found[0].source_hz or 30.0


def with_encoder(frames: list[Any], rate: float, size: int) -> int:
    config = PackConfig(size_px=size)
    encoder = ClipEncoder(size, size, rate, gop=config.gop, crf=config.crf, preset=config.preset)
    for frame in frames:
        encoder.add(frame)
    encoder.finish()
    return len(frames)


def with_pyav(path: str, size: int) -> int:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = [f.reformat(size, size, "rgb24").to_ndarray() for f in container.decode(stream)]
    return len(np.stack(frames))


def with_decord(path: str, size: int) -> int:
    reader = decord.VideoReader(path, width=size, height=size, num_threads=1)
    return len(np.stack([frame.asnumpy() for frame in reader]))


def with_ffmpeg(path: str, size: int) -> int:
    """The limit: ffmpeg decoding and scaling into nothing."""
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", path, "-vf", f"scale={size}:{size}", "-pix_fmt", "rgb24"]
    subprocess.run([*command, "-f", "null", "-"], check=True)
    return with_decord_count(path)


def with_decord_count(path: str) -> int:
    return len(decord.VideoReader(path, num_threads=1))


def cpu_s() -> float:
    """CPU time of this process and its children, those included that still live: packing decodes in one."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    alive = [child.cpu_times() for child in psutil.Process().children()]
    return sum(use.ru_utime + use.ru_stime for use in uses) + sum(times.user + times.system for times in alive)


def rates(works: dict[str, Callable[[], int]], runs: int) -> dict[str, list[float]]:
    """Frames per CPU-second of each work in each of the runs; all in turn: a busy machine disturbs all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            start = cpu_s()
            frames = work()
            found[name].append(frames / (cpu_s() - start))
    return found


def report(path: str, folder: str, size: int, runs: int) -> None:
    frames, rate = scaled(path, size)
    works = {
        DECODE: lambda: with_us(path, size),
        "plain PyAV loop": lambda: with_pyav(path, size),
        "plain decord loop": lambda: with_decord(path, size),
        ENCODE: lambda: with_encoder(frames, rate, size),
        "this project: samples (decode, score, encode)": lambda: with_samples(path, size),
        "this project: pack (samples, job, shards, index)": lambda: pack_once(path, folder, size),
    }
    if shutil.which("ffmpeg"):
        works["ffmpeg to nothing (limit)"] = lambda: with_ffmpeg(path, size)
    pack_once(path, folder, size)  # Starts the process that decodes; it stays.
    found = rates(works, runs)
    rows = [
        [name, round(statistics.median(speeds)), f"{share(speeds, found[DECODE]):.2f}"]
        for name, speeds in found.items()
    ]
    print(f"\n{Path(path).name} -> {size} px")
    print(format_table(["what", "frames / CPU-s", "share of our decoding"], rows))
    limits = [1 / (1 + decode / encode) for decode, encode in zip(found[DECODE], found[ENCODE], strict=True)]
    print(f"decoding and encoding alone would be {statistics.median(limits):.2f} of decoding")


def share(speeds: list[float], others: list[float]) -> float:
    """Median over the runs of the ratio within a run."""
    return statistics.median(a / b for a, b in zip(speeds, others, strict=True))


def pack_once(path: str, folder: str, size: int) -> int:
    place = Path(folder, f"pack-{time.monotonic_ns()}")
    (place / "in").mkdir(parents=True)
    shutil.copy(path, place / "in")
    scan("folder", str(place / "in"), out=str(place / "clips.parquet"), clip_s=60)
    return pack(str(place / "clips.parquet"), out=str(place / "shards"), size_px=size).frames


if __name__ == "__main__":
    main()
