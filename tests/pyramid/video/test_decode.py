"""Decoding is exact: frame i shows i, at its time, for every codec, rate, container and stretch."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import drawing
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyramid.errors import DataError, SkipItemError
from pyramid.video.decode import DecodeRequest, decode_mp4, decode_source
from pyramid.video.encode import Preset, encode_mp4
from pyramid.video.probe import VideoLimits, probe

N = 40
RATES = [24, 25, Fraction(30_000, 1001), 30, Fraction(60_000, 1001)]
B_FRAMES = {"bf": "3", "b_strategy": "0", "x264-params": "b-pyramid=normal:scenecut=0:b-adapt=0"}
KINDS = {
    "h264": ("a.mp4", {}),
    "h264 b-frames, long gop": ("a.mp4", {"gop": 250, "options": B_FRAMES}),
    "h264 open gop, mkv": ("a.mkv", {"options": {**B_FRAMES, "x264-params": "open-gop=1:scenecut=0"}}),
    "h264 mov, index at the front": ("a.mov", {"container": {"movflags": "faststart"}}),
    "h264 fragmented": ("a.mp4", {"container": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264 transport stream": ("a.ts", {"options": B_FRAMES}),
    "h264 10 bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "h265": ("a.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=none"}}),
    "h265 10 bit": (
        "a.mkv",
        {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none:pools=none"}},
    ),
    "vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "mpeg4 avi": ("a.avi", {"codec": "mpeg4"}),
}


def decoder_reference(path: Path) -> list[tuple[float, int]]:
    """Times and numbers of all frames, from a plain pass over the file."""
    with av.open(str(path)) as container:
        frames = [(f.pts, f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [(float((pts - frames[0][0]) * base), drawing.read_picture(pixels)) for pts, base, pixels in frames]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("kind", ["h264", "h264 b-frames, long gop", "h264 open gop, mkv"])
def test_every_frame_at_its_time_for_every_rate(tmp_path: Path, kind: str, rate: Fraction | int) -> None:
    name, options = KINDS[kind]
    frames = decode_source(str(drawing.write_video(tmp_path / name, range(N), rate=rate, **options)), DecodeRequest())
    assert drawing.read_pictures(frames.pixels) == list(range(N))
    # Matroska stores whole milliseconds.
    assert np.allclose(frames.times_s, np.arange(N) / float(rate), atol=1.01e-3 if name.endswith("mkv") else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_codec_and_container(tmp_path: Path, kind: str) -> None:
    name, options = KINDS[kind]
    path = drawing.write_video(tmp_path / name, range(N), rate=25, **options)
    assert [number for _, number in decoder_reference(path)] == list(range(N))
    frames = decode_source(str(path), DecodeRequest())
    assert drawing.read_pictures(frames.pixels) == list(range(N))
    assert np.allclose(frames.times_s, np.arange(N) / 25, atol=1.01e-3)
    assert frames.pixels.shape == (N, 64, 64, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_holds_exactly_its_frames(tmp_path: Path, kind: str) -> None:
    name, options = KINDS[kind]
    path = drawing.write_video(tmp_path / name, range(120), rate=30, **options)
    for start, end in ((0.0, 0.5), (1.0, 1.5), (2.3, 2.9), (3.8, 9.0)):
        frames = decode_source(str(path), DecodeRequest(start_s=start, end_s=end))
        expected = [i for i in range(120) if start - 1e-9 <= i / 30 < end - 1e-9]
        assert drawing.read_pictures(frames.pixels) == expected
        assert np.allclose(frames.times_s, np.array(expected) / 30, atol=1.01e-3)


OTHER_CONTAINERS = {
    "h264 ts": ("a.ts", {}),
    "h264 b-frames ts": ("a.ts", {"options": B_FRAMES}),
    "mpeg4 ts": ("a.ts", {"codec": "mpeg4"}),
    "mpeg2 b-frames ts": ("a.ts", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "mpeg2 b-frames ps": ("a.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "h264 avi": ("a.avi", {"options": {"bf": "0"}}),
    "mpeg2 b-frames avi": ("a.avi", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "h264 mkv": ("a.mkv", {"options": B_FRAMES}),
}


@pytest.mark.parametrize("kind", OTHER_CONTAINERS)
def test_key_frames_far_apart_cost_no_frame(tmp_path: Path, kind: str) -> None:
    """Containers without an index seek to a place behind what was asked for; AVI's own start is a frame early."""
    name, options = OTHER_CONTAINERS[kind]
    path = drawing.write_video(tmp_path / name, range(150), rate=25, gop=50, **options)
    for first in range(0, 144, 17):
        frames = decode_source(str(path), DecodeRequest(start_s=first / 25, end_s=(first + 6) / 25))
        assert drawing.read_pictures(frames.pixels) == list(range(first, first + 6))
        assert np.allclose(frames.times_s, np.arange(first, first + 6) / 25, atol=1.01e-3)


