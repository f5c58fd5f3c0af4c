"""A training step and the sampling of System 1: ours against the published heads' way of doing it.

The published heads hold 32 slots of the largest sizes, gather a slot's weights for every sample of a batch, write
attention out as products and a softmax, and compute the context's keys and values anew in each Euler step. Ours holds
the slots that are used, encodes and decodes embodiment by embodiment with one pass of the transformer between, and
keeps keys and values. Same weights, same noise: the losses and the sampled actions are compared before anything is
timed.

On a GPU at the size of N1.5 in bfloat16, ours compiled and replayed as CUDA graphs for sampling; on a CPU scaled down.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyramid.nn import flow
from pyramid.nn.attention import Attention
from pyramid.nn.embodiment import bucket_sinusoid
from pyramid.table import format_table
from pyramid.types import Embodiment
from vla.action_head import ActionHead, PreparedContext, build_action_head
from vla.config import HeadConfig

SLOTS = 32
N1_5 = {"width": 1536, "layers": 16, "heads": 32, "hidden": 1024, "context": 2048, "length": 296, "batch": 32}
SCALED = {"width": 384, "layers": 8, "heads": 8, "hidden": 256, "context": 512, "length": 96, "batch": 16}


class Gathered(nn.Module):
    """A table of linear layers, one for each slot, whose weights are gathered for every sample."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        spare = SLOTS - len(layers)
        weight = torch.stack([layer.weight.detach().T for layer in layers])
        bias = torch.stack([layer.bias.detach() for layer in layers])
        self.weight = nn.Parameter(torch.cat([weight, torch.randn_like(weight[:1]).expand(spare, -1, -1) * 0.02]))
        self.bias = nn.Parameter(torch.cat([bias, torch.zeros_like(bias[:1]).expand(spare, -1)]))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """Applies its own layer to every sample, float [B, N, in]."""
        return torch.bmm(x, self.weight[ids].to(x.dtype)) + self.bias[ids][:, None].to(x.dtype)


class Published(nn.Module):
    """The same head, run in the published way."""

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self.head = copy.deepcopy(head)
        tables = {"state": head.state_encoder, "decoder": head.action_decoder}
        self.tables = nn.ModuleDict()
        for name, table in tables.items():
            for layer in (0, 2):
                self.tables[f"{name}{layer}"] = Gathered([table.fold(e)[layer] for e in table.embodiments])
        for part in ("embed", "mix", "out"):
            encoder = head.action_encoder
            self.tables[part] = Gathered([getattr(encoder.fold(e), part) for e in encoder.embodiments])
        del self.head.state_encoder, self.head.action_encoder, self.head.action_decoder

    def context(self, features: Tensor) -> Tensor:
        """Returns the context after layer norm and self-attention."""
        x = self.head.context_norm(features)
        for block in self.head.context_mixer.blocks:
            x = x + eager(block.attention, block.attention_norm(x), None)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        return x

    def state(self, state: Tensor, ids: Tensor) -> Tensor:
        """Returns the state token."""
        return self.tables["state2"](torch.relu(self.tables["state0"](state[:, None], ids)), ids)

    def velocity(self, x: Tensor, bucket: Tensor, context: Tensor, token: Tensor, ids: Tensor) -> Tensor:
        """Predicts the velocity."""
        head, steps = self.head, x.shape[1]
        waves = bucket_sinusoid(bucket, head.config.width).to(x.dtype)[:, None].expand(-1, steps, -1)
        inner = nn.functional.silu(self.tables["mix"](torch.cat([self.tables["embed"](x, ids), waves], -1), ids))
        action = self.tables["out"](inner, ids) + head.position[:steps]
        tokens = torch.cat([token, head.future.expand(len(x), -1, -1), action], dim=1)
        time_embedding = nn.functional.silu(head.dit.time_embedding(bucket))
        for block in head.dit.blocks:
            scale, shift = block.modulation(time_embedding)[:, None].chunk(2, dim=-1)
            normed = block.attention_norm(tokens) * (1 + scale) + shift
            tokens = tokens + eager(block.attention, normed, context if block.cross else None)
            tokens = tokens + block.feed_forward(block.feed_forward_norm(tokens))
        shift, scale = head.dit.out_modulation(time_embedding)[:, None].chunk(2, dim=-1)
        out = head.dit.out(head.dit.out_norm(tokens) * (1 + scale) + shift)
        decoded = self.tables["decoder2"](torch.relu(self.tables["decoder0"](out, ids)), ids)
        return decoded[:, -steps:]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the flow-matching loss of a batch."""
        x, target = flow.interpolate(batch["action"], batch["noise"], batch["time"])
        context, token = self.context(batch["context"]), self.state(batch["state"], batch["ids"])
        predicted = self.velocity(x, flow.time_bucket(batch["time"]), context, token, batch["ids"])
        return (predicted - target).square().mean()

    def sample(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the actions of a batch."""
        context, token = self.context(batch["context"]), self.state(batch["state"], batch["ids"])
        steps = self.head.config.sample_steps

        def velocity(x: Tensor, bucket: Tensor) -> Tensor:
            return self.velocity(x, bucket, context, token, batch["ids"])

        return flow.euler_sample(velocity, batch["noise"], steps)


