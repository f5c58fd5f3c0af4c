"""Whoever decodes, and however few frames: the pixels and times are those of decoding everything in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import drawing
import numpy as np
import pytest

from pyramid import pack, scan
from pyramid.errors import SkipItemError
from pyramid.report.doctor import _decoders
from pyramid.shards.options import PackConfig
from pyramid.shards.pack import plan
from pyramid.shards.reader import ShardSet
from pyramid.types import Clip, Frames
from pyramid.video import guard
from pyramid.video.backends import with_decord, with_pyav
from pyramid.video.backends.timeline import read_timeline
from pyramid.video.decode import DecodeRequest, Stretch, decode_source, open_source, plan_reading
from pyramid.video.probe import DEFAULT_LIMITS, VideoLimits

N = 120
QUIET = {"x265-params": "log-level=none"}
VARIABLE = [i * 3 + i % 5 // 2 + (i // 40) * 30 for i in range(N)]


def cut_by_edit_list(path: Path, **more: Any) -> Path:
    """Copies the packets of a video so that an edit list hides the first 7 frames."""
    whole = drawing.write_video(path.with_name("whole.mp4"), range(N), **more)
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        ticks = round(7 / 30 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, copy
                out.mux(packet)
    return path


def cut_short(path: Path, **more: Any) -> Path:
    """Cuts the end off a video whose header comes first."""
    drawing.write_video(path, range(N), container={"movflags": "faststart"}, options={"bf": "3"}, **more)
    path.write_bytes(path.read_bytes()[:-6000])
    return path


def video(suffix: str, **more: Any) -> Callable[[Path], Path]:
    return lambda folder: drawing.write_video(folder / f"v{suffix}", range(N), **more)


CASES: dict[str, tuple[Callable[[Path], Path], bool, bool]] = {
    # How it is made; whether its packets tell its frames; whether it is for decord.
    "H.264": (video(".mp4", options={"bf": "0"}, gop=250), True, True),
    "H.264, B-frames": (video(".mp4", options={"bf": "3", "b-pyramid": "normal"}, gop=40), True, True),
    "H.264, B-frames, mkv": (video(".mkv", options={"bf": "3"}), True, True),
    "H.264, open GOP": (video(".mp4", options={"bf": "3", "x264-params": "open-gop=1"}, gop=25), True, True),
    "H.264, 66x50": (video(".mp4", size=(50, 66), options={"bf": "3"}), True, True),
    "H.264, 72x64": (video(".mp4", size=(64, 72), options={"bf": "3"}), True, False),
    "H.264, 10 bit": (video(".mp4", pix_fmt="yuv420p10le", options={"bf": "3"}), True, False),
    "H.265, open GOP": (video(".mp4", codec="libx265", options=QUIET, gop=25), True, False),
    "H.265, closed GOP": (
        video(".mp4", codec="libx265", options={"x265-params": "log-level=none:open-gop=0"}, gop=25),
        True,
        True,
    ),
    "VP9": (video(".webm", codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"}), False, False),
    "AV1": (video(".mp4", codec="libsvtav1", options={"preset": "12", "svtav1-params": "lookahead=0"}), True, False),
    "variable rate": (
        video(".mp4", ticks=VARIABLE, time_base=Fraction(1, 90), options={"bf": "3"}, gop=40),
        True,
        False,
    ),
    "edit list": (lambda folder: cut_by_edit_list(folder / "v.mp4", options={"bf": "2"}), False, False),
    "cut short": (lambda folder: cut_short(folder / "v.mp4"), False, False),
    "transport stream": (video(".ts", options={"bf": "3"}), False, False),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each video once."""
    paths: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in paths:
            folder = tmp_path_factory.mktemp("video")
            paths[name] = CASES[name][0](folder)
        return paths[name]

    return make


def in_order(path: Path, request: DecodeRequest) -> Frames:
    """Decodes every frame, one after the other, and takes what is wanted."""
    stretch, pixels = Stretch(request, str(path)), []
    with open_source(str(path), request) as pictures:
        for time_s, picture in pictures:
            if time_s >= stretch.stop_s:
                break
            assert picture is not None
            if (kept := stretch.push(time_s, picture)) is not None:
                pixels.append(kept.rgb)
    if (last := stretch.close()) is not None:
        pixels.append(last.rgb)
    return Frames(np.stack(pixels), np.asarray(stretch.times_s))


def outcome(decode: Callable[[], Frames]) -> tuple[Any, ...]:
    """Returns digests of pixels and times, or the reason why there are none."""
    try:
        frames = decode()
    except SkipItemError as error:
        return (error.reason,)
    return frames.pixels.shape, digest(frames.pixels), digest(frames.times_s)


def digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


FEW = [
    DecodeRequest(rate_hz=1.0),
    DecodeRequest(rate_hz=2.7, size_px=(32, 48)),
    DecodeRequest(start_s=1.13, end_s=3.01, rate_hz=5.0),
    DecodeRequest(source_hz=12.0, rate_hz=1.5, start_s=3.0),
]


