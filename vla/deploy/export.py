"""The verb `export`: a checkpoint becomes two ONNX graphs with proof that they answer as the checkpoint does.

The graphs themselves are made in `vla.deploy.graphs`; the folder's description is `vla.deploy.spec`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyramid import files
from pyramid.config import provenance
from pyramid.errors import ConfigError, PyramidError
from pyramid.nn.checkpoint import WEIGHTS_FILE
from pyramid.progress import say
from vla.deploy.graphs import OPSET, Graph, System1, System1Context, System1Step, System2, to_onnx
from vla.deploy.heldout import calibration_feeds, measure_held_out, read_samples
from vla.deploy.jetson import DOCKER_FILE, ENGINES_FILE, dockerfile, engines_script
from vla.deploy.parity import PARITY_FILE, ParityReport, measure_parity, seeded_observation
from vla.deploy.precision import Feed, check_precision, reduce_precision
from vla.deploy.runtime import PolicyRuntime
from vla.deploy.spec import SPEC_FILE, SYSTEM_1, SYSTEM_1_CONTEXT, SYSTEM_1_STEP, SYSTEM_2, DeploySpec, FileRecord
from vla.policy import Policy
from vla.text import tokenizer_to_json

__all__ = ["ExportResult", "export"]

DYNAMIC = ("batch", "text")
"""Sizes that a graph may leave open; the number of views is the policy's own."""
TOKENIZER_FILE = "tokenizer.json"
EXTERNAL_BYTES = 1_500_000_000
"""Graphs larger than this keep their weights in a file beside them: a protobuf ends at 2 GiB."""


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote."""

    out: str
    """The deploy folder."""
    embodiment: str
    """Whose actions the graphs give."""
    graphs: dict[str, dict[str, object]]
    """Name of the graph -> ``file`` and ``bytes`` (with weights beside it, if any)."""
    max_abs_error: dict[str, float]
    """Name of the graph -> largest absolute difference to PyTorch over all seeded observations."""
    opset: int
    """ONNX operator set."""
    observations: int
    """Seeded observations that were compared."""
    seconds: float = field(compare=False, default=0.0)
    """Wall time."""
    dry_run: bool = False
    """Whether this is only a plan."""
    precision: str = "fp32"
    """Bits of the graphs; the errors are theirs."""
    held_out: dict[str, Any] | None = None
    """Errors in action units on held-out samples, see `vla.deploy.heldout.HeldOutError`; None: not measured."""

    def __repr__(self) -> str:
        if self.dry_run:
            plan = {name: f"about {graph['bytes']:,} bytes" for name, graph in self.graphs.items()}
            return f"export '{self.embodiment}' to {self.out}: {plan}; nothing written"
        size = ", ".join(
            f"{graph['file']} {graph['bytes']:,} bytes (max error {self.max_abs_error[name]:.1e})"
            for name, graph in self.graphs.items()
        )
        held = self.held_out
        real = f"; on {held['samples']} held-out samples {held['mean_abs']:.2g} from PyTorch on average" if held else ""
        return f"exported '{self.embodiment}' ({self.precision}) in {self.seconds:.1f} s: {size}{real} -> {self.out}"


def export(
    checkpoint: str,
    *,
    out: str,
    embodiment: str | None = None,
    single_step: bool = False,
    dynamic: Sequence[str] = ("batch",),
    precision: str = "fp32",
    held_out: str | None = None,
    calibration: str | None = None,
    samples: int = 64,
    observations: int = 100,
    max_error: float = 1e-4,
    seed: int = 0,
    dry_run: bool = False,
) -> ExportResult:
    """Exports a policy for one embodiment as ONNX graphs for System 1 and System 2.

    The folder is complete when policy.json is there: it is removed first and written last. The same checkpoint gives
    the same bytes.

    Args:
        checkpoint: model folder of a policy.
        out: local folder to write.
        embodiment: a declared embodiment; None for the only one.
        single_step: also write System 1 as single denoising steps (two more graphs), for real-time chunking.
        dynamic: sizes that stay open: batch, text; `none` fixes all (batch 1, padded texts).
        precision: fp32, fp16, int8 or fp8; the graphs are first proven in fp32, then given fewer bits.
        held_out: mixture on whose `val` split the error in action units is measured; None measures none.
        calibration: mixture whose `train` split int8 and fp8 are calibrated with; None: int8 as values come.
        samples: samples to measure on and to calibrate with, >= 1.
        observations: seeded observations on which ONNX Runtime is compared with PyTorch, >= 1.
        max_error: largest absolute difference that is let through, in the units of the graph's output.
        seed: decides the observations.
        dry_run: check and plan only.

    Raises:
        ConfigError: the embodiment is not declared, or an option is out of range.
        DataError: the checkpoint is damaged.
        PyramidError: the graphs cannot be made, or differ from PyTorch by more than `max_error`.
    """
    if min(observations, samples) < 1 or files.is_remote(out):
        raise ConfigError(
            "export needs observations >= 1, samples >= 1 and a local folder, got "
            f"{observations}, {samples} and '{out}'"
        )
    check_precision(precision, calibrated=calibration is not None)
    start = time.monotonic()
    policy = Policy.from_pretrained(checkpoint).float()
    name = policy.processor.body(embodiment).embodiment.name
    if single_step and policy.config.head.trunk != "dit":
        raise ConfigError(
            "single denoising steps pass on keys and values, and head.trunk: mlp has none; leave them out"
        )
    graphs = _graphs(policy, name, _dynamic(dynamic), single_step=single_step)
    if dry_run:
        sizes: dict[str, dict[str, object]] = {
            g.name: {"file": f"{g.name}.onnx", "bytes": sum(p.numel() * 4 for p in g.module.parameters())}
            for g in graphs
        }
        return ExportResult(out, name, sizes, {}, OPSET, observations, dry_run=True)
    files.make_dirs(out)
    files.remove(files.join(out, SPEC_FILE))
    written = {graph.name: _write_graph(graph, out) for graph in graphs}
    files.write_text(files.join(out, TOKENIZER_FILE), tokenizer_to_json(policy.processor.tokenizer))
    report = measure_parity(policy, name, graphs, out, observations=observations, seed=seed, limit=max_error)
    files.write_json(files.join(out, PARITY_FILE), report)
    _refuse(report)
    if precision != "fp32":
        tuned: dict[str, list[dict[str, NDArray[Any]]]] = {}
        if calibration is not None:
            say(f"export: calibrating {precision} with samples of '{calibration}'")
            seen = read_samples(calibration, policy, name, split="train", count=samples)
            tuned = calibration_feeds(policy, name, graphs, seen)
        written = {g.name: _reduce(out, written[g.name], precision, tuned.get(g.name)) for g in graphs}
        reduced = measure_parity(
            policy, name, graphs, out, observations=observations, seed=seed, limit=float("inf"), precision=precision
        )
        report = replace(report, reduced={"precision": precision, "max_abs_error": reduced.max_abs_error})
        files.write_json(files.join(out, PARITY_FILE), report)
    tokens = policy.config.backbone.max_text_tokens
    script = engines_script(graphs, precision=precision, max_text_tokens=tokens)
    files.write_text(files.join(out, ENGINES_FILE), script)
    names = [record.file for records in written.values() for record in records]
    files.write_text(files.join(out, DOCKER_FILE), dockerfile(names))
    spec = _spec(policy, name, checkpoint, out, written=written, dynamic=_dynamic(dynamic), precision=precision)
    if held_out is not None:
        say(f"export: measuring on held-out samples of '{held_out}'")
        seen = read_samples(held_out, policy, name, split="val", count=samples)
        measured = measure_held_out(policy, PolicyRuntime.open(spec, out), seen)
        spec = replace(spec, held_out=asdict(measured))
    files.write_json(files.join(out, SPEC_FILE), spec.to_dict())
    errors = report.reduced["max_abs_error"] if report.reduced else report.max_abs_error
    described: dict[str, dict[str, object]] = {
        g: {"file": records[0].file, "bytes": sum(r.bytes for r in records)} for g, records in written.items()
    }
    seconds = time.monotonic() - start
    return ExportResult(
        out, name, described, errors, spec.opset, observations, seconds, precision=precision, held_out=spec.held_out
    )


def _dynamic(names: Sequence[str]) -> set[str]:
    chosen = set(names)
    if chosen - {*DYNAMIC, "none"} or ("none" in chosen and len(chosen) > 1):
        raise ConfigError(f"dynamic takes {', '.join(DYNAMIC)} or none, got {', '.join(names)}")
    return chosen - {"none"}


def _graphs(policy: Policy, embodiment: str, dynamic: Collection[str], *, single_step: bool) -> list[Graph]:
    """Returns the graphs in the order in which they feed each other."""
    trim = "text" in dynamic
    example = seeded_observation(policy, embodiment, 0, batch=2 if "batch" in dynamic else 1, trim=trim)
    system2, system1 = System2(policy.backbone).eval(), System1(policy.head, embodiment).eval()
    has_state = len(example.system1) > 1
    with torch.no_grad():
        context = system2(*example.system2)
    inputs = ("context", "context_mask", "noise", "state")[: 2 + len(example.system1)]
    names = ("images", "text_ids", "text_mask")
    found = [
        _graph(
            SYSTEM_2,
            system2,
            example=example.system2,
            inputs=names,
            outputs=("context", "context_mask"),
            dynamic=dynamic,
        )
    ]
    found.append(
        _graph(
            SYSTEM_1, system1, example=(*context, *example.system1), inputs=inputs, outputs=("action",), dynamic=dynamic
        )
    )
    if single_step:
        prepare = System1Context(system1).eval()
        step = System1Step(system1, context[0].shape[-1], has_state=has_state).eval()
        with torch.no_grad():
            parts = prepare(*context)
        pairs = tuple(f"{kind}_{block}" for block in range(len(parts) // 2) for kind in ("key", "value"))
        taken = ("noise", "bucket", "context_mask", *(("state",) if has_state else ()), *pairs)
        given = example.inputs(SYSTEM_1_STEP, context, parts)
        found.append(
            _graph(SYSTEM_1_CONTEXT, prepare, example=context, inputs=inputs[:2], outputs=pairs, dynamic=dynamic)
        )
        found.append(_graph(SYSTEM_1_STEP, step, example=given, inputs=taken, outputs=("velocity",), dynamic=dynamic))
    return [replace(graph, text_tokens=example.system2[1].shape[1]) for graph in found]


def _graph(
    name: str,
    module: nn.Module,
    *,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic: Collection[str],
) -> Graph:
    """Names the axes that are to be dynamic; the context is as long as views and text, so it changes with the text."""
    lengths = {
        "text_ids": (1, "text"),
        "text_mask": (1, "text"),
        "context": (1, "length"),
        "context_mask": (1, "length"),
    }
    axes = []
    for item in inputs:
        axis, length = lengths.get(item, (2, "length") if item.startswith(("key_", "value_")) else (0, "batch"))
        found = {0: "batch", axis: length}
        axes.append({a: n for a, n in found.items() if n in dynamic or (n == "length" and "text" in dynamic)})
    return Graph(name, module, example, inputs, outputs, tuple(axes))


def _reduce(out: str, records: list[FileRecord], precision: str, feeds: Sequence[Feed] | None) -> list[FileRecord]:
    """Replaces a graph by one in fewer bits."""
    say(f"export: {records[0].file} in {precision}")
    if len(records) > 1:
        raise PyramidError(f"{records[0].file} is too large to be given fewer bits here; have TensorRT do it")
    model = reduce_precision(onnx.load(files.join(out, records[0].file)), precision, feeds)
    return _save(model, records[0].file, out)


def _write_graph(graph: Graph, out: str) -> list[FileRecord]:
    """Writes a graph, and its weights beside it when they are many; returns the files, the graph first."""
    say(f"export: {graph.name}.onnx")
    return _save(to_onnx(graph), f"{graph.name}.onnx", out)


def _save(model: onnx.ModelProto, name: str, out: str) -> list[FileRecord]:
    if model.ByteSize() < EXTERNAL_BYTES:
        files.write_bytes(files.join(out, name), model.SerializeToString(deterministic=True))
        return [_record(out, name)]
    weights = f"{name}.data"
    files.remove(files.join(out, weights))  # the library appends to what it finds
    onnx.external_data_helper.convert_model_to_external_data(model, location=weights, size_threshold=1024)
    onnx.external_data_helper.write_external_data_tensors(model, out)
    files.write_bytes(files.join(out, name), model.SerializeToString(deterministic=True))
    return [_record(out, name), _record(out, weights)]


def _refuse(report: ParityReport) -> None:
    over = {graph: error for graph, error in report.max_abs_error.items() if not error <= report.limit}
    if over:
        worst = ", ".join(f"{graph} by {error:.2e}" for graph, error in over.items())
        raise PyramidError(
            f"the exported graphs differ from PyTorch ({worst}; allowed {report.limit:.0e}), so no {SPEC_FILE} was "
            f"written; {PARITY_FILE} has the numbers"
        )


def _spec(
    policy: Policy,
    name: str,
    checkpoint: str,
    out: str,
    *,
    written: dict[str, list[FileRecord]],
    dynamic: Collection[str],
    precision: str,
) -> DeploySpec:
    config, body = policy.config, policy.processor.body(name)
    beside = [_record(out, name) for name in (PARITY_FILE, ENGINES_FILE, DOCKER_FILE)]
    extra = {r.file: r for r in (*(r for records in written.values() for r in records[1:]), *beside)}
    return DeploySpec(
        embodiment=body.embodiment,
        n_views=config.backbone.n_views,
        image_size_px=config.backbone.image_size_px,
        image_mean=policy.backbone.spec.image_mean,
        image_std=policy.backbone.spec.image_std,
        max_text_tokens=config.backbone.max_text_tokens,
        sample_steps=config.head.sample_steps,
        state=body.state,
        action=body.action,
        graphs={graph: records[0] for graph, records in written.items()},
        tokenizer=_record(out, TOKENIZER_FILE),
        opset=19 if precision == "fp8" else OPSET,
        precision=precision,
        dynamic=tuple(sorted(dynamic)),
        other_files=extra,
        provenance=provenance(
            config=config, inputs={"weights": files.sha256_file(files.join(checkpoint, WEIGHTS_FILE))}
        ),
    )


def _record(out: str, name: str) -> FileRecord:
    path = Path(out, name)
    return FileRecord(name, path.stat().st_size, files.sha256_file(path))
