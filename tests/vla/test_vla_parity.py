"""The action head against weights, inputs and outputs that the publishers' own code computed at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid.errors import DataError
from pyramid.nn.flow import euler_sample
from pyramid.nn.reference import read_reference
from vla.gr00t import read_head, slot_name
from vla.parity import main, measure

FOLDER = Path(__file__).parents[1] / "reference"
HEADS = sorted(FOLDER.glob("*action_head*.safetensors"))


def test_all_published_heads_are_here() -> None:
    assert len(HEADS) == 4


def test_command_prints_a_line_for_each_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path) for path in HEADS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in HEADS]
    for line in lines:
        assert line["model"].startswith("GR00T N1")
        assert 0 <= line["loss_abs_error"] < 1e-5
        assert 0 <= line["action_max_abs_error"] < 1e-5


@pytest.mark.parametrize("path", HEADS, ids=lambda p: p.stem)
def test_context_is_processed_as_published(path: Path) -> None:
    reference = read_reference(str(path))
    head = read_head(reference.config, reference.weights).head
    with torch.no_grad():
        mixed = head.context_mixer(head.context_norm(reference.inputs["backbone_features"]))
    assert (mixed - reference.outputs["processed_backbone_features"]).abs().max() < 1e-5


@pytest.mark.parametrize("path", HEADS, ids=lambda p: p.stem)
@pytest.mark.parametrize("name", ["model.transformer_blocks.0.attn1.to_q.weight", "action_encoder.W2.W"])
def test_a_changed_weight_is_seen(path: Path, name: str) -> None:
    reference = read_reference(str(path))
    reference.weights[name] = reference.weights[name] * 1.01
    loss, action = measure(reference)
    assert max(loss, action) > 1e-5


def test_text_and_image_masks_alternate_in_n1_7() -> None:
    reference = read_reference(str(FOLDER / "gr00t_n1_7_action_head.safetensors"))
    assert read_head(reference.config, reference.weights).head.config.alternate
    plain = read_head({**reference.config, "use_alternate_vl_dit": False}, reference.weights)
    _, action = plain.loss_and_sample(reference.inputs)
    assert (action - reference.outputs["action_pred"]).abs().max() > 1e-3


def test_number_of_euler_steps_is_pinned() -> None:
    reference = read_reference(str(FOLDER / "gr00t_n1_action_head.safetensors"))
    published = read_head(reference.config, reference.weights)
    name = slot_name(int(reference.inputs["embodiment_id"][0]))
    with torch.no_grad():
        prepared = published.prepare(reference.inputs, 0, name)
        other = euler_sample(
            lambda x, b: published.head.velocity(x, b, prepared, name), reference.inputs["noise"][:1], 5
        )
    assert (other - reference.outputs["action_pred"][:1]).abs().max() > 1e-3


def test_what_does_not_fit_is_named() -> None:
    reference = read_reference(str(HEADS[0]))
    stranger = {**reference.weights, "model.surprise.weight": torch.zeros(1)}
    with pytest.raises(DataError, match=r"model\.surprise\.weight"):
        read_head(reference.config, stranger)
    short = {name: w for name, w in reference.weights.items() if name != "model.proj_out_2.bias"}
    with pytest.raises(DataError, match=r"dit\.out\.bias"):
        read_head(reference.config, short)
    with pytest.raises(DataError, match="backbone_embedding_dim"):
        read_head({k: v for k, v in reference.config.items() if k != "backbone_embedding_dim"}, reference.weights)
    odd = {**reference.config, "diffusion_model_cfg": {**reference.config["diffusion_model_cfg"], "norm_type": "x"}}
    with pytest.raises(DataError, match="norm_type"):
        read_head(odd, reference.weights)


def test_command_fails_on_bad_files_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(HEADS[0]), plain)  # without the note
    assert main([str(text), str(plain), str(tmp_path / "none"), str(HEADS[0])]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["vla.parity"] * 3
    assert main([]) == 2
