"""Packing: exact pictures, the same bytes for any number of workers and after any stop, bad clips set aside by name."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import drawing
import killing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyramid import files, parquet
from pyramid.corpora.manifest import GROUP_ROWS, SCHEMA
from pyramid.corpora.scan import scan
from pyramid.errors import ConfigError, DataError
from pyramid.jobs import Outcome
from pyramid.shards import indexing
from pyramid.shards.layout import INDEX_FILE
from pyramid.shards.options import PackConfig
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet

OPTIONS = {"size_px": 32, "frames_per_shard": 90}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five videos of 12 to 16 frames; number i shows 100 i, 100 i + 1, ..."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(5):
        drawing.write_video(root / f"v{i}.mp4", range(100 * i, 100 * i + 12 + i), rate=10)
    return scan("folder", str(root), out=str(root / "clips.parquet")).out


@pytest.fixture(scope="module")
def packed(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "one"
    pack(manifest, out=str(out), config=OPTIONS)
    return out


def test_every_frame_of_every_clip_is_there_in_order(packed: Path) -> None:
    shards = ShardSet.open(str(packed))
    assert len(shards) == 5
    assert [row["frames"] for row in shards.rows] == [12, 13, 14, 15, 16]
    for i in range(5):
        sample = shards.read(i)
        assert drawing.read_pictures(sample.frames()) == list(range(100 * i, 100 * i + 12 + i))
        assert np.allclose(sample.times_s, np.arange(12 + i) / 10, atol=1e-6)
        assert sample.meta["clip_id"] == f"folder/v{i}.mp4#0.000"
        assert sample.meta["rate_hz"] == pytest.approx(10)
        assert sample.frames([0]).shape == (1, 32, 32, 3)


def test_index_and_samples_agree(packed: Path) -> None:
    shards = ShardSet.open(str(packed))
    for i, row in enumerate(shards.rows):
        meta = shards.read(i).meta
        for name in ("clip_id", "corpus", "tier", "embodiment", "split", "text", "frames", "rate_hz", "action_dim"):
            assert meta[name] == row[name]


def test_shards_do_not_depend_on_workers(manifest: str, packed: Path, tmp_path: Path) -> None:
    result = pack(manifest, out=str(tmp_path / "two"), config=OPTIONS, workers=2)
    assert result.shards == 3
    assert result.bytes == sum(p.stat().st_size for p in packed.glob("*.tar"))
    assert drawing.tree(tmp_path / "two") == drawing.tree(packed)


def test_eight_workers_write_the_same_bytes_as_one(manifest: str, tmp_path: Path) -> None:
    small = scan("folder", str(Path(manifest).parent), out=str(tmp_path / "clips.parquet"), clip_s=0.4).out
    config = {**OPTIONS, "frames_per_shard": 20}
    for workers in (1, 8):
        result = pack(small, out=str(tmp_path / str(workers)), config=config, workers=workers)
        assert (result.shards, result.clips) == (17, 19)
    assert drawing.tree(tmp_path / "8") == drawing.tree(tmp_path / "1")


def test_the_index_is_written_in_groups_and_only_whole(
    manifest: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "GROUP_ROWS", 2)
    pack(manifest, out=str(tmp_path / "out"), config=OPTIONS)
    assert pq.ParquetFile(tmp_path / "out" / INDEX_FILE).metadata.num_row_groups == 3
    assert ShardSet.open(str(tmp_path / "out")).rows == ShardSet.open(str(packed)).rows
    assert parquet.metadata(tmp_path / "out" / INDEX_FILE) == parquet.metadata(packed / INDEX_FILE)
    index = indexing.PackIndex(str(tmp_path / "stopped"), PackConfig(), "")
    row = ShardSet.open(str(packed)).rows[0]
    bad = Outcome(facts={"rows": [*[row] * 5, {**row, "frames": 1, "shard": 1}]})
    with pytest.raises(pa.ArrowException), index:
        index.add(bad)
    assert not list((tmp_path / "stopped").iterdir())


def test_few_of_the_clips_set_aside_are_listed_and_all_counted(
    manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_LISTED", 1)
    result = pack(manifest, out=str(tmp_path), config={**OPTIONS, "min_frames": 14})
    assert (result.clips, result.quarantined, len(result.items)) == (3, {"too_short": 2}, 1)
    told = parquet.metadata(tmp_path / INDEX_FILE)
    assert (len(told["quarantined"]), told["quarantined_counts"]) == (1, {"too_short": 2})


PLANNED = """
import sys
from pyramid.shards.pack import pack
planned = pack(sys.argv[1], out=sys.argv[2], dry_run=True)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(planned.clips, planned.shards, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_for_planning_does_not_grow_with_the_manifest(tmp_path: Path) -> None:
    """A hundred thousand clips more would take 80 MB and more, were they or their units kept."""
    peaks = []
    for n in (4 * GROUP_ROWS, 4 * GROUP_ROWS + 100_000):
        path = str(tmp_path / f"{n}.parquet")
        names = [f"made/{i}" for i in range(n)]
        numbers = np.arange(n) % 1000
        known = {"clip_id": names, "video": names, "start_s": numbers * 2.0, "end_s": numbers * 2.0 + 2.0}
        fixed = {"corpus": "made", "text": "a text", "tier": "base", "embodiment": "human", "split": "train"}
        columns = {f.name: [fixed.get(f.name, "") if f.type == pa.string() else None] * n for f in SCHEMA} | known
        table = pa.table(columns, schema=SCHEMA)
        groups = (table.slice(first, GROUP_ROWS) for first in range(0, n, GROUP_ROWS))
        parquet.write_groups(path, SCHEMA, groups, dict)
        call = [sys.executable, "-c", PLANNED, path, str(tmp_path / "out")]
        env = {**os.environ, "ARROW_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(call, capture_output=True, text=True, check=True, env=env)
        clips, shards, peak = map(int, done.stdout.split())
        assert (clips, shards) == (n, -(-n // 333))
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 24, peaks


def test_a_second_run_does_nothing_and_a_changed_config_does_all(manifest: str, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "again")
    before = drawing.tree(tmp_path / "again")
    result = pack(manifest, out=str(tmp_path / "again"), config=OPTIONS)
    assert (result.skipped_done, result.clips, result.frames, result.frames_per_s) == (3, 5, 70, 0)
    assert drawing.tree(tmp_path / "again") == before
    (tmp_path / "again" / "clips-000001.tar").unlink()
    assert pack(manifest, out=str(tmp_path / "again"), config=OPTIONS).skipped_done == 2
    assert drawing.tree(tmp_path / "again") == before
    assert pack(manifest, out=str(tmp_path / "again"), config={**OPTIONS, "crf": 30}).skipped_done == 0
    assert drawing.tree(tmp_path / "again").keys() == before.keys()
    assert drawing.tree(tmp_path / "again") != before


@pytest.mark.parametrize("mode", ["kill", pytest.param("error", marks=pytest.mark.slow)])
def test_stopped_at_any_file_and_run_again_it_ends_the_same(manifest: str, tmp_path: Path, mode: str) -> None:
    short = {"manifest": manifest, "config": {**OPTIONS, "frames_per_shard": 40}, "limit": 2}
    pack(out=str(tmp_path / "whole"), **short)
    reference = drawing.tree(tmp_path / "whole")
    points = killing.stop_everywhere("pyramid.shards.pack:pack", out=tmp_path / "out", mode=mode, **short)
    assert len(points) == 2 * len(reference) == 10  # Each file is begun once and renamed once.
    for point in points:
        assert point["resumed"] == reference
        final = {name: sha for name, sha in point["stopped"].items() if files.TEMPORARY_PREFIX not in name}
        assert final.items() <= reference.items()
        if mode == "error":
            assert final == point["stopped"]
    assert {len([n for n in p["stopped"] if n.endswith(".tar")]) for p in points} == {0, 1, 2}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(manifest: str, packed: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    out = tmp_path / "out"
    call = f"pack({manifest!r}, out={str(out)!r}, config={OPTIONS!r}, workers=2)"
    script = f"from pyramid.shards.pack import pack; print('ready', flush=True); {call}"
    for _ in range(20):
        shutil.rmtree(out, ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            process.stdout.readline()
            time.sleep(draw.uniform(0, 2.5))
            process.kill()
        time.sleep(0.3)  # Its workers end when they find it gone.
        if out.exists():
            final = {n: s for n, s in drawing.tree(out).items() if files.TEMPORARY_PREFIX not in n}
            assert final.items() <= drawing.tree(packed).items()
        pack(manifest, out=str(out), config=OPTIONS)
        assert drawing.tree(out) == drawing.tree(packed)


def test_bad_videos_are_set_aside_by_name_and_the_others_packed(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    drawing.write_video(root / "a.mp4", range(12), rate=10)
    drawing.write_video(root / "b.mp4", range(12, 24), rate=10)
    drawing.write_video(root / "c.mp4", range(24, 36), rate=10)
    manifest = scan("folder", str(root), out=str(tmp_path / "clips.parquet")).out
    data = (root / "b.mp4").read_bytes()
    (root / "b.mp4").write_bytes(data[: len(data) // 2])
    result = pack(manifest, out=str(tmp_path / "out"), config=OPTIONS)
    assert result.clips == 2
    assert sum(result.quarantined.values()) == 1
    assert "b.mp4" in result.items[0].detail
    assert result.items[0].item == "folder/b.mp4#0.000"
    assert parquet.metadata(tmp_path / "out" / INDEX_FILE)["quarantined"] == [vars(result.items[0])]
    shards = ShardSet.open(str(tmp_path / "out"))
    assert [row["clip_id"] for row in shards.rows] == ["folder/a.mp4#0.000", "folder/c.mp4#0.000"]
    # The video is mended: it is tried again when asked for.
    (root / "b.mp4").write_bytes(data)
    again = pack(manifest, out=str(tmp_path / "out"), config=OPTIONS, retry_quarantined=True)
    assert (again.clips, again.quarantined) == (3, {})


def test_a_folder_of_bad_videos_is_a_failure_that_names_them(tmp_path: Path) -> None:
    path = drawing.write_video(tmp_path / "v" / "a.mp4", range(12), rate=10)
    manifest = scan("folder", str(path.parent), out=str(tmp_path / "clips.parquet")).out
    path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"none of 1 clips could be packed: .*a\.mp4"):
        pack(manifest, out=str(tmp_path / "out"), config=OPTIONS)
    assert not (tmp_path / "out" / INDEX_FILE).exists()


def test_robot_episodes_keep_their_numbers_frame_by_frame(tmp_path: Path) -> None:
    from pyramid.corpora.manifest import write_manifest
    from pyramid.types import Clip

    drawing.write_video(tmp_path / "e.mp4", range(40), rate=20)
    drawing.write_episode(tmp_path / "e.parquet", 40)
    drawing.write_episode(tmp_path / "short.parquet", 30)
    base = {"corpus": "lab", "video": str(tmp_path / "e.mp4"), "source_hz": 20.0, "tier": "top", "embodiment": "arm"}
    clips = [
        Clip(clip_id="whole", start_s=0, end_s=2, episode=str(tmp_path / "e.parquet"), **base),
        Clip(clip_id="part", start_s=0.5, end_s=1.5, episode=str(tmp_path / "e.parquet"), **base),
        Clip(clip_id="short", start_s=0, end_s=2, episode=str(tmp_path / "short.parquet"), **base),
        Clip(clip_id="gone", start_s=0, end_s=2, episode=str(tmp_path / "gone.parquet"), **base),
    ]
    write_manifest(str(tmp_path / "clips.parquet"), clips, {})
    result = pack(str(tmp_path / "clips.parquet"), out=str(tmp_path / "out"), config={**OPTIONS, "rate_hz": 5.0})
    assert result.quarantined == {"bad_episode": 1, "length_mismatch": 1}
    shards = ShardSet.open(str(tmp_path / "out"))
    for i, first, n in ((0, 0, 40), (1, 10, 20)):
        sample = shards.read(i)
        numbers = drawing.read_pictures(sample.frames())
        assert numbers == list(range(first, first + n))  # Actions hold for every frame: no resampling.
        assert sample.action.tolist() == [[t] * 3 for t in numbers]
        assert sample.state.tolist() == [[t, -t] for t in numbers]
        assert sample.meta["rate_hz"] == 20.0


def test_long_videos_are_cut_without_a_frame_lost(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "v" / "long.mp4", range(200), rate=Fraction(30_000, 1001), gop=60)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=1.5).out
    pack(manifest, out=str(tmp_path / "out"), config=OPTIONS)
    shards = ShardSet.open(str(tmp_path / "out"))
    assert len(shards) == 5
    assert [n for i in range(5) for n in drawing.read_pictures(shards.read(i).frames())] == list(range(200))
    assert all(shards.read(i).times_s[0] == 0 for i in range(5))


def test_a_lower_rate_keeps_the_nearest_frames(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "v" / "a.mp4", range(60), rate=30)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet")).out
    pack(manifest, out=str(tmp_path / "out"), config={**OPTIONS, "rate_hz": 10.0})
    sample = ShardSet.open(str(tmp_path / "out")).read(0)
    assert drawing.read_pictures(sample.frames()) == list(range(0, 60, 3))
    assert sample.meta["rate_hz"] == pytest.approx(10)


PEAK = """
import sys
import psutil
from pyramid.shards.pack import pack
pack(sys.argv[1], out=sys.argv[2], config={"size_px": 256, "frames_per_shard": 100_000})
# Not getrusage: its peak counts what the parent held before this program was started.
processes = [psutil.Process(), *psutil.Process().children()]
status = [line for one in processes for line in open(f"/proc/{one.pid}/status")]
peaks = [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
assert len(peaks) == 2, "the process that decodes is one of two"
print(sum(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    peaks = []
    for n in (40, 800):
        folder = tmp_path / str(n)
        drawing.write_video(folder / "v" / "a.mp4", range(n), rate=20, size=(256, 256), options={"preset": "ultrafast"})
        manifest = scan("folder", str(folder / "v"), out=str(folder / "clips.parquet"), clip_s=60).out
        call = [sys.executable, "-c", PEAK, manifest, str(folder / "out")]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert ShardSet.open(str(folder / "out")).rows[0]["frames"] == n
    # 760 frames more would be 150 MB as pictures; as luma, with what the scores need, they are less than 40.
    assert peaks[1] - peaks[0] < 40


def test_clips_of_a_video_may_overlap_and_lie_among_others(tmp_path: Path) -> None:
    from pyramid.corpora.manifest import write_manifest
    from pyramid.types import Clip

    for name, first in (("a", 0), ("b", 100)):
        drawing.write_video(tmp_path / f"{name}.mp4", range(first, first + 40), rate=10)
    stretches = [
        ("a", 2.0, 3.0),
        ("b", 0.0, 2.0),
        ("a", 0.0, 4.0),
        ("gone", 0.0, 1.0),
        ("a", 0.5, 2.5),
        ("b", 1.0, 3.0),
    ]
    clips = [
        Clip(clip_id=f"{i}", corpus="lab", video=str(tmp_path / f"{name}.mp4"), start_s=start, end_s=end)
        for i, (name, start, end) in enumerate(stretches)
    ]
    write_manifest(str(tmp_path / "clips.parquet"), clips, {})
    for workers, folder in ((1, "one"), (2, "two")):
        config = {**OPTIONS, "frames_per_shard": 75}
        result = pack(str(tmp_path / "clips.parquet"), out=str(tmp_path / folder), config=config, workers=workers)
        assert result.quarantined == {"missing_file": 1}
    assert drawing.tree(tmp_path / "one") == drawing.tree(tmp_path / "two")
    shards = ShardSet.open(str(tmp_path / "one"))
    assert [row["clip_id"] for row in shards.rows] == ["0", "1", "2", "4", "5"]
    for i, (name, start, end) in enumerate(s for s in stretches if s[0] != "gone"):
        offset = 100 if name == "b" else 0
        expected = [offset + n for n in range(40) if start <= n / 10 < end]
        assert drawing.read_pictures(shards.read(i).frames()) == expected


def test_oddities_are_noted_or_dropped(tmp_path: Path) -> None:
    drawing.write_video(tmp_path / "v" / "moves.mp4", range(20), rate=10)
    drawing.write_video(tmp_path / "v" / "still.mp4", [9] * 20, rate=10)
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet")).out
    kept = pack(manifest, out=str(tmp_path / "kept"), config=OPTIONS)
    assert kept.quarantined == {}
    rows = ShardSet.open(str(tmp_path / "kept")).rows
    assert "100% of it static" in rows[1]["notes"]
    dropped = pack(manifest, out=str(tmp_path / "dropped"), config={**OPTIONS, "drop": ["static"]})
    assert dropped.quarantined == {"static": 1}
    assert dropped.clips == 1


def test_a_dry_run_writes_nothing(manifest: str, tmp_path: Path) -> None:
    result = pack(manifest, out=str(tmp_path / "out"), config=OPTIONS, dry_run=True)
    assert (result.clips, result.shards, result.bytes, result.out) == (5, 3, 0, "")
    assert not (tmp_path / "out").exists()
    assert pack(manifest, config=OPTIONS, dry_run=True).shards == 3


def test_limit_takes_the_first(manifest: str, tmp_path: Path) -> None:
    assert pack(manifest, out=str(tmp_path), config=OPTIONS, limit=2).clips == 2
    assert [row["clip_id"] for row in ShardSet.open(str(tmp_path)).rows] == [
        "folder/v0.mp4#0.000",
        "folder/v1.mp4#0.000",
    ]


def test_wrong_calls_are_refused(manifest: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        pack(manifest)
    with pytest.raises(ConfigError, match="size_px must be even"):
        pack(manifest, out=str(tmp_path), size_px=33)
    with pytest.raises(ConfigError, match="rate_hz must be positive"):
        pack(manifest, out=str(tmp_path), rate_hz=0)
    with pytest.raises(ConfigError, match="drop"):
        pack(manifest, out=str(tmp_path), drop=["ugly"])
    with pytest.raises(DataError, match="pyramid scan"):
        pack(str(tmp_path / "none.parquet"), out=str(tmp_path))
    for prefix in ("../up", "a/b", "A", ""):
        with pytest.raises(ConfigError, match="prefix"):
            pack(manifest, out=str(tmp_path / "x"), prefix=prefix)


def test_receipts_hold_what_the_index_holds(packed: Path) -> None:
    receipts = [json.loads(p.read_text()) for p in sorted((packed / "_receipts").iterdir())]
    assert [row["key"] for r in receipts for row in r["facts"]["rows"]] == [
        r["key"] for r in ShardSet.open(str(packed)).rows
    ]


def test_from_and_to_s3(tmp_path: Path, s3: str, packed: Path) -> None:
    for i in range(5):
        path = drawing.write_video(tmp_path / f"v{i}.mp4", range(100 * i, 100 * i + 12 + i), rate=10)
        files.write_bytes(f"{s3}/videos/v{i}.mp4", path.read_bytes())
    found = scan("folder", f"{s3}/videos", out=f"{s3}/clips.parquet")
    assert found.clips == 5
    result = pack(found.out, out=f"{s3}/packed", config=OPTIONS, workers=2)
    assert (result.clips, result.frames) == (5, 70)
    assert ShardSet.open(f"{s3}/packed").digest == ShardSet.open(str(packed)).digest
    assert pack(found.out, out=f"{s3}/packed", config=OPTIONS).skipped_done == 3
