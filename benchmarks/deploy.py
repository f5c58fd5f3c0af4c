"""System 1 in ONNX Runtime on the CPU, against the denoising loop of the published GR00T heads in PyTorch.

Same sizes, same weights, same noise, same threads, batch 1; the largest difference of the actions is printed. The
published loop (public code of N1 to N1.7) projects the context to keys and values anew in each Euler step and gathers
the weights of one of 32 embodiments for every linear layer around the transformer. Beside it our own head in PyTorch,
which does neither, and with ``--compile`` the same through torch.compile.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pyramid.nn.embodiment import FoldedActionEncoder, bucket_sinusoid
from pyramid.nn.flow import euler_sample
from pyramid.table import format_table
from pyramid.types import Embodiment
from vla.action_head import PreparedContext, build_action_head
from vla.config import HeadConfig
from vla.deploy.graphs import Graph, System1, to_onnx
from vla.deploy.precision import reduce_precision
from vla.deploy.runtime import open_session

SLOTS = 32
NAME = "robot"
INPUTS = ("context", "context_mask", "noise", "state")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384, help="of the transformer; the releases have 1,536")
    parser.add_argument("--layers", type=int, default=8, help="of the transformer; the releases have 16 or 32")
    parser.add_argument("--context", type=int, default=512, help="width of the context; the releases have 2,048")
    parser.add_argument("--tokens", type=int, default=300, help="of the context; N1.5 has about 300 with one view")
    parser.add_argument("--dim", type=int, default=32, help="of the actions; N1.5 pads to 32")
    parser.add_argument("--horizon", type=int, default=16, help="steps of a chunk")
    parser.add_argument("--threads", type=int, default=1, help="on both sides")
    parser.add_argument("--runs", type=int, default=9, help="of each way, in turn; medians count")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    body = Embodiment(name=NAME, state_dim=64, action_dim=options.dim, horizon=options.horizon, rate_hz=10.0)
    config = HeadConfig(
        width=options.width, layers=options.layers, heads=options.width // 48, hidden=options.width * 2 // 3
    )
    head = build_action_head(config, options.context, {NAME: body}).eval()
    context = torch.randn(1, options.tokens, options.context)
    inputs = (context, torch.ones(1, options.tokens, dtype=torch.bool), torch.randn(1, body.horizon, body.action_dim))
    inputs = (*inputs, torch.randn(1, 64))
    system1 = System1(head, NAME).eval()
    published = PublishedLoop(system1)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "published loop, PyTorch": lambda: published(*inputs).numpy(),
        "ours, PyTorch": lambda: system1(*inputs).numpy(),
    }
    if options.compile:
        compiled = torch.compile(system1)
        ways["ours, torch.compile"] = lambda: compiled(*inputs).numpy()
    graph = Graph("system1", system1, inputs, INPUTS, ("action",), ({},) * 4)
    model = to_onnx(graph)
    feed = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "int8"):
            made = model if precision == "fp32" else reduce_precision(model, precision, None)
            path = Path(folder, f"{precision}.onnx")
            path.write_bytes(made.SerializeToString())
            session = open_session(str(path), threads=options.threads)
            ways[f"ONNX Runtime, {precision}"] = lambda session=session: session.run(None, feed)[0]
        report(ways, options.runs)


def report(ways: dict[str, Callable[[], np.ndarray]], runs: int) -> None:
    answers = {name: way() for name, way in ways.items()}
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    first = next(iter(ways))
    base = statistics.median(times[first])
    rows = []
    for name, spent in times.items():
        median = statistics.median(spent)
        error = float(np.abs(answers[name] - answers[first]).max())
        rows.append([name, f"{1e3 * median:.1f}", f"{base / median:.2f}", f"{error:.1e}"])
    print(format_table(["System 1", "CPU ms (median)", "times the published pace", "largest difference"], rows))


class CatLinear(nn.Module):
    """A linear layer for each of 32 embodiments, one of which is gathered per call, as the published heads have it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SLOTS, linear.in_features, linear.out_features) * 0.02)
        self.bias = nn.Parameter(torch.zeros(SLOTS, linear.out_features))
        with torch.no_grad():
            self.weight[7], self.bias[7] = linear.weight.T, linear.bias

    def forward(self, x: Tensor, slot: Tensor) -> Tensor:
        """Maps float [1, T, in] to float [1, T, out]."""
        return torch.bmm(x, self.weight[slot]) + self.bias[slot][:, None, :]


class PublishedLoop(nn.Module):
    """Our head's weights in the published order of computation."""

    def __init__(self, system1: System1) -> None:
        super().__init__()
        self.head = system1.head
        encoder = self.head.action_encoder.fold(NAME)
        assert isinstance(encoder, FoldedActionEncoder)
        self.encoder = nn.ModuleList(CatLinear(m) for m in (encoder.embed, encoder.mix, encoder.out))
        decoder = self.head.action_decoder.fold(NAME)
        self.decoder = nn.ModuleList(CatLinear(m) for m in decoder if isinstance(m, nn.Linear))
        self.slot = torch.tensor([7])

    def forward(self, context: Tensor, mask: Tensor, noise: Tensor, state: Tensor) -> Tensor:
        """Takes and gives what `System1` does."""
        head, steps = self.head, noise.shape[1]
        mixed = head.context_mixer(head.context_norm(context), mask)
        token = head.prepare(context[:, :1], mask[:, :1], state, None, NAME).state

        def velocity(x: Tensor, bucket: Tensor) -> Tensor:
            embedded = self.encoder[0](x, self.slot)
            wave = bucket_sinusoid(bucket, embedded.shape[-1])[:, None].expand(-1, steps, -1)
            told = nn.functional.silu(self.encoder[1](torch.cat([embedded, wave], -1), self.slot))
            action = self.encoder[2](told, self.slot) + head.position[:steps]
            prepared = PreparedContext(head.dit.project_context(mixed), mask, token)  # anew in each step
            tokens = torch.cat([prepared.state, action], dim=1)
            out = head.dit(tokens, bucket, prepared.key_values, prepared.mask)[:, -steps:]
            return self.decoder[1](torch.relu(self.decoder[0](out, self.slot)), self.slot)

        return euler_sample(velocity, noise, head.config.sample_steps)


if __name__ == "__main__":
    main()
