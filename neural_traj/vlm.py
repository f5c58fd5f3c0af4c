"""What a vision-language model says of a generated clip: does it do what was asked, and does physics allow it.

The two questions are those of DreamGen Bench (Jang et al., "DreamGen: Unlocking Generalization in Robot Learning
through Video World Models", arXiv 2505.12705): instruction following (IF) and, for physics alignment, a yes or no on
physics (PA-I), each answered with 0 or 1. The words here are our own. In place of a sampled 0 or 1 the mark is the
model's probability of 1 against 0, so that a mark of at least 0.5 is an answer of 1, and clips can be ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid.errors import ConfigError

FOLLOWS = (
    "These are {n} frames of one video, in order of time. The robot in it was told: '{text}'. Does the robot carry out "
    "this instruction, on the right object and to the end? A video in which a human hand does the work does not count. "
    "Answer with one digit: 1 if it does, 0 if it does not."
)
PHYSICS = (
    "These are {n} frames of one video, in order of time. Does everything in it keep to the laws of physics: do things "
    "keep their shape and number, move only when something moves them, and never pass through each other? "
    "Answer with one digit: 1 if they do, 0 if they do not."
)


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """Who is asked about clips, and what it is shown."""

    model: str = ""
    """Vision-language model of transformers (image-text-to-text), id or folder; empty asks nobody. Only weights in
    safetensors are read, and no code. DreamGen Bench asked Qwen2.5-VL-7B."""
    frames: int = 8
    """Frames shown, evenly spaced from first to last, 1 to 128; DreamGen Bench showed a hosted model 8, and Qwen 49."""
    size_px: int = 256
    """Height and width at which frames are shown, >= 16."""
    device: str = "cpu"
    """Torch device."""
    dtype: str = "float32"
    """Precision: float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        """Refuses clips that nobody could see."""
        if not 1 <= self.frames <= 128 or self.size_px < 16:
            raise ValueError(f"frames must lie in 1..128 and size_px from 16 up, got {self.frames} and {self.size_px}")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype}")


class Critic(Protocol):
    """Anything that marks clips."""

    def mark(self, pixels: NDArray[np.uint8], question: str) -> float:
        """Returns how sure it is of yes, 0 .. 1; pixels are uint8 [N, H, W, 3], RGB, in order of time."""
        ...


def marks(critic: Critic, pixels: NDArray[np.uint8], text: str) -> dict[str, float | None]:
    """Returns the marks of one clip.

    Args:
        critic: who is asked.
        pixels: uint8 [N, H, W, 3], the frames to show.
        text: the instruction; without one nobody can say whether it is followed.

    Returns:
        ``follows`` (None without an instruction) and ``physics``, 0 .. 1.
    """
    n = len(pixels)
    follows = critic.mark(pixels, FOLLOWS.replace("{n}", str(n)).replace("{text}", text)) if text else None
    return {"follows": follows, "physics": critic.mark(pixels, PHYSICS.replace("{n}", str(n)))}


def shown_frames(n_frames: int, n_shown: int) -> list[int]:
    """Returns the frames to show: evenly spaced, first and last among them, none twice."""
    return sorted(set(np.linspace(0, n_frames - 1, n_shown).round().astype(int).tolist()))


class TransformersCritic:
    """A vision-language model of transformers.

    Args:
        config: which one.

    Raises:
        ConfigError: no such model, or one that has no words for 0 and 1.
    """

    def __init__(self, config: VLMConfig) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.processor: Any = AutoProcessor.from_pretrained(config.model)
            model = AutoModelForImageTextToText.from_pretrained(
                config.model, dtype=getattr(torch, config.dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"'{config.model}' is no vision-language model that transformers loads: {error}"
            ) from error
        self.model: Any = model.eval().to(config.device)
        self.no, self.yes = (self._digit(digit, config.model) for digit in "01")

    def _digit(self, digit: str, name: str) -> int:
        ids = self.processor.tokenizer(digit, add_special_tokens=False)["input_ids"]
        if not ids or ids[-1] == self.processor.tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer of '{name}' has no token for the digit {digit}")
        return int(ids[-1])

    def mark(self, pixels: NDArray[np.uint8], question: str) -> float:
        """Returns the probability that the first token of the answer is 1, against 0."""
        import torch

        images = [Image.fromarray(frame) for frame in pixels]
        inputs = self.processor(text=[self._prompt(len(images), question)], images=images, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0, -1].float()
        return float(torch.sigmoid(logits[self.yes] - logits[self.no]))

    def _prompt(self, n_images: int, question: str) -> str:
        if getattr(self.processor, "chat_template", None):
            content: list[dict[str, str]] = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
            turns = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        token = getattr(self.processor, "image_token", "<image>")
        return f"USER: {' '.join([token] * n_images)} {question} ASSISTANT:"


def objection_of_marks(found: dict[str, float | None], min_follows: float, min_physics: float) -> str:
    """Returns which mark is too low, with both numbers; empty if none is."""
    for name, least in (("follows", min_follows), ("physics", min_physics)):
        mark = found[name]
        if mark is not None and mark < least:
            return f"{name} {mark:.3g} < {least:g}"
    return ""
