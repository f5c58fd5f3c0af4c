"""Who decodes what fastest: CPU time per wanted frame of PyAV and decord, for many frames and for few.

All give whole pictures in RGB, which must be the same in every way; the time includes opening the video.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import decord
import numpy as np
from numpy.typing import NDArray
from pack import make_video, share

from pyramid.rng import rng
from pyramid.table import format_table
from pyramid.video.backends.protocol import Backend, Reading
from pyramid.video.backends.timeline import Timeline, read_timeline
from pyramid.video.backends.with_decord import DecordBackend
from pyramid.video.backends.with_pyav import PyavBackend
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.probe import DEFAULT_LIMITS

HEADER = ["frames", "PyAV, all in order", "PyAV, what is needed", "decord", "decord get_batch", "same pixels"]
Way = Callable[[str, NDArray[np.bool_]], list[NDArray[np.uint8]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="*", help="video files; without any, three are made")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = () if arguments.videos else ((456, 256, 250, 900), (456, 256, 12, 900), (1920, 1080, 50, 200))
        for path in arguments.videos or [make_video(folder, *kind) for kind in made]:
            report(path, arguments.runs)
            report_scaled(path, arguments.runs)


def known(path: str) -> Timeline:
    timeline = read_timeline(path, DEFAULT_LIMITS)
    if timeline is None:
        raise SystemExit(f"{path}: its packets do not tell its frames; nothing to compare")
    return timeline


def in_order(path: str, wanted: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    return taken(PyavBackend(), path, Reading(), wanted)


def needed(path: str, wanted: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    return taken(PyavBackend(), path, Reading(timeline=known(path), wanted=wanted), wanted)


def with_decord(path: str, wanted: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    return taken(DecordBackend(), path, Reading(timeline=known(path), wanted=wanted), wanted)


def in_a_batch(path: str, wanted: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    return list(decord.VideoReader(path, num_threads=1).get_batch(np.flatnonzero(wanted)).asnumpy())


def taken(backend: Backend, path: str, reading: Reading, wanted: NDArray[np.bool_]) -> list[NDArray[np.uint8]]:
    last = np.flatnonzero(wanted)[-1]
    with backend.opened(path, reading, DEFAULT_LIMITS) as shown:
        pictures = []
        for place, (_, frame) in enumerate(shown.each):
            if wanted[place]:
                pictures.append(rgb(frame))
            if place == last:
                break
    return pictures


def rgb(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", threads=1)
    return pixels


def patterns(n: int) -> dict[str, NDArray[np.bool_]]:
    """Which of a video's frames are wanted, by name; 30 frames are about a second."""
    places = np.arange(n)
    drawn = rng(0, "decode").choice(n, 20, replace=False)
    return {
        "100 in order": places < 100,
        "1 of 3": places % 3 == 0,
        "1 of 10": places % 10 == 0,
        "1 of 30": places % 30 == 0,
        "1 of 60": places % 60 == 0,
        "20 at random": np.isin(places, drawn),
    }


def report(path: str, runs: int) -> None:
    ways: list[Way] = [in_order, needed, with_decord, in_a_batch]
    rows = []
    for name, wanted in patterns(len(known(path).pts)).items():
        spent: list[list[float]] = [[] for _ in ways]
        for _ in range(runs):
            found = []
            for way, times in zip(ways, spent, strict=True):
                start = time.process_time()
                found.append(np.stack(way(path, wanted)))
                times.append((time.process_time() - start) / int(wanted.sum()) * 1e3)
        same = all(np.array_equal(found[0], other) for other in found[1:])
        rows.append([name, *(f"{statistics.median(times):.2f}" for times in spent), "yes" if same else "NO"])
    print(f"\n{path}: CPU-ms per wanted frame, whole and RGB")
    print(format_table(HEADER, rows))


def report_scaled(path: str, runs: int, size: int = 224) -> None:
    """Decoding a second's first frame scaled, as packing at a low rate does, against decord scaling by itself."""
    wanted = np.flatnonzero(patterns(len(known(path).pts))["1 of 30"])
    request = DecodeRequest(rate_hz=1.0, size_px=(size, size))
    ours, theirs = [], []
    for _ in range(runs):
        start = time.process_time()
        decode_source(path, request)
        middle = time.process_time()
        decord.VideoReader(path, width=size, height=size, num_threads=1).get_batch(wanted).asnumpy()
        ours.append(middle - start)
        theirs.append(time.process_time() - middle)
    print(f"1 frame a second to {size} px: this project takes {share(ours, theirs):.2f} of decord's CPU time")


if __name__ == "__main__":
    main()
