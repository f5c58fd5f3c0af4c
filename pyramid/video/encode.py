"""Frames into short-GOP H.264 clips, byte for byte the same on every run.

Names and containers around the clip are left to the shard writer.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError


def encode_mp4(frames: NDArray[np.uint8], fps: float | Fraction, *, gop: int = 12, crf: int = 18) -> bytes:
    """Encodes frames as H.264 (yuv420p) in an MP4.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        fps: frames per second that the container declares.
        gop: frames from one key frame to the next; short ones make random access cheap.
        crf: x264's constant rate factor; 18 is visually lossless.

    Raises:
        DataError: no frames, or an odd size, which yuv420p cannot hold.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise DataError(f"frames must be uint8 [T, H, W, 3] with T > 0, got {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise DataError(f"H.264 clips need an even height and width, got {frames.shape[1]}x{frames.shape[2]}")
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = _stream(container, frames, Fraction(fps).limit_denominator(100_000), gop, crf)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def _stream(container: Any, frames: NDArray[np.uint8], rate: Fraction, gop: int, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = gop
    # One thread and no B-frames: the same bytes everywhere, and frame order is decode order.
    stream.codec_context.thread_count = 1
    # x264's macroblock tree reads memory that nothing was written to (seen at 16, 32 and 80 px): its bytes vary by run.
    tree = {"x264-params": "mbtree=0"}
    stream.options = {"crf": str(crf), "preset": "veryfast", "bf": "0", "flags": "+bitexact", **tree}
    return stream
