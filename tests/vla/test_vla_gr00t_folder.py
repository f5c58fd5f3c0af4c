"""Folders in the layout of the published checkpoints, at tiny size: shards with an index, prefixes, configurations."""

from __future__ import annotations

import json

import pytest
import torch
from published_head import Plain
from safetensors.torch import load_file, save_file
from test_vla_families import published_qwen
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pyramid.errors import ConfigError, DataError
from vla.config import BackboneConfig
from vla.gr00t_folder import read_folder, read_policy

VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 99, "pad_token_id": 0,
}  # fmt: skip
SIZES = {
    "max_text_tokens": 16, "image_size_px": 32, "patch_px": 8, "vision_width": 16, "vision_ffn": 32, "text_width": 32,
    "text_ffn": 48, "attention_heads": 2, "kv_heads": 1, "vocab_size": 300, "frozen": True, "tap_layer": 2,
}  # fmt: skip
BACKBONES = {
    "n1": BackboneConfig(**SIZES, kind="eagle", merge=2, project_width=24),
    "n1_5": BackboneConfig(**SIZES, kind="eagle", merge=1, language="qwen3"),
    "n1_7": BackboneConfig(**SIZES, kind="qwen3_vl", vision_layers=3, vision_positions=49, deepstack=(0, 1)),
}
HEADS = {
    "n1": Plain(version="n1", seed=1, context=24),
    "n1_5": Plain(version="n1_5", seed=2, context=32, mixer_layers=1, future=2),
    "n1_7": Plain(version="n1_7", seed=3, context=32, mixer_layers=1, alternate=True, history=2),
}


def eagle_parts(version):
    """Weights of SigLIP, connector and language model under the names that the publisher's classes give them."""
    vision = SiglipVisionModel(SiglipVisionConfig(**VISION))  # with the pooling head that nobody uses
    kind, config = {"n1": (LlamaForCausalLM, LlamaConfig), "n1_5": (Qwen3ForCausalLM, Qwen3Config)}[version]
    text = kind(config(**TEXT))
    parts = {f"vision_model.vision_model.{k}": v for k, v in vision.state_dict().items()}
    parts |= {f"language_model.{k}": v for k, v in text.state_dict().items()}
    if version == "n1":
        connector = torch.nn.Sequential(
            torch.nn.LayerNorm(64), torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 32)
        )
    else:
        connector = torch.nn.Sequential(torch.nn.Linear(16, 32))
    return parts | {f"mlp1.{k}": v for k, v in connector.state_dict().items()}


def published(folder, version):
    """Writes a checkpoint in two shards, as its publisher does; returns its weights."""
    torch.manual_seed(4)
    head = HEADS[version]
    weights = {f"action_head.{name}": tensor for name, tensor in head.weights.items()}
    if version == "n1_7":
        model = published_qwen()
        model.model.language_model.layers = model.model.language_model.layers[:2]
        weights |= {f"backbone.model.{k}": v for k, v in model.state_dict().items()}
        config = {"model_type": "Gr00tN1d7", "select_layer": 2, **head.config()}
    else:
        prefix = {"n1": "backbone.model.", "n1_5": "backbone.eagle_model."}[version]
        weights |= {f"{prefix}{k}": v for k, v in eagle_parts(version).items()}
        if version == "n1":
            linear = torch.nn.Linear(32, 24)
            weights |= {f"backbone.linear.{k}": v for k, v in linear.state_dict().items()}
        config = {"action_head_cfg": head.config(), "backbone_cfg": {"select_layer": 2}, "action_dim": 3}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name].detach().clone().contiguous() for name in held}, folder / shard)
    placed = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return weights


def seen(policy, n=2):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 32, 32, 3), dtype=torch.uint8, generator=draw)
    with torch.no_grad():
        return policy.encode(images, ["go", "pick it up"][:n])


