"""Refuses batches that a policy could only learn nonsense from; what is wrong, and where it comes from, is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyramid.errors import ConfigError, DataError, nearest
from pyramid.types import Embodiment

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["BatchCheck", "check_embodiments"]


def check_embodiments(declared: Mapping[str, Embodiment], met: Mapping[str, Embodiment]) -> None:
    """Refuses a mixture whose embodiments are not those of a policy; videos need no slot.

    Raises:
        ConfigError: one is not declared.
        DataError: one has other sizes or another rate; both are named.
    """
    for name, body in met.items():
        if body.label == "video":
            continue
        check_declared(declared, name)
        if declared[name] != body:
            raise DataError(
                f"embodiment '{name}': the policy has {declared[name].to_dict()}, the mixture {body.to_dict()}"
            )


@dataclass(frozen=True)
class BatchCheck:
    """What groups must be for a policy.

    Raises, when called:
        ConfigError: an undeclared embodiment.
        DataError: wrong dimensions, a missing camera, values that are not finite, an empty instruction.
    """

    bodies: Mapping[str, Embodiment]
    """The policy's embodiments by name."""
    n_views: int
    """Its views."""
    size_px: int
    """Their height and width."""
    require_text: bool = True
    """Whether measured and pseudo-actions need an instruction."""

    def __call__(self, batch: Sequence[Group]) -> None:
        """Checks every group of a batch."""
        for group in batch:
            self._views(group)
            if group.action.shape[-1]:
                self._numbers(group)

    def _views(self, group: Group) -> None:
        for name, views in (("images", group.images), ("future", group.future)):
            if views is None:
                continue
            if views.shape[1] != self.n_views:
                raise DataError(
                    f"{_origin(group, 0)} comes with {views.shape[1]} camera views ({name}), "
                    f"the policy takes {self.n_views} (policy.backbone.n_views)"
                )
            if views.dtype != torch.uint8 or views.shape[2:] != (self.size_px, self.size_px, 3):
                raise DataError(
                    f"{_origin(group, 0)} has {name} {views.dtype} {list(views.shape[2:])}, "
                    f"the policy takes uint8 [{self.size_px}, {self.size_px}, 3] (policy.backbone.image_size_px)"
                )

    def _numbers(self, group: Group) -> None:
        check_declared(self.bodies, group.embodiment)
        body, n = self.bodies[group.embodiment], len(group.source)
        shapes = {
            "action": (n, body.horizon, body.action_dim),
            "mask": (n, body.horizon, body.action_dim),
            "state": (n, *body.state_shape),
        }
        for name, shape in shapes.items():
            found = tuple(getattr(group, name).shape)
            if found != shape:
                raise DataError(
                    f"{_origin(group, 0)}: {name} of shape {list(found)}, embodiment '{body.name}' has {list(shape)}"
                )
        _finite("actions", group.action, group.mask, group)
        known = group.state_known.view(n, *(1,) * (group.state.ndim - 1))
        _finite("states", group.state, known.expand_as(group.state), group)
        if self.require_text and body.label in ("action", "pseudo"):
            empty = [i for i, text in enumerate(group.text) if not text.strip()]
            if empty:
                raise DataError(
                    f"{_origin(group, empty[0])} has no instruction; draw only clips with one (filter.has_text: true), "
                    "or train without: objectives.require_text: false"
                )


def check_declared(bodies: Mapping[str, Embodiment], name: str) -> None:
    """Refuses an embodiment that a policy does not know."""
    if name not in bodies:
        known = sorted(bodies)
        declared = f"(declared: {', '.join(known)}){nearest(name, known)}"
        raise ConfigError(f"embodiment '{name}' is not declared by this policy {declared}")


def _finite(what: str, values: Tensor, counted: Tensor, group: Group) -> None:
    bad = (~torch.isfinite(values) & counted).flatten(1).any(1)
    if bad.any():
        raise DataError(f"{_origin(group, int(bad.nonzero()[0]))} has {what} that are not finite numbers")


def _origin(group: Group, number: int) -> str:
    return f"source '{group.source[number]}': clip {group.key[number]}"
