"""Frames as JPEGs, one after the other in one run of bytes with the places where each begins.

That is what others call an MJPEG stream; any frame of it can be decoded alone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid.errors import DataError
from pyramid.video.probe import DEFAULT_LIMITS

_BEGIN, _END = b"\xff\xd8", b"\xff\xd9"
"""Markers at both ends of a JPEG (ITU-T T.81, table B.1)."""


class JpegEncoder:
    """Encodes a clip frame by frame; holds only what is encoded.

    Args:
        quality: libjpeg's quality, 1 to 100.
    """

    def __init__(self, quality: int) -> None:
        self.quality = quality
        self._out, self._at = io.BytesIO(), [0]

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """Takes the next frame, uint8 [H, W, 3]."""
        Image.fromarray(rgb).save(self._out, "JPEG", quality=self.quality, subsampling="4:2:0")
        self._at.append(self._out.tell())

    def finish(self) -> tuple[bytes, NDArray[np.int64]]:
        """Returns the JPEGs, and int64 [T + 1]: frame i is ``data[at[i] : at[i + 1]]``."""
        return self._out.getvalue(), np.asarray(self._at, np.int64)


def check_jpegs(data: bytes, at: NDArray[np.integer]) -> str:
    """Returns what is wrong with the places of the frames, or nothing; decodes none of them."""
    if at.ndim != 1 or at.dtype != np.int64 or len(at) < 2 or at[0] != 0 or at[-1] != len(data):
        return f"its frames' places are {at.dtype} {at.shape}, which do not go from 0 to {len(data)}"
    if (np.diff(at) < len(_BEGIN + _END)).any():
        return "its frames' places do not ascend"
    raw = np.frombuffer(data, np.uint8)
    begins, ends = raw[at[:-1, None] + np.array([0, 1])], raw[at[1:, None] - np.array([2, 1])]
    wrong = np.flatnonzero((begins != list(_BEGIN)).any(1) | (ends != list(_END)).any(1))
    return f"frame {wrong[0]} is no whole JPEG" if len(wrong) else ""


def decode_jpegs(data: bytes, at: NDArray[np.int64], indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Decodes frames by index; uint8 [n, H, W, 3] RGB, in the order of ``indices`` (all if None).

    Raises:
        DataError: a frame that is none, is too large, or has another size than the first.
    """
    wanted = range(len(at) - 1) if indices is None else indices
    if missing := [i for i in wanted if not 0 <= i < len(at) - 1]:
        raise DataError(f"a packed clip of {len(at) - 1} frames has no frame {missing[0]}")
    frames = [_decode(data[at[i] : at[i + 1]], i) for i in wanted]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise DataError(f"the frames of a packed clip have the sizes {sorted(sizes)}; one clip has one")
    return np.stack(frames or [_decode(data[: at[1]], 0)])[: len(frames)]


def _decode(data: bytes, number: int) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > DEFAULT_LIMITS.max_pixels:
                raise DataError(f"frame {number} of a packed clip claims {image.width}x{image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"frame {number} of a packed clip does not decode: {error}") from error
