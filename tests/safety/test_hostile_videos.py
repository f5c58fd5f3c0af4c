"""Videos made to harm: no other file is opened, nothing large is decoded, each is refused for the right reason."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import av
import drawing
import numpy as np
import pytest

from pyramid.corpora.scan import scan
from pyramid.errors import SkipItemError
from pyramid.rng import rng
from pyramid.shards.pack import pack
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.probe import probe

SECONDS = 20
"""Nothing here may take longer."""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return drawing.write_video(tmp_path / "good.mp4", range(20), rate=10)


@pytest.fixture
def listener():
    """A server that notes whether anybody calls."""
    server = socket.create_server(("127.0.0.1", 0))
    calls: list[object] = []

    def listen() -> None:
        try:
            while True:
                calls.append(server.accept()[0])
        except OSError:
            return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield server.getsockname()[1], calls
    server.close()


def reason_of(path: Path, **options: object) -> str:
    start = time.monotonic()
    with pytest.raises(SkipItemError) as caught:
        decode_source(str(path), DecodeRequest(**options))
    assert time.monotonic() - start < SECONDS
    assert str(path) in caught.value.detail
    assert "\n" not in caught.value.detail
    return caught.value.reason


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{good}'\n",
    "relative ffconcat": "ffconcat version 1.0\nfile 'good.mp4'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{good}\n#EXT-X-ENDLIST\n",
    "remote m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>',
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_open_nothing(tmp_path: Path, good: Path, listener, kind: str, suffix: str) -> None:
    port, calls = listener
    path = tmp_path / f"trap{suffix}"
    path.write_text(PLAYLISTS[kind].format(good=good, port=port))
    assert reason_of(path) == "not_a_video"
    assert calls == []


def test_the_playlists_would_be_followed_by_a_careless_reader(tmp_path: Path, good: Path) -> None:
    (tmp_path / "trap.mp4").write_text(PLAYLISTS["relative ffconcat"])
    with av.open(str(tmp_path / "trap.mp4")) as container:
        assert container.streams.video[0].width == 64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"just text, for a while\n" * 50, "not_a_video"),
        (bytes(5000), "not_a_video"),
        (b"\x00", "not_a_video"),
    ],
    ids=["0 bytes", "text", "zeros", "1 byte"],
)
def test_files_that_are_no_video(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    assert reason_of(tmp_path / "a.mp4") == reason


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.mp4") == "missing_file"
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(Exception, match=r"folder\.mp4"):
        probe(str(tmp_path / "folder.mp4"))


def test_sound_without_a_picture(tmp_path: Path) -> None:
    assert reason_of(drawing.write_sound(tmp_path / "a.mp4")) == "no_video_stream"


def test_a_video_cut_anywhere_is_refused_or_gives_its_first_frames(good: Path, tmp_path: Path) -> None:
    front = drawing.write_video(tmp_path / "front.mp4", range(60), rate=10, container={"movflags": "faststart"})
    data = front.read_bytes()
    reasons = set()
    for length in range(1, len(data), 97):
        path = tmp_path / "cut.mp4"
        path.write_bytes(data[:length])
        try:
            found = drawing.read_pictures(decode_source(str(path), DecodeRequest()).pixels)
            assert found == list(range(len(found)))
        except SkipItemError as error:
            reasons.add(error.reason)
    assert reasons <= {"not_a_video", "decode_error", "no_frames", "no_video_stream", "unknown_codec"}
    assert "not_a_video" in reasons
    good.write_bytes(good.read_bytes()[:-300])  # The index was at its end.
    assert reason_of(good) == "not_a_video"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_noise_in_a_video_is_refused_or_harmless(tmp_path: Path, suffix: str) -> None:
    codec = {"codec": "mpeg4"} if suffix == ".avi" else {}
    data = bytearray(drawing.write_video(tmp_path / f"a{suffix}", range(30), rate=10, **codec).read_bytes())
    draw = rng(0, "noise", suffix)
    start = time.monotonic()
    for _ in range(60):
        broken = bytearray(data)
        for at in draw.integers(0, len(data), int(draw.integers(1, 30))):
            broken[at] = draw.integers(256)
        (tmp_path / f"broken{suffix}").write_bytes(broken)
        try:
            info = probe(str(tmp_path / f"broken{suffix}"))
            frames = decode_source(str(tmp_path / f"broken{suffix}"), DecodeRequest(size_px=(32, 32), max_frames=200))
            assert info.width_px * info.height_px <= 4096 * 2304
            assert (np.diff(frames.times_s) > 0).all()
        except SkipItemError:
            continue
    assert time.monotonic() - start < 2 * SECONDS


def test_an_eight_k_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "bomb.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "51"}
        frame = av.VideoFrame(7680, 4320, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for place in range(2):
            frame.pts = place
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    start = time.monotonic()
    assert reason_of(tmp_path / "bomb.mp4") == "too_large"
    assert time.monotonic() - start < 5


def test_names_are_only_names(tmp_path: Path) -> None:
    """File names that shells, tars or pages could take for more."""
    root = tmp_path / "videos"
    names = [
        "-rf.mp4",
        "a;touch sentinel.mp4",
        "$(touch sentinel).mp4",
        "<img onerror=x>.mp4",
        "ü \u202e.mp4",
        "new\nline.mp4",
        "..mp4",
    ]
    for i, name in enumerate(names):
        drawing.write_video(tmp_path / "make.mp4", range(i * 20, i * 20 + 12), rate=10).rename(
            (root.mkdir(exist_ok=True) or root) / name
        )
    found = scan("folder", str(root), out=str(tmp_path / "clips.parquet"))
    assert found.clips == len([n for n in names if not n.startswith(".")])
    result = pack(found.out, out=str(tmp_path / "out"), size_px=32)
    assert result.clips == found.clips
    assert not list(tmp_path.rglob("sentinel*"))
    assert {p.name for p in (tmp_path / "out").glob("*")} == {"clips-000000.tar", "shards.parquet", "_receipts"}


def test_links_in_a_circle_are_not_followed(tmp_path: Path, good: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    good.rename(root / "a.mp4")
    (root / "again").symlink_to(root)
    (root / "broken.mp4").symlink_to(tmp_path / "nothing")
    found = scan("folder", str(root), out=str(tmp_path / "clips.parquet"))
    assert found.clips == 1
    assert sum(found.skipped.values()) == 1
