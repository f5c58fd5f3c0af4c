"""Heads of every version at many sizes, against the plain re-implementation in `published_head`."""

from __future__ import annotations

import json

import pytest
import torch
from published_head import Plain

from pyramid.errors import DataError
from pyramid.nn.reference import read_reference
from vla.gr00t import read_head
from vla.parity import main, measure

SIZES = {
    "n1": {"version": "n1", "seed": 1, "layers": 3, "heads": 3, "horizon": 7, "steps": 5},
    "n1_5": {"version": "n1_5", "seed": 2, "mixer_layers": 1, "future": 3, "width": 32, "slots": 2},
    "n1_5 deep": {"version": "n1_5", "seed": 3, "mixer_layers": 3, "layers": 6, "future": 1, "batch": 5, "steps": 16},
    "n1_6": {"version": "n1_6", "seed": 4, "alternate": True, "layers": 8},
    "n1_7": {"version": "n1_7", "seed": 5, "alternate": True, "mixer_layers": 2, "layers": 6, "history": 2},
    "n1_7 every third": {
        "version": "n1_7", "seed": 6, "alternate": True, "mixer_layers": 1, "layers": 12, "text_every": 3,
        "history": 3, "steps": 100, "horizon": 2, "width": 12, "batch": 2,
    },
    "n1_7 plain": {"version": "n1_7", "seed": 7, "mixer_layers": 1, "slots": 5, "length": 17, "context": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes_and_seeds_pass_as_well(tmp_path, name, capsys):
    path = Plain(**SIZES[name]).save(tmp_path / "head.safetensors")
    assert main([str(path)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert 0 <= line["loss_abs_error"] < 1e-5
    assert 0 <= line["action_max_abs_error"] < 1e-5


@pytest.mark.parametrize("name", ["n1_5", "n1_7"])
def test_a_version_in_the_right_way_hides_what_its_own_way_shows(tmp_path, name):
    reference = read_reference(str(Plain(**SIZES[name]).save(tmp_path / "head.safetensors")))
    published = read_head(reference.config, reference.weights)
    row = 2  # the last two context tokens of it are padding
    right = read_head(reference.config, reference.weights).head
    right.masked = True
    noise, bodies = reference.inputs["noise"][row : row + 1], list(right.action_encoder.embodiments)
    body = bodies[row % len(bodies)]

    def sampled(head, value):
        inputs = {**reference.inputs, "backbone_features": reference.inputs["backbone_features"].clone()}
        inputs["backbone_features"][row, -2:] = value * torch.arange(16.0)
        mask, images = (inputs[key][row : row + 1].bool() for key in ("backbone_attention_mask", "image_mask"))
        assert not mask[0, -2:].any()
        one = inputs["backbone_features"][row : row + 1], mask, inputs["state"][row : row + 1]
        return head.sample(head.prepare(*one, None, body, images=images), noise, body)

    with torch.no_grad():
        assert torch.equal(sampled(right, 1.0), sampled(right, -5.0))
        assert not torch.allclose(sampled(published.head, 1.0), sampled(published.head, -5.0))


def test_the_versions_are_told_apart(tmp_path):
    for name, sizes in SIZES.items():
        plain = Plain(**sizes)
        assert read_head(plain.config(), plain.weights).head.config.compatibility == name.split()[0]


def test_a_head_of_no_release_is_named():
    plain = Plain(**SIZES["n1"])
    for changes, message in [
        ({"num_timestep_buckets": 500}, "num_timestep_buckets=500"),
        ({"action_horizon": "many"}, "cannot be read"),
        ({"diffusion_model_cfg": {**plain.config()["diffusion_model_cfg"], "activation_fn": "relu"}}, "activation_fn"),
    ]:
        with pytest.raises(DataError, match=message):
            read_head({**plain.config(), **changes}, plain.weights)


def test_a_weight_that_is_off_by_a_little_is_seen(tmp_path):
    reference = read_reference(str(Plain(**SIZES["n1_6"]).save(tmp_path / "head.safetensors")))
    for name in ("model.transformer_blocks.4.attn1.to_v.weight", "action_decoder.layer2.b"):
        kept = reference.weights[name]
        reference.weights[name] = kept + 1e-3
        assert max(measure(reference)) > 1e-5
        reference.weights[name] = kept
    assert max(measure(reference)) < 1e-5