def test_stretches_side_by_side_hold_every_frame_once(tmp_path: Path) -> None:
    for rate in RATES:
        path = drawing.write_video(tmp_path / f"{float(rate):.0f}.mp4", range(100), rate=rate, gop=30, options=B_FRAMES)
        edges = [100 / float(rate) * i / 7 for i in range(8)]
        found = [
            n
            for start, end in itertools.pairwise(edges)
            for n in drawing.read_pictures(decode_source(str(path), DecodeRequest(start_s=start, end_s=end)).pixels)
        ]
        assert found == list(range(100))


def test_variable_rates_and_holes_keep_their_times(tmp_path: Path) -> None:
    ticks = [0, 33, 66, 100, 400, 433, 500, 501, 1700, 1733, 1800]
    for name in ("a.mp4", "a.mkv"):
        path = drawing.write_video(tmp_path / name, range(11), ticks=ticks, time_base=Fraction(1, 1000))
        frames = decode_source(str(path), DecodeRequest())
        assert np.allclose(frames.times_s, np.array(ticks) / 1000, atol=1e-6)
        assert drawing.read_pictures(frames.pixels) == list(range(11))
        late = decode_source(str(path), DecodeRequest(start_s=0.41, end_s=1.71))
        assert drawing.read_pictures(late.pixels) == [5, 6, 7, 8]


def test_a_video_that_starts_late_counts_from_its_first_frame(tmp_path: Path) -> None:
    ticks = [5000 + 40 * i for i in range(20)]
    path = drawing.write_video(tmp_path / "a.mkv", range(20), ticks=ticks, time_base=Fraction(1, 1000))
    frames = decode_source(str(path), DecodeRequest(start_s=0.4, end_s=0.6))
    assert drawing.read_pictures(frames.pixels) == [10, 11, 12, 13, 14]
    assert np.allclose(frames.times_s, np.arange(10, 15) * 0.04, atol=1e-6)


def test_a_container_that_lies_is_read_at_its_true_rate(tmp_path: Path) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(60), rate=30)
    frames = decode_source(str(path), DecodeRequest(source_hz=10.0, start_s=1.0, end_s=3.0))
    assert drawing.read_pictures(frames.pixels) == list(range(10, 30))
    assert frames.times_s.tolist() == [i / 10 for i in range(10, 30)]


def nearest_to_a_grid(times: list[float], start: float, rate: float) -> list[int]:
    """By the definition: for every grid time up to the last frame's, the nearest frame; each frame once."""
    chosen: list[int] = []
    i = 0
    while start + i / rate <= times[-1] + 1e-3:
        grid = start + i / rate
        best = min(range(len(times)), key=lambda k: (round(abs(times[k] - grid), 9), k))
        if best not in chosen:
            chosen.append(best)
        i += 1
    return chosen


