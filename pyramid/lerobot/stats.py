"""Statistics of a data set's columns, in the shapes that LeRobot v2.1, LeRobot v3.0 and GR00T keep them.

Which columns and pictures they are taken of is left to `write`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_IMAGE_SAMPLES = 64
"""Pictures per episode and camera that the statistics are taken of, evenly spaced."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
"""What LeRobot v3.0 keeps besides minimum, maximum, mean and standard deviation."""


def full_statistics(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Returns LeRobot v3.0's statistics of one column, over the rows in which all numbers are finite.

    Args:
        values: numbers or truth values [T] or [T, D].

    Returns:
        As `episode_statistics`, with `QUANTILES`; empty when no row is finite, as in a column without labels.
    """
    rows = values.reshape(len(values), -1).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not rows.size:
        return {}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return episode_statistics(rows) | {name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)}


def full_image_statistics(frames: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Returns LeRobot v3.0's statistics of one camera: as `image_statistics`, with `QUANTILES`."""
    of_pixels = full_statistics(frames.reshape(-1, 3))
    shaped = {n: [[[value / 255.0]] for value in values] for n, values in of_pixels.items() if n != "count"}
    return {**shaped, "count": [len(frames)]}


def merge_statistics(parts: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Returns the statistics of several episodes together, of theirs; exact but for the quantiles.

    The quantiles are means weighted by count, as LeRobot merges them.
    """
    parts = [part for part in parts if part]
    if not parts:
        return {}
    counts = np.asarray([part["count"][0] for part in parts], np.float64)
    values = {name: np.asarray([part[name] for part in parts], np.float64) for name in parts[0] if name != "count"}

    def mean_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.average(rows, axis=0, weights=counts), np.float64)

    mean = mean_of(values["mean"])
    merged = {name: mean_of(rows) for name, rows in values.items() if name in QUANTILES}
    merged |= {"min": values["min"].min(axis=0), "max": values["max"].max(axis=0), "mean": mean}
    merged["std"] = np.sqrt(mean_of(values["std"] ** 2 + (values["mean"] - mean) ** 2))
    return {**{name: value.tolist() for name, value in merged.items()}, "count": [int(counts.sum())]}


def episode_statistics(values: NDArray[Any]) -> dict[str, list[Any]]:
    """Returns LeRobot's statistics of one column of one episode.

    Args:
        values: numbers [T] or [T, D].

    Returns:
        ``min``, ``max``, ``mean``, ``std`` with D numbers each (one for [T]) and ``count`` [T].
    """
    rows = values.reshape(len(values), -1)
    wide = rows.astype(np.float64)
    return {
        "min": rows.min(axis=0).tolist(),
        "max": rows.max(axis=0).tolist(),
        "mean": wide.mean(axis=0).tolist(),
        "std": wide.std(axis=0).tolist(),
        "count": [len(rows)],
    }


def image_statistics(frames: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """Returns LeRobot's statistics of one camera in one episode: per channel, in 0 .. 1, shaped [3, 1, 1].

    Args:
        frames: uint8 [T, H, W, 3].
    """
    of_pixels = episode_statistics(frames.reshape(-1, 3))
    shaped = {name: [[[value / 255.0]] for value in of_pixels[name]] for name in ("min", "max", "mean", "std")}
    return {**shaped, "count": [len(frames)]}


def sample_indices(n_frames: int) -> list[int]:
    """Returns the frames of an episode that `image_statistics` is given."""
    picks = np.linspace(0, n_frames - 1, min(n_frames, MAX_IMAGE_SAMPLES))
    return sorted(set(picks.round().astype(int).tolist()))


def dataset_statistics(columns: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, list[float]]]:
    """Returns GR00T's `stats.json`: per column ``mean std min max q01 q99`` over all frames of all episodes.

    Args:
        columns: numbers [N] or [N, D] by column name.
    """
    document = {}
    for name, values in columns.items():
        rows = values.reshape(len(values), -1).astype(np.float64)
        document[name] = {
            "mean": rows.mean(axis=0).tolist(),
            "std": rows.std(axis=0).tolist(),
            "min": rows.min(axis=0).tolist(),
            "max": rows.max(axis=0).tolist(),
            "q01": np.quantile(rows, 0.01, axis=0).tolist(),
            "q99": np.quantile(rows, 0.99, axis=0).tolist(),
        }
    return document
