"""Graphs in fewer bits: what the library makes of a small graph, and what it costs a policy in action units."""

import dataclasses
import json
from pathlib import Path

import drawing
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_policy import TINY

from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, PyramidError
from pyramid.mixture.batch import open_mixture
from vla.deploy.export import export
from vla.deploy.precision import check_precision, reduce_precision
from vla.deploy.runtime import PolicyRuntime, open_session
from vla.policy import build_policy
from vla.processor import read_bodies


def products():
    """Two Gemms that share a weight, as the unrolled Euler steps do, and a MatMul."""
    draw = np.random.default_rng(0)
    arrays = {"w": draw.normal(size=(16, 16)), "b": draw.normal(size=16), "v": draw.normal(size=(16, 4))}
    held = [onnx.numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        helper.make_node("Tanh", ["y"], ["t"]),
        helper.make_node("Gemm", ["t", "w", "b"], ["z"], transB=1),
        helper.make_node("MatMul", ["z", "v"], ["out"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "products", [x], [out], held)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )


@pytest.mark.parametrize(
    ("precision", "calibrated", "share", "sign"),
    [
        ("fp16", False, 0.01, TensorProto.FLOAT16),
        ("int8", False, 0.06, TensorProto.UINT8),
        ("int8", True, 0.06, TensorProto.INT8),
        ("fp8", True, 0.3, TensorProto.FLOAT8E4M3FN),
    ],
)
def test_products_lose_little_and_keep_their_types(tmp_path, precision, calibrated, share, sign):
    model = products()
    before = model.SerializeToString()
    draw = np.random.default_rng(1)
    feeds = [{"x": draw.normal(size=(4, 16)).astype(np.float32)} for _ in range(16)]
    made = reduce_precision(model, precision, feeds if calibrated else None)
    assert model.SerializeToString() == before
    assert sign in {w.data_type for w in made.graph.initializer}
    assert not any(w.data_type == TensorProto.FLOAT and len(w.dims) == 2 for w in made.graph.initializer)
    signed = [onnx.numpy_helper.to_array(w) for w in made.graph.initializer if w.data_type == TensorProto.INT8]
    assert all(np.abs(w.astype(int)).max() <= 64 for w in signed if w.ndim == 2)  # else CPUs without VNNI saturate
    onnx.save(made, tmp_path / "g.onnx")
    session = open_session(str(tmp_path / "g.onnx"), precision=precision)
    assert {i.type for i in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    onnx.save(model, tmp_path / "f.onnx")
    want = open_session(str(tmp_path / "f.onnx")).run(None, feeds[0])[0]
    error = np.abs(session.run(None, feeds[0])[0] - want).mean() / np.abs(want).mean()
    assert 0 < error < share


def test_what_is_not_supported_is_refused_for_a_reason_that_holds():
    with pytest.raises(ConfigError, match="bf16 is not supported: ONNX Runtime's CPU provider has no bfloat16 MatMul"):
        check_precision("bf16", calibrated=True)
    value = helper.make_tensor_value_info("a", TensorProto.BFLOAT16, [2, 2])
    out = helper.make_tensor_value_info("b", TensorProto.BFLOAT16, [2, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with pytest.raises(ConfigError, match="did you mean 'fp16'"):
        check_precision("fp61", calibrated=False)
    with pytest.raises(ConfigError, match="fp8 needs --calibration"):
        check_precision("fp8", calibrated=False)
    with pytest.raises(PyramidError, match="cannot be made int8"):
        reduce_precision(onnx.ModelProto(), "int8", None)


SMALL = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, layers=2, sample_steps=2, context_layers=0))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of fresh weights for an embodiment of drawn shards, and the mixture of them."""
    folder = tmp_path_factory.mktemp("mixture")
    sources = {"arm": {"shards": drawing.write_shards(folder / "arm", [6] * 6, n_val=2), "use": "action", "weight": 1}}
    spec = {"tiers": {"top": {"weight": 1, "sources": sources}}, "horizon": 3}
    path = folder / "mix.yaml"
    path.write_text(dump_yaml(spec))
    stream = open_mixture(str(path), batch_size=4, image_size=16)
    bodies = read_bodies(stream.embodiments, stream.statistics)
    build_policy(SMALL, bodies, seed=3).save_pretrained(str(folder / "policy"))
    return str(folder / "policy"), str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "calibrated"), [("fp32", False), ("fp16", False), ("int8", False), ("int8", True), ("fp8", True)]
)
def test_the_cost_on_held_out_samples_is_in_the_report(trained, tmp_path, precision, calibrated):
    checkpoint, mixture = trained
    options = {"calibration": mixture} if calibrated else {}
    result = export(
        checkpoint, out=str(tmp_path), precision=precision, held_out=mixture, samples=8, observations=10,
        single_step=True, **options,
    )  # fmt: skip
    held = result.held_out
    assert held["samples"] == 8
    limits = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.3, "fp8": 2.0}
    floor = 0 if precision == "fp32" else 1e-6
    runtime = PolicyRuntime.load(str(tmp_path), threads=1)
    unit = float(runtime.spec.action.scale.max())  # of the drawn actions: half their range
    assert floor * unit < held["mean_abs"] <= held["max_abs"] < limits[precision] * unit
    assert abs(held["mae"] - held["mae_pytorch"]) <= held["max_abs"]
    assert (runtime.spec.precision, runtime.spec.held_out) == (precision, held)
    report = json.loads(Path(tmp_path, "parity.json").read_text())
    assert max(report["max_abs_error"].values()) < 1e-5  # proven in fp32 before anything was given up
    if precision != "fp32":
        assert report["reduced"]["precision"] == precision
        assert report["reduced"]["max_abs_error"] == result.max_abs_error
        whole = sum(Path(tmp_path, f"{g}.onnx").stat().st_size for g in result.graphs)
        assert whole == sum(g["bytes"] for g in result.graphs.values())
