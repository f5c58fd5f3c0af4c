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
from pyramid.nn.dit import DiT, DiTConfig, build_dit
from pyramid.nn.embodiment import ActionEncoder, EmbodimentMLP, FoldedActionEncoder, plain_mlp
from pyramid.nn.mlp import MLPTrunk
from pyramid.nn.realtime import RealTimeChunk, realtime_sample
from pyramid.types import Embodiment
from vla.backbones.spans import image_mask
from vla.config import HeadConfig

__all__ = ["ActionHead", "PreparedContext", "build_action_head", "check_histories"]


@dataclass(frozen=True)
class PreparedContext:
    """What the head keeps of an observation while it denoises: it does not depend on the flow time."""

    key_values: list[KeyValue]
    """Keys and values per cross-attention block."""
    mask: Tensor
    """bool [B, L], True where a context token is."""
    state: Tensor
    """State token, float [B, 1, W]."""
    images: Tensor | None = None
    """bool [B, L], True where a view's token is; None where the head's own `image_spans` are."""


def build_action_head(
    config: HeadConfig,
    context_width: int,
    embodiments: Mapping[str, Embodiment],
    image_spans: Sequence[tuple[int, int]] = (),
) -> ActionHead:
    """Builds an action head with fresh weights; `image_spans` are the backbone's.

    Raises:
        ConfigError: an embodiment's horizon is longer than the config allows, or there is none.
    """
    if not embodiments:
        raise ConfigError("a policy needs at least one embodiment; the mixture declares none")
    for name, embodiment in embodiments.items():
        _check_horizon(name, embodiment, config)
    return ActionHead(config, context_width, embodiments, image_spans)


