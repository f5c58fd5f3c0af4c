"""The options of generating: what makes the videos, and what they are like.

What they do is left to `generate` and `generators`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What makes the videos, and what they are like."""

    generator: Literal["wan", "cosmos-predict2", "command"] = "wan"
    """Image-to-video of WAN 2.x or video-to-world of Cosmos-Predict2 through diffusers, or a program of your own."""
    model: str = ""
    """Diffusers pipeline, model id or folder; only weights in safetensors are read."""
    lora: str = ""
    """LoRA weights on top of it, a safetensors file or its folder; empty for none."""
    lora_scale: float = 1.0
    """How much of the LoRA is added, >= 0."""
    command: tuple[str, ...] = ()
    """Program and arguments of the generator ``command``; {image}, {prompt}, {instruction}, {negative_prompt}, {seed},
    {frames}, {rate_hz}, {height}, {width} and {out}, the MP4 to write, are filled in; no shell sees them."""
    timeout_s: float = 3600.0
    """Longest run of the command, seconds, > 0; then it and all that it started are killed."""
    samples: int = 1
    """Videos for each request, each with a seed of its own, >= 1; `dream judge --best-of` keeps the best."""
    batch: int = 1
    """Samples of a request that a pipeline makes at once, >= 1."""
    frames: int = 81
    """Frames of a video, >= 2; WAN wants 4 k + 1, Cosmos-Predict2 93."""
    rate_hz: float = 16.0
    """Frames per second that the model means, > 0; 16 for WAN and Cosmos-Predict2."""
    height: int = 480
    """Rows, a multiple of 16."""
    width: int = 832
    """Columns, a multiple of 16."""
    steps: int = 35
    """Denoising steps, >= 1."""
    guidance: float = 5.0
    """Classifier-free guidance, >= 0."""
    negative_prompt: str = ""
    """What the video shall not be like."""
    device: str = "cuda"
    """Torch device of the pipeline."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the pipeline."""
    offload: bool = False
    """Keep on the device only the part of the pipeline that is at work; slower, for small GPUs."""

    def __post_init__(self) -> None:
        """Refuses videos that nobody can make."""
        least = {"samples": 1, "batch": 1, "frames": 2, "steps": 1, "guidance": 0, "lora_scale": 0}
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not (0 < self.rate_hz < math.inf and 0 < self.timeout_s < math.inf):
            raise ValueError(f"rate_hz {self.rate_hz} and timeout_s {self.timeout_s} must be positive")
        if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
            raise ValueError(f"height and width must be multiples of 16, got {self.height} and {self.width}")
        if (self.generator == "command") != bool(self.command):
            raise ValueError("a command goes with generator: command, and with no other")
