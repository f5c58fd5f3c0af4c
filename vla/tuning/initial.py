"""Going on from a trained policy: its weights, its embodiments, and slots for those of the new mixture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from pyramid.config import to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.rng import seed_of
from vla.action_head import check_histories
from vla.config import PolicyConfig
from vla.policy import Policy
from vla.processor import BodyStatistics

__all__ = ["Statistics", "initial_policy"]

Statistics = Literal["same", "checkpoint", "mixture"]
"""Whose statistics hold for an embodiment that both know: they must agree, the checkpoint's, or the mixture's."""

_MAY_DIFFER = (
    "frozen",
    "tune_top_layers",
    "tune_vision",
    "cache_features",
    "cache_dtype",
    "pretrained",
    "revision",
    "local_files_only",
)
_LOG = logging.getLogger("pyramid.vla")


def initial_policy(
    folder: str,
    config: PolicyConfig,
    bodies: Mapping[str, BodyStatistics],
    *,
    seed: int,
    statistics: Statistics = "same",
) -> Policy:
    """Builds a policy from the weights of another.

    All embodiments of the checkpoint are kept with their encoders, decoders and statistics; those of the mixture that
    it does not know get fresh ones.

    Args:
        folder: model folder to start from.
        config: sizes; those of the checkpoint, but for what is frozen, and future tokens that it may not have yet.
        bodies: embodiments of the mixture.
        seed: decides the fresh weights.
        statistics: see `Statistics`.

    Raises:
        ConfigError: other sizes or another number of states a sample, or an embodiment with other statistics and no
            word on whose hold.
        DataError: no policy, or an embodiment of that name with other dimensions.
    """
    if statistics not in get_args(Statistics):
        raise ConfigError(f"--statistics is one of {', '.join(get_args(Statistics))}, got '{statistics}'")
    old = Policy.from_pretrained(folder)
    if old.adapters is not None:
        raise ConfigError(f"'{folder}' keeps its adapters apart; merge them first (tune.lora.merge: true)")
    _check_sizes(folder, old.config, config)
    check_histories(config.head, {name: body.embodiment for name, body in bodies.items()})
    joined = _joined(folder, old.processor.bodies, bodies, statistics)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "policy weights"))
        policy = Policy(config, joined, old.backbone, old.processor.tokenizer)
    fresh = _take_over(folder, policy, old.head.state_dict())
    _LOG.info("started from '%s'; fresh: %s", folder, ", ".join(fresh) or "nothing")
    policy.mixture = None
    return policy


def _check_sizes(folder: str, old: PolicyConfig, new: PolicyConfig) -> None:
    was, now = to_dict(old), to_dict(new)
    for part, may in (("backbone", _MAY_DIFFER), ("head", ("dropout", "state_dropout", "sample_steps"))):
        for name, value in was[part].items():
            grown = name == "future_tokens" and not value
            if name not in may and not grown and now[part][name] != value:
                raise ConfigError(
                    f"policy.{part}.{name} is {now[part][name]}, the policy in '{folder}' has {value}; "
                    "take its config, or train from the start"
                )


def _joined(
    folder: str, old: Mapping[str, BodyStatistics], new: Mapping[str, BodyStatistics], statistics: Statistics
) -> dict[str, BodyStatistics]:
    found = {**old}
    for name, body in new.items():
        known = old.get(name)
        if known is None:
            found[name] = body
        elif known.embodiment != body.embodiment:
            raise DataError(
                f"embodiment '{name}' is {body.embodiment.to_dict()} in the mixture and {known.embodiment.to_dict()} "
                f"in '{folder}'; give the source another embodiment"
            )
        elif known.to_dict() != body.to_dict() and statistics == "same":
            raise ConfigError(
                f"embodiment '{name}' has other statistics in the mixture than in '{folder}', whose weights belong to "
                "its own: say which hold, --statistics checkpoint (as a rule) or --statistics mixture"
            )
        elif statistics == "mixture":
            found[name] = replace(body)
    return found


def _take_over(folder: str, policy: Policy, weights: Mapping[str, Tensor]) -> list[str]:
    """Loads a head's weights into one that may have more; returns what stayed fresh."""
    missing, unexpected = policy.head.load_state_dict(dict(weights), strict=False)
    if unexpected:
        raise DataError(f"'{folder}': the weight '{unexpected[0]}' has no place in this policy")
    slots = sorted({name.split(".slots.for_")[1].split(".")[0] for name in missing if ".slots.for_" in name})
    return [*slots, *(name for name in missing if ".slots.for_" not in name)]
