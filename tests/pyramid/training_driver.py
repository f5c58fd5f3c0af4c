"""A small training run in forked processes, stopped at chosen steps; prints JSON. Run by `test_training`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pyramid import files
from pyramid.errors import InterruptedJobError, PyramidError
from pyramid.rng import torch_generator
from pyramid.training import StepModule, TrainerConfig, TrainResult, train_model

STEPS = 12


class Curve(StepModule):
    """Learns a noisy curve, with dropout, so that every kind of randomness counts."""

    def loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        noise = 0.1 * torch.randn(y.shape, generator=generator)
        loss = (self.model(x) - y - noise).square().mean()
        return loss, {"loss_again": loss.detach()}


class Watched(Curve):
    """Keeps the loss of every pass."""

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        super().__init__(model, config)
        self.seen: list[float] = []

    def loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().loss(batch, generator)
        self.seen.append(float(loss.detach()))
        return loss, logs


def logged(out: str, *, accumulate: int) -> list[float]:
    """Trains, and returns the losses of all passes in their order."""
    config = TrainerConfig(max_steps=STEPS, log_every=4, batch_size=8, warmup_steps=2, accumulate=accumulate)
    module = Watched(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)), config)
    train_model(module, batch_of, kind="lam", out=out, config=config, inputs={"data": "digest"})
    return module.seen


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(8, 4, generator=torch_generator(0, "data", step))
    return x, x.sum(1, keepdim=True).sin()


def run(
    out: str,
    *,
    stop_at: int | None = None,
    stop: Callable[[], None] = lambda: None,
    seed: int = 0,
    data: str = "digest",
    resume: bool = True,
    ema_decay: float = 0.0,
) -> TrainResult:
    shape = {"max_steps": STEPS, "checkpoint_every": 3, "warmup_steps": 2, "log_every": 4, "batch_size": 8}
    config = TrainerConfig(**shape, seed=seed, ema_decay=ema_decay)

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        if step == stop_at:
            stop()
        return batch_of(step)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    module = Curve(model, config)
    return train_model(module, batch_at, kind="lam", out=out, config=config, inputs={"data": data}, resume=resume)


def _child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        except InterruptedJobError:
            code = 130
        except PyramidError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill() -> None:
    os.kill(os.getpid(), 9)


def _kill_at_rename(number: int) -> None:
    seen = 0

    def hook(event: str, _arguments: object) -> None:
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen == number:
                _kill()

    sys.addaudithook(hook)


def main(root: Path) -> None:
    whole = str(root / "whole")
    found = {"whole": _child(lambda: run(whole)), "runs": []}
    reference = files.sha256_file(f"{whole}/model.safetensors")
    stops = [(f"step {step}", lambda out, s=step: run(out, stop_at=s, stop=_kill)) for step in (0, 2, 7, 11)]
    stops += [(f"rename {n}", lambda out, n=n: (_kill_at_rename(n), run(out))) for n in range(1, 4)]
    for name, stopped in stops:
        out = str(root / name.replace(" ", "-"))
        code = _child(lambda stopped=stopped, out=out: stopped(out))
        finished = os.path.exists(f"{out}/config.json")
        again = _child(lambda out=out: run(out))
        equal = files.sha256_file(f"{out}/model.safetensors") == reference
        found["runs"].append({"name": name, "killed": code, "finished": finished, "again": again, "equal": equal})
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
