"""Every family of backbones against transformers' own forward on the same weights, one unpadded sample at a time."""

from __future__ import annotations

import dataclasses
import json

import onnxruntime
import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from pyramid.errors import ConfigError, DataError
from vla.backbone import build_backbone, image_mask, restore_backbone
from vla.config import BackboneConfig
from vla.deploy.graphs import Graph, System2, to_onnx
from vla.text import byte_tokenizer, encode_texts, tokenizer_to_json

MARKS = [
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<img>", "</img>",
]  # fmt: skip
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 99, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
FRESH = BackboneConfig(
    tap_layer=2, max_text_tokens=16, image_size_px=32, patch_px=8, vision_width=16, vision_layers=2, text_width=32,
    attention_heads=2, n_views=2,
)  # fmt: skip
KINDS = ("llava", "smolvlm", "qwen3_vl", "eagle")


def marked_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return tokenizer


def token(mark):
    return marked_tokenizer().token_to_id(mark)


def published_qwen():
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 99, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 8,
        "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(
        vision_config=vision, text_config=text, image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config)


def published_smol(kind):
    config, model, vision = {
        "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, "smolvlm_vision"),
        "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, "idefics3_vision"),
    }[kind]
    sizes = {"vision_config": {"model_type": vision, **VISION}, "text_config": LLAMA}
    return model(config(**sizes, image_token_id=3, pad_token_id=0, scale_factor=2))


def save(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_to_json(tokenizer or marked_tokenizer()))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder


def config_of(folder, kind, **changes):
    sizes = {"kind": kind, "tap_layer": 2, "max_text_tokens": 40, "image_size_px": 32, "n_views": 2}
    return BackboneConfig(**{"pretrained": str(folder), **sizes, **changes})


def observation(tokenizer, n_views=2, size=32, length=40):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, n_views, size, size, 3), dtype=torch.uint8, generator=g)
    ids, mask = encode_texts(tokenizer, ["pick it up", "go"], length)
    return images, torch.from_numpy(ids), torch.from_numpy(mask)


def pixels_of(views):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (views.permute(0, 3, 1, 2) / 255 - mean) / std


def prompt(text):
    """Tokens of a whole prompt, with its marks in it, as a chat template of the publisher gives them."""
    return torch.tensor([marked_tokenizer().encode(text, add_special_tokens=False).ids])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


