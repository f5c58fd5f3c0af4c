"""Training of an inverse dynamics model on the demonstrations of shard folders: clips with measured actions.

Optimiser, resume and saving are `pyramid.training`'s; windows are `idm.data`'s, errors are calibrated by `idm.predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idm.config import IDMConfig
from idm.data import (
    Demonstration,
    WindowGroup,
    WindowSampler,
    fit_normalizers,
    load_demonstrations,
    training_rate,
)
from idm.model import InverseDynamicsModel, as_input, augmented
from idm.predict import calibrate
from idm.windows import segments
from pyramid.config import resolve
from pyramid.normalize import Normalizer
from pyramid.rng import rng, seed_of
from pyramid.shards.frames import ClipFrames
from pyramid.training import StepModule, TrainResult, plan_only, require_data, train_model

__all__ = ["IDMModule", "build_module", "hold_aside", "train_idm"]

_MOST_CALIBRATION_CLIPS = 64
_PLANNED_DIM = 7
"""Action dimension that a plan without data assumes."""


class IDMModule(StepModule):
    """An inverse dynamics model with its loss, for the trainer.

    Args:
        model: the model.
        config: sizes and training.
        finish: called with the model when training ends and before it is saved.
    """

    model: InverseDynamicsModel

    def __init__(
        self,
        model: InverseDynamicsModel,
        config: IDMConfig,
        finish: Callable[[InverseDynamicsModel], None] = lambda model: None,
    ) -> None:
        super().__init__(model, config.trainer)
        self.config, self.finish = config, finish

    def loss(self, batch: list[WindowGroup], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the Huber loss of a batch in normalised units, every window counting alike, and what to log."""
        size = self.config.model
        total, losses = sum(len(group.frames) for group in batch), []
        for group in batch:
            frames = augmented(as_input(group.frames), size.shift_px, size.gain, generator)
            predicted = self.model(frames, group.embodiment)
            error = nn.functional.huber_loss(predicted, group.action, delta=size.huber_delta)
            losses.append(error * (len(group.frames) / total))
        return torch.stack(losses).sum(), {
            f"loss_{group.embodiment}": loss.detach() * total / len(group.frames)
            for group, loss in zip(batch, losses, strict=True)
        }

    def on_fit_end(self) -> None:
        """Calibrates the errors; also when a resumed run had no step left to do."""
        self.model.eval()
        self.finish(self.model)


def build_module(
    config: IDMConfig,
    action_dims: Mapping[str, int],
    finish: Callable[[InverseDynamicsModel], None] = lambda model: None,
) -> IDMModule:
    """Builds the untrained model; its initial weights are a pure function of ``config.trainer.seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.trainer.seed, "idm-init"))
        return IDMModule(InverseDynamicsModel(config, action_dims), config, finish)


def hold_aside(
    demonstrations: Sequence[Demonstration], share: float, seed: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Splits demonstrations into those to train on and those to calibrate with, the same share of each embodiment.

    Where the share comes to less than half a clip, training clips serve for both: their errors are a lower bound.
    """
    aside: set[int] = set()
    for name in sorted({d.embodiment for d in demonstrations}):
        own = [d.clip for d in demonstrations if d.embodiment == name]
        chosen = rng(seed, "calibration", name).permutation(own)[: round(share * len(own))]
        aside |= {int(clip) for clip in chosen}
    kept = [d for d in demonstrations if d.clip not in aside]
    lacking = {d.embodiment for d in demonstrations} - {d.embodiment for d in demonstrations if d.clip in aside}
    return kept, [d for d in demonstrations if d.clip in aside or d.embodiment in lacking]


def train_idm(
    shards: str | Sequence[str] | None = None,
    *,
    out: str | None = None,
    config: str | Path | Mapping[str, Any] | IDMConfig = "idm/tiny",
    resume: bool = True,
    limit: int | None = None,
    dry_run: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Trains an inverse dynamics model on the ``train`` clips that have measured actions.

    Args:
        shards: one or more shard folders.
        out: model folder to write.
        config: preset name, YAML file, mapping or config.
        resume: go on from the last checkpoint, or reuse a finished model of this config and data.
        limit: use the first clips with actions only.
        dry_run: plan and time the training, write nothing; works without shards too.
        **overrides: dotted options on top of the config, such as ``{"trainer.max_steps": 20}``.

    Raises:
        ConfigError: an option that does not exist or is out of range, no shards, no ``out``, or clips of several rates.
        DataError: no clip with actions at the rate that is as long as a window.
    """
    resolved = resolve(IDMConfig, config, **overrides)
    if dry_run and not shards:
        return plan_only(build_module(resolved, {"robot": _PLANNED_DIM}), None, kind="idm")
    require_data(shards, out or ("" if dry_run else None), what="one or more shard folders")
    size, trainer = resolved.model, resolved.trainer
    clips = ClipFrames.open(
        shards or (), split="train", size_px=size.image_size_px, cache_mb=size.cache_mb, limit=limit, with_actions=True
    )
    rate_hz = training_rate(clips.rows, resolved.windows.rate_hz)
    resolved = replace(resolved, windows=replace(resolved.windows, rate_hz=rate_hz))
    kept, aside = hold_aside(
        load_demonstrations(clips, resolved.windows, rate_hz), size.calibration_share, trainer.seed
    )
    normalizers = fit_normalizers(kept)
    sampler = WindowSampler(
        clips, kept, normalizers, resolved.windows, seed=trainer.seed, batch_size=trainer.batch_size
    )
    module = build_module(
        resolved,
        {name: len(normalizer.center) for name, normalizer in normalizers.items()},
        lambda model: _calibrate(model, clips, aside, normalizers, resolved),
    )
    if dry_run:
        return plan_only(module, sampler.batch_at, kind="idm")
    return train_model(
        module,
        sampler.batch_at,
        kind="idm",
        out=str(out),
        config=resolved,
        inputs={**clips.digests(), "limit": str(limit)},
        extra={"embodiments": {name: _description(name, kept, normalizers[name]) for name in normalizers}},
        resume=resume,
    )


def _calibrate(
    model: InverseDynamicsModel,
    clips: ClipFrames,
    demonstrations: Sequence[Demonstration],
    normalizers: Mapping[str, Normalizer],
    config: IDMConfig,
) -> None:
    for name, normalizer in normalizers.items():
        own = [d for d in demonstrations if d.embodiment == name][:_MOST_CALIBRATION_CLIPS]
        seen = (
            (
                clips.frames(d.clip, d.frames),
                normalizer.normalize(d.action),
                segments(d.frames, clips.rows[d.clip]["cuts"] or ()),
            )
            for d in own
        )
        calibrate(model, name, seen, config.windows)


def _description(name: str, demonstrations: Sequence[Demonstration], normalizer: Normalizer) -> dict[str, Any]:
    actions = np.concatenate([d.action[:-1] for d in demonstrations if d.embodiment == name]).astype(np.float64)
    return {
        "action_dim": actions.shape[1],
        "normaliser": normalizer.to_dict(),
        "action_mean": actions.mean(0).tolist(),
        "action_std": actions.std(0).tolist(),
        "demonstrations": sum(d.embodiment == name for d in demonstrations),
    }
