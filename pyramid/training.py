"""What the three models share in training: the step module, the Lightning trainer, resume, saving.

Batches are a pure function of the step, so resuming is asking for a later step. What a batch holds and what the loss
is, each model says itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pyramid import files
from pyramid.config import provenance
from pyramid.errors import (
    ConfigError,
    DataError,
    InterruptedJobError,
    MissingDependencyError,
    PyramidError,
    raised,
    told,
)
from pyramid.nn.checkpoint import CONFIG_FILE, read_model_config, save_model
from pyramid.nn.sharding import gather, shard
from pyramid.nn.trainer import TrainerConfig, lr_factor, place_of
from pyramid.progress import Progress, format_seconds
from pyramid.rng import seed_here, seed_of, torch_generator

__all__ = [
    "BatchAt",
    "StepJournal",
    "StepModule",
    "TrainResult",
    "TrainerConfig",
    "lr_factor",
    "place_of",
    "plan_only",
    "probe_step_s",
    "require_data",
    "train_model",
]

BatchAt = Callable[[int], Any]


@dataclass(frozen=True)
class TrainResult:
    """What training a model gave."""

    kind: str
    """``lam``, ``idm`` or ``vla``."""
    out: str
    """The model folder."""
    steps: int
    """Optimiser steps done in all."""
    parameters: int
    """Trained and frozen parameters."""
    loss: float | None
    """Last logged loss; None when nothing was trained now."""
    seconds: float
    """Wall time of this run."""
    reused: bool
    """Whether a finished model with this very config and data was found."""
    dry_run: bool = False
    """Whether this is only a plan."""
    notes: tuple[str, ...] = ()
    """What else there is to say, line by line."""

    def __repr__(self) -> str:
        if self.dry_run:
            time_left = f", about {format_seconds(self.seconds)} on this machine" if self.seconds else ""
            plan = f"train {self.kind}: {self.steps} steps, {self.parameters:,} parameters{time_left}; nothing written"
            return "\n  ".join([plan, *self.notes])
        loss = "nothing left to train" if self.loss is None else f"loss {self.loss:.4g}"
        state = "found finished" if self.reused else f"{loss} in {format_seconds(self.seconds)}"
        return f"{self.kind} model: {self.parameters:,} parameters, {self.steps} steps, {state} -> {self.out}"


class StepModule(lightning.LightningModule):
    """A model with its loss; subclasses implement `loss`, and `pictures` if there is something to see."""

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        super().__init__()
        self.model = model
        self.trainer_config = config
        self._pass = (-1, 0)

    def pictures(self, batch: Any) -> dict[str, Tensor]:
        """Returns pictures of a batch for TensorBoard by name, float [3, H, W] in [0, 1]."""
        return {}

    def finished(self) -> nn.Module:
        """Returns what is saved when training is done."""
        return self.model

    def blocks(self) -> Sequence[nn.Module]:
        """Returns the parts whose weights are gathered one after the other where processes share them (FSDP)."""
        return ()

    def configure_model(self) -> None:
        """Deals the weights out to the processes, where they share them."""
        if self.trainer_config.strategy == "fsdp":
            # A weight that never had a gradient has no moments in the checkpoint.
            self.strict_loading = False
            shard(self, self.blocks(), self.device_mesh["data_parallel"])

    @property
    def step_of_pass(self) -> int:
        """Optimiser step that the last pass belongs to."""
        return self._pass[0]

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """Returns the scalar loss and what to log; every random draw comes from ``generator``."""
        raise TypeError(f"{type(self).__name__} does not say what its loss is")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Computes the loss of one step; dropout is re-seeded so that a resumed run is bit-equal."""
        step = self.global_step
        self._pass = (step, self._pass[1] + 1 if self._pass[0] == step else 0)
        key = place_of(step, self._pass[1], self.trainer_config, self.global_rank)
        seed_here(seed_of(self.trainer_config.seed, "dropout", key), self.device)
        loss, logs = self.loss(batch, torch_generator(self.trainer_config.seed, "noise", key))
        if not torch.isfinite(loss):
            raise PyramidError(f"the loss is {loss.item()} at step {step}; lower the learning rate or check the data")
        if self._logged(step):
            self.log_dict({"loss": loss.detach(), **{k: torch.as_tensor(float(v)) for k, v in logs.items()}})
        return loss

    def _logged(self, step: int) -> bool:
        """Whether the logger writes what is said in this pass: for a small model, saying it takes a third of a step."""
        config = self.trainer_config
        return (step + 1) % config.log_every == 0 and self._pass[1] == config.accumulate - 1

    def configure_optimizers(self) -> Any:
        """AdamW over the parameters that train, warm-up, cosine."""
        config = self.trainer_config
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            # One pass over the weights; in mixed precision Lightning clips no gradients for a fused optimiser.
            fused=not config.precision.endswith("-mixed"),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StepJournal(Protocol):
    """Writes down what each step was trained on, so that a resumed run tells the same as an uninterrupted one."""

    def begin(self, step: int, rank: int) -> None:
        """Forgets what this rank wrote of ``step`` and after: training goes on from there."""

    def add(self, step: int, batch: Any) -> None:
        """Takes in a batch of a step that was done."""

    def flush(self) -> None:
        """Writes what was taken in; a checkpoint follows."""


