"""Pseudo-actions told to the robot's own slot: the same numbers, with a state that is unknown."""

from __future__ import annotations

from pathlib import Path

import drawing
import numpy as np
import pytest
import torch
from mixture_data import label_tables

from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, DataError
from pyramid.mixture.batch import MixtureStream, open_mixture


def stream(tmp_path: Path, *, rate_hz: float = 10.0, **options: object) -> MixtureStream:
    arm = drawing.write_shards(tmp_path / "arm", [8, 9, 8], rate_hz=10.0, embodiment="arm")
    seen = drawing.write_shards(tmp_path / "seen", [7, 6], actions=False, first_clip=20, embodiment="seen")
    labels = label_tables(seen, use="pseudo", rate_hz=rate_hz)
    sources = {
        # The labels stand first: whose slot it is does not depend on the order.
        "seen": {"shards": seen, "use": "pseudo", "labels": labels, "embodiment": "arm"},
        "arm": {"shards": arm, "use": "action", **options},
    }
    tiers = {"middle": {"weight": 1, "sources": {"seen": sources["seen"]}}}
    tiers["top"] = {"weight": 1, "sources": {"arm": sources["arm"]}}
    (tmp_path / "mix.yaml").write_text(dump_yaml({"tiers": tiers, "horizon": 3}))
    return open_mixture(str(tmp_path / "mix.yaml"), batch_size=12, image_size=32)


def test_labels_share_the_robots_slot_without_its_state(tmp_path: Path) -> None:
    opened = stream(tmp_path)
    body = opened.embodiments["arm"]
    assert (body.label, body.state_dim > 0) == ("action", True)
    (group,) = opened.batch(0)
    told = torch.tensor([source == "seen" for source in group.source])
    assert told.sum() == 6
    assert torch.equal(group.state_known, ~told)
    assert not group.state[told].any()
    assert group.state[~told].any(1).all()
    first = drawing.read_pictures(group.images[told][:, 0].numpy())
    assert np.array_equal(group.action[told][:, 0, 0], first), "each label with the frame that it belongs to"


def test_the_slots_statistics_hold_both(tmp_path: Path) -> None:
    opened = stream(tmp_path)
    normalizers = opened.statistics["arm"]
    assert set(normalizers) == {"action", "state"}
    highest = float(normalizers["action"].center[0] + normalizers["action"].scale[0])
    assert highest > drawing.number_of(20, 0), "labels of later clips are higher numbers than any of the robot's"


def test_another_rate_shares_no_slot(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give them different embodiments"):
        stream(tmp_path / "rate", rate_hz=5.0)


def test_a_hidden_state_is_no_part_of_the_body(tmp_path: Path) -> None:
    seen, hidden = stream(tmp_path / "seen"), stream(tmp_path / "hidden", state=False)
    assert hidden.embodiments["arm"].state_dim == 0
    assert set(hidden.statistics["arm"]) == {"action"}
    (with_state,), (without,) = seen.batch(0), hidden.batch(0)
    assert without.state.shape == (12, 0)
    assert not without.state_known.any()
    assert torch.equal(without.action, with_state.action)
    assert torch.equal(without.images, with_state.images)
    assert seen.data_digest != hidden.data_digest


def test_only_a_measured_state_can_be_hidden(tmp_path: Path) -> None:
    source = {"shards": "s", "use": "video", "state": False}
    (tmp_path / "mix.yaml").write_text(dump_yaml({"tiers": {"t": {"weight": 1, "sources": {"s": source}}}}))
    with pytest.raises(ConfigError, match="no measured state"):
        open_mixture(str(tmp_path / "mix.yaml"), batch_size=2, image_size=32)
