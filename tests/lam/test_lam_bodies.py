"""Objectives that make bodies share latents: each pulls the way it says, and only if asked for."""

from __future__ import annotations

import pytest
import sprites
import torch
from lam_variants import made

from lam.bodies import body_terms, windowed
from lam.config import LAMConfig, ObjectiveConfig
from lam.heads import BodyCritic
from lam.train import train_lam
from lam.views import Context, View
from pyramid.config import resolve
from pyramid.errors import ConfigError, DataError
from pyramid.rng import torch_generator

ALL = {"objectives.body_critic": 0.1, "objectives.body_moments": 0.1, "objectives.body_cycle": 0.1}


@pytest.fixture(scope="module")
def two_bodies(tmp_path_factory) -> str:
    samples = [sprites.make_sample(i, embodiment="one" if i % 2 else "two", n_frames=24) for i in range(6)]
    return sprites.write_shards(tmp_path_factory.mktemp("bodies"), samples)


def passed(module, batch):
    first, second = (View(frames.float() / 255) for frames in (batch.first, batch.second))
    return first, module.model(first, second, Context(batch.gap_s))


def test_a_batch_knows_whose_body_each_pair_shows(two_bodies):
    module, sampler, sources = made(two_bodies, **ALL)
    assert sources.facts.bodies == ["one", "two"]
    drawn = [sampler.draw("train", 0, place)[0] for place in range(8)]
    wanted = [("one", "two").index(sampler.clips.rows[clip]["embodiment"]) for clip in drawn]
    assert sampler.batch_at(0).body.tolist() == wanted
    assert module.model.critic is not None
    plain, sampler, _ = made(two_bodies)
    assert plain.model.critic is None
    assert sampler.batch_at(0).body is None


def test_every_term_of_bodies_has_a_gradient_of_its_own(two_bodies):
    module, sampler, _ = made(two_bodies, **ALL)
    batch = sampler.batch_at(1)
    first, output = passed(module, batch)
    terms = body_terms(module.model, output, first, Context(batch.gap_s), batch.body)
    assert list(terms) == ["critic", "moments", "cycle"]
    for term in terms.values():
        module.zero_grad()
        term.backward(retain_graph=True)
        assert sum(float(p.grad.abs().sum()) for p in module.model.encoder.parameters() if p.grad is not None) > 0
    one_kind = torch.zeros_like(batch.body)
    assert body_terms(module.model, output, first, Context(batch.gap_s), one_kind) == {}


def test_they_begin_when_the_config_says(two_bodies):
    late, sampler, _ = made(two_bodies, **ALL)
    batch = sampler.batch_at(0)
    _, logs = late.loss(batch, torch_generator(0, 0))
    assert "loss_critic" not in logs
    now, _, _ = made(two_bodies, **ALL, **{"objectives.body_start": 0.0})
    _, logs = now.loss(batch, torch_generator(0, 0))
    assert {"loss_critic", "loss_moments", "loss_cycle"} <= set(logs)


