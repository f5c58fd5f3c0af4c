"""Training of a latent-action model on the clips of shard folders.

Optimiser, resume and saving are `pyramid.training`'s; pairs are `lam.pairs`', the loss is `lam.losses`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lam.config import LAMConfig
from lam.losses import code_usage, lam_loss
from lam.model import LatentActionModel, build_model
from lam.pairs import PairBatch, PairSampler, as_input
from pyramid.config import resolve
from pyramid.rng import seed_of
from pyramid.shards.frames import ClipFrames
from pyramid.training import StepModule, TrainerConfig, TrainResult, plan_only, require_data, train_model

__all__ = ["LAMModule", "build_module", "train_lam"]


class LAMModule(StepModule):
    """A latent-action model with its loss, for the trainer."""

    model: LatentActionModel

    def __init__(self, model: LatentActionModel, config: TrainerConfig) -> None:
        super().__init__(model, config)

    def loss(self, batch: PairBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the loss of a batch of pairs and what to log; draws nothing from ``generator``."""
        first, second = as_input(batch.first), as_input(batch.second)
        output = self.model(first, second)
        terms = lam_loss(output, first, second, batch.weight)
        logs: dict[str, Any] = {f"loss_{name}": term.detach() for name, term in terms.items()}
        if output.quantized.codes is not None:
            logs |= code_usage(output.quantized.codes, self.model.quantizer.n_codes)
        return torch.stack(list(terms.values())).sum(), {**logs, "motion": batch.motion.mean()}


def build_module(config: LAMConfig) -> LAMModule:
    """Builds the untrained model; its initial weights are a pure function of ``config.trainer.seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.trainer.seed, "lam-init"))
        model = build_model(config.model, config.quantizer, batch_size=config.trainer.batch_size)
    return LAMModule(model, config.trainer)


def train_lam(
    shards: str | Sequence[str] | None = None,
    *,
    out: str | None = None,
    config: str | Path | Mapping[str, Any] | LAMConfig = "lam/tiny",
    resume: bool = True,
    limit: int | None = None,
    dry_run: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Trains a latent-action model on the ``train`` split; no action or text is used.

    Args:
        shards: one or more shard folders.
        out: model folder to write.
        config: preset name, YAML file, mapping or config.
        resume: go on from the last checkpoint, or reuse a finished model of this config and data.
        limit: use the first clips only.
        dry_run: plan and time the training, write nothing; works without shards too.
        **overrides: dotted options on top of the config, such as ``{"trainer.max_steps": 20}``.

    Raises:
        ConfigError: an option that does not exist or is out of range, no shards, or no ``out``.
        DataError: no clip of the split, or none as long as the gap.
    """
    resolved = resolve(LAMConfig, config, **overrides)
    module = build_module(resolved)
    if dry_run and not shards:
        return plan_only(module, None, kind="lam")
    require_data(shards, out or ("" if dry_run else None), what="one or more shard folders")
    clips = ClipFrames.open(
        shards or (), split="train", size_px=resolved.model.image_size_px, cache_mb=resolved.pairs.cache_mb, limit=limit
    )
    trainer = resolved.trainer
    sampler = PairSampler(clips, resolved.pairs, seed=trainer.seed, batch_size=trainer.batch_size)
    if dry_run:
        return plan_only(module, sampler.batch_at, kind="lam")
    inputs = {**clips.digests(), "limit": str(limit)}
    return train_model(
        module, sampler.batch_at, kind="lam", out=str(out), config=resolved, inputs=inputs, resume=resume
    )
