"""Policies of every family, exported: chat layouts, text and images looked at in turn, relative actions."""

import numpy as np
import onnx
import pytest
from family_policies import declared_body, family_policy

from vla.deploy.execution import Inpainting
from vla.deploy.export import export
from vla.deploy.runtime import PolicyRuntime


def seen(seed):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "text": "push the cup"[: seed + 1], "state": draw.normal(size=9).astype(np.float32)}


@pytest.mark.parametrize(
    ("kind", "whole"),
    [("qwen3_vl", False), ("qwen3_vl", True), ("smolvlm", True), ("eagle", True)],
)
@pytest.mark.slow  # That the graphs of families are built is tested beside the families.
@pytest.mark.timeout(600)
def test_a_family_answers_from_onnx_as_from_torch(tmp_path, kind, whole):
    """`whole`: with the graphs of single steps and open texts."""
    policy = family_policy(kind, tmp_path, {"hand": declared_body()}).eval()
    policy.save_pretrained(str(tmp_path / "checkpoint"))
    out = str(tmp_path / "deploy")
    dynamic = ("batch", "text") if whole else ("batch",)
    result = export(str(tmp_path / "checkpoint"), out=out, single_step=whole, dynamic=dynamic)
    assert result.observations == 100
    assert all(0 < error < 1e-5 for error in result.max_abs_error.values())
    for name in result.graphs:
        graph = onnx.load(f"{out}/{name}.onnx")
        onnx.checker.check_model(graph, full_check=True)
    runtime = PolicyRuntime.load(out, threads=1)
    for seed in range(4):
        want = policy.act(seen(seed), seed=seed)
        assert np.abs(runtime.act(seen(seed), seed=seed) - want).max() < 1e-4
        # Words and pictures both arrive: other ones give other actions.
        for change in ({"text": "turn"}, {"images": 255 - seen(seed)["images"]}):
            assert np.abs(runtime.act({**seen(seed), **change}, seed=seed) - want).max() > 1e-4
        if whole:
            context = runtime.encode(seen(seed))
            for tie in (None, Inpainting(want[1:], 1), Inpainting(want[1:], 1, rule="published")):
                again = policy.act(seen(seed), seed=seed + 1, tie=tie)
                got = runtime.chunk(context, seen(seed)["state"], seed=seed + 1, tie=tie)
                assert np.abs(got - again).max() < 1e-4
