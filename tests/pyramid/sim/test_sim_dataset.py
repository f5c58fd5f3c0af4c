"""A small data pyramid: what is in it, and that it is the same bytes however often the maker was killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.config import to_dict
from pyramid.corpora.naming import parse_dreamgen_name
from pyramid.errors import ConfigError, DataError
from pyramid.lerobot import open_v2, read_episode
from pyramid.rng import rng
from pyramid.sim import HandConfig, SimConfig, make_dataset
from pyramid.sim.env import MetaWorldEnv
from pyramid.video.decode import decode_mp4

pytestmark = pytest.mark.sim
QUICK_TASK = "button-press-topdown-v3"
CONFIG = SimConfig(tasks=(QUICK_TASK, "reach-v3"), n_hand=3, n_generated=2, n_robot=3, size_px=64, seed=5)


def contents(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): files.sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(simulator: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sim") / "data"
    make_dataset(str(out), CONFIG)
    return out


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_three_levels_are_there(made: Path) -> None:
    assert sorted(p.name for p in (made / "hand").glob("*.mp4")) == [
        "button-press-topdown-v3-000.mp4",
        "button-press-topdown-v3-001.mp4",
        "reach-v3-000.mp4",
    ]
    names = sorted(p.stem for p in (made / "generated").glob("*.mp4"))
    assert [parse_dreamgen_name(name) for name in names] == [
        (0, "press the button from above"),
        (1, "move the hand to the red target"),
    ]
    assert [episode.index for episode in open_v2(str(made / "robot")).episodes] == [0, 1, 2]


def test_captions_name_every_video_once(made: Path) -> None:
    captions = rows(made / "hand" / "captions.jsonl")
    assert [row["file"] for row in captions] == sorted(p.name for p in (made / "hand").glob("*.mp4"))
    assert {str(row["text"]) for row in captions} == {"press the button from above", "move the hand to the red target"}


def test_videos_have_the_real_time_base(made: Path) -> None:
    import av

    for part, rate in (("hand", 80), ("generated", 40), ("robot", 80)):
        for path in (made / part).rglob("*.mp4"):
            with av.open(str(path)) as container:
                assert container.streams.video[0].average_rate == rate, path


def test_every_row_is_told_and_no_seed_stands_twice(made: Path) -> None:
    told = rows(made / "episodes.jsonl")
    assert [row["part"] for row in told] == ["hand"] * 3 + ["generated"] * 2 + ["robot"] * 3
    assert len({row["seed"] for row in told}) == len(told)
    for row in told:
        steps, frames = int(str(row["steps"])), int(str(row["frames"]))
        assert frames == (steps + 1) // 2 if row["part"] == "generated" else frames == steps


def test_robot_episodes_replay_in_the_simulator(made: Path) -> None:
    """The actions on disk, applied again from the seed on disk, give the states on disk and solve the task."""
    dataset = open_v2(str(made / "robot"))
    for episode, row in zip(
        dataset.episodes, [r for r in rows(made / "episodes.jsonl") if r["part"] == "robot"], strict=True
    ):
        kept = parquet.metadata(episode.data)["facts"]
        arrays = read_episode(dataset, episode)
        env = MetaWorldEnv(kept["env"])
        states = [env.reset(kept["seed"])]
        steps = [env.step(action) for action in arrays.action]
        states += [step.state for step in steps[:-1]]
        assert np.array_equal(np.stack(states), arrays.state)
        assert steps[-1].success
        assert kept["success"]
        assert episode.task == env.instruction
        assert len(arrays) == episode.length
        assert {kept["seed"]} <= {r["seed"] for r in rows(made / "episodes.jsonl") if r["index"] == episode.index}
        assert row["part"] == "robot"


def test_the_robots_data_set_is_consistent(made: Path) -> None:
    root = made / "robot"
    info = files.read_json(root / "meta" / "info.json")
    dataset = open_v2(str(root))
    lengths = [episode.length for episode in dataset.episodes]
    assert (info["fps"], info["total_episodes"], info["total_frames"]) == (80, 3, sum(lengths))
    indices = np.concatenate([parquet.read(e.data)["index"].to_numpy() for e in dataset.episodes])
    assert np.array_equal(indices, np.arange(sum(lengths)))
    for episode in dataset.episodes:
        pixels = decode_mp4(Path(episode.videos["observation.images.corner4"]).read_bytes())
        assert pixels.shape == (episode.length, 64, 64, 3)
    assert dataset.notes == ()


def test_again_changes_nothing(made: Path) -> None:
    before = contents(made)
    report = make_dataset(str(made), CONFIG)
    assert contents(made) == before
    assert report.skipped_done == 8
    assert (report.hand, report.generated, report.robot) == (3, 2, 3)
    assert report.frames == sum(int(str(row["frames"])) for row in rows(made / "episodes.jsonl"))


@pytest.mark.slow
def test_anew_gives_the_same_bytes_in_another_order(made: Path, tmp_path: Path) -> None:
    """One episode each first, then the rest: what was drawn before leaves no trace."""
    out = tmp_path / "data"
    first = make_dataset(str(out), CONFIG, limit=1)
    assert (first.hand, first.generated, first.robot) == (1, 1, 1)
    assert make_dataset(str(out), CONFIG).skipped_done == 3
    assert contents(out) == contents(made)


def test_a_folder_never_shrinks(made: Path) -> None:
    before = contents(made)
    report = make_dataset(str(made), CONFIG, limit=1)
    assert report.hand == 3
    assert contents(made) == before


def test_a_dry_run_writes_nothing_and_estimates(simulator: None, tmp_path: Path) -> None:
    report = make_dataset(str(tmp_path / "data"), CONFIG, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert (report.hand, report.generated, report.robot, report.skipped_done) == (3, 2, 3, 0)
    assert 0.1 < report.seconds < 120


def test_nothing_is_left_to_do(made: Path) -> None:
    report = make_dataset(str(made), CONFIG, dry_run=True)
    assert (report.skipped_done, report.seconds) == (8, 0.0)


def test_another_config_is_refused(made: Path) -> None:
    before = contents(made)
    with pytest.raises(ConfigError, match="another config"):
        make_dataset(str(made), replace(CONFIG, seed=6))
    assert contents(made) == before


def test_another_folder_is_left_alone(simulator: None, tmp_path: Path) -> None:
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "mine.mp4").write_bytes(b"precious")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="not made here"):
            make_dataset(str(tmp_path), CONFIG, resume=resume)
    assert (tmp_path / "hand" / "mine.mp4").read_bytes() == b"precious"


def test_without_resuming_all_is_made_anew(simulator: None, tmp_path: Path) -> None:
    small = replace(CONFIG, tasks=(QUICK_TASK,), n_hand=1, n_generated=0, n_robot=0)
    make_dataset(str(tmp_path), replace(small, n_hand=2))
    make_dataset(str(tmp_path), replace(small, seed=9), resume=False)
    assert [p.name for p in (tmp_path / "hand").glob("*.mp4")] == ["button-press-topdown-v3-000.mp4"]
    assert len(rows(tmp_path / "hand" / "captions.jsonl")) == 1


def test_failed_experts_are_replaced_or_kept(simulator: None, tmp_path: Path) -> None:
    """At this noise and length the expert of reach fails often."""
    hard = replace(CONFIG, tasks=("reach-v3",), n_hand=0, n_generated=0, n_robot=3, action_noise=0.5, max_steps=45)
    report = make_dataset(str(tmp_path / "good"), hard)
    assert report.failed_experts > 0
    good = open_v2(str(tmp_path / "good" / "robot"))
    assert all(parquet.metadata(e.data)["facts"]["success"] for e in good.episodes)
    report = make_dataset(str(tmp_path / "all"), replace(hard, success_only=False))
    assert report.failed_experts == 0
    every = open_v2(str(tmp_path / "all" / "robot"))
    assert not all(parquet.metadata(e.data)["facts"]["success"] for e in every.episodes)


def test_an_expert_that_never_succeeds_is_an_error(simulator: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="raise max_steps"):
        make_dataset(str(tmp_path), replace(CONFIG, tasks=(QUICK_TASK,), max_steps=2))


def test_killed_at_any_moment_it_ends_with_the_same_bytes(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    code = f"from pyramid.sim import make_dataset; make_dataset({str(out)!r}, {to_dict(CONFIG)!r})"
    generator = rng(0, "kills")
    kills = 0
    for wanted in (1, 8, 14, 19):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if out.is_dir() and sum(1 for p in out.rglob("*") if p.is_file()) >= wanted:
                break
            time.sleep(0.005)
        time.sleep(float(generator.uniform(0, 0.15)))
        process.kill()
        kills += process.wait() == -9
    assert kills >= 3
    assert not (out / "episodes.jsonl").exists(), "the last kill came too late to prove anything"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stderr=subprocess.DEVNULL)
    assert contents(out) == contents(made)


def hand_video(folder: Path, hand: HandConfig) -> NDArray[np.int64]:
    config = SimConfig(tasks=(QUICK_TASK,), n_hand=1, n_generated=0, n_robot=0, size_px=64, hand=hand)
    make_dataset(str(folder), config)
    return decode_mp4((folder / "hand" / f"{QUICK_TASK}-000.mp4").read_bytes()).astype(int)


def test_people_are_filmed_in_other_ways_than_robots(simulator: None, tmp_path: Path) -> None:
    plain = hand_video(tmp_path / "plain", HandConfig())
    fast = hand_video(tmp_path / "fast", HandConfig(speed=2))
    assert len(fast) == -(-len(plain) // 2)
    assert np.abs(fast - plain[::2]).mean() < 3, "every other frame, at the same rate"
    dark = hand_video(tmp_path / "dark", HandConfig(light=0.4))
    assert dark.mean() < 0.8 * plain.mean()
    elsewhere = hand_video(tmp_path / "elsewhere", HandConfig(camera="corner"))
    assert len(elsewhere) == len(plain)
    assert np.abs(elsewhere - plain).mean() > 15


def test_hand_videos_with_true_actions_are_a_reference(simulator: None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": (QUICK_TASK,), "n_hand": 0, "n_generated": 0, "n_robot": 1, "size_px": 64}
    make_dataset(str(tmp_path / "robot"), SimConfig(**options))
    make_dataset(str(tmp_path / "hand"), SimConfig(**options, robot_look="hand"))
    robot, hand = (open_v2(str(tmp_path / look / "robot")) for look in ("robot", "hand"))
    (one,), (other,) = robot.episodes, hand.episodes
    first, second = read_episode(robot, one), read_episode(hand, other)
    assert np.array_equal(first.action, second.action)
    videos = [next((tmp_path / look).rglob("*.mp4")).read_bytes() for look in ("robot", "hand")]
    a, b = (decode_mp4(video).astype(int) for video in videos)
    assert np.abs(a - b).mean() > 5, "another body is seen"


@pytest.mark.parametrize("options", [{"speed": 0}, {"light": 9.0}, {"camera": "moon"}])
def test_hands_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"hand.{next(iter(options))} must be"):
        HandConfig(**options)  # type: ignore[arg-type]
