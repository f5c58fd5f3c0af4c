"""Small pictures are area means in the right colours, whatever the source's matrix, range and sampling."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.filters import to_luma
from pyramid.video.scale import Picture, Scaler

BARS = np.array([[200, 40, 40], [40, 180, 60], [60, 60, 220], [220, 220, 60], [128, 128, 128], [20, 20, 20]], np.uint8)
SOURCES = {
    "601": ("yuv420p", 5, 1),
    "709": ("yuv420p", 1, 1),
    "full range": ("yuvj420p", 5, 2),
    "full range 709": ("yuvj420p", 1, 2),
    "4:4:4": ("yuv444p", 5, 1),
    "4:2:2": ("yuv422p", 1, 1),
    "10 bit": ("yuv420p10le", 1, 1),
    "unsaid": ("yuv420p", 2, 0),
}


def write(path: Path, picture: NDArray[np.uint8], kind: str) -> str:
    """Encodes a picture without loss of more than its colour sampling."""
    pix_fmt, matrix, color_range = SOURCES[kind]
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        format=pix_fmt, dst_colorspace=matrix if matrix != 2 else 5
    )
    frame.colorspace, frame.color_range = matrix, color_range
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        stream.options = {"crf": "1", "preset": "veryfast"}
        for _ in range(2):
            frame.pts = None
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return str(path)


def first_frame(path: str) -> av.VideoFrame:
    with av.open(path) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize("kind", SOURCES)
def test_colours_are_kept_in_rgb_and_for_the_encoder(tmp_path: Path, kind: str) -> None:
    bars = np.repeat(np.repeat(BARS[None], 240, 0), 64, 1)
    path = write(tmp_path / "a.mkv", bars, kind)
    small = decode_source(path, DecodeRequest(size_px=(48, 48))).pixels[0]
    assert np.abs(small[24, 4::8].astype(int) - BARS).max() <= 8
    picture = Picture(first_frame(path), Scaler((48, 48)))
    shown = picture.yuv.to_ndarray(format="rgb24")
    assert np.abs(shown[24, 4::8].astype(int) - BARS).max() <= 8
    assert picture.yuv.format.name == "yuv420p"
    same = decode_source(path, DecodeRequest(size_px=(64, 64))).pixels
    luma = Picture(first_frame(path), Scaler((64, 64))).luma.astype(float)
    assert np.abs(luma - to_luma(same)[0]).max() <= 3


def test_shrinking_takes_area_means_and_does_not_alias(tmp_path: Path) -> None:
    # Fine grey stripes, 2 of 3 columns bright: a scaler that skips columns shows bands of black and white.
    columns = np.where(np.arange(768) % 3 < 2, 230, 30).astype(np.uint8)
    stripes = np.repeat(np.repeat(columns[None, :, None], 384, 0), 3, 2)
    path = write(tmp_path / "a.mkv", stripes, "601")
    small = decode_source(path, DecodeRequest(size_px=(64, 64))).pixels[0].astype(float)
    exact = stripes.reshape(64, 6, 64, 12, 3).mean((1, 3))
    assert np.abs(small - exact).max() < 4
    aliased = first_frame(path).reformat(64, 64, "rgb24", interpolation="FAST_BILINEAR").to_ndarray()
    assert np.abs(aliased - exact).max() > 30


def test_squeezing_equals_scaling_in_rgb_for_sources_without_subsampling(tmp_path: Path) -> None:
    ramp = np.linspace(20, 230, 320).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[None], ramp[::-1][None], ramp[:240:1][:, None]), -1)
    path = write(tmp_path / "a.mkv", np.ascontiguousarray(picture), "4:4:4")
    frame = first_frame(path)
    ours = Picture(frame, Scaler((60, 80))).rgb.astype(int)
    exact = picture.reshape(60, 4, 80, 4, 3).mean((1, 3))
    assert np.abs(ours - exact).max() < 8
