"""Every kind of corpus, laid out as its publisher ships it: packed clips show exactly their frames at all rates."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from frame_proof import CADENCES, Filmed, Wanted, film, prove

from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import scan
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet

ALL = math.inf
RATES = pytest.mark.parametrize("rate_hz", [None, 10], ids=["all_frames", "10_hz"])
STRETCHES = (("0.20", "0.90"), ("0.47", "1.13"), ("1.00", "1.40"))
"""Start and end of annotated actions, as tables write them, seconds; the first two overlap."""


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


@RATES
def test_folder(tmp_path: Path, rate_hz: int | None) -> None:
    root, wanted = tmp_path / "videos", dict[str, Wanted]()
    for cadence in CADENCES:
        for suffix in ("mp4", "mkv"):
            name = f"{suffix}/{cadence}.{suffix}"
            wanted[f"{name}#0.000"] = film(root / name, cadence), 0, ALL
    prove("folder", root, wanted, tmp_path, rate_hz=rate_hz)


def test_pieces_of_a_long_video_hold_each_frame_once(tmp_path: Path) -> None:
    videos = {name: film(tmp_path / "v" / f"{name}.mp4", name) for name in CADENCES}
    manifest = scan("folder", str(tmp_path / "v"), out=str(tmp_path / "clips.parquet"), clip_s=0.37).out
    pack(manifest, out=str(tmp_path / "out"), size_px=32)
    shards, clips = ShardSet.open(str(tmp_path / "out")), read_manifest(manifest)
    assert len(shards) == len(clips) >= 4 * len(CADENCES)
    shown: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        name = Path(clip.video).stem
        video, numbers = videos[name], drawing.read_pictures(shards.read(i).frames())
        shown.setdefault(name, []).extend(numbers)
        # Half a millisecond: what a container may have rounded a time by.
        near = (clip.start_s - 5.1e-4, clip.end_s + 1e-6)
        assert all(near[0] <= video.times_s[n - video.first] <= near[1] for n in numbers)
    assert shown == {name: list(range(v.first, v.first + len(v.times_s))) for name, v in videos.items()}


@RATES
def test_epic_kitchens(tmp_path: Path, rate_hz: int | None) -> None:
    """Frame numbers of the tables count at 60 Hz, or at 50 for the later videos, whatever the file's rate is."""
    columns = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    root, rows, wanted = tmp_path / "EPIC-KITCHENS", [columns.split(",")], dict[str, Wanted]()
    for number, cadence in enumerate(CADENCES):
        name = f"P0{number}_{'01' if number % 2 else '101'}"
        video = film(root / f"P0{number}/videos/{name}.MP4", cadence)
        for place, (start, stop) in enumerate(STRETCHES):
            count = 60 if number % 2 else 50
            frames = [str(int(float(second) * count)) for second in (start, stop)]
            spoken = "00:00:00.100"  # Outside of most of the actions, as many are.
            cells = [f"{name}_{place}", name[:3], name, spoken, f"00:00:0{start}", f"00:00:0{stop}", *frames]
            rows.append([*cells, "take plate", "take", "0", "plate", "2", "['plate']", "[2]"])
            wanted[f"{name}#{name}_{place}"] = video, Fraction(start), Fraction(stop)
    with (root / "EPIC_100_train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    prove("epic-kitchens", root, wanted, tmp_path, rate_hz=rate_hz)


def ego4d_uid(number: int) -> str:
    return f"{number:08x}-cad3-4ea6-b034-bea360d9507c"


def act(name: str, start_frame: int, end_frame: int) -> dict[str, Any]:
    flags = {"is_valid_action": True, "is_rejected": False, "is_invalid_annotation": False}
    words = {"narration_text": "#C C cuts dough", "narration_annotation_uid": None, "structured_verb": "cut"}
    critical = {"pre_45": None, "pre_frame": start_frame, "contact_frame": start_frame + 2, "pnr_frame": end_frame}
    return {
        "uid": name,
        "start_frame": start_frame,
        "end_frame": end_frame,
        **flags,
        **words,
        "critical_frames": critical,
    }


@RATES
def test_ego4d(tmp_path: Path, rate_hz: int | None) -> None:
    """Narrations are windows around a time; frames of actions count at 30 Hz whatever the file's rate is."""
    root, wanted = tmp_path / "v2", dict[str, Wanted]()
    videos, told, acted = [], {}, []
    for number, cadence in enumerate(CADENCES):
        uid, clip = ego4d_uid(number), ego4d_uid(100 + number)
        videos.append({"video_uid": uid, "duration_sec": 1.5, "fb_participant_id": number, "redacted_intervals": []})
        said = {"timestamp_frame": 0, "narration_text": "#C C cuts dough"}
        times = {"n0": 0.3, "n1": 0.7, "n2": 1.1}  # A mean gap of 0.4 s, so 0.2 s on each side.
        narrations = [{"timestamp_sec": at, "annotation_uid": name, **said} for name, at in times.items()]
        told[uid] = {"narration_pass_1": {"narrations": narrations, "summaries": []}}
        # The odd videos are here as the piece that the actions were annotated in, from second 10 on.
        offset = 10 * (number % 2)
        interval = {"clip_uid": clip, "start_sec": offset, "end_sec": offset + 1.5, "redacted": False}
        acts = [act("a0", 30 * offset + 7, 30 * offset + 31), act("a1", 30 * offset + 20, 30 * offset + 41)]
        acted.append({"video_uid": uid, "annotated_intervals": [{**interval, "narrated_actions": acts}]})
        name = clip if offset else uid
        video = film(root / ("clips" if offset else "full_scale") / f"{name}.mp4", cadence)
        wanted[f"{name}#a0"] = video, Fraction(7, 30), Fraction(31, 30)
        wanted[f"{name}#a1"] = video, Fraction(20, 30), Fraction(41, 30)
        if not offset:  # The narrations lie before the piece.
            near = Fraction(1, 5)
            wanted |= {
                f"{name}#{n}": (video, Fraction(str(at)) - near, Fraction(str(at)) + near) for n, at in times.items()
            }
    put(tmp_path / "ego4d.json", {"version": "2", "videos": videos, "clips": []})
    put(root / "annotations" / "narration.json", told)
    put(root / "annotations" / "fho_main.json", {"videos": acted})
    samples = prove("ego4d", tmp_path, wanted, tmp_path, rate_hz=rate_hz)
    critical = samples[f"{ego4d_uid(101)}#a0"].meta["extra"]["fho"]["critical_s"]
    assert critical == pytest.approx({"pre_frame": 7 / 30, "contact_frame": 9 / 30, "pnr_frame": 31 / 30}, abs=1e-6)


@RATES
def test_something_something(tmp_path: Path, rate_hz: int | None) -> None:
    rows, wanted = [], dict[str, Wanted]()
    for number, cadence in enumerate(CADENCES, start=1):
        path = tmp_path / "ssv2" / "20bn-something-something-v2" / f"{number}.webm"
        options = {"codec": "libvpx-vp9", "size": (32, 32), "options": {"deadline": "realtime", "cpu-used": "8"}}
        wanted[f"{number}#0.000"] = film(path, cadence, seconds=1.0, **options), 0, ALL
        label = {"label": "putting cup on table", "template": "Putting [something] on [something]"}
        rows.append({"id": str(number), **label, "placeholders": ["cup", "table"]})
    put(tmp_path / "ssv2" / "labels" / "something-something-v2-train.json", rows)
    prove("something-something", tmp_path / "ssv2", wanted, tmp_path, rate_hz=rate_hz)


@RATES
@pytest.mark.parametrize("layout", ["named", "split"])
def test_generated(tmp_path: Path, layout: str, rate_hz: int | None) -> None:
    root, wanted = tmp_path / "dreams", dict[str, Wanted]()
    for number, cadence in enumerate(CADENCES):
        name = f"{number}_pick_up_the_cup.mp4" if layout == "named" else f"videos/{number}.mp4"
        wanted[f"{name}#0.000"] = film(root / name, cadence), 0, ALL
        if layout == "split":
            put(root / "labels" / f"{number}.txt", "pick up the cup")
    samples = prove("generated", root, wanted, tmp_path, rate_hz=rate_hz)
    assert {s.meta["text"].strip('"') for s in samples.values()} == {"pick up the cup"}


CAMERA = "observation.images.ego"
PATHS = {
    "v2": ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
           "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    "v3": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
           "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
}  # fmt: skip


def lerobot_info(root: Path, version: str, cadence: str, lengths: Sequence[int]) -> None:
    names = ["height", "width", "channels"]
    data, video = PATHS[version[:2]]
    put(root / "meta" / "info.json", {
        "codebase_version": version, "robot_type": "arm", "fps": 30 if cadence == "variable" else float(cadence),
        "total_episodes": len(lengths), "total_frames": sum(lengths), "chunks_size": 1000, "data_path": data,
        "video_path": video,
        "features": {
            CAMERA: {"dtype": "video", "shape": [64, 64, 3], "names": names},
            "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
            "action": {"dtype": "float32", "shape": [1], "names": ["dx"]},
        },
    })  # fmt: skip


def lerobot_rows(numbers: Sequence[int], episode: int, rate: float) -> pa.Table:
    """Rows whose state and action hold the number that is drawn on their frame."""
    n = len(numbers)
    return pa.table({
        "observation.state": pa.array([[float(x), -float(x)] for x in numbers], pa.list_(pa.float32(), 2)),
        "action": pa.array([[float(x)] for x in numbers], pa.list_(pa.float32(), 1)),
        "timestamp": pa.array(np.arange(n) / rate, pa.float32()), "frame_index": np.arange(n),
        "episode_index": np.full(n, episode), "index": np.arange(n), "task_index": np.zeros(n, np.int64),
    })  # fmt: skip


def check_rows(samples: dict[str, Any]) -> None:
    for name, sample in samples.items():
        numbers = drawing.read_pictures(sample.frames())
        assert sample.state[:, 0].tolist() == numbers, name
        assert sample.action[:, 0].tolist() == numbers, name


def counted(video: Filmed, cadence: str) -> Filmed:
    """The same frames at the times that a robot's rows have: a data set's rate is believed, not its container."""
    rate = 30 if cadence == "variable" else Fraction(cadence)
    return Filmed(video.first, tuple(i / Fraction(rate) for i in range(len(video.times_s))))


@pytest.mark.parametrize("cadence", CADENCES)
@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_lerobot_v2(tmp_path: Path, version: str, cadence: str) -> None:
    root, wanted, lengths = tmp_path / "arm", dict[str, Wanted](), []
    for episode in range(2):
        name = f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        video = film(root / name, cadence, seconds=1.0 + episode / 2)
        numbers = range(video.first, video.first + len(video.times_s))
        lengths.append(len(numbers))
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(lerobot_rows(numbers, episode, float(CADENCES[cadence] or 30)), path)
        wanted[f"{name}#0.000"] = counted(video, cadence), 0, ALL
    lerobot_info(root, version, cadence, lengths)
    rows = [{"episode_index": i, "tasks": ["lift"], "length": n} for i, n in enumerate(lengths)]
    (root / "meta" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "lift"}\n')
    check_rows(prove("lerobot", root, wanted, tmp_path))


def lerobot_v3(root: Path, cadence: str, video: Filmed, lengths: Sequence[int]) -> dict[str, Wanted]:
    """Tells of the episodes in one video that they share, and returns what each must show."""
    rate = CADENCES[cadence] or Fraction(30)
    data, episodes, wanted = [], [], dict[str, Wanted]()
    for episode, length in enumerate(lengths):
        first = sum(lengths[:episode])
        data.append(lerobot_rows(range(video.first + first, video.first + first + length), episode, float(rate)))
        edges = [Fraction(first + n) / rate for n in (0, length)]
        episodes.append({
            "episode_index": episode, "tasks": ["lift"], "length": length, "data/chunk_index": 0, "data/file_index": 0,
            "dataset_from_index": first, "dataset_to_index": first + length,
            f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0,
            f"videos/{CAMERA}/from_timestamp": float(edges[0]), f"videos/{CAMERA}/to_timestamp": float(edges[1]),
        })  # fmt: skip
        wanted[f"{CAMERA}/episode_{episode:06d}#{0:.3f}"] = video, edges[0], edges[1]
    for path, table in (
        ("data/chunk-000/file-000.parquet", pa.concat_tables(data)),
        ("meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes)),
        ("meta/tasks.parquet", pa.table({"task_index": [0], "task": ["lift"]})),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / path)
    lerobot_info(root, "v3.0", cadence, lengths)
    return wanted


@pytest.mark.parametrize("cadence", CADENCES)
def test_lerobot_v3(tmp_path: Path, cadence: str) -> None:
    root = tmp_path / "arm"
    video = film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", cadence, seconds=3.0, hole=False)
    n = len(video.times_s)
    wanted = lerobot_v3(root, cadence, video, [n // 3 // 3 * 3, 24, n - n // 3 // 3 * 3 - 24])
    check_rows(prove("lerobot", root, wanted, tmp_path))


def test_lerobot_v3_finds_frames_by_time_also_behind_a_hole(tmp_path: Path) -> None:
    """The format tells times: a stretch with a hole has too few frames for its rows, and is refused by name."""
    root = tmp_path / "arm"
    video = film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", "variable", seconds=3.0)
    lerobot_v3(root, "variable", video, [30, 30, 30])
    manifest = scan("lerobot", str(root), out=str(tmp_path / "clips.parquet")).out
    result = pack(manifest, out=str(tmp_path / "out"), size_px=32)
    assert [(item.item, item.reason) for item in result.items] == [
        (f"lerobot/{CAMERA}/episode_000001#0.000", "length_mismatch")
    ]
    shards = ShardSet.open(str(tmp_path / "out"))
    shown = [drawing.read_pictures(shards.read(i).frames()) for i in range(2)]
    assert shown == [[video.first + i for i in video.shown(start, start + 1, None)] for start in (0, 2)]
    assert shown[1][0] == video.first + 54  # Not frame 60: it is shown at 2.2 s.
