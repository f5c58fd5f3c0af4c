"""The frame codec of shards: bytes, loss, and CPU time to write and to read, of JPEG and of H.264 in many settings.

All work on the same frames, scaled once; each is read by what `Sample.frames` reads it with.
Loss is against the scaled frames.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pack import make_video

from pyramid.rng import rng
from pyramid.table import format_table
from pyramid.video.decode import DecodeRequest, open_source
from pyramid.video.encode import ClipEncoder
from pyramid.video.jpeg import JpegEncoder, decode_jpegs
from pyramid.video.packed import decode_mp4
from pyramid.video.probe import VIDEO_SUFFIXES
from pyramid.video.scale import Picture

PRESETS = ("ultrafast", "superfast", "veryfast")
HEADER = ["codec", "MB / hour", "PSNR, dB", "write", "one frame", "pair at 0.5 s", "whole clip"]

T = TypeVar("T")
Read = Callable[[list[int] | None], NDArray[np.uint8]]


@dataclass(frozen=True)
class Source:
    """A clip, scaled."""

    pictures: list[Picture]
    rate_hz: float


@dataclass(frozen=True)
class Packed:
    """A clip, encoded."""

    n_bytes: int
    read: Read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="folders or files with real videos; without any, two are made")
    parser.add_argument("--size", type=int, default=224, help="height and width, pixels")
    parser.add_argument("--frames", type=int, default=90, help="of each clip, at most")
    parser.add_argument("--draws", type=int, default=8, help="random frames, and random pairs, of each clip")
    parser.add_argument("--runs", type=int, default=1, help="of each, of which the fastest counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        paths = list(videos(arguments.folders)) or [
            make_video(made, 456, 256, 250, n=arguments.frames),
            make_video(made, 1920, 1080, 50, n=arguments.frames),
        ]
        sources = [load(path, arguments.size, arguments.frames) for path in paths]
    seconds = duration_s(sources)
    print(f"{len(sources)} clips, {sum(len(s.pictures) for s in sources)} frames, {seconds:.0f} s, {arguments.size} px")
    rows = [measure(name, encode, sources, arguments) for name, encode in settings()]
    print(format_table(HEADER, rows))
    print("write and read: CPU-ms per frame that is written or used; a read begins with the clip's bytes")


def videos(folders: list[str]) -> Iterator[str]:
    """Lists videos by content: copies would count twice."""
    seen = set()
    for path in itertools.chain.from_iterable(
        [Path(f)] if Path(f).is_file() else sorted(Path(f).rglob("*")) for f in folders
    ):
        if path.suffix.lower() in VIDEO_SUFFIXES and (data := path.read_bytes()) not in seen:
            seen.add(data)
            yield str(path)


def load(path: str, size_px: int, n: int) -> Source:
    with open_source(path, DecodeRequest(size_px=(size_px, size_px))) as frames:
        pictures = [scaled(picture) for _, picture in itertools.islice(frames, n) if picture is not None]
    return Source(pictures, pictures[0].source_hz or 30.0)


def scaled(picture: Picture) -> Picture:
    """Makes a picture's forms, and lets go of the frame."""
    assert len(picture.rgb)
    assert picture.yuv is not None
    return picture


def settings() -> Iterator[tuple[str, Callable[[Source], Packed]]]:
    """Yields what is compared, by name."""
    for quality in (80, 85, 90, 92, 95):
        yield f"JPEG {quality}", lambda source, q=quality: with_jpeg(source, q)
    found = [(gop, preset, 20) for gop in (1, 4, 8, 12, 16) for preset in PRESETS]
    found += [(12, preset, crf) for crf in (17, 23, 26) for preset in PRESETS]
    for gop, preset, crf in found:
        name = f"H.264 {preset}, GOP {gop}, crf {crf}"
        yield name, lambda source, g=gop, p=preset, c=crf: with_h264(source, g, p, c)


def with_jpeg(source: Source, quality: int) -> Packed:
    encoder = JpegEncoder(quality)
    for picture in source.pictures:
        encoder.add(picture.rgb)
    data, at = encoder.finish()
    return Packed(len(data) + at.nbytes, lambda indices: decode_jpegs(data, at, indices))


def with_h264(source: Source, gop: int, preset: str, crf: int) -> Packed:
    height, width = source.pictures[0].rgb.shape[:2]
    encoder = ClipEncoder(height, width, source.rate_hz, gop=gop, crf=crf, preset=preset)  # type: ignore[arg-type]
    for picture in source.pictures:
        encoder.add(picture.yuv)
    data = encoder.finish()
    return Packed(len(data), lambda indices: decode_mp4(data, indices))


def duration_s(sources: list[Source]) -> float:
    return sum(len(source.pictures) / source.rate_hz for source in sources)


def measure(
    name: str, encode: Callable[[Source], Packed], sources: list[Source], arguments: argparse.Namespace
) -> list[object]:
    draws, runs = arguments.draws, arguments.runs
    write_s, packed = timed(lambda: [encode(source) for source in sources], runs)
    n_frames = sum(len(source.pictures) for source in sources)
    whole_s, decoded = timed(lambda: [one.read(None) for one in packed], runs)
    singles = [(one, [i]) for one, source in zip(packed, sources, strict=True) for i in drawn(source, 0.0, draws)]
    pairs = [
        (one, [i, i + round(source.rate_hz / 2)])
        for one, source in zip(packed, sources, strict=True)
        for i in drawn(source, 0.5, draws)
    ]
    single_s, _ = timed(lambda: [one.read(indices) for one, indices in singles], runs)
    pair_s, _ = timed(lambda: [one.read(indices) for one, indices in pairs], runs)
    return [
        name,
        round(sum(one.n_bytes for one in packed) / duration_s(sources) * 3600 / 1e6),
        f"{np.mean([psnr(s, d) for s, d in zip(sources, decoded, strict=True)]):.1f}",
        *(
            f"{1000 * t / n:.2f}" if n else "-"
            for t, n in ((write_s, n_frames), (single_s, len(singles)), (pair_s, 2 * len(pairs)))
        ),
        f"{1000 * whole_s / n_frames:.2f}",
    ]


def drawn(source: Source, gap_s: float, draws: int) -> list[int]:
    """Draws first frames of pairs, the same for every codec."""
    room = len(source.pictures) - round(source.rate_hz * gap_s)
    return [int(i) for i in rng(0, "codec", round(10 * gap_s)).integers(0, max(room, 0), draws if room > 0 else 0)]


def timed(work: Callable[[], T], runs: int) -> tuple[float, T]:
    """Returns the least CPU time of the runs, seconds, and what the last gave."""
    spent = []
    for _ in range(runs):
        start = time.process_time()
        result = work()
        spent.append(time.process_time() - start)
    return min(spent), result


def psnr(source: Source, decoded: NDArray[np.uint8]) -> float:
    """Mean over the frames of the ratio to the mean square error of RGB, dB."""
    true = np.stack([picture.rgb for picture in source.pictures])
    errors = ((true.astype(np.int32) - decoded) ** 2).mean((1, 2, 3), dtype=np.float64)
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-2))))


if __name__ == "__main__":
    main()
