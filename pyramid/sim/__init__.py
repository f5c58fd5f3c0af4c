"""Meta-World as a source of demonstrations that needs no network and no GPU (extra ``sim``).

It makes the three levels of a small data pyramid and steps environments for rollouts; scanning, packing and training on
what it makes is left to the other rooms, which know nothing of it. Meta-World and MuJoCo are imported on first use.
"""

from __future__ import annotations

from pyramid.sim.config import DegradeConfig, HandConfig, SimConfig
from pyramid.sim.dataset import SimReport, make_dataset
from pyramid.sim.env import MetaWorldEnv
from pyramid.sim.episodes import Episode, rollout_expert
from pyramid.sim.render import Renderer
from pyramid.sim.rollouts import Player, RolloutConfig, RolloutResult, play

__all__ = [
    "DegradeConfig",
    "Episode",
    "HandConfig",
    "MetaWorldEnv",
    "Player",
    "Renderer",
    "RolloutConfig",
    "RolloutResult",
    "SimConfig",
    "SimReport",
    "make_dataset",
    "play",
    "rollout_expert",
]
