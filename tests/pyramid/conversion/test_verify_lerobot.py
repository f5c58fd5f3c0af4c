"""Verifying LeRobot data sets: every lie about data and videos is told by file and reason, sound ones pass."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conversion_data import CAMERAS, FPS, LENGTHS, write_v20

from pyramid import convert, files, verify
from pyramid.cli import main
from pyramid.errors import ConfigError, ExitCode
from pyramid.findings import MAX_LISTED, Findings

VERSIONS = ("v2.0", "v2.1", "v3.0")
REAL = Path(__file__).parents[4] / "shared" / "data" / "robot" / "gr1_pick_and_place"
Change = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One data set in three versions, that of strangers without the camera it claims."""
    root = tmp_path_factory.mktemp("sound")
    found = {"v2.0": write_v20(root / "v2.0", bframes=0)}
    for version in VERSIONS[1:]:
        convert(str(found["v2.0"]), str(root / version), to=f"lerobot-{version}")
        found[version] = root / version
    return found


@pytest.fixture
def copy(sound: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(version: str) -> Path:
        target = tmp_path / version
        for path in sound[version].rglob("*"):
            if path.is_file():
                (target / path.relative_to(sound[version])).parent.mkdir(parents=True, exist_ok=True)
                (target / path.relative_to(sound[version])).write_bytes(path.read_bytes())
        return target

    return make


def data_file(root: Path) -> Path:
    """The file with the rows of episode 1."""
    return next(p for n in ("episode_000001", "file-000") for p in sorted((root / "data").rglob(f"{n}.parquet")))


def video_file(root: Path) -> Path:
    """The file with the frames of episode 1."""
    return next(p for n in ("episode_000001", "file-000") for p in sorted((root / "videos").rglob(f"{n}.mp4")))


def rows_of_episode_1(root: Path, table: pa.Table) -> np.ndarray:
    return np.flatnonzero(table["episode_index"].to_numpy() == 1)


def set_cell(root: Path, name: str, row: int, value: Any) -> None:
    """Writes a value into a row of episode 1."""
    path = data_file(root)
    table = pq.read_table(path)
    values = table[name].to_pylist()
    values[rows_of_episode_1(root, table)[row]] = value
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(values, table.schema.field(name).type)), path)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def reasons(root: Path) -> list[tuple[str, str]]:
    found = verify(str(root))
    assert found.kind == "lerobot"
    assert found.exit_code == (ExitCode.FAILED if found.bad else ExitCode.DONE)
    return [(Path(bad["path"]).name, bad["reason"]) for bad in found.bad]


@pytest.mark.parametrize("version", VERSIONS)
def test_sound_data_sets_pass_and_are_not_touched(sound: dict[str, Path], version: str) -> None:
    before = drawing.tree(sound[version])
    found = verify(str(sound[version]))
    assert (found.bad, found.samples, found.shards) == ([], 4, 1 if version == "v3.0" else 4)
    assert ("ghost" in " ".join(found.notes)) == (version == "v2.0")
    assert drawing.tree(sound[version]) == before
    assert "4 episodes: all as it says" in repr(found)


