"""Generated clips on the whole way: taken in, judged, labelled, and read as LeRobot data sets and sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pandas as pd
import pytest
import random_models
from numpy.typing import NDArray

from neural_traj.ingest import ingest
from neural_traj.judge import judge
from neural_traj.relabel import RelabelResult, relabel
from pyramid.errors import ConfigError, DataError
from pyramid.labels.protocol import FLAG_HELD
from pyramid.lerobot import open_dataset
from pyramid.mixture.verbs import mix_show
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import verify
from pyramid.video.encode import encode_mp4

REAL = Path(__file__).parents[3] / "shared" / "data" / "generated"
CLIPS = {"push the cup": (93, 16), "open the drawer": (81, 8)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [random_models.lam_model(folder / "lam"), random_models.idm_model(folder / "idm", ["gr1"], rate_hz=8.0)]


def wandering(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """A square that goes back and forth over a textured floor, uint8 [n, 64, 64, 3]."""
    floor = np.random.default_rng(seed).integers(60, 180, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    clip = np.repeat(floor[None], n, axis=0)
    for t in range(n):
        place = abs((2 * t + seed) % 80 - 40)
        clip[t, 10:40, place : place + 22] = 230
    return clip


def grid(n: int) -> NDArray[np.uint8]:
    """Three views in a 2x2 grid, the last quadrant black."""
    one, two, three = (wandering(n, seed) for seed in range(3))
    return np.concatenate([np.concatenate([one, two], 2), np.concatenate([three, 0 * one], 2)], 1)


@pytest.fixture
def dreams(tmp_path: Path) -> Path:
    """Clips of two rates as GR00T-Dreams splits them, with tags in their labels; one stands still."""
    root = tmp_path / "dreams"
    for name in ("videos", "labels"):
        (root / name).mkdir(parents=True)
    clips = [(wandering(n, seed=k), rate) for k, (n, rate) in enumerate(CLIPS.values())]
    clips += [(np.repeat(wandering(1, seed=4), 24, axis=0), 8)]
    for number, (clip, rate) in enumerate(clips):
        (root / f"videos/{number}.mp4").write_bytes(encode_mp4(clip, rate))
    for number, text in enumerate([*CLIPS, "wait"]):
        (root / f"labels/{number}.txt").write_text(f"<DREAM> The robot should {text}")
    return root


def run(tmp_path: Path, root: Path, models: list[str], **options: Any) -> RelabelResult:
    clips = ingest(str(root), out=str(tmp_path / "clips.parquet"), without_text=True).out
    scores = judge(clips, out=str(tmp_path / "scores.parquet")).out
    given = {"embodiment": "gr1", "actions": "value", "pack": {"size_px": 32}, "out": str(tmp_path / "out")}
    return relabel(clips, scores=scores, model=models, **{**given, **options})


def test_the_whole_way(tmp_path: Path, dreams: Path, models: list[str]) -> None:
    result = run(tmp_path, dreams, models, prompts=["the robot should"], states="previous_action")
    assert (result.clips, result.samples, result.rejected) == (2, 2, {"frozen_share": 1})
    assert result.items == []
    assert {name: one["embodiment"] for name, one in result.sources.items()} == {
        "dreams_latent": "gr1_latent",
        "dreams_pseudo": "gr1_pseudo",
    }
    found = {(one["to"], one["rate_hz"]): one for one in result.datasets}
    assert sorted(found) == [(f"lerobot-v{v}", hz) for v in ("2.1", "3.0") for hz in (8.0, 16.0)]
    for (_, rate), told in found.items():
        text, (n, _) = next(item for item in CLIPS.items() if item[1][1] == rate)
        check_dataset(told["path"], text, n, rate)
    shown = mix_show(result.mixture)
    assert {row["source"]: row["embodiment"] for row in shown.sources} == {
        "dreams_latent": "gr1_latent",
        "dreams_pseudo": "gr1_pseudo",
    }
    check_again(tmp_path, dreams, models)


def check_dataset(path: str, text: str, n: int, rate: float) -> None:
    """One label per frame with its true time; nothing that is inferred passes for measured."""
    assert verify(path).bad == []
    dataset = open_dataset(path)
    assert [episode.task for episode in dataset.episodes] == [text]
    rows = pd.read_parquet(dataset.episodes[0].data)
    assert rows["t_s"].to_numpy() == pytest.approx(np.arange(n) / rate, abs=1e-4)
    assert rows["action_valid"].tolist() == [True] * (n - 1) + [False]
    labels, action = (np.stack(rows[name].to_numpy()) for name in ("pseudo_action", "action"))
    assert np.array_equal(labels, action)
    assert np.array_equal(action[-1], action[-2])
    held = rows["pseudo_action_flags"].to_numpy().astype(int) & FLAG_HELD
    assert held.tolist() == [0] * (n - 1) + [FLAG_HELD]
    assert (np.stack(rows["pseudo_action_std"].to_numpy()) > 0).all()
    state = np.stack(rows["observation.state"].to_numpy())
    assert np.array_equal(state[1:], action[:-1])
    assert set(rows["state_source"]) == {"inferred:previous_action"}
    assert rows["action_source"].str.match("pseudo:idm:[0-9a-f]{12}$").all()
    assert set(rows["score.verdict"]) == {"keep"}
    assert (rows["score.motion"] > 0.1).all()
    assert set(rows["source.kind"]) == {"generated"}
    pairs = np.isfinite(np.stack(rows["latent"].to_numpy())).all(1)
    assert pairs.sum() >= n - 1 - round(0.4 * rate)


def check_again(tmp_path: Path, dreams: Path, models: list[str]) -> None:
    """The same again does nothing, anything else is refused, and nothing is overwritten."""
    before = drawing.tree(tmp_path / "out")
    same = run(tmp_path, dreams, models, prompts=["the robot should"], states="previous_action")
    assert len(same.datasets) == 4
    after = drawing.tree(tmp_path / "out")
    assert drawing.lasting(after) == drawing.lasting(before)
    with pytest.raises(ConfigError, match="nothing in it is overwritten"):
        run(tmp_path, dreams, models, prompts=["the robot should"])
    assert drawing.tree(tmp_path / "out") == after
    with pytest.raises(ConfigError, match="holds something else"):
        run(tmp_path, dreams, models, out=str(dreams))


def test_a_grid_becomes_its_views_and_an_undeclared_rate_is_told(tmp_path: Path, models: list[str]) -> None:
    root = tmp_path / "dreams"
    root.mkdir()
    (root / "0_stack_the_plates.mp4").write_bytes(encode_mp4(grid(40), 8))
    (root / "1_turn_the_tap.mp4").write_bytes(encode_mp4(wandering(60, seed=7), 16))
    result = run(tmp_path, root, models, actions="declared", formats=("lerobot-v2.1",))
    assert result.samples == 4
    views = pd.read_parquet(f"{result.out}/facts.parquet")["source.view"]
    assert sorted(view.partition(":")[0] for view in views) == ["", *(f"view {v} of a 2x2 grid" for v in VIEWS)]
    assert [(one["rate_hz"], one["episodes"]) for one in result.datasets] == [(8.0, 3)]
    assert result.quarantined == {"no_labels": 1, "undeclared": 1}
    rows = pd.read_parquet(open_dataset(result.datasets[0]["path"]).episodes[0].data)
    assert "observation.state" not in rows.columns
    assert set(rows["state_source"]) == {"absent"}


def test_a_model_of_several_views_refuses_a_view_alone(tmp_path: Path, models: list[str]) -> None:
    root = tmp_path / "dreams"
    root.mkdir()
    (root / "0_stack_the_plates.mp4").write_bytes(encode_mp4(grid(24), 8))
    views = ((0, 0, 0.5, 0.5), (0, 0.5, 0.5, 0.5), (0.5, 0, 0.5, 0.5))
    both = [models[0], random_models.idm_model(tmp_path / "idm", ["gr1"], 8.0, **{"model.views": views})]
    with pytest.raises(DataError, match=r"labelled none of the 3 samples.*--split_grid=none"):
        run(tmp_path, root, both)
    whole = run(tmp_path, root, both, pack={"split_grid": "none"}, out=str(tmp_path / "whole"), formats=())
    assert (whole.samples, whole.items, whole.datasets) == (1, [], [])
    assert whole.sources["dreams_pseudo"]["rows"] == 23


VIEWS = ("bottom_left", "top_left", "top_right")


def test_mistakes_are_named(tmp_path: Path, folder: Path, models: list[str]) -> None:
    options: dict[str, Any] = {"limit": 1, "dry_run": True}
    assert run(tmp_path, folder, models, **options).clips == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--embodiment gr1"):
        run(tmp_path, folder, models, embodiment="toaster", **options)
    with pytest.raises(ConfigError, match="as many models"):
        run(tmp_path, folder, models[:1], **options)
    with pytest.raises(ConfigError, match="--out"):
        relabel(str(folder), scores=str(tmp_path / "scores.parquet"), model=models, embodiment="gr1")
    with pytest.raises(DataError, match="make one: pyramid dream judge"):
        relabel(str(folder), scores=str(tmp_path / "no.parquet"), out="x", model=models)
    other = judge(str(folder), out=str(tmp_path / "some.parquet"), limit=1).out
    some = relabel(str(folder), scores=other, model=models, embodiment="gr1", dry_run=True)
    assert (some.clips, some.quarantined) == (1, {"not_a_video": 1, "not_judged": 3})


def test_a_clip_shorter_than_the_window_costs_itself_only(tmp_path: Path, models: list[str]) -> None:
    root = tmp_path / "dreams"
    root.mkdir()
    for number, n in enumerate((24, 4)):
        (root / f"{number}_push_the_cup.mp4").write_bytes(encode_mp4(wandering(n, seed=number), 8))
    result = run(tmp_path, root, models, formats=("lerobot-v3.0",))
    assert result.quarantined == {"short": 1}
    assert [one["episodes"] for one in result.datasets] == [1]
    # Two clips of one instruction are two episodes, and one task.
    assert len(ShardSet.open(f"{result.out}/shards").rows) == 2
    assert json.loads(Path(result.out, "relabel.json").read_text())["clips"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the published clips are not at {REAL}")
def test_published_clips(tmp_path: Path, models: list[str]) -> None:
    result = run(tmp_path, REAL, models)
    assert (result.clips, result.samples, result.items) == (7, 9, [])
    assert [(one["to"], one["episodes"]) for one in result.datasets] == [("lerobot-v2.1", 9), ("lerobot-v3.0", 9)]
    for told in result.datasets:
        assert verify(told["path"]).bad == []
        assert sum(episode.length for episode in open_dataset(told["path"]).episodes) == result.frames
