"""Proof that packed clips show exactly the frames that they should.

A video says in each picture which frame it is, and its presentation times are kept as fractions. What a clip must show
is computed from them alone, and compared with the numbers read back from the packed pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import drawing
import numpy as np

from pyramid.corpora.scan import scan
from pyramid.shards.pack import pack
from pyramid.shards.reader import Sample, ShardSet

CADENCES: dict[str, Fraction | None] = {
    "25": Fraction(25),
    "29.97": Fraction(30_000, 1001),
    "30": Fraction(30),
    "50": Fraction(50),
    "59.94": Fraction(60_000, 1001),
    "60": Fraction(60),
    "variable": None,
}
"""Frames per second; None: steps of 20, 47 and 33 ms in turn, and a hole of 200 ms."""
STEPS_MS = (20, 47, 33)
_FIRST = itertools.count(0, 200)
_MILLISECOND = Fraction(1, 1000)


@dataclass(frozen=True)
class Filmed:
    """A video whose pictures and times are known."""

    first: int
    """The number drawn on the first frame; each frame's is one more than its predecessor's."""
    times_s: tuple[Fraction, ...]
    """When each frame is shown, seconds."""

    def shown(self, start_s: Fraction | float, end_s: Fraction | float, rate_hz: int | None) -> list[int]:
        """Returns the frames that a clip must show: all of its stretch, or those nearest to a grid from its start."""
        inside = [i for i, time in enumerate(self.times_s) if start_s <= time < end_s]
        if rate_hz is None or not inside:
            return inside
        steps = math.floor((self.times_s[inside[-1]] - start_s) * rate_hz)
        grid = [start_s + Fraction(step, rate_hz) for step in range(steps + 1)]
        nearest = [min(inside, key=lambda i: (abs(self.times_s[i] - at), i)) for at in grid]
        return sorted(set(nearest))


def film(path: Path, cadence: str, *, seconds: float = 1.5, hole: bool = True, **options: Any) -> Filmed:
    """Encodes a video of some cadence whose numbers no other video of this process has."""
    rate, first = CADENCES[cadence], next(_FIRST) % 60_000
    if rate is None:
        n = round(seconds * 10) * len(STEPS_MS)
        ticks = [sum((i // 3 * 100, *STEPS_MS[: i % 3])) + (200 if hole and i > n // 2 else 0) for i in range(n)]
        base = _MILLISECOND
    else:
        ticks, base = list(range(math.floor(seconds * rate))), 1 / rate
    numbers = range(first, first + len(ticks))
    drawing.write_video(path, numbers, rate=rate or 30, ticks=ticks, time_base=base, **options)
    times = [tick * base for tick in ticks]
    if path.suffix in (".webm", ".mkv"):  # Matroska keeps milliseconds.
        times = [math.floor(time / _MILLISECOND + Fraction(1, 2)) * _MILLISECOND for time in times]
    return Filmed(first, tuple(times))


Wanted = tuple[Filmed, Fraction | float, Fraction | float]
"""A video, and the stretch of it that a clip must show: start and end (exclusive), seconds."""


def prove(
    kind: str, root: Path, wanted: Mapping[str, Wanted], out: Path, *, rate_hz: int | None = None, **options: Any
) -> dict[str, Sample]:
    """Scans and packs a corpus; asserts that its clips are those wanted and show their frames, at their times.

    Args:
        kind: the corpus.
        root: its folder.
        wanted: what each clip must show, by the clip id less the corpus's name.
        out: where to write.
        rate_hz: frames per second to pack; None packs all.
        options: of the scan.

    Returns:
        The packed samples, by the same names.
    """
    found = scan(kind, str(root), out=str(out / "clips.parquet"), **options)
    assert found.skipped == {}, found.items
    packed = pack(found.out, out=str(out / "shards"), size_px=32, rate_hz=rate_hz)
    assert packed.quarantined == {}, packed.items
    shards = ShardSet.open(str(out / "shards"))
    samples = {row["clip_id"].partition("/")[2]: shards.read(i) for i, row in enumerate(shards.rows)}
    assert set(samples) == set(wanted)
    for name, (video, start_s, end_s) in wanted.items():
        frames = video.shown(start_s, end_s, rate_hz)
        assert len(frames) >= 2, f"{name}: proves nothing"
        assert drawing.read_pictures(samples[name].frames()) == [video.first + i for i in frames], name
        times = [float(video.times_s[i] - video.times_s[frames[0]]) for i in frames]
        assert np.abs(samples[name].times_s - times).max() < 1e-5, name
    return samples
