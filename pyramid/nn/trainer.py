"""How a model is optimised, as plain data: what a config file says of training, and what follows from a step's number.

Training itself is left to `pyramid.training`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Precision", "TrainerConfig", "lr_factor", "place_of"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a model is optimised: AdamW, linear warm-up, cosine decay to zero."""

    max_steps: int = 200
    """Optimiser steps in all; also the length of the cosine."""
    batch_size: int = 32
    """Samples per pass of one device; a step takes ``batch_size * accumulate * devices``."""
    accumulate: int = 1
    """Passes whose gradients are averaged for one step, >= 1."""
    devices: int = 1
    """Processes that train together, each on a device of its own, >= 1."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How they do: each with all weights (DDP), or with a share of weights, gradients and moments (FSDP2)."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, in [0, 1), which is then the model that is saved; 0: none."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's moment decays."""
    warmup_steps: int = 20
    """Steps of linear warm-up from 0."""
    grad_clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Decides initial weights, order of data, noise and dropout."""
    precision: Precision = "32-true"
    """Lightning's precision name."""
    checkpoint_every: int = 100
    """Steps between checkpoints to resume from."""
    log_every: int = 10
    """Steps between entries in TensorBoard."""
    images_every: int = 0
    """Steps between pictures in TensorBoard, for models that draw any; 0: none."""
    threads: int = 0
    """Torch threads; 0 leaves torch's own choice."""
    wandb: str = ""
    """Project of Weights & Biases that is told the same as TensorBoard; empty: none. Needs wandb."""

    def __post_init__(self) -> None:
        """Refuses values that no training could run with."""
        for name in ("max_steps", "batch_size", "accumulate", "devices", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < 1:
            raise ValueError(f"lr must be in (0, 1), got {self.lr}")
        if self.strategy == "fsdp" and (self.ema_decay or self.devices == 1):
            raise ValueError("strategy: fsdp needs devices above 1, and has no moving average (ema_decay: 0)")
        if not 0 <= self.ema_decay < 1 or self.images_every < 0:
            raise ValueError(f"ema_decay {self.ema_decay} or images_every {self.images_every} out of range")

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimiser step, over all passes and devices."""
        return self.batch_size * self.accumulate * self.devices


def place_of(step: int, part: int, config: TrainerConfig, rank: int) -> int:
    """Returns the number of the batch that rank ``rank`` sees in pass ``part`` of a step; the step for one of each."""
    return (step * config.accumulate + part) * config.devices + rank


def lr_factor(step: int, config: TrainerConfig) -> float:
    """Returns the learning rate at ``step`` as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
