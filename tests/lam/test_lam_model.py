"""The network: nothing of the second frame passes the bottleneck by, every term trains, state survives."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import tiny_hub
import torch
from safetensors.torch import load, save

from lam.config import (
    CODE_DIMS,
    LAMConfig,
    ModelConfig,
    ObjectiveConfig,
    QuantizerConfig,
    TargetConfig,
    TextConfig,
)
from lam.facts import ModelFacts
from lam.losses import code_usage, lam_loss, relative_error
from lam.model import build_model
from lam.quantizers import build_quantizer
from lam.views import Context, View, from_patches, to_patches
from pyramid.config import from_dict, to_dict
from pyramid.nn.trainer import TrainerConfig

SIZES = ModelConfig(
    image_size_px=32,
    encoder_widths=(8, 16, 16),
    decoder_widths=(8, 16, 16),
    width=16,
    heads=2,
    encoder_depth=2,
    decoder_depth=1,
    patch_px=8,
)
KINDS = list(CODE_DIMS)
STAGE1 = {"quantizer": to_dict(QuantizerConfig(code_dim=6)), "n_tokens": 2}
VISION = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
# Encoder, its input, decoder, target: every pairing that a config may hold.
ARCHITECTURES = [
    ("cnn", "pixels", "film", "pixels"),
    ("cnn", "pixels", "transformer", "pixels"),
    ("cnn", "pixels", "transformer", "features"),
    ("transformer", "pixels", "film", "pixels"),
    ("transformer", "pixels", "transformer", "pixels"),
    ("transformer", "pixels", "transformer", "features"),
    ("transformer", "features", "transformer", "features"),
]
EXTRAS = ["plain", "gap", "text", "stage2", "flow"]
COMBINATIONS = [
    (architecture, extra)
    for architecture, extra in itertools.product(ARCHITECTURES, EXTRAS)
    if extra != "text" or architecture[0] == architecture[2] == "transformer"
]


def config_of(architecture=ARCHITECTURES[0], extra="plain", kind="none"):
    encoder, seen, decoder, target = architecture
    model = replace(SIZES, encoder=encoder, encoder_input=seen, decoder=decoder, gap_embedding=extra == "gap")
    objectives = ObjectiveConfig()
    if extra == "flow":
        model = replace(model, image_size_px=128, patch_px=32)
        objectives = ObjectiveConfig(flow_weight=0.1, flow_weights="raft.pth")
    return LAMConfig(
        model=model,
        quantizer=QuantizerConfig(kind=kind),
        target=TargetConfig(kind=target, vision_model="tiny" if target == "features" else ""),
        text=TextConfig(text_model="tiny" if extra == "text" else ""),
        objectives=objectives,
        stage1="before" if extra == "stage2" else "",
        trainer=TrainerConfig(batch_size=6),
    )


def model_of(architecture=ARCHITECTURES[0], extra="plain", kind="none", seed=0):
    config = config_of(architecture, extra, kind)
    facts = ModelFacts(
        vision={**VISION, "image_size": config.model.image_size_px} if config.target.vision_model else {},
        text_dim=12 if extra == "text" else 0,
        stage1=STAGE1 if extra == "stage2" else {},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(config, facts)
        torch.nn.init.normal_(model.decoder.out.weight, std=0.1)
        if model.background is not None:
            torch.nn.init.normal_(model.background.quantizer.vq._codebook.embed)
            model.background.quantizer.vq._codebook.initted.fill_(True)
    return model


def context_of(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(count, 5, 12, generator=generator)
    return Context(torch.rand(count, generator=generator), text, torch.arange(5).expand(count, 5) < 3)


def frames(seed, side=32, count=6):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def views(model, seed=0):
    side = model.config.model.image_size_px
    return [model.look(frames(2 * seed + i, side)) for i in (0, 1)]


@pytest.mark.parametrize(("architecture", "extra"), COMBINATIONS)
def test_second_frame_reaches_the_output_only_through_the_tokens(architecture, extra):
    model = model_of(architecture, extra).train()
    first, second = views(model)
    # Leaves of their own: frozen features would hide a path behind their own lack of gradients.
    leaves = [part.detach().clone().requires_grad_(True) for part in second if part is not None]
    second, context = View(*leaves), context_of()
    tokens = model.tokens(first, second, context)
    change, flow = model.predict(first, tokens.quantized.z, context, tokens.background)
    through = torch.autograd.grad(change.square().sum(), leaves, retain_graph=True, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in through if g is not None) > 0
    background = None if tokens.background is None else tokens.background.detach()
    outputs = [
        part for part in model.predict(first, tokens.quantized.z.detach(), context, background) if part is not None
    ]
    past = torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves, allow_unused=True)
    assert past == (None,) * len(leaves)
    assert (flow is not None) == (extra == "flow")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_passes_any_quantiser_by(kind):
    model = model_of(kind=kind).train()
    first, second = (View(frames(i)) for i in (0, 1))
    second.pixels.requires_grad_(True)
    tokens = model.tokens(first, second, Context())
    assert float(torch.autograd.grad(tokens.quantized.z.square().sum(), second.pixels)[0].abs().sum()) > 0
    change, _ = model.predict(first, tokens.quantized.z.detach(), Context())
    assert torch.autograd.grad(change.square().sum(), second.pixels, allow_unused=True) == (None,)


@pytest.mark.parametrize(("architecture", "extra"), COMBINATIONS)
def test_every_part_that_trains_has_a_gradient(architecture, extra):
    model = model_of(architecture, extra, kind="vae").train()
    first, second = views(model, 1)
    output = model(first, second, context_of())
    change = model.target(second) - model.target(first)
    assert output.change.shape == change.shape
    terms = lam_loss(output, change, torch.ones(6))
    assert list(terms) == ["prediction", "quantizer"]
    extra_term = 0 if output.flow is None else output.flow.square().mean()
    (torch.stack(list(terms.values())).sum() + extra_term).backward()
    # What the last time step of a causal encoder cannot reach: nothing; a softmax over one key: its query and key.
    missing = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert missing <= {n for n in missing if n.endswith("key.bias")}  # a constant on all keys changes no attention


@pytest.mark.parametrize("kind", KINDS)
def test_every_term_has_a_gradient(kind):
    model = model_of(kind=kind).train()
    model(*views(model), Context())  # the first batch of a codebook becomes its codes, where commitment is nearly 0
    first, second = views(model, 1)
    terms = lam_loss(model(first, second, Context()), second.pixels - first.pixels, torch.ones(6))
    assert list(terms) == ["prediction"] + ["quantizer"] * (kind not in ("nsvq", "fsq", "none"))
    for name, term in terms.items():
        gradient = torch.autograd.grad(term, list(model.encoder.parameters()), retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradient if g is not None) > 0, name
    torch.stack(list(terms.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_causal_encoder_keeps_the_second_frame_from_where_the_first_stands():
    model = model_of(ARCHITECTURES[4])
    block = model.encoder.blocks[0]
    x = torch.randn(1, 2, 5, 16)
    other = x.clone()
    other[:, 1] += 1
    assert torch.equal(block(x, None)[:, 0], block(other, None)[:, 0])
    other = x.clone()
    other[:, 0] += torch.randn(16)
    assert not torch.allclose(block(x, None)[:, 1], block(other, None)[:, 1])


@pytest.mark.parametrize("extra", ["gap", "text"])
def test_gap_and_instruction_matter_and_must_be_given(extra):
    model = model_of(ARCHITECTURES[6], extra).eval()
    first, second = views(model)
    z = torch.randn(6, 4, 16)
    for run in (lambda c: model.tokens(first, second, c).quantized.z, lambda c: model.predict(first, z, c)[0]):
        assert not torch.allclose(run(context_of()), run(context_of(seed=1)))
        with pytest.raises(ValueError, match="give the"):
            run(Context())
    padded = context_of()
    padded.text[:, 3:] = 9.0  # beyond the last word
    assert torch.equal(model.predict(first, z, padded)[0], model.predict(first, z, context_of())[0])


def test_the_first_stage_stays_frozen_and_its_codes_are_not_the_latent():
    model = model_of(ARCHITECTURES[6], "stage2", kind="vq_ema").train()
    frozen = {k: v.clone() for k, v in model.background.state_dict().items()}
    first, second = views(model)
    tokens = model.tokens(first, second, Context())
    assert tokens.quantized.latent.shape == (6, 4, 16)
    assert tokens.background.shape == (6, 2, 6)
    codes = model.background.quantizer.vq.codebook
    assert torch.allclose(torch.cdist(tokens.background, codes[None]).amin(-1), torch.zeros(6, 2), atol=1e-3)
    (model(first, second, Context()).change.square().sum() + tokens.loss).backward()
    assert all(torch.equal(v, frozen[k]) for k, v in model.background.state_dict().items())
    assert all(not p.requires_grad for p in model.background.parameters())
    assert not torch.equal(
        model.predict(first, tokens.quantized.z, Context(), tokens.background)[0],
        model.predict(first, tokens.quantized.z, Context(), torch.zeros_like(tokens.background))[0],
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_untrained_model_predicts_a_copy(architecture):
    model = model_of(architecture)
    torch.nn.init.zeros_(model.decoder.out.weight)
    untrained = build_model(model.config, model.facts)
    assert not untrained.decoder.out.weight.any()
    assert not untrained.decoder.out.bias.any()
    first, second = views(model)
    change = model.target(second) - model.target(first)
    output = untrained(first, second, Context())
    assert torch.equal(output.change, torch.zeros_like(change))
    assert float(lam_loss(output, change, torch.ones(6))["prediction"].detach()) == pytest.approx(1, abs=1e-4)


def test_relative_error_is_0_for_the_truth_and_weights_count():
    target = torch.randn(2, 3, 4, 4)
    assert float(relative_error(target, target, torch.ones(2))) == 0
    wrong = torch.stack([target[0], torch.zeros_like(target[1])])
    assert float(relative_error(wrong, target, torch.tensor([1.0, 0.0]))) == 0
    assert float(relative_error(wrong, target, torch.tensor([0.0, 1.0]))) == pytest.approx(1, abs=1e-4)
    half = target.clone()
    half[..., 2:] = 0
    left = torch.zeros(2, 1, 4, 4)
    left[..., :2] = 1
    assert float(relative_error(half, target, torch.ones(2), left)) == 0
    assert float(relative_error(half, target, torch.ones(2), 1 - left)) == pytest.approx(1, abs=1e-4)


def test_patches_are_cut_and_put_together_without_loss():
    x = frames(0)
    patches = to_patches(x, 8)
    assert patches.shape == (6, 16, 192)
    assert torch.equal(patches[:, 5].unflatten(1, (3, 8, 8)), x[:, :, 8:16, 8:16])
    assert torch.equal(from_patches(patches, 8), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_survives_saving_bit_for_bit(kind):
    model = model_of(kind=kind).train()
    for seed in range(3):
        model(*views(model, seed), Context())
    model.eval()
    restored = model_of(kind=kind, seed=9)
    saved = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    restored.load_state_dict(load(saved), strict=True)
    restored.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name
    one, other = (m(*views(model, 7), Context()) for m in (model, restored))
    assert torch.equal(one.change, other.change)
    assert torch.equal(one.latent, other.latent)


@pytest.mark.parametrize("kind", tiny_hub.VISION)
def test_features_are_those_of_the_saved_vision_model(kind, tmp_path):
    from transformers import AutoModel

    from lam.features import FrozenFeatures

    folder = tiny_hub.save_vision(kind, tmp_path)
    config = TargetConfig(kind="features", vision_model=folder, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4))
    found = FrozenFeatures.pretrained(config, 32).train()
    pixels = frames(0, count=2)
    features = found(pixels)
    assert features.shape == (2, 16, 4, 4)
    normed = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "siglip":
            hidden = model.vision_model(pixel_values=normed).last_hidden_state
        elif kind == "vjepa2":
            hidden = model.get_vision_features(normed[:, None].repeat(1, 2, 1, 1, 1))
        else:
            hidden = model(pixel_values=normed).last_hidden_state
            hidden = hidden[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
    patch = hidden[:, 6]  # second row, third column
    expected = (patch - patch.mean(-1, keepdim=True)) / (patch.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    assert torch.allclose(features[:, :, 1, 2], expected, atol=1e-5)
    assert not any(p.requires_grad for p in found.parameters())
    again = FrozenFeatures.described_by(from_dict(ModelFacts, {"vision": found.described}).vision, config, 32)
    again.load_state_dict(found.state_dict(), strict=True)
    assert torch.equal(again(pixels), features)


def test_codebook_is_in_the_state_and_moves_only_in_training():
    quantizer = build_quantizer(QuantizerConfig(), vectors_per_step=64)
    names = set(quantizer.state_dict())
    assert {f"vq._codebook.{n}" for n in ("initted", "cluster_size", "embed_avg", "embed")} <= names
    quantizer(torch.randn(16, 4, 16))
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(16, 4, 16))
    assert all(torch.equal(tensor, quantizer.state_dict()[name]) for name, tensor in before.items())
    quantizer.train()(torch.randn(16, 4, 16))
    assert not torch.equal(before["vq._codebook.embed"], quantizer.state_dict()["vq._codebook.embed"])


def test_quantisers_work_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = build_quantizer(QuantizerConfig(kind="fsq"), 8)(torch.randn(2, 4, 16, dtype=torch.bfloat16))
    assert out.z.dtype == torch.float32


def test_code_usage_of_known_codes():
    codes = torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]])
    usage = code_usage(codes, 8)
    assert usage["perplexity"] == pytest.approx((4 + 1) / 2)
    assert usage["usage"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (QuantizerConfig, {"codebook_size": 1}, "1"),
        (QuantizerConfig, {"levels": (2, 2)}, "2, 2"),
        (QuantizerConfig, {"decay": 1.0}, "1.0"),
        (ModelConfig, {"image_size_px": 40}, "40"),
        (ModelConfig, {"n_tokens": 0}, "0"),
        (ModelConfig, {"encoder_widths": (8, 8, 12)}, "8, 8, 12"),
        (ModelConfig, {"width": 60}, "60"),
        (ModelConfig, {"patch_px": 24}, "24"),
        (ModelConfig, {"encoder_input": "features"}, "encoder=transformer"),
        (TargetConfig, {"kind": "features"}, "vision_model"),
        (LAMConfig, {"target": TargetConfig(kind="features", vision_model="x")}, "decoder=transformer"),
        (LAMConfig, {"text": TextConfig(text_model="x")}, "transformers"),
        (LAMConfig, {"objectives": ObjectiveConfig(flow_weight=1.0, flow_weights="x")}, "128"),
        (ObjectiveConfig, {"flow_weight": 1.0}, "flow_weights"),
        (ObjectiveConfig, {"focus": "boxes"}, "focus_boxes"),
        (ObjectiveConfig, {"action_share": 0.0}, "0.0"),
    ],
)
def test_values_out_of_range_are_refused_with_the_value(config, options, said):
    with pytest.raises(ValueError, match=said):
        config(**options)
