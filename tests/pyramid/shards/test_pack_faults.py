"""Decoders that hang, grow or die cost the clips in hand; all others are packed as if nothing had been. No orphans."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import drawing
import psutil
import pytest
from guarding import decoders, sent_while_decoding

from pyramid.corpora.scan import scan
from pyramid.errors import DataError
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet

LONG = 3000
"""Frames of the video that is long enough to be caught at."""
OPTIONS = {"size_px": 32, "frames_per_shard": 5000}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A short video, a long one of five clips, a short one."""
    root = tmp_path_factory.mktemp("faults")
    for name, numbers in {"a": range(12), "b": range(LONG), "c": range(100, 112)}.items():
        drawing.write_video(root / f"{name}.mp4", numbers, rate=30)
    return scan("folder", str(root), out=str(root / "clips.parquet")).out


@pytest.mark.parametrize(
    ("sign", "reason", "workers"),
    [
        (signal.SIGSEGV, "decode_crashed", 1),
        (signal.SIGKILL, "decode_crashed", 2),
        (signal.SIGSTOP, "decode_timeout", 1),
    ],
)
def test_one_fault_costs_the_clip_in_hand(
    manifest: str, tmp_path: Path, sign: signal.Signals, reason: str, workers: int
) -> None:
    limits = {"max_decode_s": 2.0}
    for attempt in range(5):  # on a busy machine the video may be done before it is caught at
        out = str(tmp_path / f"out{attempt}")
        with sent_while_decoding(sign, "b.mp4") as hit:
            result = pack(manifest, out=out, config={**OPTIONS, "limits": limits}, workers=workers)
        if hit:
            break
    assert len(hit) == 1
    assert not psutil.pid_exists(hit[0])
    assert result.quarantined == {reason: 1}
    lost = result.items[0]
    assert "b.mp4" in lost.item
    assert "b.mp4: " in lost.detail
    shards = ShardSet.open(out)
    expected = {f"folder/b.mp4#{start}.000": range(start * 30, start * 30 + 600) for start in range(0, 100, 20)}
    expected |= {"folder/a.mp4#0.000": range(12), "folder/c.mp4#0.000": range(100, 112)}
    del expected[lost.item]
    found = {row["clip_id"]: drawing.read_pictures(shards.read(i).frames()) for i, row in enumerate(shards.rows)}
    assert found == {name: list(numbers) for name, numbers in expected.items()}
    # A patient second run mends it, with a limit that makes nothing else stale.
    again = {**OPTIONS, "limits": {"max_decode_s": 60.0}}
    assert pack(manifest, out=out, config=again).skipped_done == result.shards
    mended = pack(manifest, out=out, config=again, retry_quarantined=True)
    assert (mended.clips, mended.quarantined, mended.skipped_done) == (7, {}, result.shards - 1)


def test_a_long_decode_is_given_up_and_the_rest_packed(tmp_path: Path, manifest: str) -> None:
    found = scan("folder", str(Path(manifest).parent), out=str(tmp_path / "clips.parquet"), clip_s=1000)
    config = {"size_px": 1024, "limits": {"max_decode_s": 0.5}}
    for attempt in range(5):  # where the guard itself gets no time for seconds, it sees no time pass
        out = str(tmp_path / f"out{attempt}")
        result = pack(found.out, out=out, config=config)
        if result.quarantined:
            break
    assert result.quarantined == {"decode_timeout": 1}
    assert "max_decode_s" in result.items[0].detail
    assert [row["clip_id"] for row in ShardSet.open(out).rows] == [
        "folder/a.mp4#0.000",
        "folder/c.mp4#0.000",
    ]


def test_a_permitted_picture_may_still_take_too_much_memory(tmp_path: Path) -> None:
    for name, first in {"a": 0, "c": 100}.items():
        drawing.write_video(tmp_path / "v" / f"{name}.mp4", range(first, first + 12), rate=10)
    with av.open(str(tmp_path / "v" / "b.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 4096, 2304, "yuv420p"
        stream.options = {"preset": "ultrafast", "refs": "16"}
        frame = av.VideoFrame(4096, 2304, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for place in range(20):
            frame.pts = place
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"))
    assert found.clips == 3
    assert pack(found.out, out=str(tmp_path / "all"), size_px=32).clips == 3
    small = {"size_px": 32, "limits": {"max_decode_mb": 190}}
    result = pack(found.out, out=str(tmp_path / "out"), config=small)
    assert result.quarantined == {"decode_memory": 1}
    assert "b.mp4" in result.items[0].detail
    assert result.clips == 2


def test_videos_are_measured_in_the_guarded_process(manifest: str, tmp_path: Path) -> None:
    """Under a limit that no process keeps nothing is measured."""
    with pytest.raises(DataError, match=r"a\.mp4: decoding takes more than the max_decode_mb 1 MiB"):
        scan(
            "folder",
            str(Path(manifest).parent),
            out=str(tmp_path / "c.parquet"),
            config={"limits": {"max_decode_mb": 1}},
        )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nobody_is_left_behind(manifest: str, tmp_path: Path, sign: signal.Signals, workers: int) -> None:
    config = {"size_px": 512, "frames_per_shard": 600}
    call = f"pack({manifest!r}, out={str(tmp_path / 'out')!r}, config={config!r}, workers={workers})"
    script = f"from pyramid.shards.pack import pack\nif __name__ == '__main__':\n    {call}\n"
    (tmp_path / "job.py").write_text(script)
    with subprocess.Popen([sys.executable, str(tmp_path / "job.py")], stderr=subprocess.PIPE) as job:
        watched = psutil.Process(job.pid)
        deadline = time.monotonic() + 60
        while len(decoders(watched)) < workers and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        family = watched.children(recursive=True)
        assert len(decoders(watched)) >= workers
        job.send_signal(sign)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []
        _, words = job.communicate(timeout=10)
        assert job.returncode != 0
        assert sign == signal.SIGKILL or b"run the same command again" in words
