"""Edges: the same for a body of any colour, none where nothing is, and what an encoder of them sees."""

from __future__ import annotations

import pytest
import torch
from lam_variants import SMALL

from lam.config import LAMConfig
from lam.edges import edges
from lam.model import build_model
from lam.views import Context, View
from pyramid.config import resolve
from pyramid.errors import ConfigError


def scene(place=20, body=(0.9, 0.7, 0.6), ground=(0.3, 0.3, 0.3), side=64):
    picture = torch.tensor(ground)[:, None, None].expand(3, side, side).clone()
    picture[:, 16:40, place : place + 10] = torch.tensor(body)[:, None, None]
    return picture[None]


def test_a_body_has_the_same_edges_in_other_colours_and_darker_than_the_ground():
    bright, dark = edges(scene()), edges(scene(body=(0.0, 0.05, 0.1), ground=(0.6, 0.5, 0.7)))
    assert bright.shape == (1, 1, 64, 64)
    assert float(bright.amax()) > 0.5
    assert float((bright - dark).abs().amax()) < 0.1
    assert float((edges(scene(24)) - bright).abs().amax()) > 0.5


def test_an_even_picture_has_no_edges_and_faint_ones_stay_faint():
    assert float(edges(torch.full((1, 3, 32, 32), 0.4)).amax()) < 0.05
    faint, clear = (edges(scene(body=(level,) * 3)).amax() for level in (0.302, 0.6))
    assert float(faint) < 0.2 * float(clear)


def model_of(**options):
    torch.manual_seed(0)
    config = resolve(LAMConfig, "lam/tiny", **{**SMALL, "quantizer.kind": "none", **options})
    return build_model(config).eval()


@pytest.mark.parametrize(("sees", "alike"), [("edges", True), ("colours", False)])
def test_tokens_of_an_encoder_of_edges_do_not_tell_colours(sees, alike):
    model = model_of(**{"model.encoder_sees": sees})
    context = Context(torch.tensor([0.1]))
    looks = [((0.9, 0.7, 0.6), (0.3, 0.3, 0.3)), ((0.0, 0.05, 0.1), (0.6, 0.5, 0.7))]
    with torch.no_grad():
        one, other = (
            model.tokens(View(scene(8, *look, side=32)), View(scene(12, *look, side=32)), context).quantized.z
            for look in looks
        )
        moved = model.tokens(View(scene(8, side=32)), View(scene(16, side=32)), context).quantized.z
    apart = float((one - moved).norm())
    assert (float((one - other).norm()) < 0.3 * apart) == alike


def test_a_transformer_of_edges_is_refused():
    with pytest.raises(ConfigError, match="encoder=cnn"):
        resolve(LAMConfig, "lam/tiny", **{"model.encoder": "transformer", "model.encoder_sees": "edges"})
