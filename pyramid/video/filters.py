"""Scores of a clip from its pictures alone: static, cuts, damage, repeats, borders, camera motion.

Scores are stored; what is done about them is left to the policy of whoever packs, labels or mixes. All work on luma
at 64 x 64; ``mad`` is the mean absolute difference of adjacent frames in units of 0..255.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid.types import Frames
from pyramid.video.scale import LUMA_PX

STATIC_MAD = 2.0
"""A pair whose pictures differ by less shows nothing happening."""
STATIC_GAP_S = 0.6
"""Static is judged over this gap: adjacent frames are alike in any high-rate video."""
CUT_MAD, CUT_RATIO = 12.0, 2.5
"""A cut is a spike above this that towers over its two neighbours on each side by this factor."""
FROZEN_MAD = 0.3
DAMAGE_SPIKE = 20.0
MIN_FROZEN_FRAMES = 5
REPEAT_SHARE = 0.1
BORDER_LUMA = 16
_CHUNK = 64
"""Pairs of frames that are compared at once."""
NEARLY_STATIC_SHARE = 0.3
MOVING_PX, MOVING_EDGE = 4.0, 4.0
"""A camera moves if the picture's peak does and its edge changes too: an arm alone moves the peak."""


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """What the pictures of a clip say about its use."""

    static_share: float
    """Share of pairs 0.6 s apart (or as far as the clip reaches) with mad < 2."""
    mad_median: float
    """Median mad of adjacent frames."""
    cuts: tuple[int, ...]
    """Frames that start a new shot."""
    damaged: tuple[int, int] | None
    """First and last frame of a frozen picture with broken ones at its ends; None without."""
    repeat_share: float
    """Share of frames that repeat the one before, in a clip that otherwise moves."""
    border: tuple[int, int, int, int]
    """Rows and columns (top, bottom, left, right, of 64) that are black throughout."""
    black_quadrant: bool
    """Whether a quarter of the picture is black throughout: a 2x2 grid with three views."""
    rate_hz: float
    """Frames per second, from the median step."""
    variable_rate: bool
    """Whether the steps between frames differ by more than half a step."""
    longest_gap_s: float
    """Longest step between frames."""
    camera_px: float
    """Median shift at the peak of the phase correlation over 0.6 s, in 1/64 of the width; large objects move it too."""
    edge_change: float
    """Median change of luma over 0.6 s in the outer eighth of the picture: what a moving camera changes as well."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON and Parquet."""
        return asdict(self)

    def notes(self) -> list[str]:
        """Says what is odd about the clip, for a person."""
        found = []
        if self.variable_rate:
            found.append(f"variable frame rate, longest gap {self.longest_gap_s * 1000:.0f} ms")
        if self.static_share >= NEARLY_STATIC_SHARE:
            found.append(f"{self.static_share:.0%} of it static")
        if self.damaged is not None:
            found.append(f"damaged and frozen at frames {self.damaged[0]}-{self.damaged[1]}")
        if self.cuts:
            found.append(f"cut at frame {', '.join(map(str, self.cuts))}")
        if self.repeat_share >= REPEAT_SHARE:
            true = self.rate_hz * (1 - self.repeat_share)
            found.append(
                f"{self.repeat_share:.0%} of frames repeat the one before: {true:.0f} Hz in {self.rate_hz:.0f}"
            )
        if any(self.border):
            found.append(f"black border {self.border} of 64")
        if self.black_quadrant:
            found.append("one quadrant black")
        if self.camera_px >= MOVING_PX and self.edge_change >= MOVING_EDGE:
            found.append(f"moving camera, {self.camera_px:.0f}/64 of the picture in 0.6 s")
        return found


def to_luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Reduces uint8 RGB [T, H, W, 3] to luma (BT.601), float32 [T, 64, 64] in 0..255, by area means."""
    size = (LUMA_PX, LUMA_PX)
    grey = [np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX)) for frame in pixels]
    return np.stack(grey).astype(np.float32)


def score_clip(frames: Frames) -> ClipScores:
    """Scores a clip of at least one frame."""
    return score_luma(to_luma(frames.pixels), frames.times_s)


def score_luma(luma: NDArray[Any], times_s: NDArray[np.float64]) -> ClipScores:
    """Scores a clip by its luma, uint8 or whole float32 [T, 64, 64] in 0..255, and its times, float64 [T], seconds."""
    luma = luma.astype(np.uint8, copy=False)
    mad = _mad(luma, np.arange(len(luma) - 1), np.arange(1, len(luma)))
    first, second = pairs_at_gap(times_s, STATIC_GAP_S)
    pair_mad = _mad(luma, first, second)
    steps = np.diff(times_s)
    typical = float(np.median(steps)) if len(steps) else 0.0
    damaged = find_damage(mad)
    whole = np.ones(len(mad), bool)
    if damaged is not None:  # Its spikes and repeats are told once, as damage.
        whole[max(damaged[0] - 3, 0) : damaged[1] + 3] = False
    return ClipScores(
        static_share=round(float((pair_mad < STATIC_MAD).mean()), 4),
        mad_median=round(float(np.median(mad)), 3) if len(mad) else 0.0,
        cuts=tuple(cut for cut in find_cuts(mad) if whole[cut - 1]),
        damaged=damaged,
        repeat_share=repeat_share(mad[whole]),
        border=black_border(luma),
        black_quadrant=has_black_quadrant(luma),
        rate_hz=round(1 / typical, 4) if typical else 0.0,
        variable_rate=bool(len(steps) and (np.abs(steps - typical) > 0.5 * typical).any()),
        longest_gap_s=round(float(steps.max()), 6) if len(steps) else 0.0,
        camera_px=camera_shift(luma, first, second),
        edge_change=edge_change(luma, first, second),
    )


def _mad(luma: NDArray[np.uint8], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float32]:
    """Returns the mean absolute difference of pairs of frames; a few at a time, for a clip may be long."""
    out = np.zeros(len(first), np.float32)
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        change = _difference(luma[second[part]], luma[first[part]]).reshape(len(first[part]), -1)
        out[part] = change.sum(1, dtype=np.uint32) / np.float32(LUMA_PX**2)
    return out


def _difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the absolute difference in bytes: several times as fast as in wider numbers."""
    difference: NDArray[np.uint8] = np.maximum(one, other) - np.minimum(one, other)
    return difference


