"""Statistics of a data set's columns, in the two shapes that LeRobot v2.1 and GR00T keep them.

Which columns and pictures they are taken of is left to `write`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_IMAGE_SAMPLES = 64
"""Pictures per episode and camera that the statistics are taken of, evenly spaced."""


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
