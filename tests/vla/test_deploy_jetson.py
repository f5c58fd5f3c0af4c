"""The script that builds engines, run by a real shell with a trtexec that only notes what it was told; estimates."""

import os
import subprocess

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_deploy import make_deploy
from torch import nn

from pyramid.errors import ConfigError
from vla.deploy.bench import PlanResult, bench
from vla.deploy.graphs import Graph
from vla.deploy.jetson import dockerfile, engines_script
from vla.deploy.plan import CHIPS, estimate, graph_cost


def graphs(*, dynamic=True):
    text = {0: "batch", 1: "text"} if dynamic else {}
    length = {0: "batch", 1: "length"} if dynamic else {}
    batch = {0: "batch"} if dynamic else {}
    images, ids = torch.zeros(2, 1, 16, 16, 3), torch.zeros(2, 5)
    two = Graph("system2", nn.Identity(), (images, ids), ("images", "text_ids"), (), (batch, text), 5)
    one = Graph("system1", nn.Identity(), (torch.zeros(2, 9, 32),), ("context",), (), (length,), 5)
    return [two, one]


def run(folder, *arguments, precision="fp32", dynamic=True, **environment):
    script = folder / "build_engines.sh"
    script.write_text(engines_script(graphs(dynamic=dynamic), precision=precision, max_text_tokens=12))
    tool = folder / "trtexec"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/told\n')
    tool.chmod(0o755)
    command = ["bash", str(script), *arguments]
    variables = {**os.environ, "TRTEXEC": str(tool), **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    told = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    return done, told


def test_every_graph_gets_its_profile_flags_and_the_timing_cache(tmp_path):
    done, told = run(tmp_path, "orin", "fp16", MAX_BATCH="4")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in told] == ["--onnx=system2.onnx", "--onnx=system1.onnx"]
    for line in told:
        assert "--fp16" in line.split()
        assert "--timingCacheFile=engines/orin/timing.cache" in line
    assert "--minShapes=images:1x1x16x16x3,text_ids:1x1" in told[0]
    assert "--optShapes=images:1x1x16x16x3,text_ids:1x12" in told[0]
    assert "--maxShapes=images:4x1x16x16x3,text_ids:4x12" in told[0]
    # Four tokens of views come with whatever text there is.
    assert "--minShapes=context:1x5x32 --optShapes=context:1x16x32 --maxShapes=context:4x16x32" in told[1]
    assert "--saveEngine=engines/orin/system1.fp16.engine" in told[1]


def test_a_fixed_graph_needs_no_profile_and_fp32_no_flag(tmp_path):
    done, told = run(tmp_path, "thor", "fp32", dynamic=False)
    assert done.returncode == 0, done.stderr
    assert len(told) == 2
    assert not any("Shapes" in line or "--fp16" in line for line in told)


@pytest.mark.parametrize(
    ("arguments", "precision", "message"),
    [
        ((), "fp32", "say for which chip: thor or orin"),
        (("nano",), "fp32", "say for which chip"),
        (("orin", "fp8"), "fp8", "Orin (Ampere, compute 8.7) has no fp8"),
        (("thor", "fp8"), "fp32", "export with --precision fp8"),
        (("thor", "nvfp4"), "fp32", "'nvfp4' is none of"),
        (("thor", "fp16"), "int8", "these graphs are int8; export in fp32"),
    ],
)
def test_what_a_chip_or_the_graphs_lack_is_refused_before_anything_is_built(tmp_path, arguments, precision, message):
    done, told = run(tmp_path, *arguments, precision=precision)
    assert (done.returncode, told) == (2, [])
    assert message in done.stderr
    assert not (tmp_path / "engines").exists()


def test_numbers_from_outside_are_checked_and_a_missing_tool_is_named(tmp_path):
    done, told = run(tmp_path, "thor", MAX_BATCH=f'1"; touch {tmp_path}/ran; "')
    assert (done.returncode, told) == (2, [])
    assert not (tmp_path / "ran").exists()
    assert "whole numbers" in done.stderr
    done, _ = run(tmp_path, "thor", TRTEXEC="/nowhere/trtexec")
    assert "no '/nowhere/trtexec'" in done.stderr
    done, told = run(tmp_path, "thor", precision="fp8")
    assert (done.returncode, len(told)) == (0, 2)
    assert all("--stronglyTyped" in line for line in told)


def test_the_dockerfile_takes_every_file_of_the_folder():
    text = dockerfile(["system1.onnx", "system1.onnx.data"])
    assert (
        "policy.json tokenizer.json parity.json build_engines.sh Dockerfile system1.onnx system1.onnx.data /policy/"
        in text
    )


def test_operations_and_bytes_are_counted():
    draw = np.random.default_rng(0)
    weights = {"w": (6, 5), "g": (7, 5), "k": (4, 3, 2, 2)}
    held = [onnx.numpy_helper.from_array(draw.normal(size=s).astype(np.float32), n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Gemm", ["y", "g"], ["z"], transB=1),
        helper.make_node("Gemm", ["y", "g"], ["z2"], transB=1),
        helper.make_node("Conv", ["p", "k"], ["c"], strides=[2, 2]),
    ]
    values = {"x": ["n", 6], "p": [1, 3, 8, 8], "z": ["n", 7], "z2": ["n", 7], "c": [1, 4, 4, 4]}
    made = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in values.items()}
    graph = helper.make_graph(nodes, "g", [made["x"], made["p"]], [made["z"], made["z2"], made["c"]], held)
    cost = graph_cost(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert cost.flops == 2 * (5 * 6 + 7 * 5 + 7 * 5 + 4 * 4 * 4 * 3 * 2 * 2)
    assert cost.read_bytes == 4 * (30 + 35 + 35 + 48)  # read again by the second node that uses it


def test_a_plan_is_an_estimate_for_every_chip(tmp_path):
    folder = str(make_deploy(tmp_path / "x", single_step=True))
    plan = bench(folder, plan=True)
    assert isinstance(plan, PlanResult)
    assert "not measured" in repr(plan)
    assert set(plan.estimated_ms) == set(CHIPS)
    assert plan.estimated_ms == estimate(folder)
    for times in plan.estimated_ms.values():
        assert times["end_to_end"] == times["system1"] + times["system2"]
    with pytest.raises(ConfigError, match=r"holds no policy\.json"):
        bench(str(tmp_path), plan=True)
    # The published pass that a chip's efficiency comes from is what its roofline gives back.
    orin = CHIPS["orin"]
    assert 1.08e9 / (orin.gb_per_s * 1e9) * 1e3 / orin.efficiency == pytest.approx(7.77, rel=0.01)
