"""Configuration of the policy: backbone, action head, training; plain data with ranges checked.

Building things from it is `build_*` in the modules beside this one; mixtures have a file of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyramid.nn.flow import REGRESSION, TimeRule
from pyramid.nn.trainer import TrainerConfig
from vla.objectives.config import ObjectivesConfig
from vla.tuning.config import TuneConfig

__all__ = ["BackboneConfig", "CacheDtype", "HeadConfig", "PolicyConfig", "VLAConfig"]


CacheDtype = Literal["full", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """System 2: a vision-language model whose hidden states the action head attends to."""

    kind: Literal["llava", "smolvlm", "qwen3_vl", "eagle", "keypoints"] = "llava"
    """Family of the model: Llava, SmolVLM or Idefics3, Qwen3-VL (also Cosmos-Reason2), Eagle (N1, N1.5), or keypoints:
    a few fresh convolutions without a language model, for a CPU (`vision_width` points, `patch_px` their stride)."""
    pretrained: str | None = None
    """Folder or Hub repository of published weights; None makes a fresh model of the family from the sizes below.
    Keypoints: folder of an inverse dynamics model that learned points from pictures (`idm/pictures`), to begin with."""
    revision: str | None = None
    """Commit of the Hub repository, 40 hex digits; required for one, since a branch name can change its content."""
    local_files_only: bool = False
    """Never ask the network: a Hub repository must already be in the local cache."""
    tokenizer: str | None = None
    """A tokenizer.json, or folder or repository that has one; None for the model's own (fresh: one token a byte)."""
    layout: Literal["plain", "chat"] = "plain"
    """Token sequence: views and text alone, or the family's chat turn around them (needs the family's tokenizer)."""
    frozen: bool = False
    """Keep the backbone's weights as they are and train the action head alone."""
    tune_top_layers: int = 0
    """Of a frozen backbone, train this many topmost language layers all the same, >= 0 (4 in N1.6)."""
    tune_vision: bool = False
    """Of a frozen backbone, train vision tower and projector all the same."""
    cache_features: bool = False
    """Before training, work out what a wholly frozen backbone says of each frame, and keep it beside the shards: 4
    bytes times context tokens times width a frame. Its pictures are then not decoded. Not with ``augment``."""
    cache_dtype: CacheDtype = "full"
    """How it is kept: as it comes out, or rounded to half the bytes; the head is then trained on what is rounded."""
    tap_layer: int = 3
    """Language layer whose output (before any final norm) is handed on, >= 1; the layers above it are dropped."""
    max_text_tokens: int = 64
    """Length that texts are padded or cut to, in tokens, >= 1; a chat layout's own words count."""
    n_views: int = 1
    """Camera views per observation, >= 1."""
    image_size_px: int = 64
    """Height and width of a view in pixels; for published weights a size that their vision tower takes."""
    patch_px: int = 8
    """Patch of a fresh vision tower in pixels, a divisor of the image size."""
    merge: int = 2
    """Side of the square of patches that a fresh model makes one token of, >= 1 (not Llava's, which keeps them all)."""
    vision_width: int = 128
    """Width of a fresh vision tower, a multiple of its heads."""
    vision_layers: int = 2
    """Layers of a fresh vision tower, >= 1."""
    vision_heads: int | None = None
    """Attention heads of a fresh vision tower, >= 1; None for `attention_heads`."""
    vision_ffn: int | None = None
    """Width inside its feed-forward layers, >= 1; None for four times its width."""
    vision_precision: Literal["float32", "bfloat16"] = "float32"
    """Keypoints: what their convolutions multiply in while they train; bfloat16 takes effect where the device has
    units for it (a GPU, a CPU with AMX); elsewhere it is float32, too."""
    vision_positions: int | None = None
    """Qwen3-VL: learned positions of a fresh tower, a square number; None for one a patch (published: 2304)."""
    deepstack: tuple[int, ...] = ()
    """Qwen3-VL: layers of a fresh tower whose output joins the first language layers, from 0 (published: 5, 11, 17)."""
    language: Literal["llama", "qwen2", "qwen3"] = "llama"
    """Eagle: kind of a fresh language model."""
    text_width: int = 128
    """Width of a fresh language model, a multiple of `attention_heads`."""
    text_ffn: int | None = None
    """Width inside its feed-forward layers, >= 1; None for three times its width."""
    attention_heads: int = 4
    """Attention heads of a fresh language model, >= 1."""
    kv_heads: int | None = None
    """Its key and value heads, a divisor of `attention_heads`; None for as many."""
    vocab_size: int | None = None
    """Its vocabulary, in tokens; None for the tokenizer's, which is also the least."""
    rope_theta: float = 10000.0
    """Base of its rotary positions, > 0."""
    project_width: int = 0
    """Eagle: width of a linear layer after the tapped one, >= 0 (1536 in N1; 0 = none)."""

    def __post_init__(self) -> None:
        optional = (self.vision_heads, self.vision_ffn, self.vision_positions, self.text_ffn, self.kv_heads)
        sizes = (self.tap_layer, self.max_text_tokens, self.n_views, self.patch_px, self.vision_layers, self.merge)
        if min(*sizes, self.attention_heads, *(size for size in optional if size is not None)) < 1:
            raise ValueError(f"layers, tokens, views, patch and heads must be at least 1, got {self}")
        if min(self.tune_top_layers, self.project_width, *self.deepstack, 0) < 0 or self.rope_theta <= 0:
            raise ValueError(f"tune_top_layers, project_width, deepstack >= 0 and rope_theta > 0 needed, got {self}")
        if not self.frozen and (self.tune_top_layers or self.tune_vision):
            raise ValueError("tune_top_layers and tune_vision say what of a frozen backbone trains: set frozen=true")
        if self.cache_features and (not self.frozen or self.tune_top_layers or self.tune_vision):
            raise ValueError("cache_features needs a backbone of which nothing trains: frozen=true, nothing tuned")
        if self.tune_top_layers > self.tap_layer:
            raise ValueError(f"tune_top_layers {self.tune_top_layers} is more than tap_layer {self.tap_layer}")
        self._check_fresh()

    def _check_fresh(self) -> None:
        step = self.patch_px * (1 if self.kind in ("llava", "keypoints") else self.merge)
        if self.image_size_px < 1 or (self.pretrained is None and self.image_size_px % step):
            raise ValueError(f"image_size_px {self.image_size_px} is not a multiple of patch_px (times merge), {step}")
        vision_heads, kv_heads = self.vision_heads or self.attention_heads, self.kv_heads or self.attention_heads
        if self.vision_width % vision_heads or self.text_width % (2 * self.attention_heads):
            raise ValueError(
                f"vision_width {self.vision_width} must be a multiple of its heads {vision_heads}, and "
                f"text_width {self.text_width} of twice {self.attention_heads} (rotary positions need even heads)"
            )
        if self.attention_heads % kv_heads or any(layer >= self.vision_layers for layer in self.deepstack):
            raise ValueError(f"kv_heads {kv_heads} and deepstack {self.deepstack} do not fit the other sizes")


