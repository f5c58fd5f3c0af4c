"""Which episodes a simulated data set has."""

from __future__ import annotations

from dataclasses import replace

from pyramid.corpora.naming import parse_dreamgen_name
from pyramid.sim.config import SimConfig
from pyramid.sim.plan import PARTS, items, robot_layout
from pyramid.sim.tasks import instruction

CONFIG = SimConfig(tasks=("push-v3", "reach-v3"), n_hand=5, n_generated=3, n_robot=4)


def test_tasks_take_turns_and_files_are_named_after_them() -> None:
    assert [item.file for item in items(CONFIG, "hand")] == [
        "hand/push-v3-000.mp4",
        "hand/reach-v3-000.mp4",
        "hand/push-v3-001.mp4",
        "hand/reach-v3-001.mp4",
        "hand/push-v3-002.mp4",
    ]
    assert [item.file for item in items(CONFIG, "robot")][-1] == "robot/data/chunk-000/episode_000003.parquet"


def test_generated_names_hold_number_and_instruction() -> None:
    for item in items(CONFIG, "generated"):
        stem = item.file.removeprefix("generated/").removesuffix(".mp4")
        assert parse_dreamgen_name(stem) == (item.index, instruction(item.task))


def test_more_episodes_leave_the_first_ones_as_they_are() -> None:
    more = replace(CONFIG, n_hand=50, n_generated=50, n_robot=50)
    for part in PARTS:
        few = items(CONFIG, part)
        assert items(more, part)[: len(few)] == few


def test_seeds_are_pure_and_no_two_episodes_share_one() -> None:
    config = replace(CONFIG, n_hand=200, n_generated=200, n_robot=200)
    seeds = {part: [item.seed(7, attempt) for item in items(config, part) for attempt in range(3)] for part in PARTS}
    assert seeds == {part: [item.seed(7, a) for item in items(config, part) for a in range(3)] for part in PARTS}
    everything = [seed for of_part in seeds.values() for seed in of_part]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**63 for seed in everything)
    assert items(config, "hand")[0].seed(7, 0) != items(config, "hand")[0].seed(8, 0)


def test_parts_are_disjoint_by_construction() -> None:
    config = replace(CONFIG, n_hand=100, n_generated=100, n_robot=100)
    for number, part in enumerate(PARTS):
        assert {item.seed(seed, 0) % 4 for item in items(config, part) for seed in range(20)} == {number}


def test_the_robot_layout_covers_state_and_action() -> None:
    layout = robot_layout(CONFIG)
    for names, groups in ((layout.state_names, layout.state_groups), (layout.action_names, layout.action_groups)):
        covered = [i for _, group in groups for i in range(group.start, group.end)]
        assert covered == list(range(len(names)))
    assert layout.fps == 80
