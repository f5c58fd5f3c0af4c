"""Training of a policy on a mixture, from the start or from a trained policy.

Optimiser, resume and saving are `pyramid.training`'s, batches `pyramid.mixture`'s, the loss `vla.objectives`'.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyramid import files
from pyramid.config import resolve, to_dict
from pyramid.errors import ConfigError
from pyramid.nn.checkpoint import read_model_config
from pyramid.nn.hub import CARD_FILE, local_folder
from pyramid.progress import say
from pyramid.rng import seed_of
from pyramid.training import StepJournal, StepModule, TrainerConfig, TrainResult, require_data, train_model
from pyramid.types import Split
from vla.card import described, write_card
from vla.config import VLAConfig
from vla.features.fill import FeatureFill
from vla.features.maker import FeatureMaker
from vla.objectives.check import BatchCheck
from vla.objectives.config import ObjectivesConfig
from vla.objectives.total import Objectives
from vla.policy import KIND, Policy, build_policy
from vla.processor import read_bodies
from vla.tuning.initial import Statistics, initial_policy
from vla.tuning.lora import add_lora, merge_lora
from vla.tuning.memory import checkpoint_blocks, compile_blocks
from vla.tuning.preflight import preflight
from vla.tuning.validation import Validation

if TYPE_CHECKING:
    from pyramid.mixture.batch import Batch, Group, MixtureStream

__all__ = ["VLAModule", "build_module", "train_vla"]


class VLAModule(StepModule):
    """A policy with its loss, for the trainer.

    Args:
        model: the policy.
        config: how it is optimised.
        objectives: what it is trained for; None for flow matching alone.
        merge: whether adapters are added to the weights when training is done.
        stream: logs what its batches cost, too: ``decoded_per_used``, frames that all workers of this process decoded
            for each one used so far.
    """

    model: Policy

    def __init__(
        self,
        model: Policy,
        config: TrainerConfig,
        objectives: Objectives | None = None,
        *,
        merge: bool = True,
        stream: MixtureStream | None = None,
    ) -> None:
        super().__init__(model, config)
        self.objectives = objectives or Objectives(ObjectivesConfig(), model)
        self.merge, self.stream = merge, stream

    def loss(self, batch: list[Group], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the loss of a batch, and its terms and means to log."""
        step, part = self._pass
        if step > 0 and part == 0:  # Between two steps; a run that is resumed here does the same.
            self.objectives.update()
        loss, logs = self.objectives.loss(self.model, batch, generator)
        cost = {"decoded_per_used": self.stream.decoded_per_used} if self.stream else {}
        return loss, {**logs, **cost}

    def parts(self) -> dict[str, nn.Module]:
        """Returns what is trained, by the names that a person knows."""
        head = self.model.head
        slots = nn.ModuleList([head.state_encoder, head.action_encoder, head.action_decoder])
        return {"System 2": self.model.backbone, "System 1": head, "of it embodiments": slots} | (
            {"objectives": self.objectives} if any(True for _ in self.objectives.parameters()) else {}
        )

    def blocks(self) -> list[nn.Module]:
        """Returns the language layers of System 2; System 1 projects the context outside of its blocks' calls."""
        return list(self.model.backbone.layers)

    def description(self) -> dict[str, Any]:
        """Returns what is saved with the finished policy."""
        found = self.model.description()
        if self.merge:
            found.pop("adapters", None)
        return found

    def finished(self) -> nn.Module:
        """Returns the policy that is saved."""
        return merge_lora(self.model) if self.merge else self.model

    def transfer_batch_to_device(self, batch: list[Group], device: torch.device, dataloader_idx: int) -> list[Group]:
        """Moves the groups' tensors (Lightning itself refuses frozen dataclasses)."""
        return [_moved(group, device) for group in batch]