Compatibility = Literal["none", "n1", "n1_5", "n1_6", "n1_7"]
"""What a head does in the way of a release: "none" masks whatever is padding. All releases let the self-attention over
context tokens and over actions see padding; those without `HeadConfig.alternate` let cross-attention see it, too. They
do not clamp time buckets, they train on the padded values of actions, N1.6 and N1.7 add 1e-6 to the loss's count."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """System 1: a diffusion transformer that turns noise into an action chunk by flow matching."""

    width: int = 128
    """Width of the tokens in the diffusion transformer, even and a multiple of `heads`."""
    trunk: Literal["dit", "mlp"] = "dit"
    """What is between encoders and decoders: the diffusion transformer of all releases, or perceptrons, for a small
    policy of one task: they see views and state alone, each step of a chunk by itself, and need no `heads`."""
    layers: int = 4
    """Blocks of the trunk, >= 1; of the transformer, even ones attend to the backbone, odd ones to state and action."""
    heads: int = 4
    """Attention heads, >= 1."""
    hidden: int = 128
    """Width of the tokens that leave the transformer, and of the hidden layer in the embodiment MLPs, >= 1."""
    dropout: float = 0.0
    """Dropout in the transformer while training, in [0, 1)."""
    interleave: bool = True
    """Odd blocks attend to state and action themselves (all releases do); else every block attends to the backbone."""
    context_norm: bool = True
    """Layer norm on the backbone's tokens (N1.5 and later; N1 has none)."""
    context_layers: int = 0
    """Self-attention blocks over the backbone's tokens, >= 0 (4 in N1.5 and N1.7)."""
    context_heads: int = 4
    """Attention heads in those blocks, a divisor of the backbone's width."""
    future_tokens: int = 0
    """Learned tokens between state and action, for FLARE (arXiv 2505.15659), >= 0 (32 in N1.5)."""
    alternate: bool = False
    """Cross-attention blocks look at text and at image tokens in turn (AlternateVLDiT of N1.6 and N1.7), not at all."""
    text_every: int = 2
    """With `alternate`: of the cross-attention blocks, each that is a multiple of this looks at text, >= 1."""
    max_horizon: int = 64
    """Longest action chunk, in steps (latent actions: in tokens), >= 1."""
    sample_steps: int = 4
    """Euler steps K from noise to action, >= 1."""
    time_rule: TimeRule = "n1_6"
    """How flow times are drawn in training: "n1" (N1, N1.5), "n1_6" (N1.6, N1.7), or by regression: "mean" or "median",
    always 0, with zeros for noise; they go with `sample_steps` 1."""
    state_dropout: float = 0.0
    """Share of training samples whose state is replaced by the token for an unknown state, in [0, 1)."""
    unknown_state: Literal["learned", "zeros"] = "learned"
    """Token of an unknown state: learned (as in N1.6), or zeros (as in N1.7)."""
    state_history: int = 1
    """States that are encoded, the last one being the present, >= 1 (2 for some robots in N1.7)."""
    compatibility: Compatibility = "none"
    """Reproduce a published version also where it differs from what is right: see `Compatibility`."""

    def __post_init__(self) -> None:
        sizes = (self.width, self.layers, self.heads, self.hidden, self.context_heads, self.max_horizon)
        if (
            min(*sizes, self.sample_steps, self.text_every, self.state_history) < 1
            or min(self.context_layers, self.future_tokens) < 0
        ):
            raise ValueError(f"sizes must be at least 1 (context_layers and future_tokens at least 0), got {self}")
        if self.trunk == "mlp" and (self.alternate or self.dropout or self.compatibility != "none"):
            raise ValueError("trunk: mlp has no attention and no dropout, and is none of a release's")
        if self.time_rule in REGRESSION and self.sample_steps > 1:
            raise ValueError(f"time_rule: {self.time_rule} teaches a single step: set sample_steps: 1")
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

    def __post_init__(self) -> None:
        """Refuses what does not go together."""
        if self.backbone.cache_features and self.head.compatibility != "none":
            raise ValueError(
                f"head.compatibility: {self.head.compatibility} lets a batch's padding be seen, which is not kept: "
                "set head.compatibility: none, or backbone.cache_features: false"
            )


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
        if self.policy.backbone.cache_features and (self.tune.lora.rank or self.trainer.strategy == "fsdp"):
            raise ValueError(
                "policy.backbone.cache_features needs a backbone that stands still and that each process has whole: "
                "set tune.lora.rank: 0 and trainer.strategy: ddp, or cache_features: false"
            )
