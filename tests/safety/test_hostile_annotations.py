"""Annotation files in which any value is something else, or any byte is wrong: an error by name, or clips; no crash."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest

from pyramid.corpora.scan import scan
from pyramid.errors import PyramidError
from pyramid.rng import rng

UID = "00000001-cad3-4ea6-b034-bea360d9507c"
CLIP = "00000002-cad3-4ea6-b034-bea360d9507c"
JUNK = (None, 7, 10**400, float("inf"), "²", [None], {"a": {}}, True)

VIDEO = {
    "video_uid": UID, "scenarios": ["a"], "device": "b", "fb_participant_id": 1, "split_fho": "train",
    "redacted_intervals": [{"start_frame": 40, "end_frame": 42}],
}  # fmt: skip
SAID = {"timestamp_sec": 0.5, "narration_text": "#C C a", "annotation_uid": "u"}
FRAME = {"boxes": [{"object_type": "object_of_change", "structured_noun": "n", "freeform_noun": None}]}
ACT = {
    "uid": "x", "is_valid_action": True, "is_rejected": False, "start_frame": 1, "end_frame": 9, "narration_text": "y",
    "narration_annotation_uid": "u", "narration_timestamp_sec": 0.5, "structured_verb": "v", "frames": [FRAME],
    "critical_frames": {"pnr_frame": 5},
}  # fmt: skip
SPAN = {"clip_uid": CLIP, "start_sec": 0.0, "end_sec": 1.0, "redacted": False, "narrated_actions": [ACT]}
PIECE = {"clip_uid": CLIP, "video_uid": UID, "video_start_sec": 0, "video_end_sec": 1}
DOCUMENTS = {
    "ego4d": {
        "ego4d.json": {"videos": [VIDEO], "clips": [PIECE]},
        "narration.json": {UID: {"narration_pass_1": {"narrations": [SAID, {**SAID, "timestamp_sec": 0.9}]}}},
        "fho_main.json": {"videos": [{"video_uid": UID, "annotated_intervals": [SPAN]}]},
    },
    "something-something": {
        "train.json": [{"id": "5", "label": "a b", "template": "a [x]", "placeholders": ["b"]}],
        "labels.json": {"a x": "3"},
    },
}


def broken(data: Any) -> Iterator[Any]:
    """Yields the document with one value after the other replaced by junk or left out."""
    yield from JUNK
    keys = list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in keys:
        for inner in broken(data[key]):
            yield {**data, key: inner} if isinstance(data, dict) else [*data[:key], inner, *data[key + 1 :]]
        if isinstance(data, dict):
            yield {k: v for k, v in data.items() if k != key}


@pytest.fixture(params=["ego4d", "something-something", "epic-kitchens"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A corpus whose annotations are right."""
    name = {"ego4d": f"full_scale/{UID}.mp4", "epic-kitchens": "P01_01.mp4"}.get(request.param, "5.mp4")
    drawing.write_video(tmp_path / name, range(15), rate=10, size=(16, 16))
    if request.param == "ego4d":
        drawing.write_video(tmp_path / "clips" / f"{CLIP}.mp4", range(20, 35), rate=10, size=(16, 16))
    for file, data in DOCUMENTS.get(request.param, {}).items():
        (tmp_path / file).write_text(json.dumps(data))
    if request.param == "epic-kitchens":
        header = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,all_nouns\n"
        rows = "".join(f"P01_01_{i},P01,P01_01,00:00:00.1,00:00:00.{i},00:00:01.0,['a']\n" for i in range(5))
        (tmp_path / "EPIC_100_train.csv").write_text(header + rows)
    assert scan(request.param, str(tmp_path), out=str(tmp_path / "c.parquet")).skipped == {}
    return request.param, tmp_path


def survives(kind: str, root: Path, **options: str) -> bool:
    """Scans; anything but a result or an error of ours is a defect."""
    try:
        return scan(kind, str(root), out=str(root / "c"), **options).clips > 0
    except PyramidError:
        return False


@pytest.mark.parametrize("corpus", ["ego4d", "something-something"], indirect=True)
def test_any_value_may_be_something_else(corpus: tuple[str, Path]) -> None:
    kind, root = corpus
    for rendition in ("", "clips") if kind == "ego4d" else ("",):
        for file, data in DOCUMENTS[kind].items():
            outcomes = []
            for wrong in itertools.islice(broken(data), 0, None, 7 if rendition else 3):
                (root / file).write_text(json.dumps(wrong))
                try:
                    outcomes.append(survives(kind, root, rendition=rendition))
                except Exception as error:
                    raise AssertionError(f"{file}: {wrong}") from error
            (root / file).write_text(json.dumps(data))
            assert any(outcomes)


def test_any_byte_may_be_wrong(corpus: tuple[str, Path]) -> None:
    kind, root = corpus
    draw = rng(0, "damage", kind)
    for path in sorted([*root.glob("*.json"), *root.glob("*.csv")]):
        data, outcomes = path.read_bytes(), []
        for _ in range(60):
            wrong = bytearray(data)
            for at in draw.integers(0, len(data), int(draw.integers(1, 4))):
                wrong[at] = draw.integers(256)
            path.write_bytes(wrong[: int(draw.integers(1, len(data) + 1))] if draw.random() < 0.3 else wrong)
            outcomes.append(survives(kind, root))
        path.write_bytes(data)
        assert len(outcomes) == 60
        assert survives(kind, root)
