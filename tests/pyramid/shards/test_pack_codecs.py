"""Frames as H.264, as JPEGs, or as both: the same pictures, read by index, by plain tools, and checked."""

from __future__ import annotations

import io
from pathlib import Path

import drawing
import numpy as np
import pytest
from PIL import Image

from pyramid import parquet
from pyramid.conversion.convert import convert
from pyramid.corpora.scan import scan
from pyramid.errors import ConfigError, DataError
from pyramid.shards.frames import ClipFrames
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA, JPEGS, JPEGS_AT, META, TIMES, VIDEO, dump_array
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import verify
from pyramid.shards.writer import write_shard
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.jpeg import JpegEncoder, check_jpegs, decode_jpegs
from pyramid.video.packed import decode_mp4

CODECS = {"h264": {VIDEO}, "jpeg": {JPEGS, JPEGS_AT}, "both": {VIDEO, JPEGS, JPEGS_AT}}
N = 20


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("videos")
    for i in range(2):
        drawing.write_video(root / f"v{i}.mp4", range(1000 * i, 1000 * i + N), rate=10)
    return scan("folder", str(root), out=str(root / "clips.parquet")).out


@pytest.fixture(scope="module")
def packed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packed")
    for codec in CODECS:
        pack(manifest, out=str(root / codec), size_px=48, codec=codec)
    return {codec: root / codec for codec in CODECS}


@pytest.mark.parametrize("codec", CODECS)
def test_any_frame_is_there(packed: dict[str, Path], codec: str) -> None:
    shards = ShardSet.open(str(packed[codec]))
    for i in range(2):
        sample = shards.read(i)
        assert drawing.read_pictures(sample.frames()) == list(range(1000 * i, 1000 * i + N))
        assert drawing.read_pictures(sample.frames([7, 3, 3, N - 1])) == [1000 * i + n for n in (7, 3, 3, N - 1)]
        assert (bool(sample.video), bool(sample.jpegs)) == (codec != "jpeg", codec != "h264")
        assert sample.frames([]).shape == (0, 48, 48, 3)
        for missing in (N, -1):
            with pytest.raises(DataError, match="packed clip"):
                sample.frames([0, missing])
    clips = ClipFrames.open(str(packed[codec]), split="train", size_px=48)
    frames = clips.frames(0, [4, 9]).permute(0, 2, 3, 1).numpy()
    assert (frames == shards.read(clips.sources[0][1]).frames([4, 9])).all()


def test_a_sample_with_both_is_read_from_its_jpegs_and_has_the_same_video(packed: dict[str, Path]) -> None:
    h264, jpeg, both = (ShardSet.open(str(packed[codec])).read(0) for codec in CODECS)
    assert both.video == h264.video
    assert both.jpegs == jpeg.jpegs
    assert (both.frames() == jpeg.frames()).all()
    assert drawing.read_pictures(decode_mp4(both.video)) == list(range(N))


def test_jpegs_are_the_scaled_pictures(manifest: str, packed: dict[str, Path]) -> None:
    source = decode_source(str(Path(manifest).parent / "v0.mp4"), DecodeRequest(size_px=(48, 48)))
    found = ShardSet.open(str(packed["jpeg"])).read(0).frames()
    assert np.abs(found.astype(int) - source.pixels).mean() < 2


