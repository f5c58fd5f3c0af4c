"""EPIC-KITCHENS-100: the tables' timestamps decide, every row becomes a clip or is refused by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import drawing
import pytest

from pyramid import files, parquet
from pyramid.corpora.epic_kitchens import _VIDEO as VIDEO_NAME
from pyramid.corpora.epic_kitchens import TABLES, read_actions
from pyramid.corpora.manifest import read_manifest
from pyramid.corpora.scan import list_clips, scan
from pyramid.corpora.source import ScanConfig
from pyramid.corpora.tables import look_through, parse_list, parse_time, read_rows
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.shards.layout import INDEX_FILE
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet
from pyramid.types import Clip

COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
RATE = 10
PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "annotations" / "epic100"


def film(path: Path, first: int, seconds: float = 6.0) -> Path:
    return drawing.write_video(path, range(first, first + round(seconds * RATE)), rate=RATE, size=(32, 32))


def stamp(seconds: float) -> str:
    return f"{int(seconds // 3600):02d}:{int(seconds // 60 % 60):02d}:{seconds % 60:05.2f}"


def row(name: str, start: float, stop: float, **more: str) -> dict[str, str]:
    video, _, _ = name.rpartition("_")
    cells = (
        name, video[:3], video, "00:00:00.560", stamp(start), stamp(stop), "1", "113", "put down plate", "put-down",
        "1", "plate", "2", "['plate', 'board:cutting']", "[2, 21]",
    )  # fmt: skip
    return {**dict(zip(COLUMNS.split(","), cells, strict=True)), **more}


def table(path: Path, rows: list[dict[str, str]], columns: str = COLUMNS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns.split(","), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two persons with two videos each, official layout; the tables lie in the publisher's repository."""
    place = tmp_path / "EPIC-KITCHENS"
    for number, video in enumerate(("P01_01", "P01_102", "P02_01", "P02_03")):
        film(place / video[:3] / "videos" / f"{video}.MP4", 100 * number)
    notes = place / "epic-kitchens-100-annotations"
    table(notes / TABLES["train"], [
        row("P01_01_0", 0.0, 1.89), row("P01_01_1", 1.56, 2.45, narration="take, then wash", verb="take"),
        row("P01_01_10", 4.0, 5.5), row("P02_01_0", 3.0, 4.0),
    ])  # fmt: skip
    table(notes / TABLES["validation"], [row("P01_102_0", 1.0, 2.0, narration_timestamp="")])
    test = ",".join(COLUMNS.split(",")[:8])
    table(notes / TABLES["test"], [row("P02_03_0", 0.5, 1.5)], test)
    return place


def look(root: Path | str, **options: object) -> tuple[dict[str, Clip], dict[str, str]]:
    clips, skipped = list_clips("epic-kitchens", str(root), ScanConfig(**options))
    return {c.clip_id: c for c in clips}, {q.item: q.reason for q in skipped}


def test_every_row_is_a_clip_with_its_own_times(root: Path) -> None:
    clips, skipped = look(root)
    assert skipped == {}
    assert {n.removeprefix("epic_kitchens/"): (c.start_s, c.end_s, c.text) for n, c in clips.items()} == {
        "P01_01#P01_01_0": (0.0, 1.89, "put down plate"),
        "P01_01#P01_01_1": (1.56, 2.45, "take, then wash"),
        "P01_01#P01_01_10": (4.0, 5.5, "put down plate"),
        "P01_102#P01_102_0": (1.0, 2.0, "put down plate"),
        "P02_01#P02_01_0": (3.0, 4.0, "put down plate"),
        "P02_03#P02_03_0": (0.5, 1.5, ""),
    }
    first = clips["epic_kitchens/P01_01#P01_01_0"]
    assert (first.person, first.verb, first.noun, first.text_origin) == ("P01", "put-down", "plate", "narration")
    assert first.facts() == {
        "verb_class": 1, "noun_class": 2, "all_nouns": ["plate", "board:cutting"], "all_noun_classes": [2, 21],
        "narration_s": 0.56, "publisher_split": "train",
    }  # fmt: skip
    assert "narration_s" not in clips["epic_kitchens/P01_102#P01_102_0"].facts()
    test = clips["epic_kitchens/P02_03#P02_03_0"]
    assert (test.verb, test.noun, test.text_origin) == ("", "", "")
    assert test.facts() == {"publisher_split": "test", "narration_s": 0.56}


