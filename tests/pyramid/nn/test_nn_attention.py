import math

import pytest
import torch

from pyramid.nn.attention import Attention, SelfAttentionStack


def test_attention_is_the_textbook_formula():
    attention = Attention(8, 2, context_width=6)
    x, context = torch.randn(3, 4, 8), torch.randn(3, 5, 6)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True], [True] * 4 + [False]])
    q, k, v = attention.query(x), attention.key(context), attention.value(context)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        scores = (q[..., part] @ k[..., part].mT / math.sqrt(4)).masked_fill(~mask[:, None, :], -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    want = attention.out(torch.cat(heads, -1))
    assert torch.allclose(attention(x, attention.project(context), mask), want, atol=1e-6)


def test_masked_keys_reach_nothing():
    stack = SelfAttentionStack(8, 2, 2)
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    changed = torch.where(mask[..., None], x, 100.0)
    assert torch.equal(stack(x, mask)[:, :3], stack(changed, mask)[:, :3])
    assert not torch.allclose(stack(x)[:, :3], stack(changed)[:, :3])


def test_a_row_without_any_key_stays_finite():
    out = Attention(8, 2)(torch.randn(1, 3, 8), mask=torch.zeros(1, 3, dtype=torch.bool))
    assert torch.isfinite(out).all()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="8 is not a multiple of heads 3"):
        Attention(8, 3)