def test_plain_webdataset_and_plain_decoders_read_the_frames(packed: dict[str, Path]) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(p) for p in packed["both"].glob("*.tar")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    shards = ShardSet.open(str(packed["both"]))
    for i, sample in enumerate(samples):
        assert set(sample) - {"__key__", "__url__", "__local_path__"} == {META, TIMES, *CODECS["both"]}
        data, at = sample[JPEGS], sample[JPEGS_AT]
        one = np.asarray(Image.open(io.BytesIO(data[at[5] : at[6]])))
        assert drawing.read_picture(one) == 1000 * i + 5
        assert (one == shards.read(i).frames([5])[0]).all()
    import av

    with av.open(io.BytesIO(samples[0][JPEGS]), format="mjpeg") as container:
        shown = [drawing.read_picture(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    assert shown == list(range(N))


def test_codecs_do_not_depend_on_workers(manifest: str, packed: dict[str, Path], tmp_path: Path) -> None:
    pack(manifest, out=str(tmp_path / "again"), size_px=48, codec="both", workers=2)
    assert drawing.tree(tmp_path / "again") == drawing.tree(packed["both"])


def test_quality_is_what_it_says(manifest: str, packed: dict[str, Path], tmp_path: Path) -> None:
    pack(manifest, out=str(tmp_path / "small"), size_px=48, codec="jpeg", jpeg_quality=30)
    small, usual = (ShardSet.open(str(p)).read(0) for p in (tmp_path / "small", packed["jpeg"]))
    assert len(small.jpegs) < len(usual.jpegs)
    assert np.abs(small.frames() - usual.frames().astype(int)).max() > 3
    with pytest.raises(ConfigError, match="jpeg_quality"):
        pack(manifest, out=str(tmp_path / "none"), codec="jpeg", jpeg_quality=0)


@pytest.mark.parametrize("codec", CODECS)
def test_sound_shards_pass_a_deep_look(packed: dict[str, Path], codec: str) -> None:
    assert verify(str(packed[codec]), deep=True).bad == []


def rewritten(folder: Path, out: Path, change) -> str:
    """Writes the shard of a folder again with its first sample changed, and an index that agrees with it."""
    shards = ShardSet.open(str(folder))
    samples = []
    for i, row in enumerate(shards.rows):
        sample = shards.read(i)
        members = {META: b"{}", VIDEO: sample.video, JPEGS: sample.jpegs}
        members |= {JPEGS_AT: dump_array(sample.jpegs_at), TIMES: dump_array(sample.times_s)}
        samples.append((row["key"], {**members, **(change(sample) if i == 0 else {})}))
    written = write_shard(str(out / shards.shards[0]), samples)
    rows = [{**old, **new} for old, new in zip(shards.rows, written, strict=True)]
    import pyarrow as pa

    parquet.write(out / INDEX_FILE, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    return str(out)


def places(*at: int) -> dict[str, bytes]:
    return {JPEGS_AT: dump_array(np.array(at, np.int64))}


def jpegs(*sides: int) -> dict[str, bytes]:
    encoder = JpegEncoder(90)
    for side in sides:
        encoder.add(np.zeros((side, side, 3), np.uint8))
    data, at = encoder.finish()
    return {JPEGS: data, JPEGS_AT: dump_array(at)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: places(0, len(s.jpegs)), "1 frames, but there are 20 times"),
        (lambda s: places(*s.jpegs_at[:-1]), "do not go from 0"),
        (lambda s: places(0, *s.jpegs_at[2:], len(s.jpegs)), "do not ascend"),
        (lambda s: places(0, s.jpegs_at[1] + 1, *s.jpegs_at[2:]), "frame 0 is no whole JPEG"),
        (lambda s: {JPEGS_AT: dump_array(s.jpegs_at.astype(np.float64))}, "float64"),
        (lambda s: {JPEGS: s.jpegs[:-2] + b"\0\0"}, "frame 19 is no whole JPEG"),
        (lambda s: {JPEGS: b"\xff\xd8" + bytes(s.jpegs_at[1] - 4) + s.jpegs[s.jpegs_at[1] - 2 :]}, "does not decode"),
        (lambda s: {TIMES: dump_array(s.times_s[:-1])} | jpegs(*[48] * 19), "mp4: 20, mjpeg: 19"),
        (lambda s: jpegs(*[48] * 20) | {VIDEO: s.video[:-200]}, "does not decode|mp4: 1"),
    ],
    ids=["few", "short", "order", "shifted", "floats", "end", "inside", "counts", "cut"],
)
def test_bad_frames_are_named(packed: dict[str, Path], tmp_path: Path, change, message: str) -> None:
    import re

    folder = rewritten(packed["both"], tmp_path, change)
    assert verify(folder).bad == []  # The bytes are those that the index tells of.
    (bad,) = verify(folder, deep=True).bad
    assert re.search(message, bad["reason"]), bad["reason"]


def test_frames_of_two_sizes_and_bombs_are_refused() -> None:
    encoder = JpegEncoder(90)
    for side in (16, 32):
        encoder.add(np.zeros((side, side, 3), np.uint8))
    data, at = encoder.finish()
    assert check_jpegs(data, at) == ""
    with pytest.raises(DataError, match="one clip has one"):
        decode_jpegs(data, at)
    bomb = bytearray(data[: at[1]])
    place = bomb.index(b"\xff\xc0")  # The frame header: length, precision, height, width.
    bomb[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(DataError, match=r"claims 65535x65535|exceeds limit"):
        decode_jpegs(bytes(bomb), np.array([0, len(bomb)]))


def test_clips_without_a_video_are_not_converted_and_say_what_to_do(packed: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pack with --codec h264 or both"):
        convert(str(packed["jpeg"]), str(tmp_path / "jpeg"), to="lerobot-v2.1")
    assert convert(str(packed["both"]), str(tmp_path / "both"), to="lerobot-v2.1").episodes == 2
