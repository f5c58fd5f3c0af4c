"""The trunk of perceptrons: views and state reach every token, words and other tokens none."""

from __future__ import annotations

import pytest
import torch

from pyramid.nn.dit import DiTConfig
from pyramid.nn.mlp import MLPTrunk

CONFIG = DiTConfig(width=16, layers=2, heads=2, context_width=8, out_width=6)


@pytest.fixture
def trunk() -> MLPTrunk:
    torch.manual_seed(0)
    return MLPTrunk(CONFIG, [(1, 3), (4, 5)]).eval()


def said(trunk: MLPTrunk, x: torch.Tensor, context: torch.Tensor, bucket: int = 0) -> torch.Tensor:
    return trunk(x, torch.full((len(x),), bucket), trunk.project_context(context))


def test_views_and_state_reach_every_token_and_nothing_else_does(trunk: MLPTrunk) -> None:
    x, context = torch.randn(2, 4, 16), torch.randn(2, 7, 8)
    before = said(trunk, x, context)
    assert before.shape == (2, 4, 6)
    for place in range(7):
        changed = context.clone()
        changed[:, place] += 1
        moved = (said(trunk, x, changed) - before).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [place in (1, 2, 4)] * 4
    for token in range(4):
        changed = x.clone()
        changed[:, token] += 1
        moved = (said(trunk, changed, context) - before).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [token in (0, other) for other in range(4)]
    assert not torch.allclose(said(trunk, x, context, bucket=500), before)


def test_without_views_there_is_nothing_to_see() -> None:
    with pytest.raises(ValueError, match="where in the context views stand"):
        MLPTrunk(CONFIG, [])