class Ours(nn.Module):
    """Our head over a batch that is grouped by embodiment."""

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self.head = head

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the flow-matching loss of a batch."""
        names = self.head.action_encoder.embodiments
        size = len(batch["ids"])
        rows = [slice(i * size // len(names), (i + 1) * size // len(names)) for i in range(len(names))]
        mask = torch.ones(size, batch["context"].shape[1], dtype=torch.bool, device=batch["ids"].device)
        known = torch.ones_like(batch["action"], dtype=torch.bool)
        x, bucket, target = self.head.noisy(batch["action"], known, batch["noise"], batch["time"])
        told = list(zip(names, rows, strict=True))
        state = torch.cat([self.head.state_token(batch["state"][part], None, name) for name, part in told])
        action = torch.cat([self.head.action_tokens(x[part], bucket[part], name) for name, part in told])
        prepared = self.head.prepare_tokens(batch["context"], mask, state)
        hidden = self.head.trunk(action, bucket, prepared, known.any(-1))
        said = torch.cat([self.head.action_decoder(hidden[part], name) for name, part in told])
        return (said - target).square().mean()

    def prepare(self, part: dict[str, Tensor], name: str) -> PreparedContext:
        """Prepares a group."""
        mask = torch.ones(part["context"].shape[:2], dtype=torch.bool, device=part["context"].device)
        return self.head.prepare(part["context"], mask, part["state"], None, name)

    def sample(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the actions of a batch."""
        return self.head.sample(self.prepare(batch, "body_0"), batch["noise"], "body_0")


def eager(attention: Attention, x: Tensor, context: Tensor | None) -> Tensor:
    """Attention as products and a softmax, with keys and values of the context computed here."""
    seen = x if context is None else context
    projected = (attention.query(x), attention.key(seen), attention.value(seen))
    q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in projected)
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return attention.out((weights @ v).transpose(1, 2).flatten(2))


def timed(run: Callable[[], object], runs: int) -> float:
    """Returns the median seconds of a call, after two that do not count; on a CPU its processor time, all threads'."""
    clock, times = time.perf_counter if torch.cuda.is_available() else time.process_time, []
    for turn in range(runs + 2):
        synchronise()
        start = clock()
        run()
        synchronise()
        times += [clock() - start] if turn > 1 else []
    return statistics.median(times)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def trainer(
    model: nn.Module, batch: dict[str, Tensor], cast: torch.dtype
) -> tuple[Callable[[], None], torch.optim.AdamW]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.95, 0.999), fused=True)

    def step() -> None:
        with torch.autocast(batch["ids"].device.type, dtype=cast, enabled=cast != torch.float32):
            loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def held_bytes(model: nn.Module) -> int:
    """Weights, gradients and two moments of what trains."""
    return sum(p.numel() * p.element_size() * 4 for p in model.parameters())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Returns FLOP/s of a large product."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / timed(lambda: a @ a, 5)


