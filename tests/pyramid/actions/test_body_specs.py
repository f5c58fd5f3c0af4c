"""Declarations: what is shipped, what a modality.json says, and what makes no body."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyramid.actions import BodySpec, ChunkCodec
from pyramid.actions.read import body_presets, read_body
from pyramid.config import dump_yaml, from_dict, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.types import Embodiment

DATA = Path(__file__).parents[4] / "shared" / "data" / "robot"
SIZES = {
    "agibot": (20, 22),
    "aloha": (14, 14),
    "droid": (8, 8),
    "franka": (14, 28),
    "gr1": (44, 44),
    "new_embodiment": (7, 7),
    "so100": (6, 6),
    "so101": (6, 6),
    "unitree_g1": (43, 43),
}


def test_what_is_shipped_is_known() -> None:
    assert body_presets() == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("actions", ["absolute", "delta", "relative"])
def test_a_shipped_body_fits_its_sizes_and_its_chunks_come_back(name: str, actions: Any) -> None:
    spec = read_body(name)
    assert (spec.name, spec.state_dim, spec.action_dim) == (name, *SIZES[name])
    assert from_dict(BodySpec, to_dict(spec)) == spec
    codec = ChunkCodec(spec.with_actions(actions))
    action = np.linspace(-1, 1, 5 * spec.action_dim, dtype=np.float32).reshape(5, -1)
    state = np.linspace(1, -1, spec.state_dim, dtype=np.float32)
    assert np.allclose(codec.decode_action(codec.encode_action(action, state), state), action, atol=1e-5)
    assert codec.spec.needs_state == (actions != "absolute")


def test_grippers_fingers_switches_and_changes_stay_absolute() -> None:
    moved = read_body("agibot").with_actions("delta").action
    assert {n for n, p in moved.items() if p.representation == "absolute"} == {"left_gripper", "right_gripper", "base"}


MODALITY = {
    "state": {
        "eef_position": {"start": 0, "end": 3},
        "eef_rotation": {"start": 3, "end": 7, "rotation_type": "quaternion"},
        "gripper_qpos": {"start": 7, "end": 9},
    },
    "action": {
        "eef_position": {"start": 0, "end": 3},
        "eef_rotation": {"start": 3, "end": 6, "rotation_type": "axis_angle"},
        "base_motion": {"start": 6, "end": 9, "absolute": False},
        "gripper_close": {"start": 9, "end": 10, "dtype": "int64"},
        "left_hand": {"start": 10, "end": 12},
        "neck": {"start": 12, "end": 13},
    },
    "video": {"front": {"original_key": "observation.images.front"}, "wrist": {}},
}


def test_a_modality_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "modality.json").write_text(json.dumps(MODALITY))
    spec = read_body(str(tmp_path))
    assert spec.cameras == ["front", "wrist"]
    assert {n: (p.kind, p.start, p.end, p.rotation) for n, p in spec.action.items()} == {
        "eef": ("pose", 0, 6, "axis_angle"),
        "base_motion": ("change", 6, 9, ""),
        "gripper_close": ("binary", 9, 10, ""),
        "left_hand": ("hand", 10, 12, ""),
        "neck": ("joints", 12, 13, ""),
    }
    assert spec.state["eef"].rotation == "quaternion"
    assert not spec.needs_state
    with pytest.raises(ConfigError, match=r"actions: relative: action part 'neck'.*no state part 'neck'"):
        spec.with_actions("relative")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"start": 3, "end": 6, "rotation_type": "axis_angel"}, "unknown rotation type 'axis_angel'.*axis_angle"),
        ({"start": 3, "end": 7, "rotation_type": "axis_angle"}, "has 6 dimensions, not 7"),
        ({"start": 4, "end": 6}, r"dimensions 3\.\.4 belong to no part"),
        ({"start": 2, "end": 6}, "overlap at dimension 2"),
        ({"start": 3, "end": 6, "original_key": "action.other"}, "in the column 'action.other'"),
        ({"end": 6}, "'eef_rotation'.*start"),
    ],
)
def test_a_modality_json_that_makes_no_body_is_named(tmp_path: Path, group: dict, message: str) -> None:
    document = {**MODALITY, "action": {**MODALITY["action"], "eef_rotation": group}}
    (tmp_path / "modality.json").write_text(json.dumps(document))
    with pytest.raises((ConfigError, DataError), match=message) as refused:
        read_body(str(tmp_path / "modality.json"))
    assert "modality.json" in str(refused.value)


ARM: dict[str, Any] = {
    "name": "arm",
    "state": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "gripper"}},
    "action": {"arm": {"start": 0, "end": 2}, "grip": {"start": 2, "end": 3, "kind": "gripper"}},
}


@pytest.mark.parametrize(
    ("what", "part", "wrong", "message"),
    [
        ("action", "arm", {"representation": "relativ"}, "relativ"),
        ("action", "grip", {"representation": "delta"}, "kind: gripper is always absolute, not delta"),
        ("action", "arm", {"representation": "relative", "state": "amr"}, "no state part 'amr'.*arm"),
        ("action", "arm", {"representation": "relative", "state": "grip"}, r"\(joints, 2 .*begin from.* 'grip'"),
        ("action", "arm", {"kind": "pose"}, "kind: pose goes with a rotation"),
        ("action", "arm", {"rotation": "quaternion"}, "kind: joints goes without a rotation"),
        ("action", "arm", {"kind": "rotation", "rotation": "euler"}, "unknown rotation type 'euler'"),
        ("action", "grip", {"normalizer": "binary"}, "normalizer: binary does not go with kind: gripper"),
        ("action", "arm", {"normalizer": "sin_cos"}, "sin_cos"),
        ("state", "grip", {"normalizer": "sin_cos"}, "sin_cos is for joints, not for kind: gripper"),
        ("state", "grip", {"period": 360}, "period 360 is for joints"),
        ("state", "arm", {"start": 1}, r"state dimensions 0\.\.1 belong to no part"),
        ("action", "arm", {"strat": 1}, "unknown key 'action.arm.strat'.*start"),
    ],
)
def test_a_declaration_that_makes_no_body_is_named(
    tmp_path: Path, what: str, part: str, wrong: dict, message: str
) -> None:
    data = {**ARM, what: {**ARM[what], part: {**ARM[what][part], **wrong}}}
    (tmp_path / "arm.yaml").write_text(dump_yaml(data))
    with pytest.raises(ConfigError, match=message) as refused:
        read_body(str(tmp_path / "arm.yaml"))
    assert "arm.yaml" in str(refused.value)


def test_a_declaration_brings_no_torch_to_the_robot() -> None:
    code = "import sys, pyramid.types as t, pyramid.actions.read as r, pyramid.config as c;"
    code += "spec = c.to_dict(r.read_body('gr1'));"
    code += "t.Embodiment(name='x', state_dim=44, action_dim=44, horizon=2, rate_hz=20.0, declaration=spec).network;"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wrong", [{"name": "Lab arm"}, {"rate_hz": float("nan")}, {"rate_hz": -1.0}])
def test_a_name_and_a_rate_that_are_none_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"name 'Lab arm'|rate_hz must be"):
        from_dict(BodySpec, {**ARM, **wrong})


def test_a_name_that_is_not_shipped_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no embodiment 'gr2'.*gr1.*; there are agibot"):
        read_body("gr2")


def test_an_embodiment_holds_its_declaration_against_its_sizes_and_comes_back() -> None:
    spec = read_body("gr1")
    sizes: dict[str, Any] = {"name": "x", "state_dim": 44, "action_dim": 44, "horizon": 4, "rate_hz": 20.0}
    found = Embodiment(**sizes, declaration=spec)
    assert Embodiment(**json.loads(json.dumps(found.to_dict()))) == found
    assert "declaration" not in Embodiment(**sizes).to_dict()
    assert Embodiment(**sizes).network.action_dim == 44
    for wrong, message in (
        ({"action_dim": 43}, "'gr1' declares 44 action dimensions, there are 43"),
        ({"state_dim": 45}, "'gr1' declares 44 state dimensions, there are 45"),
        ({"rate_hz": 30.0}, "'gr1' declares 20 Hz, the data have 30 Hz"),
    ):
        with pytest.raises(DataError, match=f"embodiment 'x': {message}"):
            Embodiment(**{**sizes, **wrong}, declaration=spec)
    broken = to_dict(spec) | {"rate_hz": -1}
    with pytest.raises(DataError, match=r"the declaration of embodiment 'x'.*rate_hz"):
        Embodiment(**sizes, declaration=broken)  # type: ignore[arg-type]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the robots' metadata in {DATA.parent}")
@pytest.mark.parametrize("name", ["gr1", "franka"])
def test_what_is_shipped_agrees_with_the_published_metadata(name: str) -> None:
    shipped, published = read_body(name), read_body(str(DATA / "embodiment_metadata" / name))
    assert (shipped.state_dim, shipped.action_dim) == (published.state_dim, published.action_dim)
    for ours, theirs in ((shipped.state, published.state), (shipped.action, published.action)):
        kinds = [[part.kind for part in parts.values() for _ in range(part.width)] for parts in (ours, theirs)]
        assert kinds[0] == kinds[1]
