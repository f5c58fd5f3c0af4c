"""How training pictures are varied: torchvision's own transforms, drawn once for all views and frames of a sample.

Shifts are index arithmetic: of a small picture, a transform would take longer than training on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyramid.rng import seed_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random variations of pictures; the defaults vary nothing."""

    crop: float = 1.0
    """Smallest share of a picture's area that is cut out and enlarged again, (0, 1]; the cut's place is random."""
    shift: float = 0.0
    """Largest shift along each axis, share of the side, 0 to 0.5; the border is repeated."""
    brightness: float = 0.0
    """Factor drawn from 1 - this to 1 + this, 0 to 1."""
    contrast: float = 0.0
    """The same for contrast."""
    saturation: float = 0.0
    """The same for saturation."""
    hue: float = 0.0
    """Largest shift of the hue, 0 to 0.5 turns."""

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        highest = {"shift": 0.5, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5}
        for name, most in highest.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment.{name} must be in [0, {most}], got {getattr(self, name)}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"augment.crop must be in (0, 1], got {self.crop}")

    @property
    def active(self) -> bool:
        """Whether anything is varied."""
        return bool(self.shift) or self.more_than_shifts

    @property
    def more_than_shifts(self) -> bool:
        """Whether anything but the place is varied."""
        return self.crop < 1 or any((self.brightness, self.contrast, self.saturation, self.hue))


def augment(images: Tensor, spec: AugmentSpec, seed: int, position: int) -> Tensor:
    """Varies the pictures of one sample, all alike; a pure function of seed and position.

    Args:
        images: uint8 [..., H, W, 3], RGB: all views and frames of a sample.
        spec: how far.
        seed: the mixture's seed.
        position: the sample's place in the global order.

    Returns:
        uint8, of the same shape.
    """
    import torch

    if spec.shift:
        images = _shifted(images, spec.shift, seed, position)
    if not spec.more_than_shifts:
        return images
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed also tells every other device, and writes down the call stack for each.
        torch.default_generator.manual_seed(seed_of(seed, "augment", position))
        planes = _transform(spec, tuple(images.shape[-3:-1]))(images.movedim(-1, -3))
    return torch.as_tensor(planes).movedim(-3, -1).contiguous()


def _shifted(images: Tensor, share: float, seed: int, position: int) -> Tensor:
    """Moves pictures [..., H, W, 3] by whole pixels, up to a share of their sides; the border is repeated."""
    import torch

    drawn, moved = seed_of(seed, "shift", position), images.numpy()
    for axis in (-3, -2):
        side = moved.shape[axis]
        most = round(share * side)
        drawn, by = divmod(drawn, 2 * most + 1)
        moved = _slid(moved, by - most, axis)
    return torch.from_numpy(moved)


def _slid(pictures: NDArray[np.uint8], by: int, axis: int) -> NDArray[np.uint8]:
    """Returns pictures whose place i shows what stood at i + by along an axis, or at the border: a few large copies."""
    if not by:
        return pictures
    found, rest = np.empty_like(pictures), (slice(None),) * (-axis - 1)

    def at(first: int | None, stop: int | None) -> Any:
        return (..., slice(first, stop), *rest)

    if by > 0:
        found[at(None, -by)], found[at(-by, None)] = pictures[at(by, None)], pictures[at(-1, None)]
    else:
        found[at(-by, None)], found[at(None, -by)] = pictures[at(None, by)], pictures[at(None, 1)]
    return found


@lru_cache(maxsize=8)
def _transform(spec: AugmentSpec, size: tuple[int, int]) -> Any:
    from torchvision.transforms import v2

    steps: list[Any] = []
    if spec.crop < 1:
        steps.append(v2.RandomResizedCrop(size, scale=(spec.crop, 1.0), ratio=(1.0, 1.0), antialias=True))
    if any((spec.brightness, spec.contrast, spec.saturation, spec.hue)):
        steps.append(v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue))
    return v2.Compose(steps)
