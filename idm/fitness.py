"""Whether a clip is one that a model can label: its views, its robot. What is wrong is said by name.

Rates and lengths are left to `idm.windows`, embodiments that are not known to `idm.label`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idm.config import ModelConfig
from idm.vision import split_views
from pyramid.errors import SkipItemError
from pyramid.shards.reader import Sample

__all__ = ["Shape", "check_pictures", "check_robot", "check_views"]

_BLACK = 24
"""Brightest value of a black picture, of 255: limited range and compression leave it above 0."""
_LOOKS = 5
"""Frames that are looked at for a black view."""


class Shape(NamedTuple):
    """What a model knows of one embodiment's clips."""

    action_dim: int | None
    """Dimensions of its measured actions; None where they may be others than those of the labels."""
    state_dim: int
    """Dimensions of its states; 0 where none were seen in training."""
    grid: bool | None
    """Whether training pictures had a black quadrant; None where nobody looked."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Shape:
        """Reads what a model folder says of an embodiment."""
        measured = about.get("calibrated", True)
        return cls(int(about["action_dim"]) if measured else None, int(about["state_dim"]), about.get("grid"))


def check_views(sample: Sample, model: ModelConfig, shape: Shape) -> None:
    """Skips a clip that shows another number of views than the model sees.

    Raises:
        SkipItemError: ``views``: a quadrant that became a sample of its own where several are seen, or a grid with a
            black quadrant where training had whole pictures.
    """
    view = sample.meta.get("view")
    if view and len(model.views) > 1:
        raise SkipItemError(
            "views",
            f"{sample.key} is the view '{view}' alone, the model sees {len(model.views)} views of one "
            "picture; pack with --split_grid=none",
        )
    black = (sample.meta.get("scores") or {}).get("black_quadrant")
    if black and not model.views and shape.grid is False:
        raise SkipItemError(
            "views",
            f"{sample.key}: a quarter of its picture is black, so it is a grid of three views, and the model was "
            "trained on pictures of one; pack with --split_grid=auto",
        )


def check_pictures(key: str, pictures: Tensor, model: ModelConfig) -> None:
    """Skips a clip one of whose declared views is black in all frames that are looked at.

    Args:
        key: of the clip.
        pictures: uint8 [T, 3, P, P], as packed.
        model: where the views are.

    Raises:
        SkipItemError: ``views``.
    """
    if not model.views:
        return
    places = torch.linspace(0, len(pictures) - 1, min(_LOOKS, len(pictures))).long()
    brightest = split_views(pictures[places], model).amax(dim=(0, 2, 3, 4))
    for number, value in enumerate(brightest.tolist()):
        if value <= _BLACK and int(brightest.max()) > _BLACK:
            raise SkipItemError(
                "views",
                f"{key}: view {number + 1} of {len(model.views)} is black, so the clip has another number of views "
                f"than the model sees; its views stand at {[list(box) for box in model.views]}",
            )


def check_robot(sample: Sample, embodiment: str, shape: Shape) -> None:
    """Skips a clip of another robot than the one whose statistics the model has under this name.

    Raises:
        SkipItemError: ``robot``: its measured actions or states have other dimensions.
    """
    told = (("actions", sample.action, shape.action_dim), ("states", sample.state, shape.state_dim))
    for what, values, dim in told:
        if values is not None and dim and values.shape[1] != dim:
            raise SkipItemError(
                "robot",
                f"{sample.key} has {what} of {values.shape[1]} dimensions, the model's statistics of '{embodiment}' "
                f"have {dim}: they are those of another robot; give each robot an embodiment of its own",
            )