def test_the_critic_learns_and_the_encoder_unlearns_the_body():
    torch.manual_seed(0)
    body = torch.arange(64) % 2
    latent = torch.randn(64, 4) + 2 * body[:, None] * torch.tensor([1.0, 0, 0, 0])
    latent.requires_grad_()
    critic = BodyCritic(2, 4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = critic(latent, body)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4  # it tells them apart: a coin's is .69
    latent.grad = None
    critic(latent, body).backward()
    moved = (latent - 50 * latent.grad).detach()  # what an optimiser would do to the encoder
    gap = [float((x[body == 1, 0].mean() - x[body == 0, 0].mean()).abs()) for x in (latent.detach(), moved)]
    assert gap[1] < gap[0]


def test_the_critic_counts_bodies_alike_however_many_pairs_show_each():
    critic = BodyCritic(3, 4)
    for parameter in critic.parameters():
        torch.nn.init.zeros_(parameter)
    critic.mlp[-1].bias.data = torch.tensor([1.0, 0.0, 0.0])  # says the same of every pair
    surprise = torch.log(1 + 2 * torch.exp(torch.tensor(-1.0)))
    mean_of_two = float(surprise + (1 + surprise)) / 2
    assert critic(torch.randn(8, 4), torch.tensor([0] * 7 + [2])).item() == pytest.approx(mean_of_two, abs=1e-5)


def test_moments_are_equal_for_the_same_latents_and_differ_for_moved_ones(two_bodies):
    module, sampler, _ = made(two_bodies, **{"objectives.body_moments": 1.0})
    batch = sampler.batch_at(0)
    first, output = passed(module, batch)
    body = torch.arange(8) % 2
    quantized = output.tokens.quantized

    def term(latent):
        same = output._replace(tokens=output.tokens._replace(quantized=quantized._replace(latent=latent)))
        return float(body_terms(module.model, same, first, Context(batch.gap_s), body)["moments"])

    twins = quantized.latent[[0, 0, 1, 1, 2, 2, 3, 3]].detach()
    assert term(twins) == pytest.approx(0, abs=1e-6)
    assert term(twins + body[:, None, None]) > 0.1


def test_a_window_shows_what_moves_and_the_same_place_of_both_frames():
    config = ObjectiveConfig(window_share=1.0)
    first, second = torch.rand(2, 16, 3, 32, 32)
    second[:, :, :, :16] = first[:, :, :, :16]  # only the right half moves
    a, b = windowed(config, first, second, torch_generator(0, 0))
    hidden = (a == 0.5).all(1)
    assert torch.equal(hidden, (b == 0.5).all(1))
    assert torch.equal(a[~hidden[:, None].expand_as(a)], first[~hidden[:, None].expand_as(a)])
    assert all(0 < float(one.float().mean()) < 1 for one in hidden)
    assert all(not one[:, 14:].all() for one in hidden)
    # No pair, then some of them.
    untouched, _ = windowed(ObjectiveConfig(window_share=0.0), first, second, torch_generator(0, 0))
    assert torch.equal(untouched, first)
    some, _ = windowed(ObjectiveConfig(window_share=0.5), first, second, torch_generator(0, 1))
    assert 0 < int((some == first).flatten(1).all(1).sum()) < 16


def test_windows_hide_from_the_encoder_alone(two_bodies):
    module, sampler, _ = made(two_bodies, **{"objectives.window_share": 1.0, "quantizer.kind": "none"})
    plain, _, _ = made(two_bodies, **{"quantizer.kind": "none"})
    batch = sampler.batch_at(0)
    module.loss(batch, torch_generator(0, 0))[0].backward()
    plain.loss(batch, torch_generator(0, 0))[0].backward()
    grads = [m.model.encoder.heads[0].weight.grad for m in (module, plain)]
    # The decoder's last layer starts at zero, so at first no gradient reaches the encoder, but it sees another picture.
    assert all(float(g.abs().sum()) == 0 for g in grads)
    seen = []
    for one in (module, plain):
        one.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].pixels))
        one.loss(batch, torch_generator(0, 0))
    assert not torch.equal(*seen)


def test_training_with_all_of_them_is_saved_and_loaded(two_bodies, small, tmp_path):
    options = {**small, **ALL, "objectives.window_share": 0.5, "trainer.max_steps": 4, "objectives.body_start": 0.5}
    assert train_lam(two_bodies, out=str(tmp_path), **options).loss is not None
    assert train_lam(two_bodies, out=str(tmp_path), **options).reused


def test_one_body_alone_is_refused(shards, small, tmp_path):
    with pytest.raises(DataError, match="all training clips show 'sprite'"):
        train_lam(shards, out=str(tmp_path), **{**small, "objectives.body_moments": 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives.body_start": 1.0}, "body_start 1.0"),
        ({"objectives.window_share": -0.1}, "window_share -0.1"),
        ({"objectives.body_cycle": -1.0}, "body_cycle must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve(LAMConfig, "lam/tiny", **options)
