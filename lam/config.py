"""Configuration of the latent-action model: network, quantiser, pairs of frames, training.

Plain data with its checks; building from it is left to `lam.model`, `lam.quantizers` and `lam.pairs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pyramid.nn.trainer import TrainerConfig

__all__ = [
    "CODE_DIMS",
    "LAMConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PairConfig",
    "QuantizerConfig",
    "QuantizerKind",
    "TargetConfig",
    "TextConfig",
]


QuantizerKind = Literal["vq_ema", "vq_grad", "nsvq", "fsq", "simvq", "lfq", "residual_vq", "vae", "none"]
CODE_DIMS: dict[QuantizerKind, int] = {
    "vq_ema": 16, "vq_grad": 32, "nsvq": 32, "fsq": 16, "simvq": 32, "lfq": 16, "residual_vq": 16, "vae": 32, "none": 16
}  # fmt: skip
"""Width of a token where a config names none; 16 to 32 is what small public models use, larger ones up to 128."""


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """The bottleneck between the encoder and the forward model."""

    kind: QuantizerKind = "vq_ema"
    """``vq_ema``: codebook by moving averages; ``vq_grad``: codebook by gradient; ``nsvq``: noise in place of the
    quantisation error; ``fsq``: rounding; ``simvq``: a learned map of a fixed codebook; ``lfq``: signs, spread by
    entropy; ``residual_vq``: stages of ``vq_ema``, each on what the last left over; ``vae``: continuous with noise;
    ``none``: continuous."""
    code_dim: int | None = None
    """Width of one pre-quantisation token, >= 1; None takes the usual one of the kind."""
    codebook_size: int = 8
    """Codes per position, 2 to 65536 (``lfq``: a power of 2); public models use 8 to 32. ``fsq`` has levels instead."""
    levels: tuple[int, ...] = (4, 4)
    """Levels per dimension of ``fsq``, each >= 3; their product is the number of codes."""
    stages: int = 2
    """Codebooks of ``residual_vq``, >= 1; each token has as many codes."""
    decay: float = 0.99
    """Decay of the moving averages that ``vq_ema`` and ``residual_vq`` have for codes and hits, in (0, 1)."""
    commitment: float = 0.25
    """Weight of the pull of a token towards its code, >= 0; not of ``nsvq``, ``fsq``, ``lfq``, ``vae``."""
    dead_code_share: float = 0.0625
    """A code hit less often than this share of the uniform rate is drawn anew, in [0, 1); 0 never does. Hits are an
    average over ``decay``; ``nsvq`` and ``simvq`` count them over no more tokens than it takes to tell."""
    entropy_weight: float = 0.1
    """Weight of the entropy loss of ``lfq``: tokens sure of their code, all codes in use, >= 0."""
    kl_weight: float = 2e-4
    """Weight of the KL divergence of ``vae`` from a unit normal, >= 0; AdaWorld's value."""

    def __post_init__(self) -> None:
        """Refuses sizes that are no codebook."""
        if self.code_dim is not None and self.code_dim < 1:
            raise ValueError(f"code_dim must be at least 1, got {self.code_dim}")
        if not 2 <= self.codebook_size <= 2**16:
            raise ValueError(f"codebook_size must lie in 2..65536, got {self.codebook_size}")
        if self.kind == "lfq" and self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size of lfq must be a power of 2, got {self.codebook_size}")
        if not self.levels or min(self.levels) < 3 or math.prod(self.levels) > 2**16:
            raise ValueError(f"levels must each be at least 3 with a product up to 65536, got {self.levels}")
        if not 0 < self.decay < 1 or self.stages < 1:
            raise ValueError(f"decay must lie in (0, 1), stages in 1.., got {self.decay} and {self.stages}")
        if not (self.commitment >= 0 and 0 <= self.dead_code_share < 1):
            raise ValueError(f"commitment {self.commitment} or dead_code_share {self.dead_code_share} out of range")
        if not (self.entropy_weight >= 0 and self.kl_weight >= 0):
            raise ValueError(f"entropy_weight {self.entropy_weight} or kl_weight {self.kl_weight} is below 0")

    @property
    def dim(self) -> int:
        """Width of a token, what ``code_dim`` says or the usual one of the kind."""
        return CODE_DIMS[self.kind] if self.code_dim is None else self.code_dim

    @property
    def n_codes(self) -> int:
        """Codes per position; 0 for a continuous bottleneck."""
        if self.kind in ("vae", "none"):
            return 0
        return math.prod(self.levels) if self.kind == "fsq" else self.codebook_size

    @property
    def codes_per_token(self) -> int:
        """Codes that one token has; 1 but for ``residual_vq``."""
        return self.stages if self.kind == "residual_vq" else 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Kinds and sizes of the encoder and of the forward model."""

    image_size_px: int = 64
    """Side of the square that frames are resized to, a multiple of 16 (the deepest maps are 1/8 of it)."""
    n_tokens: int = 4
    """Tokens per latent action, >= 1."""
    encoder: Literal["cnn", "transformer"] = "cnn"
    """``cnn``: both frames and their difference, trains on little; ``transformer``: space, then causal time."""
    encoder_input: Literal["pixels", "features"] = "pixels"
    """What the transformer encoder sees; ``features`` are those of the target (UniVLA)."""
    encoder_sees: Literal["colours", "edges"] = "colours"
    """What of the pixels the CNN sees; ``edges`` tell less, but look alike on bodies of other colours."""
    decoder: Literal["film", "transformer"] = "film"
    """``film``: U-Net steered by the tokens, for pixels; ``transformer``: tokens beside the first frame's patches."""
    encoder_widths: tuple[int, int, int] = (32, 48, 64)
    """Channels of the CNN at 1/2, 1/4 and 1/8 of the side."""
    decoder_widths: tuple[int, int, int] = (24, 48, 64)
    """Channels of the U-Net at 1/2, 1/4 and 1/8 of the side."""
    width: int = 512
    """Width of the transformers, a multiple of ``heads``."""
    heads: int = 8
    """Attention heads of the transformers."""
    encoder_depth: int = 6
    """Blocks of the transformer encoder, each of space, time and an MLP, >= 1."""
    decoder_depth: int = 6
    """Blocks of the transformer decoder, each of space and an MLP, >= 1."""
    patch_px: int = 16
    """Side of a patch of pixels, a divisor of the image's side; features bring their own grid."""
    gap_embedding: bool = False
    """Whether encoder and decoder are told the pair's gap in seconds."""

    def __post_init__(self) -> None:
        """Refuses sizes that the strides do not divide, and parts that do not fit each other."""
        if self.image_size_px < 16 or self.image_size_px % 16:
            raise ValueError(f"image_size_px must be a positive multiple of 16, got {self.image_size_px}")
        if self.n_tokens < 1 or self.encoder_depth < 1 or self.decoder_depth < 1:
            raise ValueError(
                f"n_tokens and depths must be at least 1, got {self.n_tokens}, {self.encoder_depth} and "
                f"{self.decoder_depth}"
            )
        widths = (*self.encoder_widths, *self.decoder_widths)
        if len(widths) != 6 or min(widths) < 8 or any(width % 8 for width in widths):
            raise ValueError(f"widths must be three multiples of 8 each, got {widths}")
        if self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width must be an even multiple of heads {self.heads}, got {self.width}")
        if self.patch_px < 1 or self.image_size_px % self.patch_px:
            raise ValueError(f"patch_px must divide image_size_px {self.image_size_px}, got {self.patch_px}")
        if self.encoder == "cnn" and self.encoder_input == "features":
            raise ValueError("the cnn encoder sees pixels; set encoder=transformer for encoder_input=features")
        if self.encoder == "transformer" and self.encoder_sees == "edges":
            raise ValueError("the transformer encoder sees colours or features; set encoder=cnn for encoder_sees=edges")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What the forward model predicts the change of."""

    kind: Literal["pixels", "features"] = "pixels"
    """``pixels`` in [0, 1]; ``features``: patches of a frozen vision model, each normalised over its channels."""
    vision_model: str = ""
    """Folder or Hugging Face id for ``AutoModel``: DINOv2, DINOv3, SigLIP 2 or V-JEPA 2. It is saved with the model."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the vision model's input, RGB in [0, 1]; ImageNet's, as DINO and V-JEPA 2 take it; .5 for SigLIP 2."""
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Spread of the same, > 0; .5 for SigLIP 2."""

    def __post_init__(self) -> None:
        """Refuses features without a model."""
        if self.kind == "features" and not self.vision_model:
            raise ValueError("features need a vision_model: a folder or an id such as facebook/dinov2-base")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {self.image_std}")


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which two frames make a pair; always by time, never by frame number."""

    gap_s: float = 0.5
    """Seconds between the two frames, > 0; labels use exactly this gap."""
    jitter: float = 0.5
    """Training gaps are uniform in [gap_s, (1 + jitter) * gap_s], >= 0; 0 trains on one gap only."""
    label_hz: float | None = None
    """Rows per second of a label table, > 0, snapped to frames; None labels every frame that has a partner."""
    static_policy: Literal["scored", "dropped", "kept"] = "scored"
    """Training pairs without motion: loss weighted by motion, drawn again, or used as any other. Labels keep all."""
    static_threshold: float = 0.02
    """A pair is static below this motion: largest mean |difference| over an 8 x 8 grid of blocks, in [0, 1];
    compression alone reaches about 0.02."""
    shuffle_frames: int = 8192
    """Frames over which the pairs of a clip are spread in training, >= 1: so many are mixed at a time. Of data that has
    no more every pair is drawn from all."""
    cache_mb: int = 256
    """Bound of the cache of decoded frames, MiB, >= 0. Data that fits is decoded once; larger data once an epoch if
    twice ``shuffle_frames`` fit, at 12 KiB a frame of 64 px and 147 KiB of 224 px."""

    def __post_init__(self) -> None:
        """Refuses gaps and rates that are not positive."""
        if not (math.isfinite(self.gap_s) and self.gap_s > 0):
            raise ValueError(f"gap_s must be a positive number of seconds, got {self.gap_s}")
        if not (math.isfinite(self.jitter) and self.jitter >= 0):
            raise ValueError(f"jitter must be at least 0, got {self.jitter}")
        if self.label_hz is not None and not (math.isfinite(self.label_hz) and self.label_hz > 0):
            raise ValueError(f"label_hz must be positive or None, got {self.label_hz}")
        if not 0 <= self.static_threshold <= 1 or self.cache_mb < 0:
            raise ValueError(f"static_threshold {self.static_threshold} or cache_mb {self.cache_mb} out of range")
        if self.shuffle_frames < 1:
            raise ValueError(f"shuffle_frames must be at least 1, got {self.shuffle_frames}")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Instructions as a condition of both networks, so that tokens hold what they do not say (UniVLA, stage 1)."""

    text_model: str = ""
    """Folder or Hugging Face id of a frozen text model for ``AutoModel`` (UniVLA: T5-base); empty: no instructions.
    It is not saved with the model: labelling needs it again."""
    max_tokens: int = 32
    """Word pieces read of an instruction, >= 1."""

    def __post_init__(self) -> None:
        """Refuses an empty instruction."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised beside the prediction, and which part of the picture counts. All weights 0: nothing else."""

    action_weight: float = 0.0
    """Weight of a linear head from the pre-quantisation latent to the mean action over the gap (z-scored), >= 0."""
    action_share: float = 0.025
    """Share of the actions that is used, in (0, 1]."""
    action_unit: Literal["episodes", "pairs"] = "episodes"
    """What the share is of: whole training episodes (at least one), or pairs of all of them, by their first frame."""
    action_rows: int = 16
    """Pairs with actions that every batch has on top of its own, >= 0; they are few, and would hardly be drawn."""
    body_critic: float = 0.0
    """Weight of a critic that tells bodies (embodiments) by their latents; for the encoder its gradient is turned round
    (arXiv 1409.7495), >= 0."""
    body_moments: float = 0.0
    """Weight of the difference in mean and covariance between the latents of two bodies (arXiv 1607.01719), >= 0."""
    body_cycle: float = 0.0
    """Weight of the latent coming back when tokens of one body act on a frame of another, >= 0; pixels only."""
    body_start: float = 0.3
    """Share of the training before these three begin, in [0, 1): the latents must say something first."""
    window_share: float = 0.0
    """Share of training pairs of which the encoder sees but a window around something that moves, in [0, 1]."""
    proprio_weight: float = 0.0
    """Weight of a forward model of the change of proprioception (z-scored) from tokens and state, >= 0 (villa-X)."""
    flow_weight: float = 0.0
    """Weight of predicting optical flow beside the picture (LAOF), >= 0; relative like the picture's error."""
    flow_model: Literal["raft_small", "raft_large"] = "raft_small"
    """torchvision's model whose flow is the target; it needs frames of 128 px at least."""
    flow_weights: str = ""
    """Its weights: a file of ``torch.save`` or safetensors holding the state dict that torchvision publishes."""
    camera: Literal["kept", "compensated"] = "kept"
    """``compensated``: the second frame is moved back by the motion of the whole picture, in training and labelling."""
    focus: Literal["whole", "motion", "boxes"] = "whole"
    """Where the prediction counts: everywhere, by motion, or within given boxes (of hands, say)."""
    focus_floor: float = 0.1
    """Weight of a place out of focus, in [0, 1]; in focus it is 1."""
    focus_boxes: str = ""
    """Parquet table of boxes: ``key``, ``frame``, and ``x0``, ``y0``, ``x1``, ``y1`` as shares of the sides."""

    def __post_init__(self) -> None:
        """Refuses weights below 0 and options without what they need."""
        weights = ("action_weight", "proprio_weight", "flow_weight", "body_critic", "body_moments", "body_cycle")
        for name in (*weights, "action_rows"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not (0 < self.action_share <= 1 and 0 <= self.focus_floor <= 1):
            raise ValueError(f"action_share {self.action_share} or focus_floor {self.focus_floor} out of range")
        if not (0 <= self.body_start < 1 and 0 <= self.window_share <= 1):
            raise ValueError(f"body_start {self.body_start} or window_share {self.window_share} out of range")
        if self.flow_weight and not self.flow_weights:
            raise ValueError("flow_weight needs flow_weights: the file of the flow model's weights")
        if (self.focus == "boxes") != bool(self.focus_boxes):
            raise ValueError("focus=boxes and focus_boxes (a Parquet table) go together")


@dataclass(frozen=True, kw_only=True)
class LAMConfig:
    """Everything that decides a latent-action model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Networks."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """Bottleneck."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """What is predicted."""
    text: TextConfig = field(default_factory=TextConfig)
    """Instructions."""
    objectives: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Further losses, camera, focus."""
    stage1: str = ""
    """Folder of a model trained with instructions: its frozen codes take what the task does not decide, so that this
    model's own tokens need not (UniVLA, stage 2); empty: one stage. What is needed of it is saved with the model."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """Pairs of frames."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Optimiser, steps, batch, seed."""

    def __post_init__(self) -> None:
        """Refuses parts that do not fit each other."""
        features = self.target.kind == "features"
        if features and self.model.decoder != "transformer":
            raise ValueError("features are predicted by model.decoder=transformer; film predicts pixels")
        if self.model.encoder_input == "features" and not features:
            raise ValueError("model.encoder_input=features needs target.kind=features")
        seen = self.model.encoder_input == "features" and self.objectives.window_share > 0
        if seen or (features and self.objectives.body_cycle > 0):
            raise ValueError("body_cycle needs target.kind=pixels, window_share needs model.encoder_input=pixels")
        if self.text.text_model and "transformer" not in {self.model.encoder} & {self.model.decoder}:
            raise ValueError("instructions need transformers: set model.encoder and model.decoder to transformer")
        if self.text.text_model and self.stage1:
            raise ValueError("stage 2 goes without instructions: leave text.text_model or stage1 out")
        if self.objectives.flow_weight and self.model.image_size_px < 128:
            raise ValueError(f"flow needs frames of 128 px at least, image_size_px is {self.model.image_size_px}")
