"""How much each sample of a group counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla.objectives.config import WeightsConfig
from vla.processor import BodyStatistics

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["confidence", "flow_weights", "source_weights"]


def source_weights(group: Group, config: WeightsConfig) -> Tensor:
    """Returns the mixture's weights times those of the sources, float [B]; they count in every term."""
    factors = [config.sources.get(name, 1.0) for name in group.source]
    return group.weight * torch.tensor(factors, dtype=group.weight.dtype, device=group.weight.device)


def flow_weights(group: Group, body: BodyStatistics, config: WeightsConfig) -> Tensor:
    """Returns the weights of samples in the flow-matching loss, float [B]."""
    kind = {"action": config.action, "pseudo": config.pseudo, "latent": config.latent}[body.embodiment.label]
    weight = source_weights(group, config) * kind
    return weight * confidence(group, body, config) if config.confidence else weight


def confidence(group: Group, body: BodyStatistics, config: WeightsConfig) -> Tensor:
    """Returns how far labels are to be trusted, float [B] in [0, 1]; measured actions are 1.

    Pseudo-actions: ``1 / (1 + (s / std_half) ** 2)``, where s is the votes' spread in normalised units, its root mean
    square over the elements that the mask keeps. Latent actions: ``g / (g + gain_half)``, where g is the
    reconstruction's gain, 0 if negative. Labels that nothing is said of are 1.
    """
    one = torch.ones_like(group.weight)
    if group.action_std is not None:
        scale = torch.as_tensor(body.action.scale).to(group.action_std)
        spread = torch.where(group.mask & (scale > 0), group.action_std / torch.where(scale > 0, scale, 1.0), 0.0)
        square = spread.square().sum((1, 2)) / group.mask.sum((1, 2)).clamp(min=1)
        return one / (1 + square / config.std_half**2)
    if group.recon_gain is not None:
        gain = group.recon_gain.clamp(min=0)
        return gain / (gain + config.gain_half)
    return one
