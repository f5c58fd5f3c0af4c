"""Measures of a latent-action model as plain functions of arrays: perplexity, gaps, leakage, response to still pairs.

Probes against actions and camera motion are in `lam.probes`; collecting the arrays is left to `lam.evaluate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "explained",
    "leakage",
    "partners",
    "perplexity",
    "psnr",
    "psnr_gap",
    "sequence_bits",
    "sequence_ids",
    "static_fraction",
]

Codes = NDArray[Any]
"""Integer codes [P, N] of P pairs at N positions."""


def perplexity(codes: Codes, n_codes: int) -> list[float]:
    """Returns ``exp(-sum_k p_k ln p_k)`` of each position over the whole set, each in [1, n_codes]."""
    return [float(np.exp(_entropy(np.bincount(column, minlength=n_codes)))) for column in codes.astype(np.int64).T]


def _entropy(counts: NDArray[np.integer[Any]]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def sequence_ids(codes: Codes) -> NDArray[np.int64]:
    """Numbers the different code sequences: int64 [P], equal where the whole sequence is equal."""
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def sequence_bits(codes: Codes) -> float:
    """Returns the entropy of whole code sequences, bits; 0 for an empty set."""
    return _entropy(np.bincount(sequence_ids(codes))) / float(np.log(2)) if len(codes) else 0.0


def psnr(mean_squared_error: NDArray[np.float64]) -> float:
    """Returns the peak signal-to-noise ratio of a set of pairs, dB, from its mean error (intensities in [0, 1]).

    The error is averaged before the logarithm, so a single perfect pair does not outweigh all others.
    """
    return float(-10 * np.log10(max(float(mean_squared_error.mean()), 1e-10)))


def psnr_gap(better: NDArray[np.float64], worse: NDArray[np.float64]) -> float:
    """Returns how many dB the errors ``better`` lie above the errors ``worse``; both float64 [P]."""
    return psnr(better) - psnr(worse)


def partners(clip: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each pair another one, half the set away in clip order: from another clip unless one clip is most."""
    order = np.argsort(clip, kind="stable")
    partner = np.empty(len(clip), np.int64)
    partner[order] = np.roll(order, len(clip) // 2)
    return partner


def leakage(
    error: NDArray[np.float64],
    copy_error: NDArray[np.float64],
    unrelated_error: NDArray[np.float64],
    unrelated_copy_error: NDArray[np.float64],
) -> float | None:
    """Returns the gain on frames of two different videos over the gain on true pairs, each ``1 - error / copy``.

    Near 1 the latent is a picture of the second frame; near or below 0 it describes a change that only makes sense in
    its own scene. None when nothing is predicted (no gain on true pairs) or there is no unrelated pair.
    """
    if not len(unrelated_error) or copy_error.mean() <= 0 or unrelated_copy_error.mean() <= 0:
        return None
    gain = 1 - float(error.mean() / copy_error.mean())
    return None if gain <= 0 else (1 - float(unrelated_error.mean() / unrelated_copy_error.mean())) / gain


def static_fraction(still_codes: Codes) -> float | None:
    """Returns the share of still pairs that have one "null" sequence, the most common one; None without still pairs."""
    if not len(still_codes):
        return None
    return float(np.bincount(sequence_ids(still_codes)).max() / len(still_codes))


def explained(sent: NDArray[np.float32], back: NDArray[np.float32]) -> float | None:
    """Returns how much of the latents sent comes back, ``1 - |back - sent|^2 / |sent - mean|^2``, both float [P, F].

    1 is every latent itself, 0 no more than their mean; None when all sent are alike.
    """
    spread = float(((sent - sent.mean(0)) ** 2).sum())
    return 1 - float(((back - sent) ** 2).sum()) / spread if spread > 1e-12 else None
