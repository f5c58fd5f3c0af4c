"""Running a trained latent-action model over pairs of frames, and loading one.

What becomes of its latents is left to `lam.label` and `lam.evaluate`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lam.config import LAMConfig
from lam.model import LatentActionModel, build_model
from lam.pairs import as_input, motion
from pyramid.config import from_dict
from pyramid.nn.checkpoint import load_model_files
from pyramid.nn.transfer import on_device

__all__ = ["Rows", "load_model", "run_pairs"]

_BATCH = 32
"""Every pass has exactly this many rows: kernels may round differently for another shape."""
_ROUNDING = (1 / 255) ** 2 / 12
"""Mean squared error of 8-bit rounding; a change smaller than that cannot be predicted."""


class Rows(NamedTuple):
    """What the model says about P pairs; arrays on the CPU."""

    latent: NDArray[np.float32]
    """float32 [P, N, D], before quantisation."""
    codes: NDArray[np.uint16] | None
    """uint16 [P, N]; None for a continuous bottleneck."""
    error: NDArray[np.float64]
    """float64 [P]: mean squared error of the predicted second frame, intensities in [0, 1]."""
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


@torch.inference_mode()
def run_pairs(model: LatentActionModel, first: Tensor, second: Tensor, z: Tensor | None = None) -> Rows:
    """Runs a model in eval mode over pairs, in padded passes of one constant shape.

    Args:
        model: the model, on any device.
        first: uint8 [P, 3, S, S].
        second: uint8 [P, 3, S, S].
        z: float32 [P, N, D] to predict from instead of what the encoder finds.
    """
    if not len(first):
        return _no_rows(model)
    parts = []
    for start in range(0, len(first), _BATCH):
        span = slice(start, start + _BATCH)
        parts.append(_run_batch(model, first[span], second[span], None if z is None else z[span]))
    found = [part.codes for part in parts if part.codes is not None]
    return Rows(
        np.concatenate([part.latent for part in parts]),
        np.concatenate(found) if found else None,
        np.concatenate([part.error for part in parts]),
        np.concatenate([part.copy_error for part in parts]),
        np.concatenate([part.motion for part in parts]),
    )


def _no_rows(model: LatentActionModel) -> Rows:
    n_tokens, code_dim = model.encoder.shape
    codes = np.zeros((0, n_tokens), np.uint16) if model.quantizer.n_codes else None
    return Rows(np.zeros((0, n_tokens, code_dim), np.float32), codes, np.zeros(0), np.zeros(0), np.zeros(0, np.float32))


def _run_batch(model: LatentActionModel, first: Tensor, second: Tensor, z: Tensor | None) -> Rows:
    device = next(model.parameters()).device
    count = len(first)
    a, b = (as_input(on_device(_padded(frames), device)) for frames in (first, second))
    latent = model.encode(a, b)
    quantized = model.quantizer(latent)
    residual = model.predict(a, quantized.z if z is None else _padded(z).to(device))
    change = b - a
    error = (residual - change).square().flatten(1).mean(1)
    copy_error = change.square().flatten(1).mean(1)
    codes = None if quantized.codes is None else quantized.codes[:count].cpu().numpy().astype(np.uint16)
    return Rows(
        latent[:count].float().cpu().numpy(),
        codes,
        error[:count].double().cpu().numpy(),
        copy_error[:count].double().cpu().numpy(),
        motion(first, second).numpy(),
    )


def _padded(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(_BATCH - len(x), *x.shape[1:])])


def load_model(model_dir: str, device: str = "cpu") -> tuple[LatentActionModel, LAMConfig, str]:
    """Loads a trained model in eval mode, its config and the digest of its weights.

    Raises:
        DataError: no complete latent-action model in the folder.
    """
    description, state = load_model_files(model_dir, "lam")
    config = from_dict(LAMConfig, description["config"])
    model = build_model(config.model, config.quantizer, batch_size=config.trainer.batch_size)
    model.load_state_dict(state, strict=True)
    return model.eval().to(device), config, str(description["weights_sha256"])