def train_vla(
    mixture: str | None = None,
    *,
    out: str | None = None,
    config: str | Path | Mapping[str, Any] | VLAConfig = "vla/tiny",
    init_from: str | None = None,
    statistics: Statistics = "same",
    resume: bool = True,
    dry_run: bool = False,
    workers: int = 0,
    **overrides: Any,
) -> TrainResult:
    """Trains a policy on a mixture of labelled and measured actions, and videos.

    Says before it begins what it will cost: parameters, memory by part, time.

    Args:
        mixture: mixture file; every embodiment in it gets encoders and a decoder of its own.
        out: model folder to write.
        config: preset name, YAML file, mapping or config.
        init_from: model folder to go on from; its embodiments are kept, those of the mixture that are new are added.
        statistics: whose hold for embodiments that both have: ``same`` (they must agree), ``checkpoint``, ``mixture``.
        resume: go on from the last checkpoint, or reuse a finished model of this config and mixture.
        dry_run: plan and time the training, write nothing.
        workers: processes that read batches; 0 reads them in this one. The batches stay the same.
        **overrides: dotted options on top of the config, such as ``{"trainer.max_steps": 20}``.

    Raises:
        ConfigError: an option that does not exist or is out of range, no mixture, no ``out``, an objective or a
            checkpoint that does not fit.
        DataError: a source of the mixture is missing or damaged, or holds what cannot be learned from.
    """
    resolved = resolve(VLAConfig, config, **overrides)
    require_data(mixture, out or ("" if dry_run else None), what="a mixture file")
    stream = open_stream(str(mixture), resolved)
    module = build_module(stream, resolved, init_from=init_from, statistics=statistics)
    features = open_features(stream, module.model, resolved)
    batches = CheckedBatches(stream, module.model.check(require_text=resolved.objectives.require_text))
    if dry_run:
        return _plan(module, batches, features)
    module.model.mixture = described(stream, resolved.trainer, init_from)
    result = train_model(
        module,
        batches,
        kind=KIND,
        out=str(out),
        config=to_dict(resolved),
        inputs={"mixture": stream.digest, **_started(init_from, statistics), **_points(resolved)},
        extra=module.description(),
        resume=resume,
        workers=workers,
        journal=_journal(stream, str(mixture), str(out), resolved.trainer),
        callbacks=_callbacks(str(mixture), resolved),
        prepare=lambda: _prepare(features, resolved.trainer),
        announce=lambda: _announce(module, batches),
    )
    if not module.global_rank and not (result.reused and files.exists(files.join(str(out), CARD_FILE))):
        write_card(module.model, str(out))
    return result


@dataclass(frozen=True)
class CheckedBatches:
    """The batch of a step, refused if a policy could only learn nonsense from it."""

    stream: MixtureStream
    """Where batches come from."""
    check: BatchCheck
    """What they must be."""

    def __call__(self, step: int) -> Batch:
        """Returns the batch of a step."""
        batch = self.stream.batch(step)
        self.check(batch)
        return batch


def build_module(
    stream: MixtureStream, config: VLAConfig, *, init_from: str | None = None, statistics: Statistics = "same"
) -> VLAModule:
    """Builds a policy for a mixture, and what it is trained for.

    Raises:
        ConfigError: an objective or a checkpoint that does not fit, or videos that no objective learns from.
    """
    silent = [name for name, body in stream.embodiments.items() if body.label == "video"]
    if silent and not config.objectives.flare.weight:
        raise ConfigError(
            f"'{silent[0]}' has no actions (use: video), and nothing is learned from videos alone without foreseeing: "
            "set objectives.flare.weight and policy.head.future_tokens, or take its source out of the mixture"
        )
    bodies, seed = read_bodies(stream.embodiments, stream.statistics), config.trainer.seed
    if init_from is None and statistics != "same":
        raise ConfigError(f"--statistics {statistics} goes with --init-from")
    if init_from is None:
        policy = build_policy(config.policy, bodies, seed=seed)
    else:
        policy = initial_policy(init_from, config.policy, bodies, seed=seed, statistics=statistics)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "objectives"))
        if config.tune.lora.rank:
            add_lora(policy, config.tune.lora)
        objectives = Objectives(config.objectives, policy)
    if config.tune.checkpoint_activations:
        checkpoint_blocks(policy)
    if config.tune.compile:
        compile_blocks(policy)
    return VLAModule(policy, config.trainer, objectives, merge=config.tune.lora.merge, stream=stream)