@pytest.mark.parametrize("version", HEADS)
def test_a_whole_checkpoint_becomes_a_policy_that_does_the_same(tmp_path, version):
    weights = published(tmp_path, version)
    policy = read_policy(str(tmp_path), backbone=BACKBONES[version])
    assert policy.config.head.compatibility == version
    # Every backbone weight is the published one, under whatever name: as many, with the same values.
    ours = sorted(float(p.double().sum()) for p in policy.backbone.parameters())
    unused = ("lm_head.", ".head.", "model.norm.weight")
    theirs = [t for n, t in weights.items() if n.startswith("backbone.") and not any(part in n for part in unused)]
    assert ours == pytest.approx(sorted(float(t.double().sum()) for t in theirs))
    # The head does to what the backbone says what the plain re-implementation does to it.
    context, mask = seen(policy)
    plain, inputs = HEADS[version], HEADS[version].inputs()
    start, stop = policy.backbone.image_spans[0]
    where = torch.zeros_like(mask)
    where[:, start:stop] = True
    inputs = {name: tensor[:2] for name, tensor in inputs.items()} | {
        "backbone_features": context, "backbone_attention_mask": mask, "image_mask": where
    }  # fmt: skip
    plain.batch = 2
    want = plain.outputs(inputs)["action_pred"]
    for row in range(2):
        one = slice(row, row + 1)
        name = f"slot_{int(inputs['embodiment_id'][row])}"
        with torch.no_grad():
            prepared = policy.prepare((context[one], mask[one]), inputs["state"][one], None, name)
            got = policy.sample(prepared, inputs["noise"][one], name)
        assert (got - want[one]).abs().max() < 1e-4
    policy.save_pretrained(str(tmp_path / "ours"))
    again = type(policy).from_pretrained(str(tmp_path / "ours"))
    assert torch.equal(seen(again)[0], context)


def test_only_the_slots_that_are_wanted_are_kept(tmp_path):
    published(tmp_path, "n1_5")
    whole = read_policy(str(tmp_path), backbone=BACKBONES["n1_5"])
    one = read_policy(str(tmp_path), backbone=BACKBONES["n1_5"], slots={"gr1": 2})
    assert list(one.embodiments) == ["gr1"]
    noise, state = torch.zeros(2, 5, 3), torch.ones(2, 4)
    a = one.sample(one.prepare(seen(one), state, None, "gr1"), noise, "gr1")
    b = whole.sample(whole.prepare(seen(whole), state, None, "slot_2"), noise, "slot_2")
    assert torch.equal(a, b)
    with pytest.raises(ConfigError, match="no slot 3 for 'gr1': its slots are 0 to 2"):
        read_policy(str(tmp_path), backbone=BACKBONES["n1_5"], slots={"gr1": 3})


def _no_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def _half_a_shard(folder):
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _index_of_another(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["action_head.surprise"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))


def _index_that_climbs(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["action_head.surprise"] = "../model.safetensors"
    path.write_text(json.dumps(index))


def _renamed(folder, old, new):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = index["weight_map"].pop(old)
    weights = load_file(folder / shard)
    weights[new] = weights.pop(old)
    save_file(weights, folder / shard)
    index["weight_map"][new] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _stranger(folder):
    _renamed(folder, "backbone.eagle_model.mlp1.0.bias", "critic.bias")


def _other_connector(folder):
    _renamed(folder, "backbone.eagle_model.mlp1.0.bias", "backbone.eagle_model.mlp1.9.bias")


def _no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_shard, "not complete: model-00002-of-00002.safetensors is missing"),
        (_half_a_shard, "model-00002-of-00002.safetensors is damaged or only half there"),
        (_index_of_another, "lacks 'action_head.surprise'"),
        (_index_that_climbs, "names '../model.safetensors', which is no file beside it"),
        (_stranger, "'critic.bias' belongs to neither backbone nor action head"),
        (_other_connector, r"2 weights do not fit: '.*mlp1.0.bias' is missing; '.*mlp1.9.bias' is not known"),
        (_no_config, "has no config.json"),
    ],
)
def test_damaged_folders_are_named(tmp_path, damage, message):
    published(tmp_path, "n1_5")
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        read_policy(str(tmp_path), backbone=BACKBONES["n1_5"])


def test_other_sizes_are_named(tmp_path):
    published(tmp_path, "n1_5")
    wide = BackboneConfig(**{**SIZES, "text_ffn": 64}, kind="eagle", merge=1, language="qwen3")
    with pytest.raises(DataError, match=r"6 weights do not fit: '.*mlp.*' is \[.*48.*\], the sizes say \[.*64.*\]"):
        read_policy(str(tmp_path), backbone=wide)
    with pytest.raises(ConfigError, match="context of width 32, the backbone gives 12"):
        read_policy(str(tmp_path), backbone=BackboneConfig(**SIZES, kind="eagle", language="qwen3", project_width=12))


def test_of_n1_6_the_head_alone_is_read(tmp_path):
    published(tmp_path, "n1_7")
    plain = Plain(version="n1_6", seed=3, context=32, mixer_layers=1, alternate=True, history=2)
    (tmp_path / "config.json").write_text(json.dumps(plain.config()))
    found = read_folder(str(tmp_path))
    assert found.version == "n1_6"
    with pytest.raises(DataError, match="version n1_6, whose backbone is none of the families"):
        read_policy(str(tmp_path))
