"""Frames that come later: at the stated distance in seconds, of clips with and without actions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import drawing
import pyarrow as pa
import pytest
import torch
from mixture_data import label_tables

from pyramid import parquet
from pyramid.config import dump_yaml, resolve
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.audit import find_outliers
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.loader import MixtureLoader
from pyramid.mixture.spec import MixtureSpec
from pyramid.mixture.verbs import mix_show

AHEAD_S = 0.3


def add_quality(run: Path) -> None:
    """Adds what real labelers say of their labels: here the number of the frame."""
    for path in run.glob("*.parquet"):
        table = parquet.read(str(path))
        frame = table["frame"].cast(pa.float32())
        std = pa.array([[float(f), 0.5] for f in table["frame"].to_pylist()], pa.list_(pa.float32()))
        name, column = ("recon_gain", frame) if "codes" in table.column_names else ("action_std", std)
        parquet.write(str(path), table.append_column(name, column), parquet.metadata(str(path)))


@pytest.fixture
def spec(tmp_path: Path) -> dict:
    arm = drawing.write_shards(tmp_path / "arm", [8, 9, 8], rate_hz=10.0)
    human = drawing.write_shards(
        tmp_path / "human", [7, 3, 12], rate_hz=20.0, actions=False, first_clip=20, embodiment="human"
    )
    for run in (label_tables(human, use="latent"), label_tables(human, use="pseudo", rate_hz=20.0)):
        add_quality(Path(run))
    sources = {
        "seen": {"shards": human, "use": "video"},
        "latent": {"shards": human, "use": "latent", "labels": f"{human}/labels/latent"},
        "pseudo": {"shards": human, "use": "pseudo", "labels": f"{human}/labels/pseudo"},
    }
    return {
        "tiers": {
            "base": {"weight": 1, "sources": sources},
            "top": {"weight": 1, "sources": {"arm": {"shards": arm, "use": "action"}}},
        },
        "horizon": 3,
        "future_s": AHEAD_S,
    }


def opened(spec: dict, tmp_path: Path, name: str = "mix.yaml", **options) -> MixtureStream:
    (tmp_path / name).write_text(dump_yaml({**spec, **options}))
    return open_mixture(str(tmp_path / name), batch_size=60, image_size=32)


@pytest.mark.parametrize("cache_mb", [4096, 0])
def test_the_later_frame_is_the_one_that_lies_so_many_seconds_ahead(spec: dict, tmp_path: Path, cache_mb: int) -> None:
    stream = opened(spec, tmp_path, cache_mb=cache_mb)
    lengths = {drawing.key_of(c): n for c, n in zip((0, 1, 2, 20, 21, 22), (8, 9, 8, 7, 3, 12), strict=True)}
    unknown = 0
    for group in stream.batch(0):
        ahead = round(AHEAD_S * (10 if group.embodiment == "arm" else 20))
        assert group.future is not None
        assert group.future_known is not None
        for b, key in enumerate(group.key):
            number = drawing.read_picture(group.images[b, 0].numpy())
            known = number % 100 + ahead < lengths[key]
            assert bool(group.future_known[b]) == known
            if known:
                assert drawing.read_picture(group.future[b, 0].numpy()) == number + ahead
            else:
                unknown += 1
                assert not group.future[b].any()
    assert unknown


def test_videos_have_no_actions_and_are_drawn_where_their_clip_goes_on(spec: dict, tmp_path: Path) -> None:
    stream = opened(spec, tmp_path)
    seen = next(source for source in stream.sources if source.name == "seen")
    assert len(seen) == (7 - 6) + 0 + (12 - 6)
    body = stream.embodiments["human_video"]
    assert (body.label, body.action_dim, body.state_dim, body.rate_hz) == ("video", 0, 0, pytest.approx(1 / AHEAD_S))
    (group,) = (g for g in stream.batch(0) if g.embodiment == "human_video")
    assert group.action.shape == (len(group.key), 1, 0)
    assert not group.mask.any()
    assert not group.state_known.any()
    assert group.future_known is not None
    assert group.future_known.all()
    assert set(group.label) == {"video"}
    assert "human_video" not in stream.statistics
    assert set(stream.statistics) == {"arm", "human_latent", "human_pseudo"}
    assert {row["source"] for row in find_outliers(stream)} == {"arm", "latent", "pseudo"}
    assert "seen" in repr(mix_show(str(tmp_path / "mix.yaml"), statistics=True))


def test_labels_bring_what_their_labeler_says_of_them(spec: dict, tmp_path: Path) -> None:
    groups = {g.embodiment: g for g in opened(spec, tmp_path).batch(0)}
    pseudo, latent, arm = groups["human_pseudo"], groups["human_latent"], groups["arm"]
    assert pseudo.action_std is not None
    first = pseudo.action[:, 0, 0] % 100
    assert torch.equal(pseudo.action_std[:, 0], torch.stack([first, torch.full_like(first, 0.5)], 1))
    assert pseudo.action_std.shape == pseudo.action.shape
    assert not pseudo.action_std[~pseudo.mask].any()
    assert latent.recon_gain is not None
    assert torch.equal(latent.recon_gain, (latent.action[:, 0, 0] % 100).round())
    assert latent.codes is not None
    assert latent.codes.dtype == torch.int64
    assert latent.codes.tolist() == [[0, 1]] * len(latent.key)
    assert (arm.action_std, arm.recon_gain, arm.codes) == (None, None, None)
    assert (pseudo.codes, latent.action_std) == (None, None)


def test_without_it_nothing_is_read_and_the_digest_stays(spec: dict, tmp_path: Path) -> None:
    del spec["tiers"]["base"]["sources"]["seen"]
    without, ahead = opened(spec, tmp_path, "a.yaml", future_s=0.0), opened(spec, tmp_path, "b.yaml")
    assert all(group.future is None and group.future_known is None for group in without.batch(0))
    assert without.digest != ahead.digest
    for one, other in zip(without.batch(0), ahead.batch(0), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.action, other.action)


def test_what_cannot_be_foreseen_is_refused(spec: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set future_s"):
        resolve(MixtureSpec, {**spec, "future_s": 0.0})
    with pytest.raises(ConfigError, match="future_s must be"):
        resolve(MixtureSpec, {**spec, "future_s": -1.0})
    with pytest.raises(DataError, match=r"'seen': none of its clips is longer than future_s: 5 s"):
        opened(spec, tmp_path, future_s=5.0)
    spec["tiers"]["base"]["sources"]["seen"]["labels"] = "somewhere"
    with pytest.raises(ConfigError, match="use: video goes without a label run"):
        resolve(MixtureSpec, spec)


def test_workers_hand_on_all_that_a_batch_holds(spec: dict, tmp_path: Path) -> None:
    want = opened(spec, tmp_path).batch_of(opened(spec, tmp_path).draw(0, 30))
    (got,) = MixtureLoader(opened(spec, tmp_path), batch_size=30, workers=1, steps=1)
    assert [group.embodiment for group in got] == [group.embodiment for group in want]
    for here, there in zip(want, got, strict=True):
        for field in dataclasses.fields(here):
            one, other = getattr(here, field.name), getattr(there, field.name)
            same = (
                torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other or list(one) == list(other)
            )
            assert same, (here.embodiment, field.name)
    assert any(group.action_std is not None for group in got)
    assert any(group.codes is not None for group in got)
