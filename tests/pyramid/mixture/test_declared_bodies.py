"""Bodies declared in a mixture: statistics of what a network is taught, weighted, cached; and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots import Episode, reaching, write_robot_shards

from pyramid.config import dump_yaml, load_yaml
from pyramid.errors import ConfigError, DataError
from pyramid.mixture import statistics as statistics_module
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.spec import describe, read_mixture
from pyramid.mixture.verbs import mix_show
from pyramid.rng import rng
from pyramid.shards.cache import cache_folder

H = 4
BODY: dict[str, Any] = {
    "name": "lab_arm",
    "rate_hz": 10,
    "cameras": ["front"],
    "state": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "binary"}},
    "action": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "binary"}},
}


def mixture(tmp_path: Path, *, body: dict[str, Any] | None = None, **source: Any) -> str:
    """A mixture of one robot, and of a declaration beside it."""
    (tmp_path / "lab_arm.yaml").write_text(dump_yaml(body or BODY))
    if not (tmp_path / "robot").exists():
        write_robot_shards(tmp_path / "robot", reaching(8, seed=0), n_val=2)
    robot = {"shards": "robot", "use": "action", "declaration": "lab_arm.yaml", **source}
    tiers = {"top": {"weight": 1, "sources": {"robot": {k: v for k, v in robot.items() if v is not None}}}}
    (tmp_path / "mixture.yaml").write_text(dump_yaml({"tiers": tiers, "horizon": H}))
    return str(tmp_path / "mixture.yaml")


def opened(path: str) -> MixtureStream:
    return open_mixture(path, batch_size=4, image_size=16)


def chunks(episodes: list[Episode], step: int) -> np.ndarray:
    """Actions of a step of all chunks less the state at their start, computed without the code under test."""
    return np.concatenate([a[step:] - s[: len(a) - step] for s, a in episodes]).astype(np.float64)


def test_relative_actions_have_the_statistics_of_each_step(tmp_path: Path) -> None:
    stream = opened(mixture(tmp_path, actions="relative"))
    action = stream.statistics["arm"]["action"]
    assert (action.steps, action.width) == (H, 3)
    for step in range(H):
        # Joints run up by 0.1 a step: constant for a step, and told by its centre.
        assert np.allclose(action.center[step, :2], 0.1 * (step + 1), atol=1e-4)
    assert np.allclose(action.center[:, 2], 0.5)
    assert np.allclose(action.scale[:, 2], 0.5)
    assert action.switches == (2,)
    body = stream.embodiments["arm"]
    assert body.declaration is not None
    assert body.declaration.name == "arm"
    assert body.declaration.action["arm"].representation == "relative"
    assert body.declaration.action["grip"].representation == "absolute"


def test_quantiles_of_each_step_are_those_of_the_pooled_chunks(tmp_path: Path) -> None:
    draw = rng(3, "noisy")
    episodes = [(s, a + draw.normal(0, 0.5, a.shape).astype(np.float32)) for s, a in reaching(40, seed=1)]
    write_robot_shards(tmp_path / "robot", episodes)
    body = {**BODY, "action": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "gripper"}}}
    action = opened(mixture(tmp_path, body=body, actions="relative")).statistics["arm"]["action"]
    for step in range(H):
        low, high = np.quantile(chunks(episodes, step)[:, :2], (0.01, 0.99), axis=0)
        assert np.allclose(action.center[step, :2] - action.scale[step, :2], low, atol=2e-2)
        assert np.allclose(action.center[step, :2] + action.scale[step, :2], high, atol=2e-2)
    absolute = np.quantile(np.concatenate([a for _, a in episodes])[:, 2], (0.01, 0.99))
    assert np.allclose(action.center[:, 2] - action.scale[:, 2], absolute[0], atol=2e-2)
    assert np.allclose(action.center[:, 2] + action.scale[:, 2], absolute[1], atol=2e-2)


def test_two_sources_of_a_body_are_weighted_by_their_shares(tmp_path: Path) -> None:
    fast = [(s, s + 10 * (a - s)) for s, a in reaching(8, seed=2)]
    write_robot_shards(tmp_path / "fast", fast)
    path = mixture(tmp_path, actions="relative", body={**BODY, "action": _part(normalizer="mean_std")})
    both = read_yaml(Path(path).read_text())
    source = both["tiers"]["top"]["sources"]["robot"]
    both["tiers"]["top"]["sources"] |= {"fast": {**source, "shards": "fast", "weight": 3.0}}
    Path(path).write_text(dump_yaml(both))
    action = opened(path).statistics["arm"]["action"]
    # Of the first step 0.1 with one quarter of the samples and 1.0 with three.
    assert np.allclose(action.center[0, :2], 0.25 * 0.1 + 0.75 * 1.0, atol=1e-3)
    assert np.allclose(action.scale[0, :2], 0.9 * np.sqrt(0.25 * 0.75), atol=1e-3)


def read_yaml(text: str) -> dict[str, Any]:
    return dict(load_yaml(text))


def _part(**options: Any) -> dict[str, Any]:
    return {"arm": {**BODY["action"]["arm"], **options}, "grip": BODY["action"]["grip"]}


def test_statistics_are_taken_once_and_again_when_the_declaration_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    collect = statistics_module._collect
    monkeypatch.setattr(statistics_module, "_collect", lambda *a: passes.append(1) or collect(*a))
    path = mixture(tmp_path, actions="relative")
    first, digest = opened(path).statistics["arm"]["action"], opened(path).digest
    assert (opened(path).statistics["arm"]["action"].center == first.center).all()
    assert len(passes) == 1
    assert list(cache_folder().glob("statistics/*.json"))
    mixture(tmp_path, actions="delta")
    delta = opened(path).statistics["arm"]["action"]
    assert len(passes) == 2
    assert np.allclose(delta.center[:, :2], 0.1, atol=1e-4)
    mixture(tmp_path, actions="relative", body={**BODY, "action": _part(normalizer="mean_std")})
    assert opened(path).statistics["arm"]["action"].clip == (False, False, False)
    assert len(passes) == 3
    assert opened(path).digest != digest


def test_a_grip_that_hardly_ever_opens_is_not_taken_for_a_constant(tmp_path: Path) -> None:
    episodes = reaching(40, seed=4)
    for state, action in episodes:
        state[:, 2] = action[:, 2] = 0
    episodes[0][1][3, 2] = 1
    write_robot_shards(tmp_path / "robot", episodes)
    for declaration in ("lab_arm.yaml", None):
        body = {**BODY, "action": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "gripper"}}}
        action = opened(mixture(tmp_path, body=body, declaration=declaration)).statistics["arm"]["action"]
        assert action.normalize(np.float32([0, 0, 0]))[2] == -1
        assert action.normalize(np.float32([0, 0, 1]))[2] == 1
    state = opened(mixture(tmp_path)).statistics["arm"]["state"]
    assert state.normalize(np.float32([0, 0, 0]))[2] == 0, "what never moves is 0"


def test_rows_that_are_not_finite_are_left_out_with_the_chunks_that_hold_them(tmp_path: Path) -> None:
    episodes = reaching(6, seed=5)
    episodes[0][1][5, 0] = np.nan
    write_robot_shards(tmp_path / "robot", episodes)
    action = opened(mixture(tmp_path, actions="relative")).statistics["arm"]["action"]
    assert np.isfinite(action.center).all()
    assert np.allclose(action.center[2, :2], 0.3, atol=1e-4)


def test_chunks_that_all_hold_something_that_is_no_number_are_refused(tmp_path: Path) -> None:
    episodes = reaching(6, seed=5)
    for state, action in episodes:
        state[::2, 0] = action[1::2, 0] = np.nan
    write_robot_shards(tmp_path / "robot", episodes)
    with pytest.raises(DataError, match="source 'robot': no chunk of 4 steps holds finite numbers alone"):
        _ = opened(mixture(tmp_path, actions="relative")).statistics


def test_show_tells_statistics_as_they_are_taught(tmp_path: Path) -> None:
    rows = mix_show(mixture(tmp_path, actions="relative"), statistics=True, relative=True).statistics
    kinds = [row["kind"] for row in rows]
    assert kinds == ["action"] * 3 + ["state"] * 3 + [f"action_{h}" for h in range(H) for _ in range(2)]
    assert rows[6]["mean"] == pytest.approx(0.1, abs=1e-4)


def test_without_a_declaration_a_whole_body_can_be_relative(tmp_path: Path) -> None:
    stream = opened(mixture(tmp_path, declaration=None, actions="relative"))
    assert stream.statistics["arm"]["action"].steps == H
    plain = opened(mixture(tmp_path, declaration=None))
    assert plain.embodiments["arm"].declaration is None
    assert plain.statistics["arm"]["action"].steps == 0
    sources = describe(read_mixture(mixture(tmp_path, declaration=None)))["tiers"]["top"]["sources"]
    assert not {"declaration", "actions"} & set(sources["robot"])


@pytest.mark.parametrize(
    ("body", "source", "message"),
    [
        ({"rate_hz": 30}, {}, "source 'robot'.*'arm' declares 30 Hz, the data have 10 Hz"),
        ({"action": {"arm": {"start": 0, "end": 2}}}, {}, "source 'robot'.*declares 2 action dimensions, there are 3"),
        ({"state": {}}, {}, "source 'robot'.*declares 0 state dimensions, there are 3"),
        ({"state": {"a": {"start": 0, "end": 3}}}, {"actions": "relative"}, "source 'robot'.*no state part 'arm'"),
        ({}, {"declaration": "gr1"}, "source 'robot', declaration 'gr1'.*44 action dimensions, there are 3"),
        ({}, {"declaration": "gr2"}, "source 'robot'.*no embodiment 'gr2'.*gr1"),
        ({}, {"declaration": "other.yaml"}, "source 'robot'.*other.yaml"),
        (
            {"action": {"arm": {"start": 0, "end": 3, "kind": "rotation", "rotation": "euler"}}},
            {},
            "rotation type 'eul",
        ),
        ({}, {"actions": "relativ"}, "relativ"),
        ({}, {"actions": "relative", "state": False}, "source 'robot'.*begin from the state, which state: false hides"),
        ({}, {"actions": "delta", "state": False, "declaration": None}, "source 'robot'.*which state: false hides"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_name(tmp_path: Path, body: dict, source: dict, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        opened(mixture(tmp_path, body={**BODY, **body}, **source))


def test_absolute_actions_of_a_declared_body_may_hide_the_state(tmp_path: Path) -> None:
    stream = opened(mixture(tmp_path, state=False))
    body = stream.embodiments["arm"]
    assert (body.state_dim, body.action_dim) == (0, 3)
    assert body.declaration is not None
    assert not body.declaration.state
    assert set(stream.statistics["arm"]) == {"action"}
    (group,) = stream.batch(0)
    assert group.state.shape == (4, 0)


def test_relative_needs_equal_sizes_without_a_declaration_and_numbers_at_all(tmp_path: Path) -> None:
    write_robot_shards(tmp_path / "robot", [(s[:, :1], a) for s, a in reaching(4, seed=6)])
    with pytest.raises(DataError, match=r"source 'robot'.*there are 1 and 3 dimensions; name a declaration"):
        opened(mixture(tmp_path, declaration=None, actions="relative"))
    with pytest.raises(ConfigError, match="use: latent has no numbers of a body"):
        opened(mixture(tmp_path, use="latent", labels="x"))


def test_sources_that_declare_one_body_differently_are_refused(tmp_path: Path) -> None:
    path = mixture(tmp_path, actions="relative")
    both = read_yaml(Path(path).read_text())
    sources = both["tiers"]["top"]["sources"]
    sources["again"] = {**sources["robot"], "actions": "delta"}
    Path(path).write_text(dump_yaml(both))
    with pytest.raises(DataError, match=r"embodiment 'arm': source 'robot' says.*give them different embodiments"):
        opened(path)


def test_a_declaration_stays_beside_the_file_that_names_it(tmp_path: Path) -> None:
    path = mixture(tmp_path, actions="relative")
    (tmp_path / "upper").mkdir()
    upper = tmp_path / "upper" / "more.yaml"
    upper.write_text(dump_yaml({"extends": "../mixture.yaml", "seed": 9}))
    assert opened(str(upper)).embodiments == opened(path).embodiments
    mixture(tmp_path, body={**BODY, "action": _part()}, declaration="gr1")
    with pytest.raises(DataError, match="declaration 'gr1'"):
        opened(str(upper))
