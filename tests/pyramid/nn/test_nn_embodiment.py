import math

import pytest
import torch

from pyramid.errors import ConfigError
from pyramid.nn.embodiment import ActionEncoder, EmbodimentMLP, bucket_sinusoid

DIMS = {"arm": (3, 5), "hand": (7, 2), "type": (1, 1)}


def test_each_embodiment_has_its_own_dimensions_and_weights():
    mlp = EmbodimentMLP(DIMS, hidden=8)
    assert mlp.embodiments == ("arm", "hand", "type")
    for name, (d_in, d_out) in DIMS.items():
        assert mlp(torch.randn(4, d_in), name).shape == (4, d_out)
    mlp(torch.randn(4, 3), "arm").sum().backward()
    touched = {name for name, p in mlp.named_parameters() if p.grad is not None}
    assert touched == {f"slots.for_arm.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}


def test_mlp_is_two_linear_layers_with_a_relu():
    mlp = EmbodimentMLP({"arm": (3, 5)}, hidden=8)
    x = torch.randn(6, 3)
    first, _, second = mlp.fold("arm")
    want = torch.relu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert torch.allclose(mlp(x, "arm"), want, atol=1e-6)


def test_unknown_embodiment_names_the_declared_and_the_nearest():
    with pytest.raises(ConfigError, match=r"'hnad'.*declared: arm, hand, type.*did you mean 'hand'"):
        EmbodimentMLP(DIMS, hidden=8)(torch.randn(1, 7), "hnad")


def test_bad_names_and_widths_are_refused():
    with pytest.raises(ConfigError, match=r"a\.b"):
        EmbodimentMLP({"a.b": (1, 1)}, hidden=2)
    with pytest.raises(ValueError, match="0 -> 2 -> 1"):
        EmbodimentMLP({"a": (0, 1)}, hidden=2)
    with pytest.raises(ValueError, match="even"):
        ActionEncoder({"a": 2}, width=5)


def test_fold_is_the_same_function():
    encoder = ActionEncoder({"arm": 3, "hand": 4}, width=8)
    action, bucket = torch.randn(2, 5, 4), torch.tensor([0, 999])
    assert torch.equal(encoder(action, bucket, "hand"), encoder.fold("hand")(action, bucket))


def test_bucket_sinusoid_is_the_closed_form():
    got = bucket_sinusoid(torch.tensor([0, 250]), 6)
    for row, bucket in enumerate((0, 250)):
        angles = [bucket * 10000 ** (-k / 3) for k in range(3)]
        want = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert got[row].tolist() == pytest.approx(want, abs=1e-4)