CELLS = {
    "nan_action": ("action", 3, [math.nan, 0.0], "column 'action' is not finite, first in row 3"),
    "inf_state": ("observation.state", 5, [0.0, math.inf, 0.0], "column 'observation.state' is not finite"),
    "null_action": ("action", 2, None, "column 'action' does not hold numbers"),
    "nan_time": ("timestamp", 4, math.nan, "column 'timestamp' is not finite, first in row 4"),
    "time_back": ("timestamp", 4, 0.1, "timestamps do not ascend: row 4"),
    "time_late": ("timestamp", 13, 13 / FPS + 0.02, "timestamps are not those of 20 Hz: row 13"),
    "task": ("task_index", 0, 77, "task_index 77 is none of the 3 tasks"),
    "index": ("index", 3, 5, "column 'index' is not 9 .. 22"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CELLS)
def test_a_wrong_cell_is_named(copy: Callable[[str], Path], version: str, case: str) -> None:
    root = copy(version)
    name, row, value, reason = CELLS[case]
    set_cell(root, name, row, value)
    found = reasons(root)
    assert found[0][0] == data_file(root).name
    assert found[0][1].startswith(f"episode 1: {reason}")
    assert {path for path, _ in found[1:]} <= {"stats.json", "episodes_stats.jsonl"}  # They know no such value.


def test_frame_numbers_are_counted(copy: Callable[[str], Path]) -> None:
    root = copy("v2.1")
    set_cell(root, "frame_index", 3, 4)
    set_cell(root, "episode_index", 0, 3)
    found = [reason for _, reason in reasons(root)]
    assert "episode 1: column 'frame_index' is not 0 .. 13" in found
    assert "episode 1: column 'episode_index' is not 1 .. 1" in found


@pytest.mark.parametrize("version", VERSIONS)
def test_videos_that_are_short_cut_or_gone_are_named(copy: Callable[[str], Path], version: str) -> None:
    shared = version == "v3.0"
    root = copy(version)
    numbers = range(sum(LENGTHS) - 2 if shared else LENGTHS[1] - 2)
    drawing.write_video(video_file(root), numbers, rate=FPS, gop=1 if shared else 6, options={"bf": "0"})
    short = reasons(root)
    assert {path for path, _ in short} == {video_file(root).name}
    assert any("frames, but the episode has" in reason for _, reason in short)
    for size, word in ((300, "no readable video"), (0, "the file is empty")):
        video_file(root).write_bytes(video_file(root).read_bytes()[:size])
        assert all(word in reason for _, reason in reasons(root))
        assert len(reasons(root)) == (4 if shared else 1)
    video_file(root).unlink()
    assert all("video" in reason for _, reason in reasons(root))
    assert len(reasons(root)) == (4 if shared else 1)


def test_a_video_cut_behind_its_header_is_named(copy: Callable[[str], Path]) -> None:
    root = copy("v2.1")
    options = {"bf": "0"}
    drawing.write_video(
        video_file(root), range(14), rate=FPS, gop=6, options=options, container={"movflags": "faststart"}
    )
    assert reasons(root) == []
    data = video_file(root).read_bytes()
    video_file(root).write_bytes(data[: len(data) - 400])
    assert [path for path, _ in reasons(root)] == [video_file(root).name]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_rows_and_files_that_are_not_as_told_are_named(copy: Callable[[str], Path], version: str) -> None:
    root = copy(version)
    table = pq.read_table(data_file(root))
    keep = np.delete(np.arange(table.num_rows), rows_of_episode_1(root, table)[-1])
    pq.write_table(table.take(keep), data_file(root))
    assert any("13 rows" in reason and "said to be 14" in reason for _, reason in reasons(root))
    pq.write_table(table.drop_columns(["action", "timestamp"]), data_file(root))
    found = " ".join(reason for _, reason in reasons(root))
    assert "there is no column 'timestamp'" in found
    data_file(root).write_bytes(b"PAR1 no parquet PAR1")
    assert any("not a readable Parquet file" in reason for _, reason in reasons(root))
    data_file(root).unlink()
    assert any("is not there" in reason for _, reason in reasons(root))


def test_declared_features_are_compared(copy: Callable[[str], Path]) -> None:
    root = copy("v2.1")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["action"]["shape"] = [3]
    features["next.lamp"] = {"dtype": "float32", "shape": [1], "names": None}
    features[CAMERAS[0]]["shape"] = [480, 640, 3]
    change_json(root / "meta/info.json", features=features)
    assert {reason.partition(": ")[2] for _, reason in reasons(root)} == {
        "column 'action' holds 2 numbers a row, meta/info.json says 3"
    }
    notes = verify(str(root)).notes
    assert any("'next.lamp' is declared" in note for note in notes)
    assert any("64 pixels high and 64 wide, not [480, 640, 3]" in note for note in notes)
    pq.write_table(pq.read_table(data_file(root)).drop_columns(["note", "next.reward"]), data_file(root))
    assert ("info.json", "feature 'next.reward' is missing in 1 of 4 episodes") in reasons(root)


@pytest.mark.parametrize("version", VERSIONS)
def test_totals_that_readers_count_on_are_faults_and_others_are_notes(
    copy: Callable[[str], Path], version: str
) -> None:
    root = copy(version)
    change_json(root / "meta/info.json", total_episodes=5, total_frames=3, total_tasks=9, splits={"train": "0:100"})
    assert reasons(root) == [
        ("info.json", "total_episodes is 5, the episodes make 4"),
        ("info.json", "total_frames is 3, the episodes make 41"),
    ]
    assert {"total_tasks", "split"} <= {word for note in verify(str(root)).notes for word in note.split()}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"max": [0.0, 0.0]}, "the statistics are not of these rows"),
        ({"min": [0.0, -9.0]}, "min is said to be 0 in dimension 0"),
        ({"mean": [math.nan, 0.0]}, "no finite statistics of 2 numbers"),
        ({"std": [1.0]}, "no finite statistics of 2 numbers"),
        ({"std": [-1.0, 1.0]}, "a negative standard deviation"),
        ({"min": [9.0, 9.0], "max": [8.0, 8.0]}, "are not in order"),
        ({"mean": "much"}, "no finite statistics"),
        ({"mean": [[0.0], [0.0, 1.0]]}, "no finite statistics"),
    ],
)
def test_statistics_of_other_rows_are_named(
    copy: Callable[[str], Path], version: str, told: dict[str, Any], reason: str
) -> None:
    root = copy(version)
    path = root / "meta/stats.json"
    known = json.loads(path.read_text())
    change_json(path, action={**known["action"], **told})
    found = reasons(root)
    assert {name for name, _ in found} == {"stats.json"}
    assert any("column 'action'" in text and reason in text for _, text in found)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"action": 3}'])
