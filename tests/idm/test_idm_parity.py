"""The published inverse dynamics head against its reference vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idm.dreams import read_dreams
from idm.parity import main, measure
from idm.published import read_checkpoint
from idm.vision import SpaceToDepth
from pyramid.errors import DataError
from pyramid.nn.reference import read_reference

HEAD = Path(__file__).parents[1] / "reference/gr00t_dreams_idm_head.safetensors"


def test_command_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(HEAD)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["model"] == "GR00T-Dreams IDM head"
    assert max(line["loss_abs_error"], line["action_max_abs_error"]) < 1e-5


def test_visual_tokens_are_the_published_ones() -> None:
    reference = read_reference(str(HEAD))
    _, _, visual = read_dreams(reference.config, reference.weights).loss_and_sample(reference.inputs)
    assert (visual - reference.outputs["visual_tokens"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["view_embedding.weight", "mm_projector.layers.6.weight", "vision_projector.bias"])
def test_a_changed_weight_is_seen(name: str) -> None:
    reference = read_reference(str(HEAD))
    reference.weights[name] = reference.weights[name] * 1.01 + 1e-3
    assert max(measure(reference)) > 1e-5


def test_space_to_depth_joins_squares() -> None:
    grid = torch.arange(16.0).reshape(1, 16, 1)
    # Columns first: the second token joins the square below the first one.
    assert SpaceToDepth()(grid)[0].tolist() == [[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]
    with pytest.raises(DataError, match="12 visual tokens"):
        SpaceToDepth()(torch.zeros(1, 12, 3))


def test_what_does_not_fit_is_named() -> None:
    reference = read_reference(str(HEAD))
    with pytest.raises(DataError, match="projector 'linear'"):
        read_dreams({**reference.config, "mm_projector_type": "linear"}, reference.weights)
    with pytest.raises(DataError, match=r"'extra\.weight'"):
        read_dreams(reference.config, {**reference.weights, "extra.weight": torch.zeros(2)})
    inputs = {**reference.inputs, "sa_token_ids": reference.inputs["sa_token_ids"] * 0}
    with pytest.raises(DataError, match="only sequences of action tokens"):
        read_dreams(reference.config, reference.weights).loss_and_sample(inputs)


def save_checkpoint(folder: Path, weights: dict[str, torch.Tensor], declared: dict) -> str:
    """Writes weights as a release does: two files, a prefix, a config of its own."""
    folder.mkdir()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({f"action_head.{n}": weights[n].contiguous() for n in part}, folder / f"model-{number}.safetensors")
    (folder / "config.json").write_text(json.dumps({"action_head_cfg": declared}))
    return str(folder)


def test_a_published_folder_is_read_by_the_sizes_of_its_weights(tmp_path: Path) -> None:
    reference = read_reference(str(HEAD))
    heads = {name: {"num_attention_heads": 2} for name in ("dit", "vl_self_attention", "siglip_vision")}
    model = read_checkpoint(save_checkpoint(tmp_path / "idm", reference.weights, heads))
    _, action, _ = model.loss_and_sample(reference.inputs)
    assert (action - reference.outputs["action_pred"]).abs().max() < 1e-5


def test_a_published_folder_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    weights = read_reference(str(HEAD)).weights
    less = {name: tensor for name, tensor in weights.items() if name != "view_embedding.weight"}
    with pytest.raises(DataError, match=r"view_embedding\.weight"):
        read_checkpoint(save_checkpoint(tmp_path / "less", less, {}))
    folder = save_checkpoint(tmp_path / "more", weights, {})
    save_file({"backbone.eagle.weight": torch.zeros(2)}, tmp_path / "more" / "other.safetensors")
    with pytest.raises(DataError, match=r"backbone\.eagle\.weight"):
        read_checkpoint(folder)
    with pytest.raises(DataError, match="no published checkpoint"):
        read_checkpoint(str(tmp_path))
