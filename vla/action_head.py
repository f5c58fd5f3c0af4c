"""System 1: the flow-matching action head, which turns noise into an action chunk while attending to the context.

All values in here are normalised; physical units, text and images are left to `vla.policy`.

Shapes: B batch, L context tokens, C context width, S state dimensions, T chunk steps, D action dimensions, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyramid.errors import ConfigError
from pyramid.nn import flow
from pyramid.nn.attention import KeyValue, SelfAttentionStack
from pyramid.nn.dit import DiTConfig, build_dit
from pyramid.nn.embodiment import ActionEncoder, EmbodimentMLP
from pyramid.types import Embodiment
from vla.config import HeadConfig

__all__ = ["ActionHead", "PreparedContext", "build_action_head"]


@dataclass(frozen=True)
class PreparedContext:
    """What the head keeps of an observation while it denoises: it does not depend on the flow time."""

    key_values: list[KeyValue]
    """Keys and values per cross-attention block."""
    mask: Tensor | Sequence[Tensor]
    """bool [B, L], True = may be attended; or one for each cross-attention block."""
    state: Tensor
    """State token, float [B, 1, W]."""


def build_action_head(config: HeadConfig, context_width: int, embodiments: Mapping[str, Embodiment]) -> ActionHead:
    """Builds an action head with fresh weights.

    Raises:
        ConfigError: an embodiment's horizon is longer than the config allows, or there is none.
    """
    if not embodiments:
        raise ConfigError("a policy needs at least one embodiment; the mixture declares none")
    for name, embodiment in embodiments.items():
        if embodiment.horizon > config.max_horizon:
            raise ConfigError(
                f"embodiment '{name}' has chunks of {embodiment.horizon} steps, "
                f"head.max_horizon is {config.max_horizon}"
            )
    return ActionHead(config, context_width, embodiments)


class ActionHead(nn.Module):
    """Layer norm on the context, embodiment MLPs around a diffusion transformer (GR00T N1, arXiv 2503.14734).

    Args:
        config: sizes.
        context_width: width of the backbone's tokens.
        embodiments: the declared embodiments; each gets encoders and a decoder of its own.
    """

    def __init__(self, config: HeadConfig, context_width: int, embodiments: Mapping[str, Embodiment]) -> None:
        super().__init__()
        self.config = config
        width, bodies = config.width, embodiments.values()
        self.context_norm = nn.LayerNorm(context_width) if config.context_norm else nn.Identity()
        self.context_mixer = SelfAttentionStack(
            context_width, config.context_heads if config.context_layers else 1, config.context_layers, config.dropout
        )
        self.state_encoder = EmbodimentMLP({e.name: (e.state_dim, width) for e in bodies if e.state_dim}, config.hidden)
        self.unknown_state = nn.Parameter(torch.randn(width) * 0.02)
        count = config.future_tokens
        self.future = nn.Parameter(torch.randn(count, width) * 0.02) if count else None
        self.action_encoder = ActionEncoder({e.name: e.action_dim for e in bodies}, width)
        self.position = nn.Parameter(torch.randn(config.max_horizon, width) * 0.02)
        self.dit = build_dit(
            DiTConfig(
                width=width,
                layers=config.layers,
                heads=config.heads,
                context_width=context_width,
                out_width=config.hidden,
                dropout=config.dropout,
            )
        )
        self.action_decoder = EmbodimentMLP({e.name: (config.hidden, e.action_dim) for e in bodies}, config.hidden)

    def fold(self, embodiment: str) -> ActionHead:
        """Returns a copy that knows one embodiment alone, for export: its encoders and decoder are plain layers."""
        self.action_encoder.fold(embodiment)  # refuses an unknown name
        head = copy.deepcopy(self)
        for module in (head.state_encoder, head.action_encoder, head.action_decoder):
            for name in module.embodiments:
                if name != embodiment:
                    del module.slots[f"for_{name}"]
        return head

    def prepare(
        self, context: Tensor, mask: Tensor, state: Tensor, state_known: Tensor | None, embodiment: str
    ) -> PreparedContext:
        """Computes everything that stays the same over the denoising steps.

        Args:
            context: float [B, L, C].
            mask: bool [B, L], True = may be attended.
            state: float [B, S]; S may be 0.
            state_known: bool [B]; None = all known. An unknown state becomes a learned token, whatever `state` holds.
            embodiment: a declared embodiment.
        """
        mixed = self.context_mixer(self.context_norm(context), mask)
        token = self._state_token(state, state_known, embodiment)
        return PreparedContext(self.dit.project_context(mixed), mask, token[:, None, :])

    def velocity(
        self, x: Tensor, bucket: Tensor, prepared: PreparedContext, embodiment: str, step_mask: Tensor | None = None
    ) -> Tensor:
        """Predicts the velocity of a noisy chunk.

        Args:
            x: float [B, T, D].
            bucket: time buckets int64 [B].
            prepared: what `prepare` returned.
            embodiment: a declared embodiment.
            step_mask: bool [B, T]; steps that are False are seen by no other token. None = all are real.

        Returns:
            float [B, T, D].
        """
        steps = x.shape[1]
        action = self.action_encoder(x, bucket, embodiment) + self.position[:steps]
        future = [] if self.future is None else [self.future.expand(len(x), -1, -1)]
        tokens = torch.cat([prepared.state, *future, action], dim=1)
        token_mask = None
        if step_mask is not None:
            token_mask = torch.cat([step_mask.new_ones(len(x), tokens.shape[1] - steps), step_mask], dim=1)
        out = self.dit(tokens, bucket, prepared.key_values, prepared.mask, token_mask)
        return self.action_decoder(out[:, -steps:], embodiment)  # type: ignore[no-any-return]

    def errors(
        self,
        prepared: PreparedContext,
        action: Tensor,
        mask: Tensor,
        embodiment: str,
        *,
        noise: Tensor,
        time: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the flow-matching loss in parts.

        Args:
            prepared: what `prepare` returned.
            action: float [B, T, D], normalised; values under a False mask are never read.
            mask: bool [B, T, D].
            embodiment: a declared embodiment.
            noise: float [B, T, D], standard normal.
            time: flow times float [B].

        Returns:
            Per-sample sums of squared velocity errors and of counted elements, float [B] each.
        """
        x, target = flow.interpolate(torch.where(mask, action, 0.0), noise, time)
        predicted = self.velocity(x, flow.time_bucket(time), prepared, embodiment, mask.any(-1))
        return flow.masked_error(predicted, target, mask)

    def sample(self, prepared: PreparedContext, noise: Tensor, embodiment: str) -> Tensor:
        """Turns noise, float [B, T, D], into normalised actions of that shape, in `config.sample_steps` Euler steps."""
        return flow.euler_sample(
            lambda x, bucket: self.velocity(x, bucket, prepared, embodiment), noise, self.config.sample_steps
        )

    def _state_token(self, state: Tensor, known: Tensor | None, embodiment: str) -> Tensor:
        if state.shape[-1] == 0:
            return self.unknown_state.expand(state.shape[0], -1)
        if known is None:
            return self.state_encoder(state, embodiment)  # type: ignore[no-any-return]
        # Zeroed before the encoder too: a NaN in an unread branch of `where` would still poison the gradient.
        encoded = self.state_encoder(torch.where(known[:, None], state, 0.0), embodiment)
        return torch.where(known[:, None], encoded, self.unknown_state)
