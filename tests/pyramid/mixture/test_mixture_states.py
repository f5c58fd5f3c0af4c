"""Past states in batches: the rows of the shards so many steps before, and nothing changed where none are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import torch
from mixture_data import label_tables
from robots import write_robot_shards

from pyramid import files
from pyramid.config import dump_yaml, resolve, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.loader import MixtureLoader
from pyramid.mixture.source import Source
from pyramid.mixture.spec import MixtureSpec, describe, read_mixture
from pyramid.mixture.statistics import source_statistics
from pyramid.rng import rng

LENGTHS = (9, 3, 14)
H, GAP_S = 3, 0.26


@pytest.fixture
def episodes() -> list[tuple[np.ndarray, np.ndarray]]:
    draw = rng(0, "episodes")
    return [tuple(draw.normal(size=(n, d)).astype(np.float32) for d in (2, 3)) for n in LENGTHS]


@pytest.fixture
def spec(tmp_path: Path, episodes: list[Any]) -> dict[str, Any]:
    robot = write_robot_shards(tmp_path / "robot", episodes)
    human = drawing.write_shards(tmp_path / "human", [7, 6], actions=False, first_clip=20, embodiment="human")
    label_tables(human, use="latent")
    sources = {"latent": {"shards": human, "use": "latent", "labels": f"{human}/labels/latent"}}
    return {
        "tiers": {
            "base": {"weight": 1, "sources": sources},
            "top": {"weight": 1, "sources": {"robot": {"shards": robot, "use": "action"}}},
        },
        "horizon": 4,
    }


def opened(spec: dict[str, Any], tmp_path: Path, **options: Any) -> MixtureStream:
    (tmp_path / "mix.yaml").write_text(dump_yaml({**spec, **options}))
    return open_mixture(str(tmp_path / "mix.yaml"), batch_size=20, image_size=32)


def group_of(stream: MixtureStream, name: str = "arm", step: int = 0) -> Any:
    return next(group for group in stream.batch(step) if group.embodiment == name)


@pytest.mark.parametrize("cache_mb", [4096, 0])
@pytest.mark.parametrize("gap_steps", [1, 3])
def test_states_are_the_rows_so_many_steps_before(
    spec: dict[str, Any], tmp_path: Path, episodes: list[Any], cache_mb: int, gap_steps: int
) -> None:
    gap_s = {1: 0.04, 3: GAP_S}[gap_steps]
    stream = opened(spec, tmp_path, state_history=H, state_gap_s=gap_s, cache_mb=cache_mb)
    body, starts = stream.embodiments["arm"], 0
    assert (body.state_history, body.state_gap_s) == (H, gap_s)
    for batch in range(3):
        group = group_of(stream, step=batch)
        assert group.state.shape == (len(group.key), H, 2)
        for b, key in enumerate(group.key):
            number = drawing.read_picture(group.images[b, 0].numpy())
            clip, frame = divmod(number, 100)
            state, action = episodes[clip]
            assert key == drawing.key_of(clip)
            rows = [max(frame - gap_steps * back, 0) for back in range(H - 1, -1, -1)]
            starts += rows[0] == 0
            assert np.array_equal(group.state[b].numpy(), state[rows])
            left = min(4, len(action) - frame)
            assert np.array_equal(group.action[b, :left].numpy(), action[frame : frame + left])
            assert group.mask[b].all(-1).sum() == left
            assert not group.action[b, left:].any()
    assert starts
    assert group_of(stream, "human_latent").state.shape[1:] == (0,)


def test_the_rest_of_a_batch_is_what_it_was(spec: dict[str, Any], tmp_path: Path) -> None:
    long, short = opened(spec, tmp_path, state_history=H, state_gap_s=GAP_S), opened(spec, tmp_path)
    for one, other in zip(long.batch(0), short.batch(0), strict=True):
        assert one.key == other.key
        for name in ("images", "action", "mask", "state_known", "weight", "position"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.state[:, -1] if one.state.ndim == 3 else one.state, other.state)
    for name, kinds in short.statistics.items():
        assert {k: v.to_dict() for k, v in kinds.items()} == {k: v.to_dict() for k, v in long.statistics[name].items()}
    assert long.data_digest != short.data_digest


def test_a_mixture_without_past_states_has_the_digest_that_it_always_had(spec: dict[str, Any], tmp_path: Path) -> None:
    stream = opened(spec, tmp_path)
    read = read_mixture(str(tmp_path / "mix.yaml"))
    assert set(to_dict(read)) - set(describe(read)) >= {"state_history", "state_gap_s", "future_s"}
    keys = [source.name for source in stream.sources]
    assert stream.data_digest == files.digest([describe(read), [[s.name, s.digest] for s in stream.sources]])
    assert keys == ["latent", "robot"]
    assert "state_history" in describe(resolve(MixtureSpec, {**spec, "state_history": 2, "state_gap_s": 0.5}))


def test_workers_and_samples_read_alone_give_the_same(spec: dict[str, Any], tmp_path: Path) -> None:
    options = {"state_history": H, "state_gap_s": GAP_S}
    stream = opened(spec, tmp_path, **options)
    want = group_of(stream)
    (got,) = MixtureLoader(opened(spec, tmp_path, **options), batch_size=20, workers=1, steps=1)
    assert torch.equal(next(g for g in got if g.embodiment == "arm").state, want.state)
    source = stream.sources[1]
    drawn = [one for one in stream.draw(0, 20) if one.source is source]
    for b, one in enumerate(drawn):
        chunk, picture = source.read(*source.locate(one.item))
        assert np.array_equal(chunk.state, want.state[b].numpy())
        assert np.array_equal(chunk.action, want.action[b].numpy())
        assert np.array_equal(picture, want.images[b, 0].numpy())


def test_a_past_state_that_is_no_number_costs_its_samples_alone(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Source.measured_rows

    def damaged(self: Source, sample: Any) -> Any:
        rows = whole(self, sample)
        if rows is not None and len(rows) == 14:
            rows[2, 3:] = np.nan
        return rows

    monkeypatch.setattr(Source, "measured_rows", damaged)
    stream = opened(spec, tmp_path, state_history=2, state_gap_s=0.3, max_bad_share=0.9)
    group = group_of(stream)
    assert torch.isfinite(group.state).all()
    assert any(group.replaced)
    with pytest.raises(DataError, match="not finite numbers"):
        stream.sources[1].read(2, 5)
    stream.sources[1].read(2, 6)
    assert source_statistics(stream.sources[1])["state"].bad == 0, "statistics read the shards themselves"


def test_pseudo_actions_in_a_robots_own_slot_have_as_many_unknown_states(tmp_path: Path) -> None:
    arm = drawing.write_shards(tmp_path / "arm", [8, 9])
    dreams = drawing.write_shards(tmp_path / "dreams", [8], actions=False, first_clip=20, embodiment="generated")
    label_tables(dreams, use="pseudo", rate_hz=10.0)
    source = {"shards": dreams, "use": "pseudo", "labels": f"{dreams}/labels/pseudo", "embodiment": "arm"}
    tiers = {
        "middle": {"weight": 1, "sources": {"dreams": source}},
        "top": {"weight": 1, "sources": {"arm": {"shards": arm, "use": "action"}}},
    }
    group = group_of(opened({"tiers": tiers, "horizon": 3}, tmp_path, state_history=2, state_gap_s=0.2))
    told = torch.tensor([name == "dreams" for name in group.source])
    assert told.any()
    assert group.state.shape[1:] == (2, 1)
    assert not group.state[told].any()
    assert torch.equal(group.state_known, ~told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_history": 2}, "state_history above 1 and state_gap_s, above 0, go together"),
        ({"state_gap_s": 0.5}, "go together: .* got 1 and 0.5"),
        ({"state_history": 0}, "state_history must be at least 1"),
        ({"state_history": 2, "state_gap_s": -0.5}, "go together"),
        ({"state_history": 2, "state_gap_s": float("inf")}, "go together"),
    ],
)
def test_half_a_history_is_refused(spec: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(MixtureSpec, {**spec, **options})
