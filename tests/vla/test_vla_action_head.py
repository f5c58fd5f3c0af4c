import dataclasses

import pytest
import torch
from tiny_policy import HEAD, make_bodies

from pyramid.errors import ConfigError
from pyramid.nn.realtime import RealTimeChunk
from vla.action_head import build_action_head
from vla.config import HeadConfig


@pytest.fixture
def head():
    torch.manual_seed(0)
    return build_action_head(HEAD, 32, {n: b.embodiment for n, b in make_bodies().items()}).eval()


def parts(n=3, name="arm"):
    e, g = make_bodies()[name].embodiment, torch.Generator().manual_seed(1)
    context = torch.randn(n, 6, 32, generator=g)
    mask = torch.arange(6)[None] < torch.tensor([6, 4, 5])[:, None]
    state = torch.randn(n, e.state_dim, generator=g)
    action = torch.randn(n, e.horizon, e.action_dim, generator=g)
    noise = torch.randn(action.shape, generator=g)
    return context, mask, state, action, noise, torch.tensor([0.1, 0.5, 0.9])


def test_padded_context_changes_nothing(head):
    context, mask, state, _, noise, _ = parts()
    want = head.sample(head.prepare(context, mask, state, None, "arm"), noise, "arm")
    context = torch.where(mask[..., None], context, 1e4)
    assert torch.equal(head.sample(head.prepare(context, mask, state, None, "arm"), noise, "arm"), want)


def test_padded_actions_change_neither_loss_nor_gradient(head):
    context, mask, state, action, noise, time = parts()
    real = torch.ones_like(action, dtype=torch.bool)
    real[0, 2:] = False
    real[1, :, 1] = False
    real[2] = False

    def run(values):
        head.zero_grad()
        prepared = head.prepare(context, mask, state, None, "arm")
        error, count = head.errors(prepared, values, real, "arm", noise=noise, time=time)
        error.sum().backward()
        return error.detach(), count, [p.grad.clone() for p in head.parameters() if p.grad is not None]

    error, count, gradients = run(action)
    changed, _, others = run(torch.where(real, action, torch.nan))
    assert count.tolist() == [4.0, 4.0, 0.0]
    assert error[2] == 0
    assert torch.equal(error, changed)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_the_noise_of_padded_steps_reaches_no_real_step(head):
    context, mask, state, action, noise, time = parts()
    real = torch.ones_like(action, dtype=torch.bool)
    real[:, 3:] = False
    prepared = head.prepare(context, mask, state, None, "arm")
    want, _ = head.errors(prepared, action, real, "arm", noise=noise, time=time)
    noise[:, 3:] = 9.0
    got, _ = head.errors(prepared, action, real, "arm", noise=noise, time=time)
    assert torch.equal(got, want)


def test_an_unknown_state_is_a_learned_token_whatever_it_holds(head):
    context, mask, state, _, noise, _ = parts()
    known = torch.tensor([True, False, False])
    want = head.sample(head.prepare(context, mask, state, known, "arm"), noise, "arm")
    state[1:] = torch.nan
    got = head.sample(head.prepare(context, mask, state, known, "arm"), noise, "arm")
    assert torch.equal(got, want)
    head.zero_grad()
    head.prepare(context, mask, state, known, "arm").state.sum().backward()
    assert torch.equal(head.unknown_state.grad, torch.full((32,), 2.0))
    assert all(torch.isfinite(p.grad).all() for p in head.state_encoder.parameters() if p.grad is not None)


def test_the_state_matters_where_it_is_known(head):
    context, mask, state, _, noise, _ = parts()
    a = head.sample(head.prepare(context, mask, state, None, "arm"), noise, "arm")
    b = head.sample(head.prepare(context, mask, state + 1, None, "arm"), noise, "arm")
    assert not torch.allclose(a, b)


def test_fold_keeps_one_embodiment_and_its_answers(head):
    for name in ("arm", "human_latent"):
        context, mask, state, _, noise, _ = parts(name=name)
        folded = head.fold(name)
        assert folded.action_encoder.embodiments == folded.action_decoder.embodiments == (name,)
        want = head.sample(head.prepare(context, mask, state, None, name), noise, name)
        assert torch.equal(folded.sample(folded.prepare(context, mask, state, None, name), noise, name), want)
    assert head.action_encoder.embodiments == ("arm", "human_latent")
    with pytest.raises(ConfigError, match="declared: arm, human_latent"):
        head.fold("human")


