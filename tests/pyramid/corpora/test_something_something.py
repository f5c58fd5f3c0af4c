"""Something-Something v2: every WebM with its sentence, template and placeholders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest

from pyramid.corpora.scan import list_clips, scan
from pyramid.corpora.source import ScanConfig
from pyramid.errors import DataError
from pyramid.types import Clip

TEMPLATE = "Putting [something] on [part] of [something]"


def film(root: Path, number: int, frames: int = 36) -> None:
    path = root / "20bn-something-something-v2" / f"{number}.webm"
    numbers = range(number * 50, number * 50 + frames)
    drawing.write_video(path, numbers, rate=12, codec="libvpx-vp9", size=(32, 32), options={"deadline": "realtime"})


def entry(number: int, *things: str, **more: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "label": f"putting {things[0]} on {things[1]} of {things[2]}",
        "template": TEMPLATE,
        "placeholders": list(things),
        **more,
    }


def put(root: Path, split: str, rows: Any) -> Path:
    path = root / "labels" / f"something-something-v2-{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (7, 10, 200, 3):
        film(tmp_path, number)
    put(tmp_path, "train", [entry(7, "a cup", "the edge", "a table"), entry(10, "x", "y", "z", label="")])
    put(tmp_path, "validation", [entry(200, "a pen", "top", "a book", id=200), entry(5, "a", "b", "c")])
    put(tmp_path, "test", [{"id": "3"}])
    (tmp_path / "labels" / "labels.json").write_text(json.dumps({"Putting something on part of something": "42"}))
    return tmp_path


def look(root: Path, **options: object) -> tuple[dict[str, Clip], dict[str, str]]:
    clips, skipped = list_clips("something-something", str(root), ScanConfig(**options))
    return {c.clip_id.removeprefix("something_something/"): c for c in clips}, {q.item: q.reason for q in skipped}


def test_videos_carry_sentence_template_and_things(root: Path, tmp_path: Path) -> None:
    clips, skipped = look(root)
    assert skipped == {}
    assert {n: c.text for n, c in clips.items()} == {
        "7#0.000": "putting a cup on the edge of a table",
        "10#0.000": "Putting x on y of z",  # Filled in, where the label is missing.
        "200#0.000": "putting a pen on top of a book",
        "3#0.000": "",
    }
    assert all(c.start_s == 0 and c.end_s == pytest.approx(3.0, abs=0.1) for c in clips.values())
    cup, test = clips["7#0.000"], clips["3#0.000"]
    assert (cup.verb, cup.noun, cup.text_origin) == (
        "Putting something on part of something", "a cup, the edge, a table", "label",
    )  # fmt: skip
    assert cup.facts() == {
        "publisher_split": "train", "template": TEMPLATE, "placeholders": ["a cup", "the edge", "a table"],
        "verb_class": 42,
    }  # fmt: skip
    assert (test.verb, test.text_origin, test.facts()) == ("", "", {"publisher_split": "test"})
    assert {c.corpus for c in clips.values()} == {"something_something"}
    result = scan("something-something", str(root), out=str(tmp_path / "c.parquet"))
    assert (result.clips, result.dropped) == (4, {"missing_video": 1})


def test_the_publishers_split_is_an_option(root: Path) -> None:
    clips, _ = look(root, publisher_split=True)
    assert {n.partition("#")[0]: c.split for n, c in clips.items()} == {
        "7": "train", "10": "train", "200": "val", "3": "val",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (entry(7, "a", "b", "c", placeholders=["a"]), "bad_row"),
        (entry(7, "a", "b", "c", placeholders="abc"), "bad_row"),
        (entry(7, "a", "b", "c", template=None), "bad_row"),
        (entry(7, "a", "b", "c", label=5), "bad_row"),
        (entry(7, "a", "b", "c", label="caf\ud8e9"), "not_utf8"),
        (entry(10, "a", "b", "c"), "duplicate_id"),
        ("7", "bad_row"),
        ({"label": "x"}, "bad_row"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_by_name(root: Path, row: Any, reason: str) -> None:
    put(root, "train", [row, entry(10, "x", "y", "z")])
    clips, skipped = look(root)
    assert list(skipped.values()) == [reason]
    assert "200#0.000" in clips
    named = row.get("id") if isinstance(row, dict) else None
    assert (f"{named}#0.000" in clips) is False
    if named:
        assert list(skipped) == [named]


@pytest.mark.parametrize("text", ["{}", "[", "\xff", "3"])
def test_tables_of_another_kind_are_refused(root: Path, text: str) -> None:
    path = root / "labels" / "something-something-v2-train.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"v2-train\.json"):
        look(root)
    (root / "labels" / "something-something-v2-train.json").unlink()
    (root / "labels" / "labels.json").write_text("[]")
    with pytest.raises(DataError, match=r"labels\.json"):
        look(root)


def test_without_tables_and_with_other_files(root: Path) -> None:
    for path in (root / "labels").iterdir():
        path.unlink()
    film(root, 8)
    (root / "20bn-something-something-v2" / "8.webm").rename(root / "holiday.webm")
    clips, skipped = look(root)
    assert {c.text for c in clips.values()} == {""}
    assert (len(clips), skipped) == (4, {str(root / "holiday.webm"): "unknown_name"})
