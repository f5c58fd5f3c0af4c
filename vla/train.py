"""Training of a policy on a mixture.

Optimiser, resume and saving are `pyramid.training`'s, batches `pyramid.mixture`'s, the loss `vla.losses`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyramid.config import resolve, to_dict
from pyramid.training import StepModule, TrainerConfig, TrainResult, plan_only, require_data, train_model
from vla.config import VLAConfig
from vla.losses import batch_loss
from vla.policy import KIND, Policy, build_policy
from vla.processor import read_bodies

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group, MixtureStream

__all__ = ["VLAModule", "train_vla"]


class VLAModule(StepModule):
    """A policy with its loss, for the trainer; with ``stream``, what its batches cost is logged, too."""

    model: Policy

    def __init__(self, model: Policy, config: TrainerConfig, stream: MixtureStream | None = None) -> None:
        super().__init__(model, config)
        self.stream = stream

    def loss(self, batch: list[Group], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the flow-matching loss of a batch; to log, its means per source and embodiment, and frames decoded.

        ``decoded_per_used``: frames that were decoded for each one used so far, by all workers of this process.
        """
        loss, logs = batch_loss(self.model, batch, generator)
        cost = {"decoded_per_used": self.stream.decoded_per_used} if self.stream else {}
        return loss, {**logs, **cost}

    def transfer_batch_to_device(self, batch: list[Group], device: torch.device, dataloader_idx: int) -> list[Group]:
        """Moves the groups' tensors (Lightning itself refuses frozen dataclasses)."""
        return [_moved(group, device) for group in batch]


def train_vla(
    mixture: str | None = None,
    *,
    out: str | None = None,
    config: str | Path | Mapping[str, Any] | VLAConfig = "vla/tiny",
    resume: bool = True,
    dry_run: bool = False,
    workers: int = 0,
    **overrides: Any,
) -> TrainResult:
    """Trains a policy on a mixture of labelled and measured actions.

    Args:
        mixture: mixture file; every embodiment in it gets encoders and a decoder of its own.
        out: model folder to write.
        config: preset name, YAML file, mapping or config.
        resume: go on from the last checkpoint, or reuse a finished model of this config and mixture.
        dry_run: plan and time the training, write nothing.
        workers: processes that read batches; 0 reads them in this one. The batches stay the same.
        **overrides: dotted options on top of the config, such as ``{"trainer.max_steps": 20}``.

    Raises:
        ConfigError: an option that does not exist or is out of range, no mixture, or no ``out``.
        DataError: a source of the mixture is missing or damaged.
    """
    resolved = resolve(VLAConfig, config, **overrides)
    require_data(mixture, out or ("" if dry_run else None), what="a mixture file")
    stream = open_stream(str(mixture), resolved)
    bodies = read_bodies(stream.embodiments, stream.statistics)
    policy = build_policy(resolved.policy, bodies, seed=resolved.trainer.seed)
    module = VLAModule(policy, resolved.trainer, stream)
    if dry_run:
        return plan_only(module, stream.batch, kind=KIND)
    from pyramid.mixture.drawn import DrawnLog

    return train_model(
        module,
        stream.batch,
        kind=KIND,
        out=str(out),
        config=to_dict(resolved),
        inputs={"mixture": stream.digest},
        extra=policy.description(),
        resume=resume,
        workers=workers,
        journal=DrawnLog(
            str(out), mixture=str(mixture), digest=stream.data_digest, batch_size=resolved.trainer.samples_per_step
        ),
    )


def _moved(group: Group, device: torch.device) -> Group:
    tensors = {n: v.to(device, non_blocking=True) for n, v in vars(group).items() if isinstance(v, Tensor)}
    return replace(group, **tensors)  # type: ignore[arg-type]


def open_stream(mixture: str, config: VLAConfig) -> MixtureStream:
    """Opens a mixture at the sizes that a policy takes."""
    from pyramid.mixture.batch import open_mixture

    backbone = config.policy.backbone
    stream = open_mixture(mixture, batch_size=config.trainer.batch_size, image_size=backbone.image_size_px)
    stream.check_run(config.trainer.samples_per_step)
    return stream
