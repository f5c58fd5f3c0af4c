"""Configuration of the inverse dynamics model: windows of frames, network, training.

Plain data with its checks; building networks and samplers from it is left to `idm.model` and `idm.data`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyramid.training import TrainerConfig

__all__ = ["IDMConfig", "ModelConfig", "WindowConfig"]


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which frames one prediction sees and which actions it gives; steps are 1 / rate_hz apart."""

    horizon: int = 8
    """Actions per window, those of steps 0 to horizon - 1 of it; 1 to 255."""
    frames: tuple[int, ...] = (0, 2, 4, 6, 8)
    """Steps of the window whose frames are seen, ascending from 0 to horizon; all of them lie inside the window."""
    stride: int = 1
    """Steps between the starts of labelled windows, 1 to horizon; 1 gives the most votes."""
    rate_hz: float | None = None
    """Steps per second, > 0; None takes the rate of the training data, and the trained model states it."""
    rate_tolerance: float = 0.1
    """How far a frame may lie from its due time, share of a step in [0, 0.5); past it a clip is skipped."""

    def __post_init__(self) -> None:
        """Refuses windows whose frames are not in them."""
        if not 1 <= self.horizon <= 255:
            raise ValueError(f"horizon must lie in 1..255, got {self.horizon}")
        if list(self.frames) != sorted(set(self.frames)) or not self.frames:
            raise ValueError(f"frames must ascend without repeats, got {self.frames}")
        if self.frames[0] != 0 or self.frames[-1] != self.horizon:
            raise ValueError(f"frames must begin at 0 and end at the horizon {self.horizon}, got {self.frames}")
        if not 1 <= self.stride <= self.horizon:
            raise ValueError(f"stride must lie in 1..horizon ({self.horizon}), got {self.stride}")
        if self.rate_hz is not None and not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ValueError(f"rate_hz must be positive or None, got {self.rate_hz}")
        if not 0 <= self.rate_tolerance < 0.5:
            raise ValueError(f"rate_tolerance must lie in [0, 0.5), got {self.rate_tolerance}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Network sizes, and the changes of picture that training makes it blind to."""

    image_size_px: int = 64
    """Side of the square that frames are resized to, a multiple of 8."""
    widths: tuple[int, int, int] = (32, 48, 64)
    """Channels at 1/2, 1/4 and 1/8 of the side, multiples of 8."""
    hidden: int = 256
    """Width of what the picture network hands to the embodiments' heads, and of their hidden layer."""
    huber_delta: float = 0.5
    """Error, in normalised units, past which the loss grows linearly, > 0."""
    shift_px: int = 4
    """Training windows are shifted by up to this many pixels, all frames alike; 0 or more."""
    gain: float = 0.1
    """Training windows are brightened or darkened by up to this share, all frames alike, in [0, 1)."""
    cache_mb: int = 512
    """Bound of the cache of decoded frames, MiB, >= 0."""
    calibration_share: float = 0.1
    """Share of training episodes kept out of training to measure errors for action_std, in [0, 0.5]."""

    def __post_init__(self) -> None:
        """Refuses sizes that the strides do not divide."""
        if self.image_size_px < 16 or self.image_size_px % 8:
            raise ValueError(f"image_size_px must be a multiple of 8 of at least 16, got {self.image_size_px}")
        if len(self.widths) != 3 or min(self.widths) < 8 or any(width % 8 for width in self.widths):
            raise ValueError(f"widths must be three multiples of 8, got {self.widths}")
        if self.hidden < 1 or not self.huber_delta > 0:
            raise ValueError(f"hidden {self.hidden} or huber_delta {self.huber_delta} is not positive")
        if self.shift_px < 0 or self.cache_mb < 0 or not 0 <= self.gain < 1 or not 0 <= self.calibration_share <= 0.5:
            raise ValueError(
                f"shift_px {self.shift_px}, cache_mb {self.cache_mb}, gain {self.gain} or calibration_share "
                f"{self.calibration_share} out of range"
            )


@dataclass(frozen=True, kw_only=True)
class IDMConfig:
    """Everything that decides an inverse dynamics model."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    """Windows of frames and actions."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Optimiser, steps, batch, seed."""