@pytest.mark.parametrize("layout", ["plain", "chat"])
def test_qwen3_vl_gives_the_hidden_states_of_transformers(tmp_path, layout):
    model = published_qwen().eval()
    backbone, tokenizer = build_backbone(config_of(save(model, tmp_path), "qwen3_vl", layout=layout))
    images, ids, mask = observation(tokenizer)
    with torch.no_grad():
        context, context_mask = backbone.eval()(images, ids, mask)
    processor = Qwen2VLImageProcessor(
        do_resize=False, patch_size=8, merge_size=2, image_mean=MEAN, image_std=STD, min_pixels=1, max_pixels=1 << 20
    )
    # What the first layer that was dropped sees: the pictures' deep features have joined by then.
    entered = []
    model.model.language_model.layers[2].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    view = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    frame = {"plain": "<bos>{}{}", "chat": "<|im_start|>user\n{}{}<|im_end|>\n<|im_start|>assistant\n"}[layout]
    for row, text in enumerate(["pick it up", "go"]):
        given = processor(list(images[row].permute(0, 3, 1, 2)), return_tensors="pt")
        whole = prompt(frame.format(view * 2, text))
        with torch.no_grad():
            model(input_ids=whole, mm_token_type_ids=(whole == token("<|image_pad|>")).int(), **given)
        want = entered[-1]
        seen = context[row][context_mask[row]]
        assert seen.shape == want[0].shape
        assert torch.allclose(seen, want[0], atol=1e-5)
        where = image_mask(backbone.image_spans, context_mask)[row][context_mask[row]]
        assert torch.equal(where, whole[0] == token("<|image_pad|>"))


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("size", [32, 16])
def test_smolvlm_gives_the_hidden_states_of_transformers(tmp_path, kind, size):
    model = published_smol(kind).eval()
    config = config_of(save(model, tmp_path), "smolvlm", layout="chat", image_size_px=size)
    backbone, tokenizer = build_backbone(config)
    images, ids, mask = observation(tokenizer, size=size)
    with torch.no_grad():
        context, context_mask = backbone.eval()(images, ids, mask)
    fake, count = "<fake_token_around_image>", (size // 16) ** 2
    view = f"{fake}<global-img>{'<image>' * count}{fake}"
    for row, text in enumerate(["pick it up", "go"]):
        whole = prompt(f"<|im_start|>User:{view}{view}{text}<end_of_utterance>\nAssistant:")
        with torch.no_grad():
            want = model(
                input_ids=whole, pixel_values=pixels_of(images[row])[None], output_hidden_states=True
            ).hidden_states[2]
        assert torch.allclose(context[row][context_mask[row]], want[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_backbones_hide_padding_and_survive_a_rebuild(kind):
    backbone, tokenizer = build_backbone(dataclasses.replace(FRESH, kind=kind))
    images, ids, mask = observation(tokenizer, length=16)
    with torch.no_grad():
        context, context_mask = backbone.eval()(images, ids, mask)
        changed, _ = backbone(images, torch.where(mask, ids, 77), mask)
        assert torch.equal(context[context_mask], changed[context_mask])
        assert not torch.allclose(context[context_mask], backbone(images, (ids + 1) % 99, mask)[0][context_mask])
        assert not torch.allclose(context[context_mask], backbone(255 - images, ids, mask)[0][context_mask])
        views = 2 * backbone.tokens_per_view
        assert context.shape == (2, views + 16, backbone.width)
        assert image_mask(backbone.image_spans, context_mask).sum(1).tolist() == [views, views]
        copy = restore_backbone(json.loads(json.dumps(backbone.spec.to_dict()))).eval()
        copy.load_state_dict(backbone.state_dict())
        assert torch.equal(copy(images, ids, mask)[0], context)
    with pytest.raises(DataError, match=r"takes views \[2, 32, 32, 3\], got \[1, 32, 32, 3\]"):
        backbone(images[:, :1], ids, mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("changes", "trains"), [
    ({"frozen": False}, {"language", "vision", "rest"}),
    ({"frozen": True}, set()),
    ({"frozen": True, "top_layers": 1}, {"language"}),
    ({"frozen": True, "vision": True}, {"vision"}),
])  # fmt: skip
def test_what_is_tuned_moves_and_nothing_else(kind, changes, trains):
    backbone, tokenizer = build_backbone(dataclasses.replace(FRESH, kind=kind))
    backbone.set_trainable(**changes)
    backbone.train()
    images, ids, mask = observation(tokenizer, length=16)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    assert backbone.trains == bool(trains)
    if trains:
        context, context_mask = backbone(images, ids, mask)
        parameters = [p for p in backbone.parameters() if p.requires_grad]
        context[context_mask].square().sum().backward()
        torch.optim.SGD(parameters, 1e-2).step()
    moved = {name for name, p in backbone.named_parameters() if not torch.equal(p, before[name])}
    top = {id(p) for p in backbone.layers[-1].parameters()}
    vision = {id(p) for module in backbone.vision for p in module.parameters()}
    parts = {
        "language" if id(p) in top else "vision" if id(p) in vision else "rest"
        for name, p in backbone.named_parameters()
        if name in moved
    }
    assert parts == trains
    assert backbone.layers[-1].training == ("language" in trains)
    assert backbone.layers[0].training == ("rest" in trains)
    with pytest.raises(ConfigError, match="only 2 layers"):
        backbone.set_trainable(frozen=True, top_layers=3)


def test_eagle_is_siglip_shuffle_and_language_model():
    config = dataclasses.replace(FRESH, kind="eagle", language="qwen3", project_width=12, n_views=1)
    backbone, tokenizer = build_backbone(config)
    images, ids, mask = observation(tokenizer, n_views=1, length=16)
    model = backbone.eval().model
    pixels = (images[0].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        context, context_mask = backbone(images, ids, mask)
        patches = model.vision_model(pixel_values=pixels).last_hidden_state.reshape(4, 4, 16)
        # Row by row of 2 x 2 squares, each square's four patches one after another.
        squares = torch.stack([patches[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten() for r in (0, 1) for c in (0, 1)])
        words = model.language_model.embed_tokens(ids[0][mask[0]])
        whole = torch.cat([words[:1], model.mlp1(squares), words[1:]])[None]
        states = model.language_model(inputs_embeds=whole, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(context[0][context_mask[0]], model.linear(states)[0], atol=1e-5)
    assert backbone.width == 12


def test_eagle_chat_numbers_the_views(tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer_to_json(marked_tokenizer()))
    tokens = {"tokenizer": str(tmp_path / "tokenizer.json"), "max_text_tokens": 80, "layout": "chat"}
    backbone, tokenizer = build_backbone(dataclasses.replace(FRESH, kind="eagle", **tokens))
    layout = backbone.spec.layout
    ids = tokenizer.encode("go").ids
    pieces = [ids[: layout.at]]
    for before, after in layout.marks:
        pieces += [list(before), list(after)]
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    want = f"{head}<image 1><img></img><image 2><img></img>go<|im_end|>\n<|im_start|>assistant\n"
    # The marks stand alone in the chat, so cutting the text at them changes no token (whitespace is the tokenizer's).
    assert [i for piece in [*pieces, ids[layout.at :]] for i in piece] == prompt(want)[0].tolist()


def test_a_long_instruction_is_cut_and_the_chat_is_not(tmp_path):
    _, tokenizer = build_backbone(config_of(save(published_qwen(), tmp_path), "qwen3_vl", layout="chat"))
    ids, mask = encode_texts(tokenizer, ["x" * 99, "x"], 40)
    assert mask.sum(1).tolist() == [40, len(tokenizer.encode("x").ids)]
    assert ids[0].tolist()[-11:] == ids[1][mask[1]].tolist()[-11:]
    with pytest.raises(ConfigError, match="the layout alone takes 17 tokens"):
        build_backbone(config_of(tmp_path, "qwen3_vl", layout="chat", max_text_tokens=16))
    with pytest.raises(ConfigError, match=r"no token '<\|im_start\|>'"):
        build_backbone(dataclasses.replace(FRESH, kind="qwen3_vl", layout="chat"))


def test_models_that_do_not_fit_are_named(tmp_path):
    qwen, smol = tmp_path / "qwen", tmp_path / "smol"
    qwen.mkdir(), smol.mkdir()
    save(published_qwen(), qwen), save(published_smol("smolvlm"), smol)
    cases = [
        (config_of(qwen, "llava"), r"type 'qwen3_vl', not of kind 'llava'; use backbone.kind=qwen3_vl"),
        (config_of(qwen, "qwen3_vl", tap_layer=5), r"tap_layer is 5.*has 4 language layers"),
        (config_of(qwen, "qwen3_vl", image_size_px=24), r"takes multiples of 16 px"),
        (config_of(smol, "smolvlm", image_size_px=48), r"multiples of 16 px up to 32 px"),
    ]
    for config, message in cases:
        with pytest.raises(ConfigError, match=message):
            build_backbone(config)


def _half_a_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _no_file(folder):
    (folder / "model.safetensors").unlink()


def _half_of_the_files(folder):
    model = published_qwen() if json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_vl" else None
    (folder / "model.safetensors").unlink()
    (model or published_smol("smolvlm")).save_pretrained(folder, max_shard_size="40KB")
    parts = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(parts) > 1
    parts[-1].unlink()


def _other_version(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "layers.1.mlp" in n)
    weights["model.something.else"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _no_sizes(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_half_a_file, "cannot be loaded"),
        (_no_file, "cannot be loaded"),
        (_half_of_the_files, "cannot be loaded"),
        (_other_version, r"lacks 1 weights, the first is '.*layers\.1\.mlp.*half downloaded"),
        (_no_sizes, "another version or damaged"),
    ],
)
@pytest.mark.parametrize("kind", ["qwen3_vl", "smolvlm"])
def test_damaged_models_are_refused(tmp_path, kind, damage, message):
    save(published_qwen() if kind == "qwen3_vl" else published_smol(kind), tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(config_of(tmp_path, kind))
    assert f"backbone '{tmp_path}'" in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen3_vl", "smolvlm"])
def test_graphs_are_static_but_for_the_batch(kind):
    changes = {"deepstack": (0,)} if kind == "qwen3_vl" else {}
    backbone, tokenizer = build_backbone(dataclasses.replace(FRESH, kind=kind, **changes))
    inputs = observation(tokenizer, length=16)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(backbone.eval(), inputs, dynamic_shapes=({0: batch},) * 3)
    one = tuple(tensor[:1] for tensor in inputs)
    assert torch.allclose(program.module()(*one)[0], backbone(*one)[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_vl", "smolvlm", "eagle"])
def test_static_graphs_of_every_family_are_exported(kind):
    changes = {"deepstack": (0,)} if kind == "qwen3_vl" else {}
    backbone, tokenizer = build_backbone(dataclasses.replace(FRESH, kind=kind, **changes))
    inputs = observation(tokenizer, length=16)
    graph = Graph(
        "system2", System2(backbone).eval(), inputs, ("images", "text_ids", "text_mask"), ("context", "context_mask")
    )
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (slice(0, 2), slice(0, 1)):  # the batch is dynamic
        given = [tensor[rows] for tensor in inputs]
        got = session.run(None, {name: t.numpy() for name, t in zip(graph.inputs, given, strict=True)})
        with torch.no_grad():
            want, mask = backbone.eval()(*given)
        assert (torch.from_numpy(got[0]) - want).abs().max() < 1e-5
        assert torch.equal(torch.from_numpy(got[1]), mask)


def test_siglip_parameters_are_those_of_transformers():
    backbone, _ = build_backbone(dataclasses.replace(FRESH, kind="eagle"))
    assert isinstance(backbone.model.vision_model.config, SiglipVisionConfig)
    assert backbone.model.mlp1[1].in_features == 4 * FRESH.vision_width