def make_batch(arguments: argparse.Namespace, device: torch.device, bodies: int) -> dict[str, Tensor]:
    draw, size, chunk = torch.Generator().manual_seed(0), arguments.batch, (arguments.batch, 16, 32)
    batch = {
        "context": torch.randn(size, arguments.length, arguments.context, generator=draw),
        "state": torch.randn(size, 64, generator=draw),
        "action": torch.randn(chunk, generator=draw),
        "noise": torch.randn(chunk, generator=draw),
        "time": flow.sample_time(size, draw, rule="n1").clamp(min=0.0),
        "ids": torch.arange(size) * bodies // size,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    defaults = N1_5 if device.type == "cuda" else SCALED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bodies", type=int, default=4, help="embodiments in a batch, and slots that are used")
    parser.add_argument("--runs", type=int, default=5, help="that count, of each way; medians")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    cast = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = make_head(arguments).to(device)
    ways = {"published": Published(head).to(device), "ours": Ours(head)}
    batch = make_batch(arguments, device, arguments.bodies)
    one = {name: tensor[:1] for name, tensor in batch.items()}
    check(ways, batch, one)
    rows = [measure(name, model, batch, arguments.runs, cast) for name, model in ways.items()]
    print(format_table(["way", "step s", "sample s", "weights to optimise MB", "of matmul peak"], rows))
    step, sample = (float(rows[0][i]) / float(rows[1][i]) for i in (1, 2))
    print(f"training step {step:.2f} times faster, sampling {sample:.2f} times faster ({device.type})")


def make_head(arguments: argparse.Namespace) -> ActionHead:
    config = HeadConfig(
        width=arguments.width, layers=arguments.layers, heads=arguments.heads, hidden=arguments.hidden,
        context_layers=4, context_heads=arguments.heads, future_tokens=32, max_horizon=16, time_rule="n1",
    )  # fmt: skip
    sizes = {"state_dim": 64, "action_dim": 32, "horizon": 16, "rate_hz": 10.0}
    bodies = {f"body_{i}": Embodiment(name=f"body_{i}", **sizes) for i in range(arguments.bodies)}
    return build_action_head(config, arguments.context, bodies)


@torch.no_grad()
def check(ways: dict[str, nn.Module], batch: dict[str, Tensor], one: dict[str, Tensor]) -> None:
    """Refuses to time two ways that do not compute the same."""
    losses, samples = [w.loss(batch) for w in ways.values()], [w.sample(one) for w in ways.values()]
    loss, sample = float((losses[0] - losses[1]).abs()), float((samples[0] - samples[1]).abs().max())
    print(f"loss {float(losses[1]):.4f}; the two ways differ by {loss:.1e} in it and {sample:.1e} in actions (float32)")
    assert loss < 1e-3
    assert sample < 1e-2


def measure(name: str, model: nn.Module, batch: dict[str, Tensor], runs: int, cast: torch.dtype) -> list[str]:
    device, one = batch["ids"].device, {key: value[:1] for key, value in batch.items()}
    step = trainer(model, batch, cast)
    seconds = timed(step, runs)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).backward()
    model.zero_grad(set_to_none=True)
    peak = counter.get_total_flops() / seconds / matmul_peak(device, cast)
    inference = copy.deepcopy(model).to(cast).eval()
    given = {key: value.to(cast) if value.is_floating_point() else value for key, value in one.items()}
    sample = inference.sample
    if name == "ours" and device.type == "cuda":
        sample = torch.compile(inference.sample, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        latency = timed(lambda: sample(given), runs * 3)
    return [name, f"{seconds:.4f}", f"{latency:.4f}", f"{held_bytes(model) / 2**20:,.0f}", f"{peak:.0%}"]


if __name__ == "__main__":
    main()