def test_chunks_longer_than_the_positions_are_refused():
    bodies = {n: b.embodiment for n, b in make_bodies().items()}
    with pytest.raises(ConfigError, match=r"'arm' has chunks of 4 steps, head.max_horizon is 3"):
        build_action_head(HeadConfig(max_horizon=3), 32, bodies)
    with pytest.raises(ConfigError, match="at least one embodiment"):
        build_action_head(HEAD, 32, {})


def with_views(**changes):
    """A head whose context has views at positions 1 and 2."""
    torch.manual_seed(0)
    config = dataclasses.replace(HEAD, **{"context_layers": 0, "alternate": True, **changes})
    bodies = {n: b.embodiment for n, b in make_bodies().items()}
    return build_action_head(config, 32, bodies, [(1, 3)]).eval()


def first_block_sees(head, position):
    """Whether a context token reaches the actions through the first cross-attention block alone."""
    context, mask, state, _, noise, _ = parts()
    for block in head.dit.blocks[1:]:
        block.register_forward_hook(lambda _, inputs, __: inputs[0])
    changed = context.clone()
    changed[:, position] += torch.linspace(-3, 3, 32)
    a, b = (head.sample(head.prepare(c, mask, state, None, "arm"), noise, "arm") for c in (context, changed))
    return not torch.allclose(a[0], b[0], atol=1e-6)


def test_text_and_views_are_looked_at_in_turn():
    assert [first_block_sees(with_views(), at) for at in range(4)] == [True, False, False, True]
    assert [first_block_sees(with_views(alternate=False), at) for at in range(4)] == [True] * 4
    head = with_views(layers=8)
    context, mask, state, *_ = parts()
    prepared = head.prepare(context, mask, state, None, "arm")
    text = mask & torch.tensor([True, False, False, True, True, True])
    masks = head.cross_masks(prepared)
    assert [torch.equal(m, text) for m in masks] == [True, False, True, False]
    assert torch.equal(masks[1], mask & torch.tensor([False, True, True, False, False, False]))
    given = head.prepare(context, mask, state, None, "arm", images=torch.zeros_like(mask))
    assert torch.equal(head.cross_masks(given)[0], mask)
    homeless = build_action_head(head.config, 32, {n: b.embodiment for n, b in make_bodies().items()})
    with pytest.raises(ConfigError, match="image_spans"):
        homeless.cross_masks(prepared)


def test_a_history_of_states_is_encoded_in_order():
    head = with_views(state_history=2)
    context, mask, state, _, noise, _ = parts()

    def sampled(states):
        return head.sample(head.prepare(context, mask, states, None, "arm"), noise, "arm")

    earlier = torch.stack([state + 1, state], dim=1)
    assert torch.equal(sampled(state), sampled(torch.stack([state, state], dim=1)))
    assert not torch.allclose(sampled(earlier), sampled(state))
    assert not torch.allclose(sampled(earlier), sampled(earlier.flip(1)))
    with pytest.raises(ConfigError, match=r"encodes 2 states .*got 3"):
        sampled(torch.stack([state] * 3, dim=1))


def test_an_unknown_state_may_be_nothing_at_all():
    head = with_views(unknown_state="zeros")
    context, mask, state, *_ = parts()
    assert not head.prepare(context, mask, state, torch.tensor([True, False, True]), "arm").state[1].any()
    assert "unknown_state" not in head.state_dict()


def test_one_more_embodiment_leaves_the_others_as_they_were(head):
    context, mask, state, _, noise, _ = parts()

    def sampled(name):
        return head.sample(head.prepare(context, mask, state, None, name), noise, name)

    before, known = sampled("arm"), {k: v.clone() for k, v in head.state_dict().items()}
    head.add_embodiment(dataclasses.replace(make_bodies()["arm"].embodiment, name="twin"), like="arm")
    head.add_embodiment(dataclasses.replace(make_bodies()["arm"].embodiment, name="stranger"))
    assert all(torch.equal(head.state_dict()[k], v) for k, v in known.items())
    assert torch.equal(sampled("arm"), before)
    assert torch.equal(sampled("twin"), before)
    assert not torch.allclose(sampled("stranger"), before)
    sampled("twin").sum().backward()
    assert all(p.grad is None for n, p in head.named_parameters() if ".for_arm." in n)
    with pytest.raises(ConfigError, match="'arm' is declared already"):
        head.add_embodiment(make_bodies()["arm"].embodiment)
    with pytest.raises(ConfigError, match="cannot start like 'human_latent'"):
        head.add_embodiment(dataclasses.replace(make_bodies()["arm"].embodiment, name="x"), like="human_latent")
    assert "x" not in head.action_encoder.embodiments


