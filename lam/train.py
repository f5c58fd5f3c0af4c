"""Training of a latent-action model on the clips of shard folders.

Optimiser, resume and saving are `pyramid.training`'s; pairs are `lam.pairs`', the loss is `lam.losses`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lam.bodies import body_terms, windowed
from lam.config import LAMConfig
from lam.flow import FlowTarget
from lam.losses import code_usage, lam_loss, measured_terms, relative_error
from lam.model import LatentActionModel
from lam.pairs import PairBatch, PairSampler
from lam.pictures import contact_sheet
from lam.prepare import focus_of, prepare, to_map
from lam.sources import Sources, find_sources
from lam.views import Context, View
from pyramid.config import resolve, to_dict
from pyramid.rng import seed_of
from pyramid.shards.frames import ClipFrames
from pyramid.training import StepModule, TrainerConfig, TrainResult, plan_only, require_data, train_model

__all__ = ["LAMModule", "build_module", "train_lam"]


class LAMModule(StepModule):
    """A latent-action model with its loss, for the trainer."""

    model: LatentActionModel
    clips: ClipFrames | None = None
    """The training clips, whose decoding is logged."""

    def __init__(self, model: LatentActionModel, config: TrainerConfig) -> None:
        super().__init__(model, config)
        objectives = model.config.objectives
        self.flow = FlowTarget(objectives) if objectives.flow_weight else None

    def loss(self, batch: PairBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the loss of a batch of pairs and what to log; ``generator`` draws windows."""
        model, objectives = self.model, self.model.config.objectives
        frames = prepare(objectives, batch.first, batch.second)
        first, second = model.look(frames.first), model.look(frames.second)
        context, seen = Context(batch.gap_s, batch.text, batch.text_mask), None
        if objectives.window_share:
            seen_first, seen_second = windowed(objectives, frames.first, frames.second, generator)
            seen = View(seen_first), View(seen_second)
        output = model(first, second, context, seen=seen)
        change = model.target(second) - model.target(first)
        focus = to_map(focus_of(objectives, frames, batch.boxes), change.shape[-1])
        terms = lam_loss(output, change, batch.weight, focus) | measured_terms(model, output, batch)
        if batch.body is not None and self.global_step >= objectives.body_start * self.trainer_config.max_steps:
            terms |= body_terms(model, output, first, context, batch.body)
        if self.flow is not None and output.flow is not None:
            flow = self.flow(frames.first, frames.second, change.shape[-1])
            terms["flow"] = objectives.flow_weight * relative_error(output.flow, flow, batch.weight, focus)
        logs: dict[str, Any] = {f"loss_{name}": term.detach() for name, term in terms.items()}
        codes = output.tokens.quantized.codes
        if codes is not None:
            logs |= code_usage(codes, model.quantizer.n_codes)
        if self.clips is not None:
            logs["decoded_per_used"] = self.clips.decoded / max(self.clips.used, 1)
        return torch.stack(list(terms.values())).sum(), {**logs, "motion": batch.motion.mean()}

    def pictures(self, batch: PairBatch) -> dict[str, Tensor]:
        """Returns rows of pictures, a column per pair: see `lam.pictures`."""
        return {"pairs": contact_sheet(self.model, batch)}


def build_module(config: LAMConfig, sources: Sources | None = None) -> LAMModule:
    """Builds the untrained model; its initial weights are a pure function of ``config.trainer.seed``."""
    found = sources or find_sources(config, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.trainer.seed, "lam-init"))
        model = found.build(config)
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
    """Trains a latent-action model on the ``train`` split; no action, state or text is used unless the config asks.

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
    if dry_run and not shards:
        return plan_only(build_module(resolved), None, kind="lam")
    require_data(shards, out or ("" if dry_run else None), what="one or more shard folders")
    clips = ClipFrames.open(
        shards or (), split="train", size_px=resolved.model.image_size_px, cache_mb=resolved.pairs.cache_mb, limit=limit
    )
    sources = find_sources(resolved, clips)
    module = build_module(resolved, sources)
    module.clips, trainer = clips, resolved.trainer
    sampler = PairSampler(
        clips,
        resolved.pairs,
        seed=trainer.seed,
        batch_size=trainer.batch_size,
        signals=sources.signals(clips, resolved),
    )
    if dry_run:
        return plan_only(module, sampler.batch_at, kind="lam")
    inputs = {**clips.digests(), **sources.digests, "limit": str(limit)}
    extra = {"facts": to_dict(sources.facts)}
    return train_model(
        module, sampler.batch_at, kind="lam", out=str(out), config=resolved, inputs=inputs, extra=extra, resume=resume
    )