@pytest.mark.parametrize("rate_hz", [1.0, 4.0, 10.0, 12.0, 29.0, 30.0, 100.0])
def test_resampling_takes_the_frames_nearest_to_the_grid(tmp_path: Path, rate_hz: float) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(60), rate=30)
    frames = decode_source(str(path), DecodeRequest(rate_hz=rate_hz))
    assert drawing.read_pictures(frames.pixels) == nearest_to_a_grid([i / 30 for i in range(60)], 0.0, rate_hz)


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.integers(1, 400), min_size=1, max_size=12), rate_hz=st.sampled_from([2.0, 5.0, 8.0, 16.0]))
def test_resampling_of_any_times(tmp_path_factory: pytest.TempPathFactory, steps: list[int], rate_hz: float) -> None:
    ticks = [0, *np.cumsum(steps).tolist()]
    path = drawing.write_video(
        tmp_path_factory.mktemp("vfr") / "a.mkv", range(len(ticks)), ticks=ticks, time_base=Fraction(1, 1000)
    )
    frames = decode_source(str(path), DecodeRequest(rate_hz=rate_hz))
    assert drawing.read_pictures(frames.pixels) == nearest_to_a_grid([t / 1000 for t in ticks], 0.0, rate_hz)


def turn(path: Path, quarter_turns: int) -> Path:
    """Writes a display matrix into the header of an MP4: shown turned clockwise by so many quarters."""
    matrices = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}
    a, b, c, d = matrices[quarter_turns]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # Version 0: flags, times, id, duration, layer, volume; then the matrix.
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size_px", [None, (32, 48)])
def test_a_turned_phone_is_upright(tmp_path: Path, quarters: int, size_px: tuple[int, int] | None) -> None:
    numbers = [5, 0x8421, 0x1357, 3]
    plain = drawing.write_video(tmp_path / "plain.mp4", numbers, size=(64, 96))
    turned = turn(drawing.write_video(tmp_path / "turned.mp4", numbers, size=(64, 96)), quarters)
    found = decode_source(str(turned), DecodeRequest(size_px=size_px)).pixels
    shown = np.stack([np.rot90(frame, -quarters) for frame in decode_source(str(plain), DecodeRequest()).pixels])
    assert drawing.read_pictures(found) == drawing.read_pictures(shown)
    assert found.shape[1:3] == (size_px or shown.shape[1:3])


def test_resizing_squashes_or_crops(tmp_path: Path) -> None:
    path = str(drawing.write_video(tmp_path / "a.mp4", [0x1357, 5], size=(64, 128)))
    squashed = decode_source(path, DecodeRequest(size_px=(32, 32))).pixels
    assert drawing.read_pictures(squashed) == [0x1357, 5]
    cropped = decode_source(path, DecodeRequest(size_px=(64, 64), crop=True)).pixels
    middle = decode_source(path, DecodeRequest()).pixels[:, :, 32:96]
    assert np.abs(cropped.astype(int) - middle).mean() < 2


def test_limits_are_kept(tmp_path: Path) -> None:
    path = str(drawing.write_video(tmp_path / "a.mp4", range(20), rate=10))
    for call, reason in (
        (lambda: decode_source(path, DecodeRequest(max_frames=19)), "too_many_frames"),
        (lambda: decode_source(path, DecodeRequest(start_s=5.0)), "no_frames"),
        (lambda: decode_source(path, DecodeRequest(), VideoLimits(max_pixels=64 * 64 - 1)), "too_large"),
        (lambda: decode_source(path, DecodeRequest(), VideoLimits(max_bytes=100)), "too_large"),
        (lambda: probe(path, VideoLimits(max_duration_s=1.9)), "too_long"),
    ):
        with pytest.raises(SkipItemError) as caught:
            call()
        assert caught.value.reason == reason
        assert path in str(caught.value)
    assert len(decode_source(path, DecodeRequest(max_frames=20))) == 20


