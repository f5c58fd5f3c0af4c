"""Value types refuse what no later stage could make sense of."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyramid.errors import DataError
from pyramid.types import KEY_PATTERN, ActionChunk, Clip, Embodiment, Frames

CLIP = {"clip_id": "c", "corpus": "folder", "video": "a.mp4", "start_s": 0.0, "end_s": 1.0}
BODY = {"name": "arm", "state_dim": 3, "action_dim": 2, "horizon": 8, "rate_hz": 10.0}


def test_a_clip_knows_its_length() -> None:
    assert Clip(**{**CLIP, "start_s": 1.5, "end_s": 4.0}).duration_s == 2.5
    assert Clip.columns()[:5] == ["clip_id", "corpus", "video", "start_s", "end_s"]


@pytest.mark.parametrize(
    "change",
    [
        {"start_s": 1.0},
        {"start_s": -0.1},
        {"end_s": math.inf},
        {"end_s": math.nan},
        {"start_s": math.nan},
        {"corpus": "My Corpus"},
        {"corpus": "../up"},
        {"corpus": ""},
        {"corpus": "a\n"},
        {"embodiment": "a/b"},
        {"tier": "bottom"},
        {"source_hz": 0.0},
        {"source_hz": math.nan},
    ],
)
def test_a_bad_clip_is_refused_by_its_id(change: dict) -> None:
    with pytest.raises(DataError, match="clip 'c'"):
        Clip(**{**CLIP, **change})


@pytest.mark.parametrize("key", ["a-0123456789ab-0000", "my_corpus2-ffffffffffff-0012"])
def test_keys(key: str) -> None:
    assert KEY_PATTERN.fullmatch(key)


@pytest.mark.parametrize(
    "key",
    [
        "a-0123456789ab-000",
        "A-0123456789ab-0000",
        "a.b-0123456789ab-0000",
        "../a-0123456789ab-0000",
        "a-0123456789ab-0000\n",
    ],
)
def test_what_is_no_key(key: str) -> None:
    assert not KEY_PATTERN.fullmatch(key)


def test_frames_hold_pictures_with_their_times() -> None:
    assert len(Frames(np.zeros((2, 4, 4, 3), np.uint8), np.array([0.0, 0.1]))) == 2
    for pixels, times in (
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros(2)),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros(4)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3)),
    ):
        with pytest.raises(DataError):
            Frames(pixels, times)


def test_a_chunk_is_a_matrix() -> None:
    with pytest.raises(DataError, match=r"\[H, D\]"):
        ActionChunk(np.zeros(3, np.float32), 10.0, "arm")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Arm"},
        {"name": ""},
        {"state_dim": -1},
        {"action_dim": 0},
        {"horizon": 0},
        {"rate_hz": 0.0},
        {"rate_hz": math.nan},
    ],
)
def test_a_body_without_size_is_refused(change: dict) -> None:
    assert Embodiment(**BODY).to_dict() == {**BODY, "label": "action"}
    with pytest.raises(DataError, match="embodiment"):
        Embodiment(**{**BODY, **change})
