"""One pseudo-action for each frame, with labels whose truth is known in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pytest

from idm.groups import ActionGroup
from neural_traj.framewise import label_frames
from neural_traj.held import with_held
from pyramid import parquet
from pyramid.labels.protocol import BASE_FIELDS, FLAG_HELD, FLAG_SHORT
from pyramid.labels.table import LabelRun
from pyramid.shards.layout import table_name
from pyramid.shards.reader import ShardSet

SPEED = 0.3
"""Of the only joint, per second."""
SCHEMA = pa.schema(
    [
        *BASE_FIELDS,
        ("action", pa.list_(pa.float32())),
        ("action_std", pa.list_(pa.float32())),
        ("n_votes", pa.uint8()),
        ("doubt", pa.string()),
    ]
)


def write_run(folder: Path, n_frames: int, clip_hz: float, model_hz: float, meaning: str) -> str:
    """Writes a clip, and labels at the steps of a model: where a joint is, or how far it goes."""
    shards = ShardSet.open(drawing.write_shards(folder, [n_frames], rate_hz=clip_hz, actions=False))
    steps = int((n_frames - 1) / clip_hz * model_hz + 1e-9)
    times = np.arange(steps) / model_hz
    told = SPEED * times if meaning == "value" else np.full(steps, SPEED / model_hz)
    rows = [
        {
            "key": drawing.key_of(0),
            "t_s": t,
            "frame": int(t * clip_hz),
            "gap_s": 1 / model_hz,
            "flags": 0,
            "action": [a],
            "action_std": [0.1],
            "n_votes": 2,
            "doubt": "range" if k == 3 else "",
        }
        for k, (t, a) in enumerate(zip(times, told, strict=True))
    ]
    groups = [{"name": "joint", "start": 0, "end": 1, "kind": "linear", "meaning": meaning}]
    about: dict[str, Any] = {"labeler": "idm", "labeler_digest": "d", "config": {"groups": {"arm": groups}}}
    shard = shards.shards[0]
    metadata = {**about, "index_digest": shards.shard_digest(shard)}
    parquet.write(folder / "labels/idm" / table_name(shard), pa.Table.from_pylist(rows, SCHEMA), metadata)
    return str(folder)


def frames_of(folder: str, **options: Any) -> tuple[pa.Table, list[Any], LabelRun]:
    report = label_frames(folder, f"{folder}/labels/idm", f"{folder}/labels/frames", **options)
    run = LabelRun.open(f"{folder}/labels/frames", ShardSet.open(folder))
    return run.table(run.shards.shards[0]), report.quarantined, run


@pytest.mark.parametrize(("n_frames", "clip_hz"), [(93, 16.0), (81, 8.0)])
@pytest.mark.parametrize("model_hz", [8.0, 16.0, 5.0])
@pytest.mark.parametrize("meaning", ["value", "delta"])
def test_every_frame_gets_its_own(tmp_path: Path, n_frames: int, clip_hz: float, model_hz: float, meaning: str) -> None:
    table, aside, _ = frames_of(write_run(tmp_path, n_frames, clip_hz, model_hz, meaning))
    assert aside == []
    assert len(table) == n_frames
    frames = np.arange(n_frames)
    assert table["frame"].to_pylist() == frames.tolist()
    assert table["t_s"].to_numpy() == pytest.approx(frames / clip_hz)
    assert table["gap_s"].to_numpy() == pytest.approx(1 / clip_hz)
    action = np.array(table["action"].to_pylist())[:, 0]
    assert table["flags"].to_numpy()[-1] == FLAG_HELD | FLAG_SHORT
    assert table["n_votes"].to_pylist() == [2] * (n_frames - 1) + [0]
    if meaning == "delta":
        assert action[:-1] == pytest.approx(SPEED / clip_hz, rel=1e-5)
        assert action[-1] == 0
        return
    assert action[-1] == action[-2]
    action, frames = action[:-1], frames[:-1]
    # Past the last step there is nothing to go to: it is held, and flagged where a model's step does not reach.
    last_step = (int((n_frames - 1) / clip_hz * model_hz + 1e-9) - 1) / model_hz
    assert action == pytest.approx(SPEED * np.minimum(frames / clip_hz, last_step), abs=1e-5)
    beyond = (frames + 1) / clip_hz > last_step + 1 / model_hz + 1e-6
    assert (table["flags"].to_numpy()[:-1] == np.where(beyond, FLAG_SHORT, 0)).all()


def test_what_the_steps_doubted_is_doubted_of_their_frames(tmp_path: Path) -> None:
    table, _, run = frames_of(write_run(tmp_path, 41, 16.0, 8.0, "value"))
    assert [f for f, doubt in enumerate(table["doubt"].to_pylist()) if doubt] == [6, 7]
    assert run.metadata["labeler_digest"] != "d"


def test_labels_that_stand_at_the_frames_are_kept_as_they_are(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 31, 10.0, 10.0, "")
    table, aside, _ = frames_of(folder)
    assert aside == []
    run = LabelRun.open(f"{folder}/labels/idm", ShardSet.open(folder))
    assert table.slice(0, 30).equals(run.table(run.shards.shards[0]).replace_schema_metadata(None))
    held = table.slice(30).to_pylist()
    assert [(row["frame"], row["t_s"], row["flags"], row["n_votes"]) for row in held] == [(30, 3.0, 10, 0)]
    assert held[0]["action"] == table["action"].to_pylist()[29]


def test_undeclared_actions_are_refused_with_both_rates(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 93, 16.0, 8.0, "")
    table, aside, _ = frames_of(folder)
    assert len(table) == 0
    assert [item.reason for item in aside] == ["undeclared"]
    assert "8 Hz" in aside[0].detail
    assert "16 Hz" in aside[0].detail
    table, aside, _ = frames_of(folder, meaning="velocity")
    assert (len(table), aside) == (93, [])


def test_no_label_crosses_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shot changes at frame 21: no step leads into it, none is stretched over it; at either end nothing moves."""
    folder = write_run(tmp_path, 41, 16.0, 8.0, "delta")
    shards = ShardSet.open(folder)
    path = tmp_path / "labels/idm" / table_name(shards.shards[0])
    table, metadata = parquet.read(path), parquet.metadata(path)
    keep = [row for row in range(len(table)) if row not in (10,)]  # Frames 20 to 22.
    parquet.write(path, table.take(keep), metadata)
    for room in ("framewise", "held"):
        monkeypatch.setattr(f"neural_traj.{room}.cuts_of", lambda _: [21])
    found, _, _ = frames_of(folder)
    assert found["frame"].to_pylist() == list(range(41))
    flags, action = found["flags"].to_pylist(), [row[0] for row in found["action"].to_pylist()]
    assert {frame: flag for frame, flag in enumerate(flags) if flag} == {20: 10, 21: FLAG_SHORT, 40: 10}
    assert [frame for frame, change in enumerate(action) if change == 0] == [20, 40]


