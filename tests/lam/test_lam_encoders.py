"""The transformer encoder's short cuts give what the plain computation gives."""

from __future__ import annotations

import torch

from lam.encoders import _Block
from pyramid.nn.attention import Attention


def test_written_out_attention_over_time_is_masked_attention():
    torch.manual_seed(0)
    block, x = _Block(16, 2), torch.randn(3, 2, 5, 16)
    sequences = x.transpose(1, 2).flatten(0, 1)
    masked = Attention.forward(block.time, sequences, mask=torch.ones(1, 2, 2, dtype=torch.bool).tril())
    assert torch.allclose(block.time(x), masked.unflatten(0, (3, 5)).transpose(1, 2), atol=1e-6)


def test_places_that_nothing_reads_may_be_left_out():
    torch.manual_seed(0)
    block, x = _Block(16, 2), torch.randn(3, 2, 5, 16)
    assert torch.allclose(block(x, None, 2), block(x, None)[:, :, :2], atol=1e-6)