def test_statistics_that_are_none_are_named(copy: Callable[[str], Path], text: str) -> None:
    root = copy("v2.1")
    (root / "meta/stats.json").write_text(text)
    assert [name for name, _ in reasons(root)] == ["stats.json"]


def test_statistics_of_episodes_are_compared(copy: Callable[[str], Path]) -> None:
    root = copy("v2.1")
    path = root / "meta/episodes_stats.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["stats"]["action"]["min"] = [5.0, 5.0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    found = reasons(root)
    assert {name for name, _ in found} == {"episodes_stats.jsonl"}
    assert any(reason == "episode 3 has no statistics" for _, reason in found)
    assert any(reason.startswith("episode 2, column 'action'") for _, reason in found)
    path.write_text("{\n")
    assert [name for name, _ in reasons(root)] == ["episodes_stats.jsonl"]


def test_episodes_that_share_frames_are_named(copy: Callable[[str], Path]) -> None:
    root = copy("v3.0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for part in ("from_timestamp", "to_timestamp"):
        rows[2][f"videos/{CAMERAS[0]}/{part}"] -= 5 / FPS
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert any("episodes 1 and 2 share frames at 0.900 s" in reason for _, reason in reasons(root))


@pytest.mark.parametrize(
    "info", [{"codebase_version": "v9"}, {"fps": -1}, {"features": 3}, {"data_path": "../../{episode_index}.parquet"}]
)
def test_metadata_that_cannot_be_read_is_one_named_fault(copy: Callable[[str], Path], info: dict[str, Any]) -> None:
    root = copy("v2.1")
    change_json(root / "meta/info.json", **info)
    assert [name for name, _ in reasons(root)] == ["meta"]


@pytest.mark.parametrize("shape", ["x", [-(10**400)], [[2]], {"a": 1}, [True], [2, 2], None])
def test_shapes_that_are_none_are_passed_over(copy: Callable[[str], Path], shape: Any) -> None:
    root = copy("v2.1")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["action"]["shape"] = features[CAMERAS[0]]["shape"] = shape
    change_json(root / "meta/info.json", features=features)
    assert all("numbers a row" in reason for _, reason in reasons(root))


def test_a_table_that_would_fill_the_memory_is_refused(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes of zeros in long runs; the bound is a tenth of what they unpack to."""
    monkeypatch.setattr("pyramid.lerobot.verify.MAX_TABLE_BYTES", 2**20)
    root = copy("v2.1")
    pq.write_table(pa.table({"action": pa.array(np.zeros(2_000_000))}), data_file(root))
    assert data_file(root).stat().st_size < 2**18
    found = reasons(root)
    assert [name for name, _ in found] == [data_file(root).name]
    assert "more than the 1048576 allowed" in found[0][1]


def test_faults_without_end_are_counted(tmp_path: Path) -> None:
    found = Findings()
    for number in range(MAX_LISTED + 7):
        found.refuse("file", f"fault {number}")
    assert len(found.all_bad()) == MAX_LISTED + 1
    assert found.all_bad()[-1]["reason"] == "and 7 faults more"


def test_quarantine_is_refused_with_what_to_do(sound: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="pyramid convert SRC DST"):
        verify(str(sound["v2.1"]), quarantine=True)
    assert main(["verify", str(sound["v2.1"]), "--json"]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["kind"] == "lerobot"


def test_a_bucket_is_verified_as_a_disk(sound: dict[str, Path], s3: str) -> None:
    for path in sound["v3.0"].rglob("*"):
        if path.is_file():
            files.write_bytes(f"{s3}/verified/{path.relative_to(sound['v3.0'])}", path.read_bytes())
    found = verify(f"{s3}/verified")
    assert (found.bad, found.samples, found.notes) == ([], 4, verify(str(sound["v3.0"])).notes)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the GR-1 sample is not in {REAL}")
def test_a_real_data_set_passes_with_its_lies_as_notes() -> None:
    found = verify(str(REAL))
    assert (found.bad, found.samples) == ([], 5)
    assert {"egoview", "total_chunks", "0:100"} <= {
        w.strip("':,").rpartition(".")[2] for n in found.notes for w in n.split()
    }
