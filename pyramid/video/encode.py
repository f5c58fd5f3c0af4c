"""Frames into short-GOP H.264 clips, byte for byte the same on every run.

Names and containers around the clip are left to the shard writer.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from pyramid.errors import DataError

Preset = Literal["ultrafast", "superfast", "veryfast"]


def encode_mp4(
    frames: NDArray[np.uint8], fps: float | Fraction, *, gop: int = 12, crf: int = 18, preset: Preset = "veryfast"
) -> bytes:
    """Encodes frames as H.264 (yuv420p) in an MP4.

    Args:
        frames: uint8 [T, H, W, 3], RGB; H and W even.
        fps: frames per second that the container declares.
        gop: frames from one key frame to the next; short ones make random access cheap.
        crf: x264's constant rate factor; 18 is visually lossless.
        preset: x264's trade of time for size.

    Raises:
        DataError: no frames, or an odd size, which yuv420p cannot hold.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise DataError(f"frames must be uint8 [T, H, W, 3] with T > 0, got {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise DataError(f"H.264 clips need an even height and width, got {frames.shape[1]}x{frames.shape[2]}")
    encoder = ClipEncoder(frames.shape[1], frames.shape[2], fps, gop=gop, crf=crf, preset=preset)
    for picture in frames:
        encoder.add(av.VideoFrame.from_ndarray(picture, format="rgb24"))
    return encoder.finish()


class ClipEncoder:
    """Encodes a clip frame by frame; holds only what is encoded.

    Args:
        height: of the frames, pixels, even.
        width: of the frames, pixels, even.
        fps: frames per second that the container declares.
        gop: frames from one key frame to the next.
        crf: x264's constant rate factor.
        preset: x264's trade of time for size.
    """

    def __init__(
        self,
        height: int,
        width: int,
        fps: float | Fraction,
        *,
        gop: int = 12,
        crf: int = 18,
        preset: Preset = "veryfast",
    ) -> None:
        self._out = io.BytesIO()
        self._container = av.open(self._out, "w", format="mp4", options={"fflags": "+bitexact"})
        rate = Fraction(fps).limit_denominator(100_000)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = height, width
        _settle(self._stream, gop, crf, preset)
        self._time_base, self._n = 1 / rate, 0

    def add(self, frame: Any) -> None:
        """Takes the next frame, a PyAV frame of the clip's size; its own time and kind do not count."""
        frame.pts, frame.time_base, self._n = self._n, self._time_base, self._n + 1
        frame.pict_type = 0  # Else every key frame of the source would become one here.
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        """Returns the MP4."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.getvalue()


def _settle(stream: Any, gop: int, crf: int, preset: Preset) -> None:
    stream.pix_fmt = "yuv420p"
    stream.codec_context.gop_size = gop
    # One thread and no B-frames: the same bytes everywhere, and frame order is decode order.
    stream.codec_context.thread_count = 1
    # x264's macroblock tree reads memory that nothing was written to (seen at 16, 32 and 80 px): its bytes vary by run.
    # Captions of a source would travel with its frames.
    more = {"x264-params": "mbtree=0", "a53cc": "0"}
    stream.options = {"crf": str(crf), "preset": preset, "bf": "0", "flags": "+bitexact", **more}
