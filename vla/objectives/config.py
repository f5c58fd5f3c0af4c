"""Configuration of the objectives: which terms, for which samples, with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["FlareConfig", "ObjectivesConfig", "TokensConfig", "WeightsConfig"]


@dataclass(frozen=True, kw_only=True)
class FlareConfig:
    """FLARE (arXiv 2505.15659): the head's future tokens say what will be seen; needs ``future_s`` in the mixture."""

    weight: float = 0.0
    """Weight in the loss (0.2 in the paper); 0: none. Needs `head.future_tokens`."""
    layer: int = 2
    """Block of the diffusion transformer whose output is aligned, from 1 on (6 of 8 in the paper)."""
    target: Literal["pooled", "qformer"] = "pooled"
    """What a future observation is embedded as: pooled vision tokens, or queries that were taught to know actions."""
    grid: int = 4
    """Side of the square that each view's tokens are averaged to; pooled: ``future_tokens = views * grid ** 2``."""
    qformer_width: int = 128
    """Width of a learned target, a multiple of `qformer_heads`."""
    qformer_layers: int = 2
    """Self-attention layers of a learned target over the vision tokens, >= 0 (4 in the paper)."""
    qformer_heads: int = 4
    """Its attention heads, >= 1."""
    qformer_action_layers: int = 2
    """Layers of the small action head that teaches it, even and >= 2 (8 in the paper)."""
    qformer_decay: float = 0.995
    """Decay of the moving average of the learned target that is aligned with, in [0, 1)."""

    def __post_init__(self) -> None:
        """Refuses what could not be computed."""
        if not 0 <= self.weight < math.inf or not 0 <= self.qformer_decay < 1:
            raise ValueError(f"weight {self.weight} or qformer_decay {self.qformer_decay} out of range")
        if min(self.layer, self.grid, self.qformer_heads, self.qformer_action_layers) < 1 or self.qformer_layers < 0:
            raise ValueError("layer, grid, qformer_heads and qformer_action_layers must be at least 1")
        if self.qformer_width % self.qformer_heads or self.qformer_width % 2:
            raise ValueError(f"qformer_width {self.qformer_width} must be even and a multiple of qformer_heads")


@dataclass(frozen=True, kw_only=True)
class TokensConfig:
    """Codes of latent actions as targets of the language model (after LAPA, arXiv 2410.11758; UniVLA, 2505.06111)."""

    weight: float = 0.0
    """Weight of the cross-entropy in the loss; 0: none."""
    codes: int = 8
    """Size of the codebook, >= 2."""
    positions: int = 4
    """Codes of a latent action, >= 1."""

    def __post_init__(self) -> None:
        """Refuses what is no codebook."""
        if not 0 <= self.weight < math.inf or self.codes < 2 or self.positions < 1:
            raise ValueError(
                f"weight must be >= 0, codes >= 2, positions >= 1, got {self.weight}, {self.codes}, {self.positions}"
            )


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """How much a sample counts in the flow-matching loss; only the proportions matter."""

    action: float = 1.0
    """Of measured actions."""
    pseudo: float = 1.0
    """Of pseudo-actions."""
    latent: float = 1.0
    """Of latent actions."""
    sources: dict[str, float] = field(default_factory=dict)
    """Further factors by source of the mixture, for all terms; 1 where none is named."""
    confidence: bool = False
    """Let doubtful labels count less, by the two scales below."""
    std_half: float = 0.5
    """Spread of pseudo-actions' votes, in normalised action units, at which a sample counts half, > 0."""
    gain_half: float = 0.2
    """`recon_gain` of a latent action at which a sample counts half, > 0; at 0 and below it counts nothing."""

    def __post_init__(self) -> None:
        """Refuses weights that are none."""
        for name, weight in {
            "action": self.action,
            "pseudo": self.pseudo,
            "latent": self.latent,
            **self.sources,
        }.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of '{name}' must be a number from 0 on, got {weight}")
        if not (self.std_half > 0 and self.gain_half > 0):
            raise ValueError(f"std_half and gain_half must be above 0, got {self.std_half} and {self.gain_half}")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """What a policy is trained for, besides flow matching."""

    flare: FlareConfig = field(default_factory=FlareConfig)
    """Foreseeing."""
    tokens: TokensConfig = field(default_factory=TokensConfig)
    """Latent tokens on System 2."""
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    """What samples count."""
    require_text: bool = True
    """Refuse samples with measured or pseudo-actions that have no instruction."""
