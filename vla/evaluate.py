"""Evaluation of a policy on the held-out part of a mixture: how far its actions are from the measured or labelled ones.

This is open loop; whether a robot succeeds is for rollouts to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.rng import torch_generator
from vla.objectives.check import check_embodiments
from vla.objectives.flow import encode_groups
from vla.policy import Policy

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group

__all__ = ["BodyScore", "VLAEvaluation", "evaluate_batches", "evaluate_vla"]


@dataclass(frozen=True, kw_only=True)
class BodyScore:
    """Errors for one embodiment, in the physical units of its actions (latent actions: units of the latent)."""

    samples: int
    """Action chunks compared."""
    mae: float
    """Mean absolute error over all steps and dimensions."""
    mae_per_dim: list[float]
    """The same per action dimension."""
    baseline_mae: float
    """The same for always answering with the mean action of these very samples, which no policy knows beforehand."""
    rmse: float
    """Root of the mean squared error."""
    r2: float
    """Share of the variance explained, mean over dimensions that vary; 0 = as good as the mean, 1 = perfect."""


@dataclass(frozen=True, kw_only=True)
class VLAEvaluation:
    """What a policy is worth on held-out data, open loop."""

    model: str
    """Model folder."""
    mixture: str
    """Mixture file."""
    split: str
    """The split that was measured."""
    bodies: dict[str, BodyScore]
    """Scores by embodiment."""

    def __repr__(self) -> str:
        rows = "".join(
            f"\n  {name}: mean error {s.mae:.4g} (mean action {s.baseline_mae:.4g}), R2 {s.r2:.3f}, {s.samples} chunks"
            for name, s in self.bodies.items()
        )
        return f"vla '{self.model}' on split '{self.split}' of {self.mixture}:{rows}"


def evaluate_vla(
    mixture: str, *, model: str, out: str | None = None, batches: int = 16, batch_size: int = 16, seed: int = 0
) -> VLAEvaluation:
    """Measures a policy on the ``val`` split of a mixture.

    Args:
        mixture: mixture file.
        model: model folder.
        out: folder to write ``vla_evaluation.json`` to; None writes nothing.
        batches: batches of the mixture's own order, >= 1.
        batch_size: samples per batch, >= 1.
        seed: decides the noise that actions are sampled from.

    Raises:
        ConfigError: an option out of range, or an embodiment that the policy does not know.
        DataError: no policy, no held-out clip, or an embodiment with other sizes or another rate than the policy's.
    """
    from pyramid.mixture.batch import open_mixture

    if batches < 1 or batch_size < 1:
        raise ConfigError(f"evaluation needs batches >= 1 and batch_size >= 1, got {batches} and {batch_size}")
    policy = Policy.from_pretrained(model)
    size = policy.config.backbone.image_size_px
    stream = open_mixture(mixture, batch_size=batch_size, image_size=size, split="val")
    check_embodiments(policy.embodiments, stream.embodiments)
    bodies = evaluate_batches(policy, (stream.batch(step) for step in range(batches)), seed=seed)
    result = VLAEvaluation(model=model, mixture=mixture, split="val", bodies=bodies)
    if out is not None:
        files.write_json(files.join(out, "vla_evaluation.json"), result)
    return result


@torch.no_grad()
def evaluate_batches(policy: Policy, batches: Iterable[Sequence[Group]], *, seed: int = 0) -> dict[str, BodyScore]:
    """Compares a policy's actions with those of batches, per embodiment.

    Args:
        policy: in evaluation mode.
        batches: groups with true actions.
        seed: decides the noise that actions are sampled from.

    Raises:
        DataError: no action that a mask keeps.
    """
    found: dict[str, list[tuple[NDArray[np.float32], ...]]] = defaultdict(list)
    for step, batch in enumerate(batches):
        acting = [group for group in batch if group.action.shape[-1]]  # Videos have no actions to compare with.
        for group, encoded in zip(acting, encode_groups(policy, acting) if acting else [], strict=True):
            generator = torch_generator(seed, "evaluate", step, group.embodiment)
            sizes = policy.embodiments[group.embodiment].network
            noise = torch.randn((len(group.action), sizes.horizon, sizes.action_dim), generator=generator)
            prepared = policy.prepare(encoded, group.state, group.state_known, group.embodiment)
            action = policy.sample(prepared, noise.to(group.action), group.embodiment, group.state)
            found[group.embodiment].append(tuple(t.cpu().numpy() for t in (action, group.action, group.mask)))
    if not any(mask.any() for parts in found.values() for *_, mask in parts):
        raise DataError("there is no held-out action to compare with")
    joined = {n: tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for n, parts in sorted(found.items())}
    return {name: _score(*part) for name, part in joined.items() if part[2].any()}


def _score(predicted: NDArray[np.float32], action: NDArray[np.float32], mask: NDArray[np.bool_]) -> BodyScore:
    """Scores actions [N, T, D] of one embodiment."""
    weight = mask.astype(np.float64)
    count = np.maximum(weight.sum((0, 1)), 1)
    true, error = action.astype(np.float64), predicted.astype(np.float64) - action
    mean = (true * weight).sum((0, 1)) / count
    deviation = true - mean
    absolute, squared = ((np.abs(error) * weight).sum((0, 1)), (error**2 * weight).sum((0, 1)))
    spread = (deviation**2 * weight).sum((0, 1))
    # A dimension that stands still up to rounding has no variance to explain.
    varies = spread / count > (1e-6 * (1 + np.abs(mean))) ** 2
    r2 = 1 - squared[varies] / spread[varies]
    return BodyScore(
        samples=int(mask.any((1, 2)).sum()),
        mae=float(absolute.sum() / weight.sum()),
        mae_per_dim=[float(v) for v in absolute / count],
        baseline_mae=float((np.abs(deviation) * weight).sum() / weight.sum()),
        rmse=float(np.sqrt(squared.sum() / weight.sum())),
        r2=float(r2.mean()) if varies.any() else 0.0,
    )
