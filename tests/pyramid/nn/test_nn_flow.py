import pytest
import torch

from pyramid.nn.flow import euler_sample, interpolate, masked_error, masked_mean, sample_time, time_bucket


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rule", ["n1", "n1_6"])
def test_times_follow_the_beta_distribution(rule):
    time = sample_time(200_000, generator(), rule=rule)
    low, high = (-0.0010011, 1.0) if rule == "n1" else (0.0, 0.999)
    assert low <= time.min()
    assert time.max() <= high
    # u ~ Beta(1.5, 1) has mean 0.6 and cumulative distribution u^1.5.
    mean = (0.999 - 0.6) / 0.999 if rule == "n1" else 0.4 * 0.999
    assert time.mean().item() == pytest.approx(mean, abs=2e-3)
    u = 0.999 - 0.999 * time if rule == "n1" else 1 - time / 0.999
    for quantile in (0.1, 0.5, 0.9):
        assert torch.quantile(u[:100_000], quantile).item() == pytest.approx(quantile ** (1 / 1.5), abs=5e-3)


def test_times_depend_on_the_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(sample_time(8, generator(5)), sample_time(8, generator(5)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_buckets_are_clamped():
    assert time_bucket(torch.tensor([-0.001, 0.0, 0.2504, 0.999, 1.0])).tolist() == [0, 0, 250, 999, 999]


def test_interpolation_ends_and_velocity():
    action, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    x, velocity = interpolate(action, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], noise[0])
    assert torch.equal(x[1], action[1])
    assert torch.equal(velocity, action - noise)


def test_masked_loss_ignores_what_is_masked_and_counts_the_rest():
    predicted, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.rand(2, 3, 4) > 0.5
    want = ((predicted - target)[mask] ** 2).mean()
    assert torch.allclose(masked_mean(predicted, target, mask), want)
    changed = torch.where(mask, predicted, 1e6)
    assert torch.allclose(masked_mean(changed, target, mask), want)
    error, count = masked_error(predicted, target, mask)
    assert count.tolist() == mask.sum((1, 2)).tolist()
    assert error.sum().item() == pytest.approx(want.item() * mask.sum().item(), rel=1e-5)


def test_euler_reaches_the_action_along_the_true_velocity():
    action, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    buckets = []

    def velocity(x, bucket):
        buckets.append(bucket.tolist())
        return action - noise

    for steps in (1, 4, 7):
        assert torch.allclose(euler_sample(velocity, noise, steps), action, atol=1e-6)
    assert buckets[1:5] == [[0, 0], [250, 250], [500, 500], [750, 750]]
    with pytest.raises(ValueError, match="0"):
        euler_sample(velocity, noise, 0)
