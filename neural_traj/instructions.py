"""What is asked for in a scene: its own instruction, lines of a list, or what a text model makes of them.

Anything that turns an instruction into others plugs in through `Instructor`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.rng import rng, seed_of

MAX_CHARS = 200
_ASK = (
    "A robot arm stands before a scene in which somebody was told: {examples}\n"
    "Another short instruction for the robot, in one sentence:"
)
_EDGES = " \t\r\n\"'`*-.:;,0123456789()"
_SENTENCE_END = re.compile(r"[.!?][\"']?(?:\s|$)")
_LETTER = re.compile(r"[^\W\d_]")


class Instructor(Protocol):
    """Anything that makes instructions."""

    def vary(self, text: str, n: int, seed: int) -> list[str]:
        """Returns up to ``n`` different instructions for a scene.

        Args:
            text: what is done there; empty when unknown.
            n: how many are wanted.
            seed: decides them; the same seed gives the same ones.
        """
        ...


class ListInstructor:
    """Draws from a list of instructions.

    Args:
        lines: instructions.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(dict.fromkeys(lines))

    def vary(self, text: str, n: int, seed: int) -> list[str]:
        """Returns ``n`` lines other than ``text``, in an order of the scene's own."""
        others = [line for line in self.lines if line != text]
        return [others[place] for place in rng(seed, "lines").permutation(len(others))[:n].tolist()]


class ModelInstructor:
    """Has a causal language model of transformers write instructions.

    Args:
        model: model id or folder; only weights in safetensors are read, and no code.
        examples: instructions that show the model what one is, for scenes without one of their own.
        device: torch device.
        max_new_tokens: longest answer.
        temperature: of the sampling, > 0.
    """

    def __init__(
        self,
        model: str,
        examples: Sequence[str] = (),
        *,
        device: str = "cpu",
        max_new_tokens: int = 32,
        temperature: float = 0.8,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self.model: Any = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True).eval().to(device)
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{model}' is no causal language model that transformers can load: {error}") from error
        self.examples, self.max_new_tokens, self.temperature = list(examples), max_new_tokens, temperature

    def vary(self, text: str, n: int, seed: int) -> list[str]:
        """Returns up to ``n`` instructions; it asks at most four times as often."""
        found: list[str] = []
        for attempt in range(4 * n):
            answer = clean_answer(self._answer(text, seed_of(seed, "answer", attempt)))
            if answer and answer.lower() != text.lower() and answer not in found:
                found.append(answer)
            if len(found) == n:
                break
        return found

    def _answer(self, text: str, seed: int) -> str:
        import torch

        shown = [text] if text else self.examples[:8]
        ask = _ASK.format(examples="; ".join(f'"{one}"' for one in shown) or "nothing yet")
        given = self.tokenizer(self._chat(ask), return_tensors="pt").to(self.model.device)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed % 2**63)
            ids = self.model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                do_sample=True,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
            )
        return str(self.tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    def _chat(self, ask: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            return ask
        turns = [{"role": "user", "content": ask}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def clean_answer(answer: str) -> str:
    """Returns the first sentence of an answer as an instruction; empty if it is none."""
    line = next((line for line in answer.splitlines() if _LETTER.search(line)), "")
    line = " ".join(_SENTENCE_END.split(line.lstrip(_EDGES))[0].split()).strip(_EDGES)
    return line if _LETTER.match(line) and line.isprintable() and len(line) <= MAX_CHARS else ""


def read_lines(path: str) -> list[str]:
    """Reads a list of instructions, one in each line; empty lines and those that begin with # are none.

    Raises:
        DataError: no such file, or a line that is no instruction.
    """
    lines = [" ".join(line.split()) for line in files.read_text(path).splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    bad = next((line for line in kept if not (_LETTER.match(line) and line.isprintable() and len(line) <= 500)), None)
    if bad is not None or not kept:
        raise DataError(f"'{path}': {bad[:60]!r} is no instruction" if bad else f"'{path}' holds no instruction")
    return kept


@lru_cache(maxsize=1)
def load_instructor(
    lines: tuple[str, ...], model: str, device: str, max_new_tokens: int, temperature: float, *, weights: str = ""
) -> Instructor | None:
    """Returns who makes instructions: a text model if one is named, else a list if there is one.

    A model is loaded anew when ``weights``, the digest of its files, is another one.
    """
    del weights
    if model:
        options = {"device": device, "max_new_tokens": max_new_tokens, "temperature": temperature}
        return ModelInstructor(model, lines, **options)  # type: ignore[arg-type]
    return ListInstructor(lines) if lines else None
