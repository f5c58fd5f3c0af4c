"""Measuring a policy on held-out episodes while it trains: action errors in physical units, per embodiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

from pyramid.rng import torch_generator
from vla.evaluate import evaluate_batches
from vla.objectives.total import Objectives
from vla.tuning.config import ValidationConfig

if TYPE_CHECKING:
    from pyramid.mixture.batch import Group, MixtureStream

__all__ = ["Validation"]


class Validation(Callback):
    """Logs, every few steps, ``val/mae_NAME`` and ``val/r2_NAME`` of embodiments, and the loss as ``val/loss...``.

    The batches and the noise are the same each time; what is trained does not depend on it.

    Args:
        stream: the mixture's split ``val``.
        config: how often, how many.
    """

    def __init__(self, stream: MixtureStream, config: ValidationConfig) -> None:
        self.stream, self.config = stream, config
        self._batches: list[list[Group]] | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measures at the end of every so many steps."""
        step = trainer.global_step
        if step % self.config.every or (batch_idx + 1) % module.trainer_config.accumulate:
            return
        found = self.measure(module)
        if trainer.is_global_zero:
            for name, value in found.items():
                trainer.logger.experiment.add_scalar(name, value, step)

    @torch.no_grad()
    def measure(self, module: Any) -> dict[str, float]:
        """Returns what is logged, by name."""
        if self._batches is None:
            self._batches = [self.stream.batch(step) for step in range(self.config.batches)]
        batches = [module.transfer_batch_to_device(batch, module.device, 0) for batch in self._batches]
        policy, objectives, was = module.model, module.objectives, module.training
        module.eval()
        try:
            return _errors(policy, batches) | _losses(policy, objectives, batches)
        finally:
            module.train(was)


def _errors(policy: Any, batches: list[list[Group]]) -> dict[str, float]:
    scores = evaluate_batches(policy, batches)
    return {f"val/{kind}_{name}": getattr(s, kind) for name, s in scores.items() for kind in ("mae", "r2")}


def _losses(policy: Any, objectives: Objectives, batches: list[list[Group]]) -> dict[str, float]:
    every = [objectives.loss(policy, b, torch_generator(0, "validation", n)) for n, b in enumerate(batches)]
    names = {name for _, logs in every for name in logs if name.startswith("loss_") and "/" not in name}
    found = {name: [logs[name] for _, logs in every if name in logs] for name in sorted(names)}
    total = sum(float(loss) for loss, _ in every) / len(every)
    return {"val/loss": total} | {f"val/{name}": sum(values) / len(values) for name, values in found.items()}