@pytest.mark.parametrize("rule", ["line", "published", "guided"])
@torch.no_grad()
def test_the_next_chunk_goes_on_where_the_one_under_way_gets_to(head, rule):
    context, mask, state, _, noise, _ = parts()
    prepared = head.prepare(context, mask, state, None, "arm")
    free = head.sample(prepared, noise, "arm")
    plan = free[:, :3] + 0.5
    out = head.sample(prepared, noise, "arm", RealTimeChunk(previous=plan, frozen=1, rule=rule))
    assert (out[:, :3] - plan).abs().mean() < (free[:, :3] - plan).abs().mean()
    if rule != "guided":
        assert torch.equal(out[:, :1], plan[:, :1])


def test_regression_gives_the_same_mean_whatever_the_noise():
    torch.manual_seed(0)
    config = dataclasses.replace(HEAD, time_rule="mean", sample_steps=1)
    head = build_action_head(config, 32, {n: b.embodiment for n, b in make_bodies().items()}).eval()
    context, mask, state, action, noise, _ = parts()
    prepared = head.prepare(context, mask, state, None, "arm")
    sampled = head.sample(prepared, noise, "arm")
    assert torch.equal(sampled, head.sample(prepared, noise + 1, "arm"))
    every = torch.ones_like(action, dtype=torch.bool)
    error, count = head.errors(prepared, action, every, "arm", noise=noise, time=torch.zeros(3))
    torch.testing.assert_close(error / count, (sampled - action).square().mean((1, 2)))


@pytest.mark.parametrize("rule", ["mean", "median", "n1"])
def test_training_for_regression_encodes_one_chunk_of_zeros_and_learns_the_same(rule):
    torch.manual_seed(0)
    config = dataclasses.replace(HEAD, time_rule=rule, sample_steps=1, dropout=0.0)
    head = build_action_head(config, 32, {n: b.embodiment for n, b in make_bodies().items()})
    context, mask, state, action, noise, _ = parts()
    every, learned = torch.ones_like(action, dtype=torch.bool), []
    for training in (True, False):
        head.train(training).zero_grad()
        prepared = head.prepare(context, mask, state, None, "arm")
        error, _ = head.errors(prepared, action, every, "arm", noise=noise, time=torch.zeros(3))
        error.sum().backward()
        learned.append([error.detach(), *(p.grad for p in head.action_encoder.parameters() if p.grad is not None)])
    assert len(learned[0]) == len(learned[1]) > 1
    torch.testing.assert_close(learned[0], learned[1])


@pytest.mark.parametrize("other", [{"alternate": True}, {"dropout": 0.1}, {"compatibility": "n1"}])
def test_perceptrons_have_nothing_of_a_transformer(other):
    with pytest.raises(ValueError, match="trunk: mlp"):
        HeadConfig(trunk="mlp", **other)


def test_the_median_counts_large_errors_once():
    torch.manual_seed(0)
    config = dataclasses.replace(HEAD, time_rule="median", sample_steps=1)
    head = build_action_head(config, 32, {n: b.embodiment for n, b in make_bodies().items()}).eval()
    context, mask, state, action, noise, _ = parts()
    prepared, every = head.prepare(context, mask, state, None, "arm"), torch.ones_like(action, dtype=torch.bool)
    far = head.sample(prepared, noise, "arm") + 100
    error, count = head.errors(prepared, far, every, "arm", noise=noise, time=torch.zeros(3))
    torch.testing.assert_close(error / count, torch.full((3,), 99.9), atol=1e-3, rtol=0)


def test_regression_takes_a_single_step():
    with pytest.raises(ValueError, match="sample_steps: 1"):
        HeadConfig(time_rule="mean", sample_steps=4)
