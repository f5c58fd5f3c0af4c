"""Estimates of an exported policy's latency on chips that are not at hand, from its operations and its bytes.

A roofline: ``max(operations / peak, bytes / bandwidth) / efficiency``. The efficiency is what the published latencies
of GR00T's engines leave of the same roofline on that chip. These are estimates; `vla.deploy.bench` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyramid import files
from pyramid.errors import DataError
from vla.deploy.spec import SYSTEM_1, SYSTEM_2, read_spec

if TYPE_CHECKING:
    import onnx

__all__ = ["CHIPS", "Chip", "GraphCost", "estimate", "graph_cost"]


@dataclass(frozen=True)
class Chip:
    """A chip's published peaks, and the share of its roofline that published engines reach."""

    tflops: float
    """Dense fp16 operations, 10^12 per second, from data sheets."""
    gb_per_s: float
    """Memory bandwidth, 10^9 bytes per second, from data sheets."""
    efficiency: float
    """Roofline time divided by published time, of one pass of GR00T's action transformer in TensorRT fp16."""


CHIPS = {
    # N1.5's 16 layers, .54 B weights: 1.08 GB a pass; 7.77 ms on Orin, 5.46 ms on Thor (trtexec, published).
    "orin": Chip(42.5, 204.8, 5.27 / 7.77),
    "thor": Chip(259.0, 273.0, 3.96 / 5.46),
    # N1.6's 32 layers, 1.08 B weights, 4 passes: 16 ms on an RTX 4090, 10 ms on an H100 (published).
    "rtx_4090": Chip(165.0, 1008.0, 8.57 / 16.0),
    "h100": Chip(989.0, 3350.0, 2.58 / 10.0),
}
"""Chips by name. Peaks are facts of data sheets; weights of the transformers are counts of their published sizes."""


@dataclass(frozen=True)
class GraphCost:
    """What one run of a graph takes, batch 1."""

    flops: int
    """Operations of matrix products and convolutions."""
    read_bytes: int
    """Bytes of weights read, counted again for every node that uses them."""


def estimate(folder: str) -> dict[str, dict[str, float]]:
    """Estimates milliseconds per chip and graph in fp16, batch 1; `end_to_end` is the sum of System 2 and System 1.

    Raises:
        ConfigError: no policy in the folder.
        DataError: a graph is damaged.
    """
    import onnx

    spec = read_spec(folder)
    costs = {}
    for name, record in spec.graphs.items():
        try:
            model = onnx.load(files.join(folder, record.file), load_external_data=False)
            costs[name] = graph_cost(model)
        except Exception as error:  # the library's errors share no base class
            raise DataError(f"'{record.file}' cannot be counted: {error}") from error
    found = {}
    for chip, peak in CHIPS.items():
        times = {name: _roofline_ms(cost, peak, spec.precision) for name, cost in costs.items()}
        found[chip] = {**times, "end_to_end": times[SYSTEM_2] + times[SYSTEM_1]}
    return found


def graph_cost(model: onnx.ModelProto) -> GraphCost:
    """Counts a graph's operations and bytes; sizes that are open count as 1."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {v.name: _dims(v) for v in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)}
    sizes = {}
    for weight in inferred.graph.initializer:
        shapes[weight.name] = list(weight.dims)
        sizes[weight.name] = math.prod(weight.dims) * _item_bytes(weight)
    flops = read = 0
    for node in inferred.graph.node:
        read += sum(sizes.get(name, 0) for name in node.input)
        if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "Conv") and node.output[0] in shapes:
            flops += 2 * math.prod(shapes[node.output[0]]) * _depth(node, shapes)
    return GraphCost(flops, read)


def _depth(node: Any, shapes: dict[str, list[int]]) -> int:
    """Returns how many products each number of the output sums."""
    first, second = (shapes.get(name, []) for name in node.input[:2])
    if node.op_type == "Conv":
        return math.prod(second[1:])
    turned = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return first[0 if turned else -1] if first else (second[-2] if len(second) > 1 else 0)


def _dims(value: Any) -> list[int]:
    return [int(d.dim_value) if d.HasField("dim_value") else 1 for d in value.type.tensor_type.shape.dim]


def _item_bytes(weight: Any) -> int:
    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(weight.data_type).itemsize)


def _roofline_ms(cost: GraphCost, chip: Chip, precision: str) -> float:
    # Engines of an fp32 graph are built in fp16: half its bytes.
    bytes_read = cost.read_bytes / (2 if precision == "fp32" else 1)
    seconds = max(cost.flops / (chip.tflops * 1e12), bytes_read / (chip.gb_per_s * 1e9))
    return 1e3 * seconds / chip.efficiency
