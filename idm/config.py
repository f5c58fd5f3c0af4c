"""Configuration of the inverse dynamics model: windows of frames, vision, head, network, gate, training.

Plain data with its checks; building networks and samplers from it is left to `idm.model` and `idm.data`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from pyramid.errors import ConfigError
from pyramid.nn.trainer import TrainerConfig

__all__ = ["GateConfig", "HeadConfig", "IDMConfig", "ModelConfig", "VisionConfig", "WindowConfig"]

Box = tuple[float, float, float, float]
MAX_VIEWS = 6


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which frames one prediction sees and which actions it gives; steps are 1 / rate_hz apart."""

    horizon: int = 8
    """Actions per window, those of steps 0 to horizon - 1 of it; 1 to 255."""
    frames: tuple[int, ...] = (0, 2, 4, 6, 8)
    """Steps whose frames are seen, ascending, from at most 0 to at least horizon. Those outside are context: a shot
    that has no such frame is labelled without it, and the network is told so."""
    gap_s: float | None = None
    """Seconds from a window's first action to past its last, in place of ``horizon``; needs ``frames_s``."""
    frames_s: tuple[float, ...] = ()
    """Seconds from a window's first action at which frames are seen, in place of ``frames``; all must fall on steps."""
    stride: int = 1
    """Steps between the starts of labelled windows, 1 to horizon; 1 gives the most votes."""
    votes: Literal["learned", "hann", "uniform"] = "learned"
    """What a vote counts: by the errors at its place in the window on calibration clips; a bell; all alike."""
    rate_hz: float | None = None
    """Steps per second, > 0; None takes the rate of the training data, and the trained model states it."""
    rate_tolerance: float = 0.1
    """How far a frame may lie from its due time, share of a step in [0, 0.5); past it a clip is skipped."""

    def __post_init__(self) -> None:
        """Refuses windows that do not see where they begin and end."""
        if not 1 <= self.horizon <= 255:
            raise ValueError(f"horizon must lie in 1..255, got {self.horizon}")
        if list(self.frames) != sorted(set(self.frames)) or not self.frames:
            raise ValueError(f"frames must ascend without repeats, got {self.frames}")
        if self.frames[0] > 0 or self.frames[-1] < self.horizon:
            raise ValueError(
                f"frames must begin at 0 or before and end at the horizon {self.horizon} or after, got {self.frames}"
            )
        if not any(0 <= step <= self.horizon for step in self.frames):
            raise ValueError(f"none of the frames {self.frames} lies between 0 and the horizon {self.horizon}")
        if (self.gap_s is None) != (not self.frames_s):
            raise ValueError(f"gap_s {self.gap_s} and frames_s {self.frames_s} go together")
        if not 1 <= self.stride <= self.horizon:
            raise ValueError(f"stride must lie in 1..horizon ({self.horizon}), got {self.stride}")
        for name in ("rate_hz", "gap_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive or None, got {value}")
        if not 0 <= self.rate_tolerance < 0.5:
            raise ValueError(f"rate_tolerance must lie in [0, 0.5), got {self.rate_tolerance}")

    @property
    def anchor(self) -> int:
        """Place in ``frames`` of the one next to the window's middle: the others are seen as differences to it."""
        return min(range(len(self.frames)), key=lambda place: abs(self.frames[place] - self.horizon / 2))

    @property
    def offsets_s(self) -> tuple[float, ...]:
        """Seconds from a window's first action to each frame; needs the rate."""
        return tuple(step / (self.rate_hz or math.nan) for step in self.frames)

    def at_rate(self, rate_hz: float) -> WindowConfig:
        """Returns the windows of a model whose steps are 1 / ``rate_hz`` apart; seconds become steps.

        Raises:
            ConfigError: a time that is no step.
        """
        if self.gap_s is None:
            return replace(self, rate_hz=rate_hz)
        steps = [self._step(seconds, rate_hz) for seconds in (self.gap_s, *self.frames_s)]
        try:
            return replace(self, rate_hz=rate_hz, horizon=steps[0], frames=tuple(steps[1:]))
        except ValueError as error:
            raise ConfigError(f"windows of {self.gap_s:g} s at {rate_hz:g} Hz: {error}") from error

    def _step(self, seconds: float, rate_hz: float) -> int:
        if abs(seconds * rate_hz - round(seconds * rate_hz)) > self.rate_tolerance:
            raise ConfigError(
                f"{seconds:g} s is {seconds * rate_hz:.2f} steps at {rate_hz:g} Hz; choose windows.gap_s and "
                f"windows.frames_s among multiples of {1 / rate_hz:g} s, or set windows.rate_hz"
            )
        return round(seconds * rate_hz)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """How frames are seen."""

    kind: Literal["cnn", "keypoints", "siglip"] = "cnn"
    """A small CNN on one frame and its differences to the others; points that few demonstrations teach to follow what
    moves, or, with a linear head, that learn it from pictures; or a SigLIP tower on each frame by itself."""
    widths: tuple[int, ...] = (32, 48, 64)
    """CNN: channels at 1/2, 1/4 and 1/8 of the side. Keypoints: of each layer, the first at 1/2, the others at 1/4 of
    the side; those of the last are the points. Multiples of 8; three, of keypoints up to eight."""
    difference_gain: float = 2.0
    """CNN, keypoints: what differences of frames, or of where their points are, are multiplied with, > 0."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Keypoints: what convolutions are trained in; bfloat16 takes effect where the device has units for it (a GPU; a
    CPU with AMX: a fifth of the time); elsewhere it is float32, too."""
    width: int = 1024
    """SigLIP: width of its tokens."""
    layers: int = 24
    """SigLIP: blocks, >= 1."""
    heads: int = 16
    """SigLIP: attention heads, a divisor of ``width``."""
    mlp_width: int = 4096
    """SigLIP: inner width of its feed-forward layers."""
    patch_px: int = 16
    """SigLIP: side of a patch; ``image_size_px`` is a multiple of 4 of it."""
    weights: str = ""
    """SigLIP: model id or folder of a published tower that training starts from; empty starts from random weights."""
    tuned: bool = True
    """SigLIP: whether the tower trains along."""

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        least, most = 3, 3 if self.kind == "cnn" else 8
        if not least <= len(self.widths) <= most or min(self.widths) < 8 or any(width % 8 for width in self.widths):
            how_many = "three" if least == most else f"{least} to {most}"
            raise ValueError(f"widths must be {how_many} multiples of 8, got {self.widths}")
        if not self.difference_gain > 0:
            raise ValueError(f"difference_gain must be positive, got {self.difference_gain}")
        if min(self.width, self.layers, self.heads, self.mlp_width, self.patch_px) < 1 or self.width % self.heads:
            raise ValueError(f"width {self.width}, layers {self.layers} or heads {self.heads} do not fit")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How actions are made of what is seen."""

    kind: Literal["regressor", "flow", "linear"] = "regressor"
    """One pass that gives the actions; a diffusion transformer that turns noise into them (flow matching); or a linear
    map of points that were learned from pictures alone: little to learn, so little to learn by heart."""
    hidden: int = 256
    """Regressor: width of what all embodiments share, and of their own hidden layer."""
    huber_delta: float = 0.5
    """Regressor: error, in normalised units, past which the loss grows linearly, > 0."""
    auxiliary: float = 0.3
    """Regressor: weight of also telling the state and its change over the window, where training clips have states."""
    width: int = 1024
    """Flow: width of its tokens, an even multiple of ``heads``."""
    heads: int = 16
    """Flow: attention heads, of the context's mixer too."""
    mixer_layers: int = 4
    """Flow: self-attention blocks over what is seen, passed once per window."""
    layers: int = 8
    """Flow: blocks of the diffusion transformer, cross- and self-attention in turn."""
    dropout: float = 0.2
    """Flow: dropout in training, in [0, 1)."""
    steps: int = 16
    """Flow: Euler steps, >= 1."""
    samples: int = 4
    """Flow: draws that a label is the mean of; their spread is part of ``action_std``; 1 to 64."""
    ridge: float = 0.003
    """Linear: penalty of ridge regression per window, > 0; points lie in [-1, 1]."""
    through: Literal["points", "states"] = "points"
    """Linear: actions of a window's points, or of states that each step's points tell, where demonstrations have them:
    fewer numbers to learn from a few. What tells states and actions has penalties of its own."""

    def __post_init__(self) -> None:
        """Refuses sizes that no network has."""
        if self.hidden < 1 or not self.huber_delta > 0 or self.auxiliary < 0:
            raise ValueError(
                f"hidden {self.hidden}, huber_delta {self.huber_delta} or auxiliary {self.auxiliary} out of range"
            )
        if min(self.width, self.heads, self.layers, self.steps) < 1 or self.width % (2 * self.heads):
            raise ValueError(f"width must be an even multiple of heads, got {self.width} and {self.heads}")
        if self.mixer_layers < 0 or not 0 <= self.dropout < 1 or not 1 <= self.samples <= 64:
            raise ValueError(
                f"mixer_layers {self.mixer_layers}, dropout {self.dropout} or samples {self.samples} out of range"
            )
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, what it is given, and the changes of picture that training makes it blind to."""

    image_size_px: int = 64
    """Side of the square that each view is resized to, a multiple of 8."""
    views: tuple[Box, ...] = ()
    """Views in one packed picture as (top, left, height, width), shares of its sides; 1 to 6, empty for the whole.
    Two columns and rows with a black quadrant: [[0, 0, .5, .5], [0, .5, .5, .5], [.5, 0, .5, .5]]."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """How frames are seen."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """How actions are made of it."""
    state: Literal["none", "optional", "required"] = "none"
    """Whether the state at a window's first action is an input; ``optional`` learns to do without it as well."""
    target: Literal["action", "from_state"] = "action"
    """What is learned: actions, or how far they lie from the state at their step, which labels add again: for commanded
    postures. Every clip then needs states, as wide as actions and without rotations, whatever ``state`` says."""
    shift_px: int = 4
    """Training windows are shifted by up to this many pixels, all frames alike; 0 or more."""
    gain: float = 0.1
    """Training windows are brightened or darkened by up to this share, all frames alike, in [0, 1)."""
    cache_mb: int = 512
    """Bound of the cache of decoded frames, MiB, >= 0."""
    calibration_share: float = 0.1
    """Share of training episodes kept out of training to measure errors for action_std, in [0, 0.5]."""

    def __post_init__(self) -> None:
        """Refuses sizes that the strides do not divide, and parts that do not go together."""
        if self.head.kind == "linear" and (self.vision.kind != "keypoints" or self.state != "none"):
            raise ValueError("a linear head reads vision of kind keypoints, and no state")
        step = 4 * self.vision.patch_px if self.vision.kind == "siglip" else 8
        if self.image_size_px < 16 or self.image_size_px % step:
            raise ValueError(f"image_size_px must be a multiple of {step} of at least 16, got {self.image_size_px}")
        if len(self.views) > MAX_VIEWS:
            raise ValueError(f"views must be at most {MAX_VIEWS}, got {len(self.views)}")
        for top, left, height, width in self.views:
            if min(top, left) < 0 or min(height, width) <= 0 or max(top + height, left + width) > 1 + 1e-6:
                raise ValueError(f"view {(top, left, height, width)} is not inside the picture (0 to 1)")
        if self.shift_px < 0 or self.cache_mb < 0 or not 0 <= self.gain < 1 or not 0 <= self.calibration_share <= 0.5:
            raise ValueError(
                f"shift_px {self.shift_px}, cache_mb {self.cache_mb}, gain {self.gain} or calibration_share "
                f"{self.calibration_share} out of range"
            )

    @property
    def needs_state(self) -> bool:
        """Whether a clip without states cannot be labelled."""
        return self.state == "required" or self.target == "from_state"

    @property
    def n_views(self) -> int:
        """Views of one picture."""
        return max(len(self.views), 1)

    @property
    def picture_px(self) -> int:
        """Side at which packed pictures are read: so large that the smallest view has ``image_size_px``."""
        least = min((side for view in self.views for side in view[2:]), default=1.0)
        return 8 * math.ceil(self.image_size_px / least / 8 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Which labels are not to be trusted; they stay in the table with a flag."""

    max_std: float = 0.9
    """Largest ``action_std``, mean over the dimensions that move, as a share of the training actions' spread, > 0."""
    margin: float = 0.1
    """How far past the training actions' range a label may lie, share of that range, >= 0."""
    max_state: float = 10.0
    """How many spreads of the training states a state may lie from their mean; past it the label is in doubt, > 0."""

    def __post_init__(self) -> None:
        """Refuses limits that mean nothing."""
        if not self.max_std > 0 or self.margin < 0 or not self.max_state > 0:
            raise ValueError(f"max_std {self.max_std}, margin {self.margin} or max_state {self.max_state} out of range")


@dataclass(frozen=True, kw_only=True)
class IDMConfig:
    """Everything that decides an inverse dynamics model."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    """Windows of frames and actions."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    gate: GateConfig = field(default_factory=GateConfig)
    """Limits of trust."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Optimiser, steps, batch, seed."""
