"""The network: nothing of the second frame passes the bottleneck by, every term trains, state survives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from lam.config import ModelConfig, QuantizerConfig
from lam.losses import code_usage, lam_loss, relative_error
from lam.model import build_model
from lam.quantizers import build_quantizer

SIZES = ModelConfig(image_size_px=32, encoder_widths=(8, 16, 16), decoder_widths=(8, 16, 16))
KINDS = ["vq_ema", "fsq", "none"]


def pair(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=generator), torch.rand(count, 3, 32, 32, generator=generator)


def model_of(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(SIZES, QuantizerConfig(kind=kind), batch_size=6)
        torch.nn.init.normal_(model.decoder.out.weight, std=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_second_frame_reaches_the_output_only_through_the_tokens(kind):
    model = model_of(kind).train()  # in training mode gradients pass the quantiser
    first, second = pair()
    second.requires_grad_(True)
    tokens = model.quantizer(model.encode(first, second)).z
    through = torch.autograd.grad(model.predict(first, tokens).square().sum(), second, retain_graph=True)[0]
    assert float(through.abs().sum()) > 0
    output = model.predict(first, tokens.detach()).square().sum()
    (past,) = torch.autograd.grad(output, second, allow_unused=True)
    assert past is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_term_has_a_gradient(kind):
    model = model_of(kind).train()
    first, second = pair()
    model(first, second)  # the first batch of vq_ema becomes its codebook, where commitment is nearly 0
    other_first, other_second = pair(seed=1)
    terms = lam_loss(model(other_first, other_second), other_first, other_second, torch.ones(6))
    assert list(terms) == (["prediction", "quantizer"] if kind == "vq_ema" else ["prediction"])
    for name, term in terms.items():
        gradient = torch.autograd.grad(term, list(model.encoder.parameters()), retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradient if g is not None) > 0, name
    torch.stack(list(terms.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_an_untrained_model_predicts_a_copy():
    model = build_model(SIZES, QuantizerConfig(), batch_size=6)
    first, second = pair()
    output = model(first, second)
    assert torch.equal(output.residual, torch.zeros_like(first))
    assert float(lam_loss(output, first, second, torch.ones(6))["prediction"].detach()) == pytest.approx(1, abs=1e-4)


def test_relative_error_is_0_for_the_truth_and_weights_count():
    target = torch.randn(2, 3, 4, 4)
    assert float(relative_error(target, target, torch.ones(2))) == 0
    wrong = torch.stack([target[0], torch.zeros_like(target[1])])
    assert float(relative_error(wrong, target, torch.tensor([1.0, 0.0]))) == 0
    assert float(relative_error(wrong, target, torch.tensor([0.0, 1.0]))) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_codes(kind):
    config = QuantizerConfig(kind=kind)
    model = model_of(kind).eval()
    output = model(*pair())
    assert output.latent.shape == (6, 4, 16)
    assert output.residual.shape == (6, 3, 32, 32)
    if kind == "none":
        assert output.quantized.codes is None
        assert torch.equal(output.quantized.z, output.latent)
        return
    codes = output.quantized.codes
    assert codes.shape == (6, 4)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < config.n_codes


@pytest.mark.parametrize("kind", ["vq_ema", "fsq"])
def test_quantiser_state_survives_saving_bit_for_bit(kind):
    model = model_of(kind).train()
    for seed in range(3):
        model(*pair(seed=seed))
    model.eval()
    restored = model_of(kind, seed=9)
    saved = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    restored.load_state_dict(load(saved), strict=True)
    restored.eval()
    assert model.state_dict().keys() == restored.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name]), name
    for a, b in zip(model(*pair(seed=7)).quantized, restored(*pair(seed=7)).quantized, strict=True):
        assert torch.equal(a, b)


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


def test_dead_codes_come_back_to_life():
    quantizer = build_quantizer(QuantizerConfig(decay=0.5), vectors_per_step=256).train()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    quantizer(torch.randn(64, 4, 16, generator=generator))
    for _ in range(30):  # the data moves far away from where the codes began
        codes = quantizer(20 + 3 * torch.randn(64, 4, 16, generator=generator)).codes
    assert len(codes.unique()) == 8


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
    ("config", "options"),
    [
        (QuantizerConfig, {"codebook_size": 1}),
        (QuantizerConfig, {"levels": (2, 2)}),
        (QuantizerConfig, {"decay": 1.0}),
        (ModelConfig, {"image_size_px": 40}),
        (ModelConfig, {"n_tokens": 0}),
        (ModelConfig, {"encoder_widths": (8, 8, 12)}),
    ],
)
def test_values_out_of_range_are_refused_with_the_value(config, options):
    value = str(next(iter(options.values()))).strip("()")
    with pytest.raises(ValueError, match=value):
        config(**options)