class _Steps(IterableDataset[Any]):
    """Batches from a step on; each worker makes every n-th, and the loader takes turns."""

    def __init__(self, batch_at: BatchAt, config: TrainerConfig) -> None:
        self.batch_at, self.config = batch_at, config
        self.start = self.rank = 0

    def __iter__(self) -> Iterator[Any]:
        config, worker = self.config, get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        passes = range(self.start * config.accumulate, config.max_steps * config.accumulate)[first::stride]
        batches = (self.batch_at(place_of(*divmod(n, config.accumulate), config, self.rank)) for n in passes)
        return told(batches) if worker else batches


class _StepLoader(DataLoader[Any]):
    """Batches from the trainer's current step on, in the order of the steps whatever the number of workers."""

    def __init__(self, module: StepModule, batch_at: BatchAt, workers: int) -> None:
        self._module = module
        super().__init__(_Steps(batch_at, module.trainer_config), batch_size=None, num_workers=workers)

    def __iter__(self) -> Any:
        steps: Any = self.dataset
        steps.start, steps.rank = self._module.global_step, self._module.global_rank
        return raised(super().__iter__())


class _Average(WeightAveraging):
    """A moving average of the weights that is the model in the end, also of a run with no step left to do."""

    def __init__(self, decay: float) -> None:
        # All weights at once, unlike `EMAWeightAveraging`. Buffers (codebooks that are averages themselves, counts) are
        # copied, not averaged.
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Hands the average over again: without a step, Lightning ends the fit but not the training."""
        self.on_train_end(trainer, module)


class _Watch(Callback):
    """Writes the checkpoint to resume from, shows progress and pictures."""

    def __init__(self, path: Path, progress: Progress, every: int, journal: StepJournal | None) -> None:
        self.path, self.progress, self.every, self.journal = path, progress, every, journal
        self.loss = math.nan
        self.passes = 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.journal:
            self.journal.begin(trainer.global_step, trainer.global_rank)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        config, self.passes = module.trainer_config, self.passes + 1
        self.loss = float(outputs["loss"]) * config.accumulate
        if self.journal:
            self.journal.add(module.step_of_pass, batch)
        if self.passes % config.accumulate:
            return
        self.progress.add(amount=config.samples_per_step)
        if trainer.global_step % self.every == 0:
            self._flush()
            trainer.save_checkpoint(self.path)
        if config.images_every and trainer.global_step % config.images_every == 0 and trainer.is_global_zero:
            module.eval()
            with torch.no_grad():
                for name, picture in module.pictures(batch).items():
                    trainer.logger.experiment.add_image(name, picture.clamp(0, 1), trainer.global_step)
            module.train()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_step >= module.trainer_config.max_steps:
            self._flush()

    def _flush(self) -> None:
        if self.journal:
            self.journal.flush()


def train_model(
    module: StepModule,
    batch_at: BatchAt,
    *,
    kind: str,
    out: str,
    config: Any,
    inputs: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
    resume: bool = True,
    workers: int = 0,
    journal: StepJournal | None = None,
    callbacks: Sequence[Callback] = (),
    prepare: Callable[[], None] | None = None,
    announce: Callable[[], None] | None = None,
    fit: bool = True,
) -> TrainResult:
    """Trains a module to the end of its config and writes the model folder ``out``.

    A finished model with the same config and inputs is reused; an unfinished run goes on from its last checkpoint and
    ends bit-equal (on a CPU) to an uninterrupted one.

    Args:
        module: the model and its loss, freshly built from the config's seed.
        batch_at: the batch of a step; a pure function.
        kind: ``lam``, ``idm`` or ``vla``.
        out: the model folder.
        config: the model's whole config; saved with it.
        inputs: digests of what it is trained on, by name.
        extra: plain data saved with the model.
        resume: False starts over.
        workers: processes that make batches; 0 makes them in this one. The number changes nothing but the speed.
        journal: writes down what each step was trained on.
        callbacks: Lightning callbacks that watch; what they change is not resumed.
        prepare: called before any step is done, also when a run goes on; not for a finished model.
        announce: called after it, before the first step of a run, not when one goes on.
        fit: False does no step; only what the module does when training ends is done.

    Raises:
        DataError: ``out`` holds a run with another config or other data.
    """
    source = provenance(config=config, inputs=inputs)
    run = files.digest([kind, source["config"], source["inputs"]])
    parameters = sum(p.numel() for p in module.model.parameters())
    steps = module.trainer_config.max_steps
    if resume and _finished(out, kind) == run:
        return TrainResult(kind, out, steps, parameters, None, 0.0, reused=True)
    start = time.monotonic()
    _claim(Path(out, "lightning"), run, resume)
    loader = _StepLoader(module, batch_at, workers)
    folder = Path(out, "lightning")
    if prepare is not None:
        prepare()
    if announce is not None and not (folder / "last.ckpt").exists():
        announce()
    loss = None
    if fit:
        loss = _fit(module, loader, folder=folder, label=f"train {kind}", journal=journal, callbacks=callbacks)
    else:
        module.on_fit_end()
    module.eval()
    if module.trainer_config.strategy == "fsdp":
        gather(module)
    if module.global_rank:  # every rank has the same model, the first one writes it
        return TrainResult(kind, out, steps, parameters, loss, time.monotonic() - start, reused=False)
    save_model(
        out,
        kind=kind,
        config=source["config"],
        module=module.finished(),
        provenance={**source, "run": run},
        extra=extra,
    )
    return TrainResult(kind, out, steps, parameters, loss, time.monotonic() - start, reused=False)


def _finished(out: str, kind: str) -> str | None:
    """Returns the digest of the run that a complete model folder came from."""
    if not files.exists(files.join(out, CONFIG_FILE)):
        return None
    try:
        return str(read_model_config(out, kind)["provenance"]["run"])
    except (DataError, KeyError, TypeError):
        return None


def _fit(
    module: StepModule,
    loader: DataLoader[Any],
    *,
    folder: Path,
    label: str,
    journal: StepJournal | None,
    callbacks: Sequence[Callback],
) -> float | None:
    config = module.trainer_config
    checkpoint = folder / "last.ckpt"
    if config.threads:
        torch.set_num_threads(config.threads)
    _quiet()
    with Progress(label, config.max_steps, "samples") as progress:
        watch = _Watch(checkpoint, progress, config.checkpoint_every, journal)
        averaging = [_Average(config.ema_decay)] if config.ema_decay else []
        trainer = lightning.Trainer(
            max_steps=config.max_steps,
            accelerator="auto",
            devices=config.devices,
            strategy=_strategy(config),
            accumulate_grad_batches=config.accumulate,
            precision=config.precision,
            gradient_clip_val=config.grad_clip,
            log_every_n_steps=config.log_every,
            # The average first: a checkpoint holds it.
            callbacks=[*averaging, watch, *callbacks],
            logger=_loggers(folder.parent, config),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        found = checkpoint if checkpoint.exists() else None
        if found is not None:
            progress.done = _step_of(found)
        module.train()
        # Lightning answers Ctrl-C by leaving the process.
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            trainer.fit(module, loader, ckpt_path=found, weights_only=True if found is not None else None)
    if trainer.global_step < config.max_steps:
        kept = _step_of(checkpoint) if checkpoint.exists() else 0
        raise InterruptedJobError(
            f"{label}: stopped at step {trainer.global_step}; run the same command again to go on from step {kept}"
        )
    return watch.loss if math.isfinite(watch.loss) else None


def _strategy(config: TrainerConfig) -> Any:
    if config.devices == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.devices, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    # Heads of objectives that a batch has no rows for get no gradient.
    return DDPStrategy(find_unused_parameters=True)


def _loggers(out: Path, config: TrainerConfig) -> list[Any]:
    """Returns TensorBoard's logger, the first, and that of Weights & Biases if it was asked for."""
    found: list[Any] = [TensorBoardLogger(out, name="logs", version="")]
    if config.wandb:
        from lightning.pytorch.loggers import WandbLogger

        try:
            found.append(WandbLogger(project=config.wandb, save_dir=str(out)))
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "trainer.wandb needs wandb, which is not installed: pip install wandb"
            ) from error
    return found