def test_a_second_run_does_nothing_anew(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 21, 16.0, 8.0, "value")
    frames_of(folder)
    before = drawing.tree(tmp_path)
    assert label_frames(folder, f"{folder}/labels/idm", f"{folder}/labels/frames").skipped_done == 1
    assert drawing.lasting(drawing.tree(tmp_path)) == drawing.lasting(before)


def test_labels_out_of_order_are_set_aside(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 21, 16.0, 8.0, "value")
    shards = ShardSet.open(folder)
    path = tmp_path / "labels/idm" / table_name(shards.shards[0])
    table, metadata = parquet.read(path), parquet.metadata(path)
    parquet.write(path, table.take(list(range(len(table)))[::-1]), metadata)
    _, aside, _ = frames_of(folder)
    assert [item.reason for item in aside] == ["bad_labels"]


def test_no_change_of_rotation_is_written_as_the_identity(tmp_path: Path) -> None:
    """In the six numbers of a rotation nothing is not 0; quaternions of unknown order are left without a row."""
    folder = write_run(tmp_path, 4, 10.0, 10.0, "delta")
    shards = ShardSet.open(folder)
    run = LabelRun.open(f"{folder}/labels/idm", shards)
    table = run.table(shards.shards[0]).drop_columns(["action"])
    turn = [0.0, 1.0, 0.0, -1.0, 0.0, 0.0]
    table = table.append_column("action", pa.array([[1.0, *turn, 0.4]] * 3, pa.list_(pa.float32())))
    groups = [
        ActionGroup(name="way", start=0, end=1, kind="linear", meaning="delta"),
        ActionGroup(name="turn", start=1, end=7, kind="rotation_6d", meaning="delta"),
        ActionGroup(name="where", start=7, end=8, kind="linear", meaning="value"),
    ]
    sample = shards.read(0)
    last = with_held(table, sample, groups)["action"].to_pylist()[-1]
    assert last == pytest.approx([0, 1, 0, 0, 0, 1, 0, 0.4])
    loose = [ActionGroup(name="turn", start=0, end=4, kind="quaternion", meaning="delta")]
    assert len(with_held(table, sample, loose)) == 3
