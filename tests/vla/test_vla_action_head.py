import pytest
import torch
from tiny_policy import HEAD, make_bodies

from pyramid.errors import ConfigError
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
