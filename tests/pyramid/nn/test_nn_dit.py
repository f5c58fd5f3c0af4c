import pytest
import torch

from pyramid.nn.dit import DiTConfig, TimeEmbedding, build_dit

CONFIG = DiTConfig(width=16, layers=4, heads=2, context_width=12, out_width=10)


@pytest.fixture
def dit():
    torch.manual_seed(0)
    return build_dit(CONFIG).eval()


def inputs(seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 16, generator=g), torch.tensor([10, 700]), torch.randn(2, 7, 12, generator=g)


def test_even_blocks_look_at_the_context_and_odd_ones_at_the_tokens(dit):
    assert [block.cross for block in dit.blocks] == [True, False, True, False]
    assert [block.attention.key.in_features for block in dit.blocks] == [12, 16, 12, 16]
    assert len(dit.project_context(inputs()[2])) == 2


def test_masked_context_and_tokens_reach_nothing(dit):
    x, bucket, context = inputs()
    context_mask = torch.tensor([[True] * 5 + [False] * 2, [True] * 7])
    token_mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    want = dit(x, bucket, dit.project_context(context), context_mask, token_mask)
    context[0, 5:] = 50.0
    x[1, 4] = -50.0
    got = dit(x, bucket, dit.project_context(context), context_mask, token_mask)
    assert torch.equal(got[token_mask], want[token_mask])
    assert not torch.allclose(dit(x, bucket, dit.project_context(context))[0], want[0])


def test_a_mask_per_cross_block(dit):
    x, bucket, context = inputs()
    keys = dit.project_context(context)
    mask = torch.rand(2, 7) > 0.3
    assert torch.equal(dit(x, bucket, keys, [mask, mask]), dit(x, bucket, keys, mask))
    assert not torch.allclose(dit(x, bucket, keys, [mask, ~mask]), dit(x, bucket, keys, mask))
    with pytest.raises(ValueError, match="zip"):
        dit(x, bucket, keys, [mask])


def test_the_time_changes_every_sample_on_its_own(dit):
    x, bucket, context = inputs()
    keys = dit.project_context(context)
    both = dit(x, bucket, keys)
    moved = dit(x, torch.tensor([10, 701]), keys)
    assert torch.equal(both[0], moved[0])
    assert not torch.allclose(both[1], moved[1], atol=1e-6)


def test_time_embedding_is_the_diffusers_formula():
    embedding = TimeEmbedding(8)
    k = torch.arange(128, dtype=torch.float64)
    angle = 37 * torch.exp(-k * torch.log(torch.tensor(10000.0, dtype=torch.float64)) / 127)
    waves = torch.cat([angle.cos(), angle.sin()]).float()
    want = embedding.second(torch.nn.functional.silu(embedding.first(waves)))
    assert torch.allclose(embedding(torch.tensor([37]))[0], want, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"width": 15}, {"layers": 0}, {"dropout": 1.0}])
def test_config_refuses_what_cannot_be_built(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DiTConfig(**{"width": 16, "heads": 2, **wrong})
