"""Running a trained latent-action model over pairs of frames, and loading one.

What becomes of its latents is left to `lam.label` and `lam.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam.config import LAMConfig, TextConfig
from lam.facts import ModelFacts
from lam.model import LatentActionModel, build_model
from lam.pairs import motion
from lam.prepare import prepare, to_map
from lam.text import TextEmbedder
from lam.views import Context
from pyramid.config import from_dict
from pyramid.nn.checkpoint import load_model_files
from pyramid.nn.transfer import on_device, pass_rows

__all__ = ["Rows", "load_model", "pair_context", "run_pairs"]

_ROUNDING = (1 / 255) ** 2 / 12
"""Mean squared error of 8-bit rounding; a change smaller than that cannot be predicted."""


class Rows(NamedTuple):
    """What the model says about P pairs; arrays on the CPU."""

    latent: NDArray[np.float32]
    """float32 [P, N, D], before quantisation."""
    codes: NDArray[np.uint16] | None
    """uint16 [P, N]; None for a continuous bottleneck."""
    error: NDArray[np.float64]
    """float64 [P]: mean squared error of the predicted second frame; intensities in [0, 1], or normalised features."""
    copy_error: NDArray[np.float64]
    """float64 [P]: the same for the first frame in its place."""
    motion: NDArray[np.float32]
    """float32 [P] in [0, 1], see `lam.pairs.motion`."""

    def part(self, first: int, last: int) -> Rows:
        """Returns the rows from ``first`` up to ``last``, exclusive."""
        return Rows(*(None if column is None else column[first:last] for column in self))  # type: ignore[arg-type]

    @property
    def gain(self) -> NDArray[np.float32]:
        """float32 [P]: 1 - error / copy_error; 0 where the frames are equal up to rounding."""
        ratio = self.error / np.maximum(self.copy_error, _ROUNDING)
        return np.where(self.copy_error < _ROUNDING, 0.0, 1 - ratio).astype(np.float32)


def pair_context(config: LAMConfig, gaps_s: Sequence[float], texts: Sequence[str]) -> Context:
    """Returns what a model of this config is told about pairs besides their frames: gap and instruction of each."""
    gaps = torch.tensor(list(gaps_s), dtype=torch.float32)
    return Context(gaps, *_text_model(config.text).embed(texts)) if config.text.text_model else Context(gaps)


@lru_cache(maxsize=1)
def _text_model(config: TextConfig) -> TextEmbedder:
    return TextEmbedder(config)


@torch.inference_mode()
def run_pairs(
    model: LatentActionModel, first: Tensor, second: Tensor, z: Tensor | None = None, context: Context | None = None
) -> Rows:
    """Runs a model in eval mode over pairs, in padded passes of one constant shape.

    Args:
        model: the model, on any device.
        first: uint8 [P, 3, S, S].
        second: uint8 [P, 3, S, S].
        z: float32 [P, N, D] to predict from instead of what the encoder finds.
        context: gap and instruction of each pair, for models that ask for them.
    """
    if not len(first):
        return _no_rows(model)
    parts, size = [], pass_rows(next(model.parameters()).device)
    for start in range(0, len(first), size):
        span = slice(start, start + size)
        own = Context(*(None if part is None else part[span] for part in context or Context()))
        parts.append(_run_batch(model, first[span], second[span], None if z is None else z[span], own))
    found = [part.codes for part in parts if part.codes is not None]
    return Rows(
        np.concatenate([part.latent for part in parts]),
        np.concatenate(found) if found else None,
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.copy_error for part in parts]),
        np.concatenate([part.motion for part in parts]),
    )


def _no_rows(model: LatentActionModel) -> Rows:
    n_tokens, code_dim = model.config.model.n_tokens, model.quantizer.config.dim
    n_positions = n_tokens * model.quantizer.config.codes_per_token
    codes = np.zeros((0, n_positions), np.uint16) if model.quantizer.n_codes else None
    return Rows(np.zeros((0, n_tokens, code_dim), np.float32), codes, np.zeros(0), np.zeros(0), np.zeros(0, np.float32))


def _run_batch(model: LatentActionModel, first: Tensor, second: Tensor, z: Tensor | None, context: Context) -> Rows:
    device = next(model.parameters()).device
    count, size = len(first), pass_rows(device)
    known = Context(*(None if part is None else _padded(part, size).to(device) for part in context))
    pair = (on_device(_padded(frames, size), device) for frames in (first, second))
    frames = prepare(model.config.objectives, *pair)
    a, b = model.look(frames.first), model.look(frames.second)
    tokens = model.tokens(a, b, known)
    quantized = tokens.quantized
    predicted, _ = model.predict(a, quantized.z if z is None else _padded(z, size).to(device), known, tokens.background)
    change = model.target(b) - model.target(a)
    seen = to_map(frames.valid, change.shape[-1])
    error, copy_error = _mean_square(predicted - change, seen), _mean_square(change, seen)
    codes = None if quantized.codes is None else quantized.codes[:count].cpu().numpy().astype(np.uint16)
    return Rows(
        quantized.latent[:count].float().cpu().numpy(),
        codes,
        error[:count].double().cpu().numpy(),
        copy_error[:count].double().cpu().numpy(),
        motion(first, second).numpy(),
    )


def _mean_square(x: Tensor, seen: Tensor | None) -> Tensor:
    if seen is None:
        return x.square().flatten(1).mean(1)
    return (x.square().mean(1, keepdim=True) * seen).flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1e-6)


def _padded(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def load_model(model_dir: str, device: str = "cpu") -> tuple[LatentActionModel, LAMConfig, str]:
    """Loads a trained model in eval mode, its config and the digest of its weights.

    Raises:
        DataError: no complete latent-action model in the folder.
    """
    description, state = load_model_files(model_dir, "lam")
    config = from_dict(LAMConfig, description["config"])
    model = build_model(config, from_dict(ModelFacts, description["extra"].get("facts", {})))
    model.load_state_dict(state, strict=True)
    return model.eval().to(device), config, str(description["weights_sha256"])
