"""Small label models with random weights, saved as training saves them: what they say is arbitrary and repeatable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from idm.bodies import describe_embodiments
from idm.config import IDMConfig
from idm.data import Demonstration, fit_normalizers
from idm.model import InverseDynamicsModel
from lam.config import LAMConfig
from lam.facts import ModelFacts
from lam.model import build_model
from pyramid.config import resolve, to_dict
from pyramid.nn.checkpoint import save_model

SIZE = {"model.image_size_px": 32}


def lam_model(folder: Path, **options: object) -> str:
    """Saves a latent-action model; pairs are 0.2 s apart. Its codes need no training, unlike a codebook."""
    config = resolve(
        LAMConfig,
        "lam/tiny",
        **{
            **SIZE,
            "model.encoder_widths": (16, 16, 24),
            "model.decoder_widths": (8, 16, 24),
            "pairs.gap_s": 0.2,
            "quantizer.kind": "fsq",
            **options,
        },
    )
    torch.manual_seed(0)
    facts = ModelFacts()
    extra = {"facts": to_dict(facts)}
    save_model(
        str(folder), kind="lam", config=to_dict(config), module=build_model(config, facts), provenance={}, extra=extra
    )
    return str(folder)


def idm_model(
    folder: Path,
    embodiments: Sequence[str] = ("arm",),
    rate_hz: float = 10.0,
    *,
    modality: str = "",
    **options: object,
) -> str:
    """Saves an inverse dynamics model of two-dimensional actions; windows of 4 steps."""
    config = resolve(
        IDMConfig,
        "idm/tiny",
        **{
            **SIZE,
            "model.vision.widths": (16, 16, 24),
            "model.head.hidden": 32,
            "windows.horizon": 4,
            "windows.frames": (0, 2, 4),
            "windows.rate_hz": rate_hz,
            **options,
        },
    )
    torch.manual_seed(1)
    actions = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    shown = [Demonstration(0, name, list(range(9)), actions, None, []) for name in embodiments]
    known = describe_embodiments(shown, fit_normalizers(shown), {}, modality or ())
    save_model(
        str(folder),
        kind="idm",
        config=to_dict(config),
        module=InverseDynamicsModel(config, dict.fromkeys(embodiments, (2, 0))),
        provenance={},
        extra={"embodiments": known},
    )
    return str(folder)
