"""Configuration of how a policy is tuned: adapters, memory, compilation, validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["LoraSpec", "TuneConfig", "ValidationConfig"]


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Low-rank adapters on the language layers (LoRA, arXiv 2106.09685), by peft; the layers themselves stand still."""

    rank: int = 0
    """Rank of the adapters; 0: none. Needs the extra ``lora``."""
    alpha: float = 16.0
    """Their scale is ``alpha / rank``, > 0."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the linear layers that get one, as transformers calls them."""
    merge: bool = True
    """Save the policy with its adapters added to the weights; false keeps them apart, and loading it needs peft."""

    def __post_init__(self) -> None:
        """Refuses what is no adapter."""
        if self.rank < 0 or not 0 < self.alpha < math.inf or not self.targets:
            raise ValueError(f"lora needs rank >= 0, alpha > 0 and targets, got {self}")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Measuring on held-out episodes while training."""

    every: int = 0
    """Steps between measurements; 0: none. Needs clips of split ``val`` in the mixture."""
    batches: int = 4
    """Batches of each measurement, always the same ones, >= 1."""

    def __post_init__(self) -> None:
        """Refuses what measures nothing."""
        if self.every < 0 or self.batches < 1:
            raise ValueError(f"validation needs every >= 0 and batches >= 1, got {self.every} and {self.batches}")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How a policy is tuned."""

    lora: LoraSpec = field(default_factory=LoraSpec)
    """Adapters."""
    checkpoint_activations: bool = False
    """Compute the insides of blocks again in the backward pass, not keep them: less memory, the same result."""
    compile: bool = False
    """Compile the blocks of both systems (torch.compile); the first steps take minutes. Needs a C++ compiler."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Held-out measurements."""
