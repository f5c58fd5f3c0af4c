"""Clips at rates that are no multiple of the model's: every frame gets the action of its own time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import random_models

from idm.config import WindowConfig
from idm.groups import ActionGroup
from idm.label import load
from idm.other_rates import FrameTimes, declares_all, windows_at_frames
from idm.windows import vote, vote_weights, window_starts
from pyramid.errors import SkipItemError
from pyramid.normalize import Normalizer
from pyramid.shards.reader import Sample, ShardSet

WINDOWS = WindowConfig(horizon=10, frames=(0, 5, 10), rate_hz=20.0)
"""Half a second; looks a quarter of a second ahead each."""


@pytest.mark.parametrize(
    ("clip_hz", "horizon", "frames"),
    [(8.0, 4, (0, 2, 4)), (16.0, 8, (0, 4, 8)), (12.0, 6, (0, 3, 6)), (60.0, 30, (0, 15, 30)), (20.0, 10, (0, 5, 10))],
)
def test_windows_are_counted_in_frames(clip_hz: float, horizon: int, frames: tuple[int, ...]) -> None:
    own = windows_at_frames(WINDOWS, 20.0, np.arange(40) / clip_hz)
    assert own is not None
    assert (own.horizon, own.frames, own.rate_hz) == (horizon, frames, pytest.approx(clip_hz))


@pytest.mark.parametrize("clip_hz", [10.0, 5.0, 2.0])
def test_a_clip_without_frames_at_those_moments_has_no_windows(clip_hz: float) -> None:
    assert windows_at_frames(WINDOWS, 20.0, np.arange(40) / clip_hz) is None


def test_a_clip_of_uneven_rate_has_no_windows() -> None:
    times = np.arange(40) / 16
    times[20:] += 0.03
    assert windows_at_frames(WINDOWS, 20.0, times) is None


@pytest.mark.parametrize("clip_hz", [8.0, 16.0, 60.0])
@pytest.mark.parametrize("meaning", ["value", "delta", "velocity"])
def test_windows_that_know_the_truth_tell_it_at_every_frame(clip_hz: float, meaning: str) -> None:
    """Two joints speed up; windows begin at frames, so that their steps are never twice at the same times."""
    own = windows_at_frames(WINDOWS, 20.0, np.arange(60) / clip_hz)
    assert own is not None
    rise, speed = np.array([0.4, -1.5]), np.array([0.2, 0.1])

    def path(t: np.ndarray) -> np.ndarray:
        return speed * t[:, None] + rise * t[:, None] ** 2 / 2

    def truth(t: np.ndarray, step_s: float) -> np.ndarray:
        change = path(t + step_s) - path(t)
        return {"value": speed + rise * t[:, None], "delta": change, "velocity": change / step_s}[meaning]

    normalizer = Normalizer(kind="standard", center=np.array([0.3, -0.2]), scale=np.array([2.0, 0.5]))
    groups = [ActionGroup(name="joints", start=0, end=2, meaning=meaning)]
    told = FrameTimes(own, 20.0, groups, normalizer)
    chunks = {}
    for start in window_starts(60, own.horizon):
        actions = truth(start / clip_hz + np.arange(10) / 20, 1 / 20)
        chunks[start] = ((actions - normalizer.center) / normalizer.scale).astype(np.float32)[None]
    votes = vote(told.chunks(chunks), 60, told.weights(np.repeat(vote_weights(10)[:, None], 2, 1)))
    found = votes.mean * normalizer.scale + normalizer.center
    # Between two steps a delta is taken to be even: at most an eighth of a step of acceleration goes astray.
    slack = 1e-5 if meaning == "value" else 1.5 * (1 / 20) ** 2 / 8 * (1 if meaning == "delta" else clip_hz)
    inner = slice(0, 58) if meaning != "value" else slice(0, 60 - own.horizon)
    assert np.abs(found - truth(np.arange(59) / clip_hz, 1 / clip_hz))[inner].max() < slack + 1e-6


def test_a_change_over_a_longer_frame_is_larger_and_as_much_less_sure() -> None:
    own = windows_at_frames(WINDOWS, 20.0, np.arange(40) / 8)
    assert own is not None
    groups = [
        ActionGroup(name="xyz", start=0, end=2, meaning="delta"),
        ActionGroup(name="gripper", start=2, end=3, kind="binary", meaning="value"),
    ]
    times = FrameTimes(own, 20.0, groups, Normalizer(kind="standard", center=np.zeros(3), scale=np.ones(3)))
    assert times.lengths(3) == pytest.approx([2.5, 2.5, 1.0])


@pytest.mark.parametrize(("n_frames", "clip_hz"), [(93, 16.0), (81, 8.0)])
def test_every_frame_of_a_generated_clip_gets_one_label(tmp_path: Path, n_frames: int, clip_hz: float) -> None:
    table = load(model_of(tmp_path, absolute=False)).label([clip_of(tmp_path, n_frames, clip_hz)])[0]
    assert table["frame"].to_pylist() == list(range(n_frames - 1))
    assert table["t_s"].to_numpy() == pytest.approx(np.arange(n_frames - 1) / clip_hz)
    assert table["gap_s"].to_numpy() == pytest.approx(1 / clip_hz)
    assert (np.stack(table["action_std"].to_pylist()) > 0).all()
    assert max(table["n_votes"].to_pylist()) == round(0.5 * clip_hz)


def test_what_cannot_be_resampled_is_refused_with_the_numbers(tmp_path: Path) -> None:
    clip = clip_of(tmp_path, 40, 8.0)
    with pytest.raises(SkipItemError, match=r"8 Hz.*trained at 20 Hz") as caught:
        load(model_of(tmp_path / "plain", absolute=None)).label([clip])
    assert caught.value.reason == "rate"
    known = load(model_of(tmp_path / "known", absolute=True))
    with pytest.raises(SkipItemError, match=r"10 Hz.*trained at 20 Hz"):
        known.label([clip_of(tmp_path / "ten", 40, 10.0)])


def test_a_clip_of_the_models_rate_is_labelled_as_ever_beside_others(tmp_path: Path) -> None:
    labeler = load(model_of(tmp_path, absolute=True))
    clips = [clip_of(tmp_path / "a", 40, 20.0), clip_of(tmp_path / "b", 40, 8.0), clip_of(tmp_path / "c", 40, 16.0)]
    together = labeler.label(clips)
    for clip, table in zip(clips, together, strict=True):
        assert labeler.label([clip])[0].equals(table)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([("linear", "value", 0, 4)], True),
        ([("linear", "", 0, 4)], False),
        ([("linear", "value", 0, 3)], False),
        ([("quaternion", "value", 0, 4)], True),
        ([("quaternion", "delta", 0, 4)], False),
    ],
)
def test_everything_must_be_declared(groups: list[Any], expected: bool) -> None:
    told = [ActionGroup(name="a", kind=kind, meaning=means, start=a, end=b) for kind, means, a, b in groups]
    assert declares_all(told, 4) is expected


def model_of(folder: Path, absolute: bool | None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "modality.json"
    path.write_text(json.dumps({"action": {"xy": {"start": 0, "end": 2, "absolute": bool(absolute)}}}))
    options: dict[str, Any] = {"windows.horizon": 10, "windows.frames": (0, 5, 10)}
    modality = "" if absolute is None else str(path)
    return random_models.idm_model(folder / "idm", ["arm"], 20.0, modality=modality, **options)


def clip_of(folder: Path, n_frames: int, clip_hz: float) -> Sample:
    return ShardSet.open(drawing.write_shards(folder / f"s{clip_hz}", [n_frames], rate_hz=clip_hz, actions=False)).read(
        0
    )