def repeat_share(mad: NDArray[np.float32]) -> float:
    """Returns the share of frames that repeat the one before; 0 for a clip that hardly moves in between either."""
    frozen = mad < FROZEN_MAD
    if frozen.all() or np.median(mad[~frozen]) <= 1:
        return 0.0
    return round(float(frozen.mean()), 4)


def pairs_at_gap(times_s: NDArray[np.float64], gap_s: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns index pairs whose times lie nearest to ``gap_s`` apart; first and last frame if the clip is shorter."""
    first = np.flatnonzero(times_s + gap_s <= times_s[-1] + 1e-6)
    if len(first) == 0:
        return np.array([0]), np.array([len(times_s) - 1])
    right = np.clip(np.searchsorted(times_s, times_s[first] + gap_s), 1, len(times_s) - 1)
    left_nearer = times_s[first] + gap_s - times_s[right - 1] <= times_s[right] - times_s[first] - gap_s
    return first, np.where(left_nearer, right - 1, right)


def find_cuts(mad: NDArray[np.float32]) -> tuple[int, ...]:
    """Finds isolated spikes of mad: fast motion raises its neighbours too, a cut does not. Returns frame numbers."""
    padded = np.pad(mad, 2)
    around = np.max([padded[:-4], padded[1:-3], padded[3:-1], padded[4:]], axis=0) if len(mad) else mad
    return tuple(int(i) + 1 for i in np.flatnonzero((mad > CUT_MAD) & (mad > CUT_RATIO * around)))


def find_damage(mad: NDArray[np.float32]) -> tuple[int, int] | None:
    """Finds a frozen run with a spike at each end: a decoder that repeated its last good picture. Frames, inclusive.

    A frozen run alone is no evidence: simulated robots stand still, too.
    """
    edges = np.flatnonzero(np.diff(np.pad((mad < FROZEN_MAD).astype(np.int8), 1)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        before, after = mad[max(start - 3, 0) : start], mad[stop : stop + 3]
        broken = len(before) and len(after) and min(before.max(), after.max()) > DAMAGE_SPIKE
        if stop - start >= MIN_FROZEN_FRAMES and broken:
            return int(start), int(stop)
    return None


def black_border(luma: NDArray[Any]) -> tuple[int, int, int, int]:
    """Counts rows and columns (top, bottom, left, right) that stay below luma 16 in the whole clip."""
    brightest = luma.max(0)
    rows, columns = brightest.max(1) >= BORDER_LUMA, brightest.max(0) >= BORDER_LUMA
    if not rows.any():
        return (0, 0, 0, 0)  # All black is no border.
    return (
        int(rows.argmax()),
        int(rows[::-1].argmax()),
        int(columns.argmax()),
        int(columns[::-1].argmax()),
    )


def has_black_quadrant(luma: NDArray[Any]) -> bool:
    """Tells whether one quadrant is black (95 % below luma 16) while no other is."""
    dark = (luma < BORDER_LUMA).mean(0)
    half = LUMA_PX // 2
    shares = [dark[r : r + half, c : c + half].mean() for r in (0, half) for c in (0, half)]
    return bool(max(shares) >= 0.95 and sorted(shares)[-2] < 0.8)


def camera_shift(luma: NDArray[Any], first: NDArray[np.intp], second: NDArray[np.intp], most: int = 16) -> float:
    """Returns the median length of the shift at the peak of the phase correlation, in 1/64 of the picture.

    A score, not a pose: a large moving object can move the peak as well.
    """
    chosen = np.unique(np.linspace(0, len(first) - 1, most).round().astype(int))
    window = np.outer(np.hanning(LUMA_PX), np.hanning(LUMA_PX))
    spectra_a = np.fft.rfft2((luma[first[chosen]] - luma[first[chosen]].mean((1, 2), keepdims=True)) * window)
    spectra_b = np.fft.rfft2((luma[second[chosen]] - luma[second[chosen]].mean((1, 2), keepdims=True)) * window)
    cross = spectra_a * spectra_b.conj()
    peaks = np.fft.irfft2(cross / (np.abs(cross) + 1e-9)).reshape(len(chosen), -1).argmax(1)
    shifts = np.stack(np.unravel_index(peaks, (LUMA_PX, LUMA_PX)), 1)
    shifts = np.minimum(shifts, LUMA_PX - shifts)
    return round(float(np.median(np.linalg.norm(shifts, axis=1))), 2)


def edge_change(luma: NDArray[np.uint8], first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """Returns the median absolute change of luma at the picture's edge, an eighth of its width deep, over pairs."""
    edge = np.ones((LUMA_PX, LUMA_PX), bool)
    depth = LUMA_PX // 8
    edge[depth:-depth, depth:-depth] = False
    outer = luma.reshape(len(luma), -1)[:, np.flatnonzero(edge)]
    counts = np.bincount(_difference(outer[second], outer[first]).ravel(), minlength=256).cumsum()
    # The median from the counts: the middle value, or the mean of the two middle ones.
    middle = np.searchsorted(counts, [(counts[-1] + 1) // 2, counts[-1] // 2 + 1])
    return round(float(middle.mean()), 3)