@pytest.mark.parametrize("name", CASES)
def test_few_frames_are_those_of_all_in_order(made: Callable[[str], Path], name: str) -> None:
    path, (_, known, _) = made(name), CASES[name]
    assert (read_timeline(str(path), DEFAULT_LIMITS) is not None) == known
    for request in FEW:
        assert (plan_reading(str(path), [request]).wanted is not None) == known
        assert outcome(lambda r=request: decode_source(str(path), r)) == outcome(lambda r=request: in_order(path, r))


def test_few_frames_decode_few(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    plain = with_pyav._those

    def counted(frames: list[Any], ticks: set[int]) -> Any:
        given.extend(frame.pts for frame in frames)
        return plain(frames, ticks)

    monkeypatch.setattr(with_pyav, "_those", counted)
    path = made("H.264, B-frames, mkv")
    frames = decode_source(str(path), DecodeRequest(rate_hz=1.0))
    assert drawing.read_pictures(frames.pixels) == [0, 30, 60, 90]
    assert len(given) == len(set(given)) <= 20  # One in four of 120 is near: key frames are 12 apart.


def test_many_frames_are_read_in_order(made: Callable[[str], Path]) -> None:
    path = str(made("H.264, B-frames"))
    assert plan_reading(path, [DecodeRequest(rate_hz=15.0)]).wanted is None
    assert plan_reading(path, [DecodeRequest(rate_hz=1.0), DecodeRequest()]).wanted is None


def look(task: dict[str, Any], send: guard.Send) -> None:
    """Decodes in the guarded process, and tells who did."""
    for row in task["requests"]:
        request = DecodeRequest(**row, decoder="decord")
        name = plan_reading(task["path"], [request]).backend.name
        found = outcome(lambda r=request: decode_source(task["path"], r))
        send({"name": name, "found": [list(part) if isinstance(part, tuple) else part for part in found]})


WHOLE: list[dict[str, Any]] = [
    {},
    {"size_px": [32, 48]},
    {"start_s": 1.5, "end_s": 2.5},
    {"rate_hz": 2.0},
    {"source_hz": 12.0, "rate_hz": 1.5},
]


@pytest.mark.parametrize("name", CASES)
def test_decord_gives_the_pixels_of_pyav_or_is_not_asked(made: Callable[[str], Path], name: str) -> None:
    pytest.importorskip("decord")
    path, (_, _, fit) = str(made(name)), CASES[name]
    task = {"path": path, "requests": WHOLE}
    there = [facts for facts, _ in guard.run(look, task, DEFAULT_LIMITS, name=path)]
    for row, facts in zip(WHOLE, there, strict=True):
        request = DecodeRequest(**row, decoder="decord")
        assert facts["name"] == ("decord" if fit else "pyav")
        assert plan_reading(path, [request]).backend.name == "pyav"  # Not here: it could hang.
        here = outcome(lambda r=request: decode_source(path, r))
        assert tuple(tuple(part) if isinstance(part, list) else part for part in facts["found"]) == here
        if "size_px" not in row:  # Nothing is scaled: all three ways are one.
            assert here == outcome(lambda r=row: in_order(Path(path), DecodeRequest(**r)))


def test_what_decord_might_decode_ahead_must_fit(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    monkeypatch.setattr(guard, "inside", True)
    path = str(made("H.264"))
    timeline = read_timeline(path, DEFAULT_LIMITS)
    mb = N * 64 * 64 * 3 / 2**20
    assert "max_decode_mb" in with_decord.reason_against(path, timeline, VideoLimits(max_decode_mb=int(2 * mb)))
    assert not with_decord.reason_against(path, timeline, VideoLimits(max_decode_mb=int(2 * mb) + 1))


@pytest.mark.parametrize("rate_hz", [None, 3.0])
def test_shards_of_decord_are_those_without_it(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate_hz: float | None
) -> None:
    pytest.importorskip("decord")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(made("H.264, B-frames").read_bytes())
    manifest = str(tmp_path / "clips.parquet")
    scan("folder", str(tmp_path / "in"), out=manifest)
    packed = {}
    for name in ("with", "without"):
        if name == "without":
            (tmp_path / "hidden" / "decord").mkdir(parents=True)
            (tmp_path / "hidden" / "decord" / "__init__.py").write_text("raise ImportError('no decord')\n")
            monkeypatch.syspath_prepend(str(tmp_path / "hidden"))
            guard._close()
        out = str(tmp_path / name)
        pack(manifest, out=out, size_px=32, rate_hz=rate_hz, decoder="decord")
        packed[name] = (Path(out) / "clips-000000.tar").read_bytes()
        numbers = drawing.read_pictures(ShardSet.open(out).read(0).frames())
        assert numbers == list(range(0, N, 10 if rate_hz else 1))
    assert packed["with"] == packed["without"]


def test_auto_and_pyav_are_one_packing() -> None:
    clip = Clip(clip_id="a", corpus="c", video="v.mp4", start_s=0, end_s=1)
    auto, pyav, other = (next(plan([vars(clip)], PackConfig(decoder=d), "")).digest for d in ("auto", "pyav", "decord"))
    assert auto == pyav != other


def test_the_doctor_names_the_decoders() -> None:
    pytest.importorskip("decord")
    check = _decoders()
    assert check.ok
    assert "PyAV" in check.found
    assert "decord" in check.found
