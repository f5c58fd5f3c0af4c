"""Ego4D: whoever filmed one event, or is one person, is never torn apart; the publisher's own tables are read."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import drawing
import pytest

from pyramid.corpora.scan import list_clips
from pyramid.corpora.source import ScanConfig
from pyramid.corpora.splits import events
from pyramid.corpora.tables import read_rows
from pyramid.jobs import Quarantined
from pyramid.types import Clip

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "annotations" / "ego4d"


def uid(number: int) -> str:
    return f"{number:08x}-cad3-4ea6-b034-bea360d9507c"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ego4d")
    for number in range(8):
        path = place / "v2" / "video_540ss" / f"{uid(number)}.mp4"
        drawing.write_video(path, range(number * 20, number * 20 + 10), rate=10, size=(32, 32))
    return place


def tell(root: Path, persons: Collection[int | None], together: dict[int, Any]) -> None:
    videos = [
        {"video_uid": uid(n), "fb_participant_id": person, "concurrent_sets": together.get(n), "redacted_intervals": []}
        for n, person in enumerate(persons)
    ]
    (root / "v2" / "ego4d.json").write_text(json.dumps({"videos": videos, "clips": []}))


def splits(root: Path, **options: Any) -> list[str]:
    clips, skipped = list_clips("ego4d", str(root), ScanConfig(**options))
    assert skipped == []
    found = {Path(clip.video).stem: clip.split for clip in clips}
    return [found[uid(n)] for n in range(8)]


FORMS = {
    "set": {1: [uid(900)], 3: [uid(900)]},
    "video": {1: [uid(3)]},
    "objects": {1: [{"set_uid": uid(900), "start": 3}], 3: [{"set_uid": uid(900), "start": 3}]},
    "nested": {3: {"videos": [[{"video_uid": uid(1)}]]}},
}


@pytest.mark.parametrize("form", FORMS)
def test_who_filmed_one_event_is_on_one_side(root: Path, form: str) -> None:
    """Videos 1 and 3 show one event; their people, 11 and 13, filmed 2 and 4 as well."""
    tell(root, [10, 11, 11, 13, 13, 15, 16, 17], FORMS[form])
    drawn = [splits(root, seed=seed, val_share=0.5) for seed in range(12)]
    for sides in drawn:
        assert len(set(sides[1:5])) == 1
    assert {sides[1] for sides in drawn} == {"train", "val"}
    assert any(sides[0] != sides[1] for sides in drawn)
    tell(root, [10, 11, 11, 13, 13, 15, 16, 17], {})
    apart = [splits(root, seed=seed, val_share=0.5) for seed in range(12)]
    assert any(sides[2] != sides[3] for sides in apart)  # Nothing but the set held them together.
    assert all(sides[1] == sides[2] and sides[3] == sides[4] for sides in apart)
    assert [s[5:] for s in apart] == [s[5:] for s in drawn]  # Others draw as before.


@pytest.mark.parametrize("value", [None, [], {}, "", 5, [None, 3, "short"], "x" * 40])
def test_sets_that_name_nothing_change_nothing(root: Path, value: Any) -> None:
    tell(root, range(8), {})
    before = splits(root, val_share=0.5)
    tell(root, range(8), {1: value, 3: value})
    assert splits(root, val_share=0.5) == before


def test_people_unknown_are_told_apart_by_their_videos(root: Path) -> None:
    tell(root, [None] * 8, {0: [uid(1)], 1: [uid(2)]})
    for seed in range(8):
        sides = splits(root, seed=seed, val_share=0.5)
        assert sides[0] == sides[1] == sides[2]


def test_an_event_does_not_depend_on_the_order() -> None:
    persons = {"a": "1", "b": "2", "c": "2", "d": "3", "e": ""}
    mentions = {"b": ["set"], "d": ["set"]}
    wanted = {"b": "b", "c": "b", "d": "b"}
    assert events(persons, mentions) == wanted
    assert events(dict(reversed(persons.items())), mentions) == wanted
    assert events(persons, {}) == {}
    assert events({}, mentions) == {}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the publisher's tables are not in {PUBLISHED}")
def test_the_publishers_tables_are_read_in_full(root: Path, tmp_path: Path) -> None:
    tables = {name: [row for _, row in read_rows(str(PUBLISHED / name), ())] for name in ("scenario.csv", "device.csv")}
    assert {name: len(rows) for name, rows in tables.items()} == {"scenario.csv": 169, "device.csv": 14}
    assert not any(isinstance(row, Quarantined) for rows in tables.values() for row in rows)
    scenarios, devices = ([str(row["name"]) for row in rows] for rows in tables.values())  # type: ignore[index]
    uids = (PUBLISHED / "moments_mini_train_uids.csv").read_text().split()
    assert len(uids) == len(set(uids)) == 19
    # A corpus of those videos, described by a manifest in the publisher's own words and no ego4d.json.
    place = tmp_path / "v2" / "video_540ss"
    for number, name in enumerate(uids[:2]):
        drawing.write_video(place / f"{name}.mp4", range(number * 20, number * 20 + 10), rate=10, size=(32, 32))
    with (place / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["video_uid", "duration_sec", "scenarios", "device", "split_em"])
        writer.writerow([uids[0], "1.0", f"[{'|'.join(scenarios)}]", devices[-1], "train"])
        writer.writerow([uids[1], "1.0", f"[{scenarios[0]}]", devices[0], "val"])
    for path in PUBLISHED.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    clips, skipped = list_clips("ego4d", str(tmp_path), ScanConfig(publisher_split=True))
    assert skipped == []
    by_uid: dict[str, Clip] = {Path(clip.video).stem: clip for clip in clips}
    assert by_uid[uids[0]].facts() == {"scenarios": scenarios, "device": devices[-1]}
    assert by_uid[uids[1]].facts() == {"scenarios": scenarios[:1], "device": devices[0]}
    assert [by_uid[name].split for name in uids[:2]] == ["train", "val"]