def test_a_flattened_copy_gives_the_same_clips(root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    for path in root.rglob("*.MP4"):
        (flat / "video_ht256px").mkdir(parents=True, exist_ok=True)
        path.rename(flat / "video_ht256px" / path.name.replace("MP4", "mp4"))
    clips, _ = look(flat, annotations=str(root / "epic-kitchens-100-annotations"))
    assert len(clips) == 6
    for path in (flat / "video_ht256px").iterdir():
        path.rename(root / path.stem[:3] / "videos" / f"{path.stem}.MP4")
    official, _ = look(root)
    assert {n: {**vars(c), "video": ""} for n, c in clips.items()} == {
        n: {**vars(c), "video": ""} for n, c in official.items()
    }
    with pytest.raises(DataError, match="not a folder"):
        look(root, annotations=str(root / "nowhere"))


def test_a_clip_shows_its_own_frames_and_its_sample_tells_who_and_what(root: Path, tmp_path: Path) -> None:
    manifest = scan("epic-kitchens", str(root), out=str(tmp_path / "clips.parquet")).out
    pack(manifest, out=str(tmp_path / "out"), config={"size_px": 32})
    shards = ShardSet.open(str(tmp_path / "out"))
    samples = {shards.rows[i]["clip_id"]: shards.read(i) for i in range(len(shards))}
    late, early = (samples[f"epic_kitchens/P01_01#P01_01_{n}"] for n in (10, 1))
    assert drawing.read_pictures(late.frames()) == list(range(40, 55))
    assert drawing.read_pictures(early.frames()) == list(range(16, 25))  # It overlaps the first clip.
    assert (late.meta["person"], late.meta["verb"], late.meta["noun"]) == ("P01", "put-down", "plate")
    assert late.meta["extra"]["all_nouns"] == ["plate", "board:cutting"]
    assert late.meta["start_s"] == 4.0
    # Who, what and in which split: columns of the index, which any reader of Parquet joins with other tables.
    index = parquet.read(tmp_path / "out" / INDEX_FILE).to_pylist()
    columns = ("person", "verb", "noun", "text", "text_origin", "split")
    told = {row["clip_id"].partition("#")[2]: tuple(row[name] for name in columns) for row in index}
    split = {clip.person: clip.split for clip in read_manifest(manifest)}
    assert told["P01_01_10"] == ("P01", "put-down", "plate", "put down plate", "narration", split["P01"])
    assert told["P02_03_0"] == ("P02", "", "", "", "", split["P02"])
    assert split["P01"] != split["P02"]


def test_rows_that_cannot_be_used_are_refused_by_name(root: Path) -> None:
    good = [row("P01_01_0", 0, 1), row("P01_01_20", 5.0, 9.0)]
    bad = [
        row("P01_01_2", 2, 2), row("P01_01_3", 3, 2), row("P01_01_4", 1, 2, stop_timestamp=""),
        row("P01_01_5", 1, 2, start_timestamp="nan"), row("P01_01_6", 1, 2, start_timestamp="-00:00:01.00"),
        row("P01_01_7", 7, 8), row("P01_01_8", 1, 1.05), row("P01_01_0", 4, 5),
        row("P01_01_9", 1, 2, participant_id="P07"), row("P01_01_11", 1, 2, narration="caf@"),
    ]  # fmt: skip
    path = root / "epic-kitchens-100-annotations" / TABLES["train"]
    table(path, good + bad)
    path.write_bytes(path.read_bytes().replace(b"@", b"\xe9") + b"P01_01_12,P01\r\n\r\n")
    clips, skipped = look(root)
    name = "epic_kitchens/P01_01#P01_01_"
    mine = {n.removeprefix(name): (c.start_s, round(c.end_s, 6)) for n, c in clips.items() if n.startswith(name)}
    assert mine == {"0": (0, 1), "20": (5.0, 6.0)}  # The last one ends with the video.
    assert {n.removeprefix(name).removeprefix(f"{path}, "): reason for n, reason in skipped.items()} == {
        **{n: "bad_time" for n in "23456"},
        "7": "outside_video",
        "8": "too_short",
        "0": "duplicate_id",
        "P01_01_9": "bad_row",
        "line 13": "not_utf8",
        "line 14": "bad_row",
    }


def test_files_of_narrations_without_a_time_are_heeded(root: Path) -> None:
    """The tables keep a time for them that is none; their own start and stop stay the truth."""
    notes = root / "epic-kitchens-100-annotations"
    (notes / "EPIC_100_train_missing_timestamp_narrations.csv").write_text(",narration_id\n0,P01_01_1\n")
    clips, _ = look(root)
    assert clips["epic_kitchens/P01_01#P01_01_1"].start_s == 1.56
    assert "narration_s" not in clips["epic_kitchens/P01_01#P01_01_1"].facts()
    assert "narration_s" in clips["epic_kitchens/P01_01#P01_01_0"].facts()


def test_persons_are_held_out_whole_or_as_the_publisher_does(root: Path) -> None:
    for seed in range(6):
        clips, _ = look(root, seed=seed, val_share=0.5)
        by_person = [{c.split for c in clips.values() if c.person == p} for p in ("P01", "P02")]
        assert sorted(map(list, by_person)) == [["train"], ["val"]]
    clips, _ = look(root, publisher_split=True)
    told = {n.partition("#")[2].rpartition("_")[0]: c.split for n, c in clips.items()}
    assert told == {"P01_01": "train", "P01_102": "val", "P02_01": "train", "P02_03": "val"}
    table(root / "epic-kitchens-100-annotations" / TABLES["validation"], [row("P01_01_99", 2, 3)])
    clips, _ = look(root, publisher_split=True)
    assert {c.split for n, c in clips.items() if "P01_01#" in n} == {"val"}  # Never a video on both sides.


def test_other_files_second_copies_and_videos_elsewhere_are_told(root: Path, tmp_path: Path) -> None:
    film(root / "P01" / "videos" / "birthday.MP4", 900)
    film(root / "P01" / "small" / "old" / "P01_01.mp4", 1000)
    (root / "P02" / "videos" / "P02_01.MP4").unlink()
    film(root / "P02" / "videos" / "P02_99.MP4", 1100)
    result = scan("epic-kitchens", str(root), out=str(tmp_path / "c.parquet"))
    assert result.dropped == {"missing_video": 1}
    assert result.skipped == {"second_copy": 1, "unknown_name": 1}
    clips, _ = look(root)
    assert clips["epic_kitchens/P02_99#0.000"].text == ""  # No table knows it: taken whole.


def test_without_tables_whole_videos_are_cut(root: Path) -> None:
    for name in TABLES.values():
        (root / "epic-kitchens-100-annotations" / name).unlink()
    clips, skipped = look(root, clip_s=3.0)
    assert (len(clips), skipped) == (8, {})
    assert {c.person for c in clips.values()} == {"P01", "P02"}


def test_a_bucket_gives_the_same_clips_as_a_disk(root: Path, s3: str) -> None:
    for path in root.rglob("*.*"):
        files.write_bytes(f"{s3}/epic/{path.relative_to(root)}", path.read_bytes())
    here, there = look(root)[0], look(f"{s3}/epic")[0]
    assert {n: {**vars(c), "video": ""} for n, c in here.items()} == {
        n: {**vars(c), "video": ""} for n, c in there.items()
    }
    assert len(there) == 6


def test_long_actions_are_cut_into_equal_parts(root: Path) -> None:
    table(root / "epic-kitchens-100-annotations" / TABLES["train"], [row("P01_01_0", 1.0, 5.0)])
    clips, _ = look(root, clip_s=2.0)
    mine = {n.partition("#")[2]: (c.start_s, c.end_s) for n, c in clips.items() if "P01_01#" in n}
    assert mine == {"P01_01_0@1.000": (1.0, 3.0), "P01_01_0@3.000": (3.0, 5.0)}


@pytest.mark.parametrize("text", ["", "narration_id,video_id\n", "id\n1\n"])
def test_tables_of_another_kind_are_refused(root: Path, text: str) -> None:
    (root / "epic-kitchens-100-annotations" / TABLES["train"]).write_text(text)
    with pytest.raises(DataError, match=r"EPIC_100_train\.csv' has no column"):
        look(root)


def test_lists_are_read_without_running_anything(tmp_path: Path) -> None:
    assert parse_list("['a', \"it's\", 3]") == ["a", "it's", 3]
    mark = tmp_path / "ran"
    code = f"[__import__('pathlib').Path({str(mark)!r}).touch()]"
    for text in (
        code,
        "{'a': 1}",
        "[[1]]",
        "[1",
        "a",
        "[" * 5000,
        "['a'] * 10**9",
        "[b'x']",
        "['a'" + ", 'a'" * 10_000,
    ):
        assert parse_list(text) is None
    assert not mark.exists()


def test_times_are_hours_minutes_seconds() -> None:
    assert [parse_time(t) for t in ("00:00:00.00", "01:02:03.45", " 00:59:59.999 ")] == [0.0, 3723.45, 3599.999]
    for text in ("", "1", "00:61:00", "00:00:61", "00:00:-1", "nan", "00:00:00:00", "a:b:c"):
        assert parse_time(text) != parse_time(text)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the publisher's tables are not in {PUBLISHED}")
def test_the_publishers_tables_are_read_in_full(tmp_path: Path) -> None:
    total = 0
    for name, wanted in (("validation", TABLES["validation"]), ("test_timestamps", TABLES["test"])):
        source = PUBLISHED / f"EPIC_100_{name}.head200.csv"
        (tmp_path / wanted).write_bytes(source.read_bytes())
        total += len(list(csv.reader(source.open()))) - 1
    actions, aside = read_actions(look_through(str(tmp_path), ScanConfig()))
    rows = [r for found in actions.values() for r in found]
    assert (len(rows), aside) == (total, [])
    assert total == 400
    for split, cells in rows:
        assert parse_time(cells["start_timestamp"]) < parse_time(cells["stop_timestamp"])
        if split == "validation":
            nouns, classes = parse_list(cells["all_nouns"]), parse_list(cells["all_noun_classes"])
            assert nouns is not None
            assert classes is not None
            assert len(nouns) == len(classes) >= 1
    for name in ("verb", "noun"):
        for cells in csv.DictReader((PUBLISHED / f"EPIC_100_{name}_classes.csv").open()):
            assert parse_list(cells["instances"])
    json.dumps(rows)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the publisher's tables are not in {PUBLISHED}")
def test_every_table_of_the_publisher_parses(tmp_path: Path) -> None:
    """The counts are those that the publisher states: 97 verbs, 300 nouns, 700 videos."""
    rows = {path.name: [row for _, row in read_rows(str(path), ())] for path in PUBLISHED.glob("*.csv")}
    assert not any(isinstance(row, Quarantined) for table in rows.values() for row in table)
    assert {name: len(table) for name, table in rows.items()} == {
        "EPIC_100_verb_classes.csv": 97,
        "EPIC_100_noun_classes.csv": 300,
        "EPIC_100_video_info.csv": 700,
        "EPIC_100_validation.head200.csv": 200,
        "EPIC_100_test_timestamps.head200.csv": 200,
    }
    for name, key in (("verb", "take"), ("noun", "tap")):
        table = rows[f"EPIC_100_{name}_classes.csv"]
        assert [int(row["id"]) for row in table] == list(range(len(table)))
        assert table[0]["key"] == key
        assert key in parse_list(table[0]["instances"])
        assert all(parse_list(row["instances"]) for row in table)
    videos = rows["EPIC_100_video_info.csv"]
    assert all(VIDEO_NAME.fullmatch(row["video_id"]) and float(row["duration"]) > 0 for row in videos)
    assert sum(float(row["duration"]) for row in videos) / 3600 == pytest.approx(100.03, abs=0.01)
    info = {row["video_id"]: float(row["duration"]) for row in videos}
    for name in ("validation.head200", "test_timestamps.head200"):  # No action ends after its video.
        for row in rows[f"EPIC_100_{name}.csv"]:
            assert parse_time(row["stop_timestamp"]) <= info[row["video_id"]] + 0.1
