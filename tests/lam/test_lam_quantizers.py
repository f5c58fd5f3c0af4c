"""Quantisers: every kind keeps its codes in use, gives all its parts gradients, survives saving, agrees over ranks."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import quantizer_ranks
import torch
from safetensors.torch import load, save
from torch import nn

from lam.config import CODE_DIMS, QuantizerConfig
from lam.quantizers import build_quantizer

KINDS = list(CODE_DIMS)
DISCRETE = [kind for kind in KINDS if kind not in ("vae", "none")]
WITH_CODEBOOK = [kind for kind in DISCRETE if kind not in ("fsq", "lfq")]


def motions(generator, count=64):
    """Pairs of 8-pixel patterns that move by -2..2 places: [B, 4, 16] of what was and what came."""
    before = torch.randn(count, 4, 8, generator=generator)
    steps = torch.randint(-2, 3, (count, 4), generator=generator)
    places = (torch.arange(8) - steps[..., None]) % 8
    return before, before.gather(2, places), steps


class Mover(nn.Module):
    """The smallest latent-action model: it reads the motion off a pair and applies it to the first pattern."""

    def __init__(self, config):
        super().__init__()
        self.quantizer = build_quantizer(config, vectors_per_step=256)
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, self.quantizer.input_dim))
        self.kernel = nn.Linear(config.dim, 8)

    def encode(self, before, after):
        return self.encoder((after[..., :, None] * before[..., None, :]).flatten(2))

    def forward(self, before, after):
        out = self.quantizer(self.encode(before, after))
        kernel = self.kernel(out.z)
        moved = torch.stack([before.roll(step, -1) for step in range(8)], -2)
        return (kernel[..., None] * moved).sum(-2), out


def trained(kind, steps=150, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model = Mover(QuantizerConfig(kind=kind, **options)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            before, after, _ = motions(generator)
            predicted, out = model(before, after)
            loss = (predicted - after).square().mean() + out.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module", params=KINDS)
def mover(request):
    return trained(request.param)


def test_it_learns_and_does_not_collapse(mover):
    before, after, _ = motions(torch.Generator().manual_seed(2), 512)
    with torch.no_grad():
        predicted, out = mover.eval()(before, after)
    # Always answering with the first pattern is off by 1.6: it is right for one motion in five.
    assert float((predicted - after).square().mean()) < 0.8
    config = mover.quantizer.config
    if config.kind in ("vae", "none"):
        assert (out.codes, config.n_codes) == (None, 0)
        return
    assert out.codes.shape == (512, 4 * config.codes_per_token)
    assert 0 <= int(out.codes.min()) <= int(out.codes.max()) < config.n_codes
    p = torch.bincount(out.codes.flatten(), minlength=config.n_codes).double() / out.codes.numel()
    assert float(torch.exp(-torch.special.xlogy(p, p).sum())) > 0.4 * config.n_codes


def test_every_part_and_every_term_has_a_gradient(mover):
    mover.train().zero_grad()
    predicted, out = mover(*motions(torch.Generator().manual_seed(3))[:2])
    if out.loss.requires_grad:
        (gradient,) = torch.autograd.grad(out.loss, mover.encoder[-1].weight, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    assert out.loss.requires_grad == (mover.quantizer.config.kind not in ("nsvq", "fsq", "none"))
    (predicted.square().mean() + out.loss).backward()
    assert [name for name, p in mover.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_state_survives_saving_bit_for_bit(mover):
    mover.eval()
    again = build_quantizer(mover.quantizer.config, vectors_per_step=256)
    again.load_state_dict(load(save({k: v.contiguous() for k, v in mover.quantizer.state_dict().items()})), strict=True)
    e = mover.encode(*motions(torch.Generator().manual_seed(4))[:2]).detach()
    for one, other in zip(mover.quantizer(e), again.eval()(e), strict=True):
        assert one is other is None or torch.equal(one, other)
    # Training goes on alike too: nothing that decides a reset is left out of the state.
    for quantizer in (mover.quantizer, again):
        quantizer.train()
        torch.manual_seed(5)
        quantizer(e + 5)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in mover.quantizer.state_dict().items())


@pytest.mark.parametrize("kind", WITH_CODEBOOK)
def test_dead_codes_come_back_late_in_a_run_and_not_if_they_are_left(kind):
    used = {}
    for share in (0.25, 0.0):
        torch.manual_seed(0)
        quantizer = build_quantizer(QuantizerConfig(kind=kind, decay=0.5, dead_code_share=share), 256).train()
        for step in range(230):
            # After 200 steps of all else, the tokens move far from where the codes are.
            e = torch.randn(64, 4, quantizer.input_dim) if step < 200 else 30 + torch.randn(64, 4, quantizer.input_dim)
            with torch.no_grad():
                codes = quantizer(e).codes[:, :: quantizer.config.codes_per_token]
        used[share] = len(codes.unique())
    assert used[0.25] >= 7
    assert used[0.0] < used[0.25]


def test_two_ranks_with_other_data_hold_the_same_codes_bit_for_bit(tmp_path):
    kinds = [*WITH_CODEBOOK, "lfq"]
    # The library remembers for a whole process whether there are ranks: both get a new one, as in training.
    ranks = [
        subprocess.Popen(
            [sys.executable, quantizer_ranks.__file__, rank, str(tmp_path / "store"), *kinds],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    found = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert found[0] == found[1]
    assert {kind: one["tensors"] > 0 for kind, one in found[0].items()} == dict.fromkeys([*WITH_CODEBOOK, "lfq"], True)
    assert [kind for kind in WITH_CODEBOOK if found[0][kind]["redrawn"] == 0] == []


def test_the_codes_of_residual_stages_add_up_to_the_token():
    model = trained("residual_vq", steps=20, stages=3).eval()
    e = model.encode(*motions(torch.Generator().manual_seed(4))[:2]).detach()
    out = model.quantizer(e)
    books = model.quantizer.vq.codebooks
    total = sum(books[stage][out.codes.view(64, 4, 3)[..., stage]] for stage in range(3))
    assert torch.allclose(out.z, total, atol=1e-5)


def test_a_variational_token_is_its_mean_when_labelling_and_noisy_in_training():
    quantizer = build_quantizer(QuantizerConfig(kind="vae", code_dim=4), 16)
    e = torch.randn(2, 3, 8)
    assert torch.equal(quantizer.eval()(e).z, e[..., :4])
    assert torch.equal(quantizer(e[..., :4]).z, e[..., :4])
    noisy = quantizer.train()(e)
    assert not torch.equal(noisy.z, e[..., :4])
    assert torch.equal(noisy.latent, e[..., :4])
    mean, log_var = e.double().chunk(2, -1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, torch.exp(log_var / 2)), normal(0.0, 1.0)).sum((1, 2)).mean()
    assert float(noisy.loss) == pytest.approx(2e-4 * float(kl), rel=1e-5)


def test_noise_in_place_of_the_error_has_its_length():
    quantizer = build_quantizer(QuantizerConfig(kind="nsvq", code_dim=4), 16).train()
    e = torch.randn(8, 4, 4)
    out = quantizer(e)
    code = quantizer.codebook[out.codes] + e.mean((0, 1))
    assert torch.allclose((out.z - e).norm(dim=-1), (e - code).norm(dim=-1), atol=1e-5)
    assert not torch.allclose(out.z, code)
    assert torch.allclose(quantizer.eval()(e).z, code, atol=1e-6)


def test_a_codebook_by_noise_is_not_spent_on_telling_positions_apart():
    used = {}
    for n_tokens in (1, 4):
        torch.manual_seed(0)
        quantizer = build_quantizer(QuantizerConfig(kind="nsvq", code_dim=4), 256, n_tokens).train()
        apart = torch.arange(4.0)[:, None] * 20
        with torch.no_grad():
            for _ in range(20):
                quantizer(torch.randn(64, 4, 4) + apart)
            codes = quantizer.eval()(torch.randn(256, 4, 4) + apart).codes
        used[n_tokens] = [len(position.unique()) for position in codes.T]
    assert min(used[4]) == 8
    assert max(used[1]) <= 5  # as many codes as there are, for four positions together
    assert sum(used[1]) == 8


def test_an_evenly_used_lookup_free_code_costs_less_than_one_code_for_all():
    quantizer = build_quantizer(QuantizerConfig(kind="lfq", code_dim=3, codebook_size=8), 16).train()
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    assert float(quantizer(corners[:, None]).loss) == pytest.approx(-0.1 * math.log(8), abs=1e-3)
    assert float(quantizer(corners[:1].expand(8, 1, 3)).loss) == pytest.approx(0, abs=1e-3)
    # Every code is used once here too, but each position knows one alone.
    assert float(quantizer(corners.expand(4, 8, 3)).loss) == pytest.approx(0, abs=1e-3)


def test_a_lookup_free_code_that_stays_on_one_side_is_drawn_to_the_other():
    quantizer = build_quantizer(QuantizerConfig(kind="lfq", code_dim=3, codebook_size=8), 16).train()
    e = torch.full((8, 1, 3), 0.05) + 0.01 * torch.randn(8, 1, 3, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(quantizer(e.requires_grad_()).loss, e)
    assert bool((gradient.sum(0) > 1e-3).all())  # going down it, tokens move towards 0


@pytest.mark.parametrize("kind", ["nsvq", "simvq"])
@pytest.mark.parametrize("tokens", [96, 256, 4096])
def test_a_dead_code_is_found_within_a_short_run_whatever_the_batch(kind, tokens):
    counter = build_quantizer(QuantizerConfig(kind=kind), tokens).counter
    living = torch.arange(tokens) % 7
    found = next(step for step in range(100) if counter.dead(living)[7])
    assert found * tokens <= 3 * 512
    # A code of half the uniform rate is no dead one, by chance neither.
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([15.0] * 7 + [7.5])
    draws = [torch.multinomial(rates, tokens, replacement=True, generator=generator) for _ in range(200)]
    assert not any(bool(counter.dead(codes)[7]) for codes in draws)


@pytest.mark.parametrize("kind", KINDS)
def test_widths_have_a_default_and_can_be_set(kind):
    assert QuantizerConfig(kind=kind).dim == CODE_DIMS[kind]
    out = build_quantizer(QuantizerConfig(kind=kind, code_dim=5), 16).eval()(torch.randn(2, 3, 5))
    assert out.z.shape == out.latent.shape == (2, 3, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "lfq", "codebook_size": 12},
        {"stages": 0},
        {"code_dim": 0},
        {"kl_weight": -1.0},
        {"entropy_weight": -1.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=str(list(options.values())[-1])):
        QuantizerConfig(**options)
