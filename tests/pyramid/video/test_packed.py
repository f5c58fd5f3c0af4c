"""Any frame of a packed clip is the one that decoding it from its start shows, whatever the encoder made of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import drawing
import numpy as np
import pytest

from pyramid.errors import DataError
from pyramid.rng import rng
from pyramid.video.encode import encode_mp4
from pyramid.video.packed import count_mp4, decode_mp4

B_FRAMES = {"bf": "3", "b_strategy": "0", "x264-params": "b-pyramid=normal:scenecut=0:b-adapt=0"}
N = 50
KINDS = {
    "short gop": {"gop": 4},
    "one key frame": {"gop": 250},
    "all key frames": {"gop": 1},
    "b-frames": {"gop": 10, "options": B_FRAMES},
    "b-frames, negative offsets": {"gop": 10, "options": B_FRAMES, "container": {"movflags": "negative_cts_offsets"}},
    "b-frames, short gop": {"gop": 3, "options": B_FRAMES},
    "open gop": {"gop": 12, "options": {**B_FRAMES, "x264-params": "open-gop=1:scenecut=0:bframes=3"}},
    "h265": {"gop": 10, "codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "variable rate": {"ticks": [i * i + i for i in range(N)], "time_base": Fraction(1, 1000), "gop": 8},
    "late start": {"ticks": [100 + 3 * i for i in range(N)], "time_base": Fraction(1, 90)},
    "fragments": {"gop": 5, "container": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_by_index(tmp_path: Path, kind: str) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(700, 700 + N), **KINDS[kind])
    data = path.read_bytes()
    with av.open(str(path)) as container:
        reference = [drawing.read_picture(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert reference == list(range(700, 700 + N))
    assert drawing.read_pictures(decode_mp4(data)) == reference
    assert count_mp4(data) == N
    draw = rng(0, "order", len(kind))
    for n in (1, 2, 7):
        indices = draw.integers(0, N, n).tolist()
        assert drawing.read_pictures(decode_mp4(data, indices)) == [reference[i] for i in indices]
    assert [drawing.read_picture(decode_mp4(data, [i])[0]) for i in range(N)] == reference


@pytest.mark.parametrize("side", [16, 24, 48, 72, 80, 130])
def test_any_even_size(side: int) -> None:
    frames = drawing.pictures(range(5), side, side + 2)
    found = decode_mp4(encode_mp4(frames, 10), [4, 0])
    assert found.shape == (2, side, side + 2, 3)
    assert np.abs(found.astype(int) - frames[[4, 0]]).mean() < 4


def test_no_frame_is_an_empty_array_of_the_size() -> None:
    assert decode_mp4(encode_mp4(drawing.pictures(range(3), 32, 48), 10), []).shape == (0, 32, 48, 3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_cut_clips_are_refused(tmp_path: Path, share: float) -> None:
    container = {"movflags": "faststart"}  # Else the cut takes the index away, and nothing opens.
    path = drawing.write_video(tmp_path / "a.mp4", range(N), gop=10, container=container)
    data = path.read_bytes()[: int(path.stat().st_size * share)]
    with pytest.raises(DataError, match="does not decode"):
        decode_mp4(data, [N - 1])
