"""Graphs in fewer bits: fp16, int8 and fp8, from the fp32 graph that was proven equal to PyTorch.

What the fewer bits cost is measured in `vla.deploy.heldout`; nothing here says that they are good enough.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import TopologicalSortPass

from pyramid.errors import ConfigError, PyramidError, nearest
from vla.deploy.graphs import quiet

__all__ = ["PRECISIONS", "Feed", "check_precision", "reduce_precision"]

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
_BF16 = (
    "bf16 is not supported: ONNX Runtime's CPU provider has no bfloat16 MatMul, so that nothing could be measured; "
    "let TensorRT take bf16 from the fp32 graph (build_engines.sh, PRECISION=bf16)"
)
_QUANTISED = ["MatMul", "Gemm"]
Feed = Mapping[str, NDArray[Any]]


def check_precision(precision: str, *, calibrated: bool) -> None:
    """Refuses a precision that cannot be made.

    Raises:
        ConfigError: it is unknown, not supported, or lacks calibration data.
    """
    if precision == "bf16":
        raise ConfigError(_BF16)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision must be {', '.join(PRECISIONS)}, got '{precision}'{nearest(precision, PRECISIONS)}"
        )
    if precision == "fp8" and not calibrated:
        raise ConfigError("fp8 needs --calibration, a mixture whose samples tell the range of every tensor")


def reduce_precision(model: onnx.ModelProto, precision: str, feeds: Iterable[Feed] | None) -> onnx.ModelProto:
    """Returns a graph in fewer bits; its inputs and outputs keep their types.

    Args:
        model: a float32 graph below 2 GiB.
        precision: fp16: weights and arithmetic, but inputs and outputs. int8: matrix products; weights by channel,
            activations as they come, or by `feeds` where given, then with weights of 7 bits. fp8: E4M3 around matrix
            products, as TensorRT takes it.
        feeds: inputs of real observations, to calibrate with.

    Raises:
        PyramidError: the library cannot.
    """
    try:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # the quantiser prints, and stdout is for results
            if precision == "fp16":
                return _half(model)
            return _quantised(model, feeds, fp8=precision == "fp8")
    except Exception as error:  # the libraries raise whatever comes
        text = " ".join(str(error).split())[:300]
        raise PyramidError(f"the graph cannot be made {precision} ({type(error).__name__}: {text})") from error


def _half(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = onnx_ir.serde.deserialize_model(convert_float_to_float16(model, keep_io_types=True))
    TopologicalSortPass()(half)  # the casts of the inputs come after their first use
    return _checked(onnx_ir.serde.serialize_model(half))


def _quantised(model: onnx.ModelProto, feeds: Iterable[Feed] | None, *, fp8: bool) -> onnx.ModelProto:
    """Quantises products so that no CPU saturates them.

    x86-64 without VNNI adds two products of an unsigned activation and a signed weight in 16 bits, where 8 bits of
    weight overflow (ONNX Runtime, "Quantize ONNX models": when and why `reduce_range`). Unsigned weights take another
    way; TensorRT, which calibrated graphs are for, takes signed ones alone, so that those keep 7 bits.
    """
    from onnxruntime import quantization as q

    source = _plain_products(model)
    if fp8:
        source = onnx.version_converter.convert_version(source, 19)  # the first with this type
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "graph.onnx"))
        if feeds is None:
            q.quantize_dynamic(
                source, path, per_channel=True, weight_type=q.QuantType.QUInt8, op_types_to_quantize=_QUANTISED
            )
        else:
            kind = q.QuantType.QFLOAT8E4M3FN if fp8 else q.QuantType.QInt8
            method = q.CalibrationMethod.Distribution if fp8 else q.CalibrationMethod.MinMax
            q.quantize_static(
                source,
                path,
                _reader(feeds),
                quant_format=q.QuantFormat.QDQ,
                per_channel=not fp8,
                reduce_range=not fp8,
                activation_type=kind,
                weight_type=kind,
                op_types_to_quantize=_QUANTISED,
                calibrate_method=method,
            )
        return _checked(onnx.load(path))


def _reader(feeds: Iterable[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            feed = next(self._rest, None)
            return None if feed is None else dict(feed)

    return Reader()


def _plain_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites ``x W^T + b`` as MatMul and Add: the quantiser turns weights that several such nodes share twice."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    weights = {w.name: w for w in out.graph.initializer}
    turned: dict[str, Any] = {}
    nodes = []
    for node in out.graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        plain = options.get("alpha", 1) == options.get("beta", 1) == 1 and not options.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights or len(node.input) != 3:
            nodes.append(node)
            continue
        name = node.input[1]
        if options.get("transB", 0):
            name = f"{name}_turned"
            if name not in turned:
                weight = np.ascontiguousarray(onnx.numpy_helper.to_array(weights[node.input[1]]).T)
                turned[name] = onnx.numpy_helper.from_array(weight, name)
        product = f"{node.output[0]}_product"
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=product))
        nodes.append(
            onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.output[0]}_sum")
        )
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [w for w in (*out.graph.initializer, *turned.values()) if w.name in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    return out


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    # The producer's domains of operators are outside the checker's knowledge only where they are not ONNX's own.
    onnx.checker.check_model(model)
    return model