class ActionHead(nn.Module):
    """Layer norm on the context, embodiment MLPs around a diffusion transformer (GR00T N1, arXiv 2503.14734).

    Args:
        config: sizes.
        context_width: width of the backbone's tokens.
        embodiments: the declared embodiments; each gets encoders and a decoder of its own.
        image_spans: where in the context the views' tokens stand, first position and the one past the last for each;
            read by `config.alternate`.
    """

    def __init__(
        self,
        config: HeadConfig,
        context_width: int,
        embodiments: Mapping[str, Embodiment],
        image_spans: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        self.config, self.image_spans = config, tuple(image_spans)
        self.masked = config.compatibility == "none"
        width, bodies = config.width, embodiments.values()
        self.context_norm = nn.LayerNorm(context_width) if config.context_norm else nn.Identity()
        self.context_mixer = SelfAttentionStack(
            context_width, config.context_heads if config.context_layers else 1, config.context_layers, config.dropout
        )
        states = {e.name: (e.state_dim * config.state_history, width) for e in bodies if e.state_dim}
        self.state_encoder = EmbodimentMLP(states, config.hidden)
        self.unknown_state: Tensor
        if config.unknown_state == "learned":
            self.unknown_state = nn.Parameter(torch.randn(width) * 0.02)
        else:
            self.register_buffer("unknown_state", torch.zeros(width), persistent=False)
        count = config.future_tokens
        self.future = nn.Parameter(torch.randn(count, width) * 0.02) if count else None
        self.action_encoder = ActionEncoder({e.name: e.action_dim for e in bodies}, width)
        self.position = nn.Parameter(torch.randn(config.max_horizon, width) * 0.02)
        self.dit = _build_trunk(config, context_width, self.image_spans)
        self.action_decoder = EmbodimentMLP({e.name: (config.hidden, e.action_dim) for e in bodies}, config.hidden)

    def add_embodiment(self, embodiment: Embodiment, *, like: str | None = None) -> None:
        """Gives one more embodiment encoders and a decoder of its own, the others keep theirs bit for bit.

        Args:
            embodiment: the new one.
            like: a declared embodiment of the same sizes whose weights are copied; None for fresh ones.

        Raises:
            ConfigError: it is declared already, its chunks are too long, or `like` has other sizes.
        """
        _check_horizon(embodiment.name, embodiment, self.config)
        width, hidden, history = self.config.width, self.config.hidden, self.config.state_history
        parts: list[tuple[EmbodimentMLP | ActionEncoder, nn.Module]] = [
            (self.action_encoder, FoldedActionEncoder(embodiment.action_dim, width)),
            (self.action_decoder, plain_mlp(hidden, hidden, embodiment.action_dim)),
        ]
        if embodiment.state_dim:
            parts.append((self.state_encoder, plain_mlp(embodiment.state_dim * history, hidden, width)))
        if like is not None:  # All of them before the first is added: a refusal leaves the head as it was.
            for table, module in parts:
                _copy_weights(table.fold(like), module, embodiment.name, like)
        for table, module in parts:
            table.add(embodiment.name, module.to(self.position))  # type: ignore[arg-type]

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
        self,
        context: Tensor,
        mask: Tensor,
        state: Tensor,
        state_known: Tensor | None,
        embodiment: str,
        *,
        images: Tensor | None = None,
    ) -> PreparedContext:
        """Computes everything that stays the same over the denoising steps.

        Args:
            context: float [B, L, C].
            mask: bool [B, L], True = may be attended.
            state: float [B, S], or [B, K, S] with a history; S may be 0. A single state stands for the whole history.
            state_known: bool [B]; None = all known. An unknown state becomes a learned token, whatever `state` holds.
            embodiment: a declared embodiment.
            images: bool [B, L], True where a view's token is; None where the head's own `image_spans` are.
        """
        return self.prepare_tokens(context, mask, self.state_token(state, state_known, embodiment), images=images)

    def prepare_tokens(
        self, context: Tensor, mask: Tensor, token: Tensor, *, images: Tensor | None = None
    ) -> PreparedContext:
        """Does the same for state tokens float [B, W] of `state_token`, of one embodiment or of several."""
        mixed = self.context_mixer(self.context_norm(context), mask if self.masked else None)
        return PreparedContext(self.dit.project_context(mixed), mask, token[:, None, :], images)

    def cross_masks(self, prepared: PreparedContext) -> Tensor | list[Tensor] | None:
        """Returns what the cross-attention blocks may look at: bool [B, L], one for each, or None for everything.

        Raises:
            ConfigError: text and images are to be told apart, and nobody said which is which.
        """
        if not self.config.alternate:
            return prepared.mask if self.masked else None
        if prepared.images is None and not self.image_spans:
            raise ConfigError("head.alternate needs to know which context tokens are views: give image_spans")
        images = image_mask(self.image_spans, prepared.mask) if prepared.images is None else prepared.images
        text, views = prepared.mask & ~images, prepared.mask & images
        return [views if i % self.config.text_every else text for i in range(len(prepared.key_values))]

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
        hidden = self.trunk(self.action_tokens(x, bucket, embodiment), bucket, prepared, step_mask)
        return self.action_decoder(hidden, embodiment)  # type: ignore[no-any-return]

    def action_tokens(self, x: Tensor, bucket: Tensor, embodiment: str) -> Tensor:
        """Encodes noisy chunks float [B, T, D] of one embodiment, and where in the chunk they stand: [B, T, W]."""
        if self.training and self.config.time_rule in flow.REGRESSION and len(x):
            # Trained for regression, all of them are zeros at time 0.
            return self._encoded(x[:1], bucket[:1], embodiment).expand(len(x), -1, -1)
        return self._encoded(x, bucket, embodiment)

    def _encoded(self, x: Tensor, bucket: Tensor, embodiment: str) -> Tensor:
        """Does what `action_tokens` does, whatever the chunks are."""
        return self.action_encoder(x, bucket, embodiment) + self.position[: x.shape[1]]  # type: ignore[no-any-return]

    def trunk(
        self, action: Tensor, bucket: Tensor, prepared: PreparedContext, step_mask: Tensor | None = None
    ) -> Tensor:
        """Runs the transformer, which is the same for all embodiments: a batch may hold several.

        Args:
            action: tokens of noisy chunks, float [B, T, W]; T may be 0.
            bucket: time buckets int64 [B].
            prepared: what `prepare` or `prepare_tokens` returned.
            step_mask: see `velocity`.

        Returns:
            What the decoders are given, float [B, T, hidden].
        """
        future = [] if self.future is None else [self.future.expand(len(action), -1, -1)]
        tokens = torch.cat([prepared.state, *future, action], dim=1)
        first = tokens.shape[1] - action.shape[1]
        token_mask = None
        if step_mask is not None and self.masked:
            token_mask = torch.cat([step_mask.new_ones(len(action), first), step_mask], dim=1)
        return self.dit(tokens, bucket, prepared.key_values, self.cross_masks(prepared), token_mask)[:, first:]  # type: ignore[no-any-return]

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
        x, bucket, target = self.noisy(action, mask, noise, time)
        predicted = self.velocity(x, bucket, prepared, embodiment, mask.any(-1))
        return flow.masked_error(predicted, target, mask, rule=self.config.time_rule)

    def noisy(self, action: Tensor, mask: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the points between noise and actions, float [B, T, D], their buckets int64 [B], and the velocities.

        The arguments are those of `errors`.
        """
        x, target = flow.interpolate(
            torch.where(mask, action, 0.0) if self.masked else action, self._start(noise), time
        )
        return x, flow.time_bucket(time, clamp=self.masked), target

    def sample(
        self, prepared: PreparedContext, noise: Tensor, embodiment: str, chunk: RealTimeChunk | None = None
    ) -> Tensor:
        """Turns noise into normalised actions, in `config.sample_steps` Euler steps.

        Args:
            prepared: what `prepare` returned.
            noise: float [B, T, D], standard normal.
            embodiment: a declared embodiment.
            chunk: the previous chunk that this one has to agree with; None for none.

        Returns:
            float [B, T, D].
        """

        def velocity(x: Tensor, bucket: Tensor) -> Tensor:
            return self.velocity(x, bucket, prepared, embodiment)

        if chunk is not None:
            return realtime_sample(velocity, self._start(noise), self.config.sample_steps, chunk)
        return flow.euler_sample(velocity, self._start(noise), self.config.sample_steps, published=not self.masked)

    def _start(self, noise: Tensor) -> Tensor:
        """Returns where the way to an action begins: at the noise, or for regression at zeros.

        These are made of the noise, so that it stays an input of exported graphs.
        """
        return noise * 0.0 if self.config.time_rule in flow.REGRESSION else noise

    def state_token(self, state: Tensor, known: Tensor | None, embodiment: str) -> Tensor:
        """Encodes states of one embodiment to float [B, W]; the arguments are those of `prepare`."""
        if state.shape[-1] == 0:
            return self.unknown_state.expand(state.shape[0], -1)
        history = self.config.state_history
        states = state[:, None].expand(-1, history, -1) if state.ndim == 2 else state
        if states.shape[1] != history:
            raise ConfigError(f"the head encodes {history} states (head.state_history), got {states.shape[1]}")
        state = states.flatten(1)
        if known is None:
            return self.state_encoder(state, embodiment)  # type: ignore[no-any-return]
        # Zeroed before the encoder too: a NaN in an unread branch of `where` would still poison the gradient.
        encoded = self.state_encoder(torch.where(known[:, None], state, 0.0), embodiment)
        return torch.where(known[:, None], encoded, self.unknown_state)


def check_histories(config: HeadConfig, embodiments: Mapping[str, Embodiment]) -> None:
    """Refuses embodiments whose samples hold another number of states than a head encodes.

    Raises:
        ConfigError: the first of them is named, and where both numbers are set.
    """
    for name, body in embodiments.items():
        if body.state_dim and body.state_history != config.state_history:
            raise ConfigError(
                f"embodiment '{name}' comes with {body.state_history} states a sample (state_history in the mixture), "
                f"the policy encodes {config.state_history} (policy.head.state_history): set both to the same"
            )


def _build_trunk(config: HeadConfig, context_width: int, spans: Sequence[tuple[int, int]]) -> DiT | MLPTrunk:
    sizes = DiTConfig(
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        interleave=config.interleave,
        context_width=context_width,
        out_width=config.hidden,
        dropout=config.dropout,
    )
    return build_dit(sizes) if config.trunk == "dit" else MLPTrunk(sizes, spans)


def _check_horizon(name: str, embodiment: Embodiment, config: HeadConfig) -> None:
    if embodiment.horizon > config.max_horizon:
        raise ConfigError(
            f"embodiment '{name}' has chunks of {embodiment.horizon} steps, head.max_horizon is {config.max_horizon}"
        )


def _copy_weights(source: nn.Module, target: nn.Module, name: str, like: str) -> None:
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"embodiment '{name}' cannot start like '{like}', their sizes differ: {detail}") from error
