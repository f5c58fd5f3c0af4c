import math

import pytest
import torch

from pyramid.errors import ConfigError
from pyramid.nn.flow import euler_sample
from pyramid.nn.realtime import RealTimeChunk, realtime_sample

RULES = ("line", "published", "guided")


def noise_and_plan(overlap=5, steps=8):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, steps, 3, generator=draw), torch.randn(2, overlap, 3, generator=draw)


def towards(goal):
    """The velocity field whose paths all end at `goal`."""

    def velocity(x, bucket):
        return (goal - x) / (1.0 - bucket[:, None, None] / 1000)

    return velocity


@pytest.mark.parametrize("rule", ["line", "published"])
def test_frozen_steps_stay_and_late_ones_are_free(rule):
    noise, plan = noise_and_plan()
    chunk = RealTimeChunk(previous=plan, frozen=2, rule=rule)
    goal = torch.full_like(noise, 3.0)
    out = realtime_sample(towards(goal), noise, 4, chunk)
    assert torch.equal(out[:, :2], plan[:, :2])
    assert torch.allclose(out[:, 5:], goal[:, 5:], atol=1e-5)


def test_bound_steps_fade_from_the_plan_to_the_networks_own():
    noise, _ = noise_and_plan()
    plan, goal = torch.full((2, 5, 3), 1.0), torch.full_like(noise, 3.0)
    # A constant velocity: the share of the network's path is what the ramp says.
    out = realtime_sample(lambda x, _: goal - noise, noise, 4, RealTimeChunk(previous=plan, frozen=1))
    raw = [1 - math.exp(-6 * i / 5) for i in range(6)]
    want = torch.tensor([0.0, *(r / raw[-1] for r in raw[1:5]), 1.0, 1.0, 1.0]) * 2 + 1
    assert torch.allclose(out, want[None, :, None].expand_as(out), atol=1e-5)


def test_published_rule_scales_the_velocity_from_the_plan():
    noise, plan = noise_and_plan()
    out = realtime_sample(
        lambda x, _: torch.ones_like(x), noise, 4, RealTimeChunk(previous=plan, frozen=2, rule="published")
    )
    raw = [1 - math.exp(-6 * i / 4) for i in range(5)]
    ramp = torch.tensor([0.0, 0.0, *(r / raw[-1] for r in raw[1:4])])
    assert torch.allclose(out[:, :5], plan + ramp[None, :, None], atol=1e-6)
    assert torch.allclose(out[:, 5:], noise[:, 5:] + 1, atol=1e-6)


def test_guidance_follows_the_equations_of_the_paper():
    noise, plan = noise_and_plan(overlap=4, steps=6)
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) * 0.3

    def velocity(x, bucket):
        return torch.einsum("st,btd->bsd", mix, x)

    out = realtime_sample(velocity, noise, 5, RealTimeChunk(previous=plan, frozen=1, rule="guided"))
    # arXiv 2506.07339: H = 6, d = 1, H - s = 4.
    c = [(4 - i) / (4 - 1 + 1) for i in range(1, 4)]
    weight = torch.tensor([1.0, *(x * (math.exp(x) - 1) / (math.e - 1) for x in c), 0.0, 0.0])[:, None]
    goal, x = torch.cat([plan, torch.zeros(2, 2, 3)], dim=1), noise
    for step in range(5):
        t = step / 5
        end = torch.eye(6) + (1 - t) * mix  # the Jacobian, too
        error = weight * (goal - torch.einsum("st,btd->bsd", end, x))
        pull = torch.einsum("st,bsd->btd", end, error)
        beta = 5.0 if t == 0 else min(5.0, (1 - t) / (t * (1 - t) ** 2 / (t**2 + (1 - t) ** 2)))
        x = x + (torch.einsum("st,btd->bsd", mix, x) + beta * pull) / 5
    assert torch.allclose(out, x, atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_agreement_is_closer_than_without(rule):
    noise, plan = noise_and_plan()
    goal = torch.zeros_like(noise)

    def velocity(x, bucket):
        return goal - 0.5 * x

    free = euler_sample(velocity, noise, 8)
    out = realtime_sample(velocity, noise, 8, RealTimeChunk(previous=plan, frozen=2, rule=rule))
    assert (out[:, :5] - plan).norm() < (free[:, :5] - plan).norm()
    assert torch.allclose(out[:, 5:], free[:, 5:], atol=1e-4)


def test_a_previous_chunk_that_does_not_fit_is_refused():
    noise, plan = noise_and_plan()
    for chunk, message in [
        (RealTimeChunk(previous=plan[..., :2], frozen=1), "previous chunk must be"),
        (RealTimeChunk(previous=noise.repeat(1, 2, 1), frozen=1), "previous chunk must be"),
        (RealTimeChunk(previous=plan, frozen=6), "frozen must be 0 to 5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            realtime_sample(lambda x, _: x, noise, 4, chunk)