def open_stream(mixture: str, config: VLAConfig, split: Split = "train") -> MixtureStream:
    """Opens a mixture at the sizes that a policy takes."""
    from pyramid.mixture.batch import open_mixture

    size = config.policy.backbone.image_size_px
    stream = open_mixture(mixture, batch_size=config.trainer.batch_size, image_size=size, split=split)
    if split == "train":
        stream.check_run(config.trainer.samples_per_step)
    return stream


def open_features(stream: MixtureStream, policy: Policy, config: VLAConfig) -> FeatureFill | None:
    """Returns the features that are kept of a mixture's frames, and has its batches come with them; None for none.

    Raises:
        ConfigError: the mixture varies its pictures.
    """
    if not config.policy.backbone.cache_features:
        return None
    own = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", own) if torch.cuda.is_available() else torch.device("cpu")
    maker, flare = FeatureMaker(policy, config.trainer.precision, device), config.objectives.flare
    found = FeatureFill(stream, maker, pictures=bool(flare.weight) and flare.target == "qformer")
    stream.kept = found.kept
    return found


def _started(init_from: str | None, statistics: Statistics) -> dict[str, str]:
    """Returns what besides the mixture decides where training begins."""
    if init_from is None:
        return {}
    weights = read_model_config(local_folder(init_from), KIND)["weights_sha256"]
    return {"init_from": str(weights), "statistics": statistics}


def _points(config: VLAConfig) -> dict[str, str]:
    """Returns the digest of the points that a policy begins with; published weights are told by their commit."""
    backbone = config.policy.backbone
    if backbone.kind != "keypoints" or backbone.pretrained is None:
        return {}
    return {"points": str(read_model_config(backbone.pretrained, "idm")["weights_sha256"])}


def _journal(stream: MixtureStream, mixture: str, out: str, config: TrainerConfig) -> StepJournal:
    from pyramid.mixture.drawn import DrawnLog

    return DrawnLog(out, mixture=mixture, digest=stream.data_digest, batch_size=config.samples_per_step)


def _callbacks(mixture: str, config: VLAConfig) -> list[Validation]:
    chosen = config.tune.validation
    return [Validation(open_stream(mixture, config, "val"), chosen)] if chosen.every else []


def _plan(module: VLAModule, batches: CheckedBatches, features: FeatureFill | None) -> TrainResult:
    missing = features.plan(timed=True) if features is not None else None
    found, steps = preflight(module, batches, module.parts(), n=3), module.trainer_config.max_steps
    parameters = sum(p.numel() for p in module.model.parameters())
    lines, total_s = found.lines(), found.total_s
    if features is not None and missing is not None:
        lines, total_s = [*lines, missing.line(features.where)], total_s + missing.seconds
    return TrainResult(KIND, "", steps, parameters, None, total_s, reused=False, dry_run=True, notes=tuple(lines))


def _prepare(features: FeatureFill | None, config: TrainerConfig) -> None:
    """Fills in the features that are missing, in the first of the training's processes."""
    if features is None or int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))):
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    missing = features.plan()
    say(f"train {KIND}: {missing.line(features.where)}")
    features.fill(missing)


def _announce(module: VLAModule, batches: CheckedBatches) -> None:
    """Says what training will cost, on the first of its processes."""
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        for line in preflight(module, batches, module.parts()).lines():
            say(f"train {KIND}: {line}")


def _moved(group: Group, device: torch.device) -> Group:
    tensors = {n: v.to(device, non_blocking=True) for n, v in vars(group).items() if isinstance(v, Tensor)}
    return replace(group, **tensors)  # type: ignore[arg-type]