def test_a_header_is_read(tmp_path: Path) -> None:
    info = probe(str(drawing.write_video(tmp_path / "a.mp4", range(50), rate=25, size=(48, 64))))
    assert (info.codec, info.width_px, info.height_px, info.n_frames, info.rate_hz) == ("h264", 64, 48, 50, 25.0)
    assert info.duration_s == pytest.approx(2.0)


@pytest.mark.parametrize("rate", [10, 24, 29.97, Fraction(30_000, 1001), 80.0])
def test_packed_clips_are_exact_by_index(rate: float | Fraction) -> None:
    numbers = list(range(300, 330))
    data = encode_mp4(drawing.pictures(numbers), rate)
    assert drawing.read_pictures(decode_mp4(data)) == numbers
    order = [29, 0, 13, 13, 5, 12, 11]
    assert drawing.read_pictures(decode_mp4(data, order)) == [numbers[i] for i in order]
    assert decode_mp4(data, []).shape[0] == 0


def test_packed_clips_equal_a_plain_decoder(tmp_path: Path) -> None:
    data = encode_mp4(drawing.pictures(range(20)), 15)
    (tmp_path / "a.mp4").write_bytes(data)
    assert decoder_reference(tmp_path / "a.mp4") == [(pytest.approx(i / 15, abs=1e-4), i) for i in range(20)]


def test_encoding_is_the_same_every_time_and_close_to_the_picture() -> None:
    frames = drawing.pictures(range(12), 48, 64)
    data = encode_mp4(frames, 12)
    assert data == encode_mp4(frames, 12)
    assert np.abs(decode_mp4(data).astype(int) - frames).mean() < 4
    with av.open(__import__("io").BytesIO(encode_mp4(drawing.pictures(range(30)), 12, gop=5))) as container:
        keys = [i for i, p in enumerate(p for p in container.demux(video=0) if p.pts is not None) if p.is_keyframe]
    assert set(range(0, 30, 5)) <= set(keys)


@pytest.mark.parametrize("preset", ["ultrafast", "superfast", "veryfast"])
@pytest.mark.parametrize("side", [16, 32, 48, 80])
def test_encoding_does_not_depend_on_what_was_in_memory(tmp_path: Path, side: int, preset: Preset) -> None:
    path = str(drawing.write_video(tmp_path / "a.mp4", range(200, 214), rate=10))
    frames = decode_source(path, DecodeRequest(size_px=(side, side))).pixels
    found = set()
    for turn in range(12):
        decode_source(path, DecodeRequest(size_px=(side, side)))  # Leaves other bytes in the memory that is used next.
        held = np.full(100_000 * (turn + 1), turn, np.uint8)
        found.add(encode_mp4(frames, 10.0, preset=preset))
        del held
    assert len(found) == 1


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((2, 15, 16, 3), np.uint8),
        np.zeros((2, 16, 17, 3), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((2, 16, 16, 1), np.uint8),
    ],
    ids=lambda f: f"{f.dtype}{f.shape}",
)
def test_what_no_clip_can_hold_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(DataError):
        encode_mp4(frames, 10)


@pytest.mark.parametrize("indices", [[3], [0, 99], [-5]])
def test_frames_that_are_not_there_are_refused(indices: list[int]) -> None:
    data = encode_mp4(drawing.pictures(range(3), 16, 16), 10)
    with pytest.raises(DataError, match="does not decode"):
        decode_mp4(data, indices)


@pytest.mark.parametrize(("size", "reason"), [((96, 64), "size_change"), ((64, 64), "bad_times")])
@pytest.mark.parametrize("size_px", [None, (32, 32)])
def test_streams_that_were_glued_together_are_refused(
    tmp_path: Path, size: tuple[int, int], reason: str, size_px: tuple[int, int] | None
) -> None:
    parts = [
        drawing.write_video(tmp_path / "a.ts", range(10)),
        drawing.write_video(tmp_path / "b.ts", range(10), size=size),
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(SkipItemError) as caught:
        decode_source(str(tmp_path / "both.ts"), DecodeRequest(size_px=size_px))
    assert caught.value.reason == reason
