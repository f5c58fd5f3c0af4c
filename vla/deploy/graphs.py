"""The networks that are exported, and their way into ONNX files that are the same bytes every time.

Which checkpoint is exported, and the proof that it is right, are `vla.deploy.export`'s.

Shapes: B batch (dynamic), V views, H W pixels, T text tokens, L context tokens, C context width, S state dimensions,
N chunk steps, D action dimensions. With a history of H states, these are [B, H, S].
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass
from torch import Tensor, nn

from pyramid.errors import PyramidError
from vla.action_head import ActionHead, PreparedContext
from vla.backbone import Backbone

__all__ = ["OPSET", "Graph", "System1", "System1Context", "System1Step", "System2", "quiet", "to_onnx"]

OPSET = 18
"""Operator set that the exporter writes natively, so that no version conversion is involved."""


class System2(nn.Module):
    """Views and text to context: slow, once per observation."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, text_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Maps uint8 [B, V, H, W, 3], int64 and bool [B, T] to context float32 [B, L, C] and its mask bool [B, L]."""
        context, mask = self.backbone(images, text_ids, text_mask)
        return context, mask


class System1(nn.Module):
    """Context, noise and state to normalised actions after all Euler steps, for one embodiment."""

    def __init__(self, head: ActionHead, embodiment: str) -> None:
        super().__init__()
        self.head = head.fold(embodiment)
        self.embodiment = embodiment

    def forward(self, context: Tensor, context_mask: Tensor, noise: Tensor, state: Tensor | None = None) -> Tensor:
        """Maps float32 [B, L, C], bool [B, L], float32 [B, N, D], float32 [B, S] to float32 [B, N, D]."""
        known = context.new_zeros(context.shape[0], 0) if state is None else state
        prepared = self.head.prepare(context, context_mask, known, None, self.embodiment)
        return self.head.sample(prepared, noise, self.embodiment)


class System1Context(nn.Module):
    """Context to the keys and values of System 1's cross-attention: once per observation."""

    def __init__(self, system1: System1) -> None:
        super().__init__()
        self.head, self.embodiment = system1.head, system1.embodiment

    def forward(self, context: Tensor, context_mask: Tensor) -> tuple[Tensor, ...]:
        """Maps float32 [B, L, C], bool [B, L] to keys and values in turn, a pair for each cross-attention block."""
        nothing = context.new_zeros(context.shape[0], 0)
        prepared = self.head.prepare(context, context_mask, nothing, None, self.embodiment)
        return tuple(part for pair in prepared.key_values for part in pair)


class System1Step(nn.Module):
    """One denoising step: noisy actions to a velocity, for one embodiment."""

    def __init__(self, system1: System1, context_width: int, *, has_state: bool) -> None:
        super().__init__()
        self.head, self.embodiment = system1.head, system1.embodiment
        self.context_width, self.has_state = context_width, has_state

    def forward(self, noise: Tensor, bucket: Tensor, context_mask: Tensor, *others: Tensor) -> Tensor:
        """Maps float32 [B, N, D], int64 [B], bool [B, L], the state if any, keys and values to float32 [B, N, D]."""
        state, parts = (others[0], others[1:]) if self.has_state else (noise.new_zeros(noise.shape[0], 0), others)
        # Of this, only the state's token is used, and so exported.
        blank = noise.new_zeros(noise.shape[0], 1, self.context_width)
        token = self.head.prepare(blank, context_mask[:, :1], state, None, self.embodiment).state
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        return self.head.velocity(noise, bucket, PreparedContext(pairs, context_mask, token), self.embodiment)


@dataclass(frozen=True)
class Graph:
    """A network with what the exporter must know of it."""

    name: str
    """`system1`, `system2`, `system1_context` or `system1_step`."""
    module: nn.Module
    """In evaluation mode, on the CPU, float32."""
    example: tuple[Tensor, ...]
    """Inputs, with a batch of two where the batch is dynamic."""
    inputs: tuple[str, ...]
    """Their names."""
    outputs: tuple[str, ...]
    """Names of the outputs."""
    axes: tuple[dict[int, str], ...]
    """For each input the names of its dynamic axes."""
    text_tokens: int = 0
    """Length of the example's text."""


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Exports a network, checks the result and removes what changes from run to run.

    Raises:
        PyramidError: the exporter or a check failed.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                graph.example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_dynamic_shapes(graph),
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise PyramidError(f"the exporter gave no graph for {graph.name}")
        # The unrolled Euler steps each bring their own (transposed) copy of every weight: keep one.
        DeduplicateInitializersPass(size_limit=2**62)(program.model)
        model = program.model_proto
        _strip(model)
        onnx.checker.check_model(model, full_check=model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF)
    except (
        torch.onnx.errors.OnnxExporterError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as e:
        raise PyramidError(f"{graph.name} cannot be exported to ONNX: {e}") from e
    return model


def _dynamic_shapes(graph: Graph) -> tuple[Any, ...]:
    names = sorted({name for axes in graph.axes for name in axes.values()})
    sizes = {name: torch.export.Dim(name, min=1, max=4096) for name in names}
    shapes = [{axis: sizes[name] for axis, name in axes.items()} for axes in graph.axes]
    kinds = [p.kind for p in inspect.signature(graph.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


def _strip(model: onnx.ModelProto) -> None:
    """Removes stack traces, file names and module paths that the exporter notes on every element."""
    model.producer_version = ""
    model.doc_string = ""
    del model.metadata_props[:]
    _strip_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_items(function.node)
        for node in function.node:
            _sort_attributes(node)


def _strip_graph(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        _strip_items(items)
    for node in graph.node:
        _sort_attributes(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_graph(attribute.g)


def _sort_attributes(node: Any) -> None:
    # Some come out of a set, whose order depends on the process's hash seed.
    ordered = sorted(node.attribute, key=lambda attribute: str(attribute.name))
    del node.attribute[:]
    node.attribute.extend(ordered)


def _strip_items(items: Sequence[Any]) -> None:
    for item in items:
        item.ClearField("doc_string")
        del item.metadata_props[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's chatter (deprecations inside torch, optimiser notes) from the person who exports."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
