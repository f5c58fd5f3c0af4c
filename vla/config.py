"""Configuration of the policy: backbone, action head, training; plain data with ranges checked.

Building things from it is `build_*` in the modules beside this one; mixtures have a file of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyramid.nn.flow import TimeRule
from pyramid.training import TrainerConfig
from vla.objectives.config import ObjectivesConfig
from vla.tuning.config import TuneConfig

__all__ = ["BackboneConfig", "HeadConfig", "PolicyConfig", "VLAConfig"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """System 2: a vision-language model whose hidden states the action head attends to."""

    kind: Literal["llava"] = "llava"
    """Family of the model: a vision tower, a projector and a causal language model, as Llava arranges them."""
    pretrained: str | None = None
    """Folder or Hub repository of published weights; None makes a small fresh SigLIP + Llama from the sizes below."""
    revision: str | None = None
    """Commit of the Hub repository, 40 hex digits; required for one, since a branch name can change its content."""
    local_files_only: bool = False
    """Never ask the network: a Hub repository must already be in the local cache."""
    frozen: bool = False
    """Keep the backbone's weights as they are and train the action head alone."""
    tap_layer: int = 3
    """Language layer whose output (before any final norm) is handed on, >= 1; the layers above it are dropped."""
    max_text_tokens: int = 64
    """Length that texts are padded or cut to, in tokens, >= 1."""
    n_views: int = 1
    """Camera views per observation, >= 1."""
    image_size_px: int = 64
    """Height and width of a view in pixels; for published weights the size that their vision tower takes."""
    patch_px: int = 8
    """Patch of a fresh vision tower in pixels, a divisor of the image size."""
    vision_width: int = 128
    """Width of a fresh vision tower, a multiple of `attention_heads`."""
    vision_layers: int = 2
    """Layers of a fresh vision tower, >= 1."""
    text_width: int = 128
    """Width of a fresh language model, a multiple of `attention_heads`."""
    attention_heads: int = 4
    """Attention heads of both fresh towers, >= 1."""

    def __post_init__(self) -> None:
        sizes = (self.tap_layer, self.max_text_tokens, self.n_views, self.patch_px, self.vision_layers)
        if min(*sizes, self.attention_heads) < 1:
            raise ValueError(f"layers, tokens, views, patch and heads must be at least 1, got {self}")
        if self.image_size_px < 1 or (self.pretrained is None and self.image_size_px % self.patch_px):
            raise ValueError(f"image_size_px {self.image_size_px} is not a multiple of patch_px {self.patch_px}")
        if self.vision_width % self.attention_heads or self.text_width % (2 * self.attention_heads):
            raise ValueError(
                f"vision_width {self.vision_width} must be a multiple of attention_heads {self.attention_heads}, and "
                f"text_width {self.text_width} of twice that (rotary positions need an even head width)"
            )


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """System 1: a diffusion transformer that turns noise into an action chunk by flow matching."""

    width: int = 128
    """Width of the tokens in the diffusion transformer, even and a multiple of `heads`."""
    layers: int = 4
    """Blocks of the diffusion transformer, >= 1; even ones attend to the backbone, odd ones to state and action."""
    heads: int = 4
    """Attention heads, >= 1."""
    hidden: int = 128
    """Width of the tokens that leave the transformer, and of the hidden layer in the embodiment MLPs, >= 1."""
    dropout: float = 0.0
    """Dropout in the transformer while training, in [0, 1)."""
    context_norm: bool = True
    """Layer norm on the backbone's tokens (N1.5 and later; N1 has none)."""
    context_layers: int = 0
    """Self-attention blocks over the backbone's tokens, >= 0 (4 in N1.5 and N1.7)."""
    context_heads: int = 4
    """Attention heads in those blocks, a divisor of the backbone's width."""
    future_tokens: int = 0
    """Learned tokens between state and action, for FLARE (arXiv 2505.15659), >= 0 (32 in N1.5)."""
    max_horizon: int = 64
    """Longest action chunk, in steps (latent actions: in tokens), >= 1."""
    sample_steps: int = 4
    """Euler steps K from noise to action, >= 1."""
    time_rule: TimeRule = "n1_6"
    """How flow times are drawn in training: "n1" (N1, N1.5) or "n1_6" (N1.6, N1.7)."""
    state_dropout: float = 0.0
    """Share of training samples whose state is replaced by the learned token for an unknown state, in [0, 1)."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.layers, self.heads, self.hidden, self.context_heads, self.max_horizon)
        if min(*sizes, self.sample_steps) < 1 or min(self.context_layers, self.future_tokens) < 0:
            raise ValueError(f"sizes must be at least 1 (context_layers and future_tokens at least 0), got {self}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads, got {self.width} and {self.heads}")
        if not (0.0 <= self.dropout < 1.0 and 0.0 <= self.state_dropout < 1.0):
            raise ValueError(f"dropout and state_dropout must be in [0, 1), got {self.dropout}, {self.state_dropout}")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What a policy is made of."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """System 2."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """System 1."""


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """A policy and how it is trained."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The networks."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Steps, batch size, learning rate and the like."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What it is trained for."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """Adapters, memory, validation."""

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        if self.trainer.strategy == "fsdp" and self.tune.validation.every:
            raise ValueError("no process has all weights with strategy: fsdp; set tune.validation.every: 0")
