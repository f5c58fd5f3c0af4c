"""FLARE: the action head's future tokens are aligned with an embedding of what will be seen (arXiv 2505.15659).

The paper's future tokens stand in the diffusion transformer between state and action; after a block of it, an MLP maps
them to the embedding of a later observation, and their cosine is the loss. Samples without actions are aligned too:
they pass the transformer with the token for an unknown state and no action tokens.

Shapes: B batch, M future tokens, W width of the transformer, C width of the target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyramid.errors import ConfigError, DataError
from pyramid.nn.flow import interpolate, masked_error, sample_time, time_bucket
from vla.objectives.config import FlareConfig
from vla.objectives.targets import ActionAware, Tower, pool
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["Flare", "check_flare"]


def check_flare(config: FlareConfig, policy: Policy) -> None:
    """Refuses a policy that has no future tokens to align, or another number of them than the target.

    Raises:
        ConfigError: both numbers are named.
    """
    count, layers = policy.config.head.future_tokens, policy.config.head.layers
    if not count:
        raise ConfigError("objectives.flare needs tokens to align: set policy.head.future_tokens")
    if config.layer > layers:
        raise ConfigError(f"objectives.flare.layer is {config.layer}, policy.head.layers {layers}")
    wanted = policy.config.backbone.n_views * config.grid**2
    if config.target == "pooled" and count != wanted:
        raise ConfigError(
            f"policy.head.future_tokens is {count}; {policy.config.backbone.n_views} views pooled to a grid of "
            f"{config.grid} give {wanted} (objectives.flare.grid), or take target: qformer"
        )


class Flare(nn.Module):
    """The projector, the target, and the loss between them.

    Args:
        config: which target, after which block.
        policy: the policy that it is to align.
    """

    def __init__(self, config: FlareConfig, policy: Policy) -> None:
        super().__init__()
        check_flare(config, policy)
        self.config = config
        width, context, head = policy.config.head.width, policy.backbone.width, policy.config.head
        self.tower = Tower(policy.backbone)
        learned = config.target == "qformer"
        self.aware = (
            ActionAware(config, context, head.future_tokens, policy.networks, head.max_horizon) if learned else None
        )
        target = config.qformer_width if learned else context
        self.projector = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, target))

    @torch.no_grad()
    def target(self, future: Tensor) -> Tensor:
        """Embeds later views uint8 [B, V, H, W, 3]; returns float [B, M, C]."""
        tokens = self.tower(future)
        if self.aware is None:
            return pool(tokens, self.config.grid)
        return self.aware.average(tokens.flatten(1, 2))  # type: ignore[no-any-return]

    def errors(self, hidden: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Compares future tokens with what was seen later.

        Args:
            hidden: future tokens after the block, float [B, M, W].
            group: with later views.

        Returns:
            One minus the cosine, mean over tokens, float [B]; and whether the later views are known, bool [B].

        Raises:
            DataError: the mixture reads no later views.
        """
        if group.future is None or group.future_known is None:
            raise DataError(
                f"source '{group.source[0]}': its samples come without later frames, which objectives.flare is aligned "
                "with; set future_s in the mixture file"
            )
        cosine = nn.functional.cosine_similarity(self.projector(hidden).float(), self.target(group.future).float(), -1)
        return 1 - cosine.mean(1), group.future_known

    def teach(self, policy: Policy, group: Group, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the flow-matching errors that teach a learned target what is seen now; see `group_error`."""
        assert self.aware is not None  # noqa: S101
        head, device = self.aware.teacher, group.action.device
        action, known = policy.processor.body(group.embodiment).encode_action(group.action, group.mask, group.state)
        noise = torch.randn(action.shape, generator=generator).to(device)
        time = sample_time(len(noise), generator, rule=policy.config.head.time_rule).to(device)
        seen = self.aware.online(self.tower(group.images).flatten(1, 2))
        mask = torch.ones(seen.shape[:2], dtype=torch.bool, device=device)
        prepared = head.prepare(seen, mask, group.state[..., :0], None, group.embodiment)
        x, target = interpolate(torch.where(known, action, 0.0), noise, time)
        velocity = head.velocity(x, time_bucket(time), prepared, group.embodiment, known.any(-1))
        return masked_error(velocity, target, known)