def _step_of(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    except Exception as error:  # What a broken file raises has no common base.
        raise DataError(f"'{checkpoint}' is no checkpoint of this training; start over with --no-resume") from error


def _claim(folder: Path, run: str, resume: bool) -> None:
    """Marks the folder as this run's; refuses one that belongs to another unless told to start over."""
    files.make_dirs(folder)
    mark = folder / "run.json"
    if mark.exists() and resume and files.read_json(mark).get("run") != run:
        raise DataError(
            f"'{folder.parent}' holds a training run with another config or other data; "
            "choose another --out, or start over with --no-resume"
        )
    if not resume or not mark.exists():
        (folder / "last.ckpt").unlink(missing_ok=True)
        files.write_json(mark, {"run": run})


def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def probe_step_s(module: StepModule, batch_at: BatchAt, *, n: int = 3) -> float:
    """Times ``n`` forward and backward passes after one to warm up; returns seconds per step. Writes nothing."""
    if module.trainer_config.threads:
        torch.set_num_threads(module.trainer_config.threads)
    module.train()
    start = 0.0
    for step in range(n + 1):
        if step == 1:
            start = time.perf_counter()
        batch = batch_at(step)
        loss, _ = module.loss(batch, torch_generator(module.trainer_config.seed, "noise", step))
        loss.backward()  # type: ignore[no-untyped-call]
        module.zero_grad()
    return (time.perf_counter() - start) / n


def plan_only(module: StepModule, batch_at: BatchAt | None, *, kind: str) -> TrainResult:
    """Returns what training would do; with data, timed by a probe of three steps."""
    steps = module.trainer_config.max_steps
    seconds = probe_step_s(module, batch_at) * steps if batch_at is not None else 0.0
    parameters = sum(p.numel() for p in module.model.parameters())
    return TrainResult(kind, "", steps, parameters, None, seconds, reused=False, dry_run=True)


def require_data(data: object, out: str | None, *, what: str) -> None:
    """Refuses a training call without its data or without a place for the model."""
    if not data:
        raise ConfigError(f"nothing to train on: name {what} (only --dry-run goes without)")
    if out is None:
        raise ConfigError("say where the model goes: --out DIR")
