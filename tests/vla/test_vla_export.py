import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_policy import TINY, make_bodies

from pyramid.errors import ConfigError, DataError, PyramidError
from vla.deploy import export as export_module
from vla.deploy.bench import bench
from vla.deploy.export import export
from vla.deploy.runtime import PolicyRuntime
from vla.policy import Policy, build_policy

# Half the blocks and steps: the exporter's time grows with both.
SMALL = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, layers=2, sample_steps=2))
FILES = {
    "system1.onnx",
    "system2.onnx",
    "tokenizer.json",
    "parity.json",
    "policy.json",
    "build_engines.sh",
    "Dockerfile",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    build_policy(SMALL, make_bodies(), seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("deploy"))
    return export(checkpoint, out=out, embodiment="arm")


def observation(seed, state_dim=3):
    draw = np.random.default_rng(seed)
    state = {"state": draw.normal(size=state_dim).astype(np.float32)} if state_dim else {}
    images = draw.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "text": "push the cup"[: seed + 1], **state}


def test_graphs_agree_with_torch_on_a_hundred_observations(exported):
    assert exported.observations == 100
    assert set(exported.max_abs_error) == set(exported.graphs) == {"system1", "system2"}
    assert all(0 < error < 1e-5 for error in exported.max_abs_error.values())
    report = json.loads(Path(exported.out, "parity.json").read_text())
    assert report["max_abs_error"] == exported.max_abs_error
    assert {p.name for p in Path(exported.out).iterdir()} == FILES
    assert exported.graphs["system1"]["bytes"] == Path(exported.out, "system1.onnx").stat().st_size
    assert "system2.onnx" in repr(exported)


def test_runtime_answers_as_the_checkpoint_does(checkpoint, exported):
    policy, runtime = Policy.from_pretrained(checkpoint), PolicyRuntime.load(exported.out, threads=1)
    for seed in range(8):
        want = policy.act(observation(seed), embodiment="arm", seed=seed)
        got = runtime.act(observation(seed), seed=seed)
        assert got.dtype == np.float32
        assert np.abs(got - want).max() < 1e-4
    assert not np.allclose(runtime.act(observation(0), seed=1), runtime.act(observation(0), seed=2))


def test_graphs_are_those_of_one_embodiment_with_a_dynamic_batch(exported):
    system1 = onnx.load(Path(exported.out, "system1.onnx"))
    assert [i.name for i in system1.graph.input] == ["context", "context_mask", "noise", "state"]
    assert [i.name for i in system1.graph.output] == ["action"]
    assert system1.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [o.version for o in system1.opset_import if o.domain == ""] == [exported.opset]
    names = [i.name for i in system1.graph.initializer]
    assert not any("human_latent" in name for name in names)
    # The Euler steps are unrolled, yet every weight stands once and the context is projected to keys and values once.
    weights = [onnx.numpy_helper.to_array(i) for i in system1.graph.initializer]
    large = [w for w in weights if w.size >= 24 * 24]
    assert len({(w.shape, w.tobytes()) for w in large}) == len(large)
    head = build_policy(SMALL, make_bodies(), seed=3).head.fold("arm")
    assert sum(w.size for w in large) <= sum(p.numel() for p in head.parameters())
    uses = [name for node in system1.graph.node for name in node.input]
    key = head.dit.blocks[0].attention.key.weight
    assert [uses.count(i.name) for i in system1.graph.initializer if i.name in _equal(system1, key)] == [1]
    text = Path(exported.out, "system1.onnx").read_bytes() + Path(exported.out, "system2.onnx").read_bytes()
    assert b".py" not in text
    assert b"stack_trace" not in text


def _equal(model, weight):
    """Names of the initializers that hold a parameter, as it is or transposed."""
    want = weight.detach().numpy()
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    same = lambda a: a.shape == want.shape and (np.array_equal(a, want) or np.array_equal(a, want.T))  # noqa: E731
    return [name for name, array in arrays.items() if same(array)]


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(checkpoint, exported, tmp_path, hash_seed):
    """Whatever order Python's sets have there."""
    code = "import sys; from vla.deploy.export import export; export(sys.argv[1], out=sys.argv[2], embodiment='arm')"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", code, checkpoint, str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == Path(exported.out, name).read_bytes(), name


@pytest.mark.slow
def test_an_embodiment_without_state_and_weights_beside_the_graph(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "EXTERNAL_BYTES", 1000)
    result = export(
        checkpoint,
        out=str(tmp_path),
        embodiment="human_latent",
        observations=5,
        single_step=True,
        dynamic=("batch", "text"),
    )
    graphs = {"system1", "system2", "system1_context", "system1_step"}
    assert set(result.graphs) == set(result.max_abs_error) == graphs
    assert {p.name for p in tmp_path.iterdir()} == FILES | {f"{g}.onnx" for g in graphs} | {
        f"{g}.onnx.data" for g in graphs
    }
    assert max(result.max_abs_error.values()) < 1e-5
    runtime = PolicyRuntime.load(str(tmp_path), threads=1)
    want = Policy.from_pretrained(checkpoint).act(observation(2, 0), embodiment="human_latent", seed=2)
    assert np.abs(runtime.act(observation(2, 0), seed=2) - want).max() < 1e-4
    # One denoising step after the other comes to the same, with the keys and values of one observation.
    assert np.abs(runtime.chunk(runtime.encode(observation(2, 0)), seed=2) - want).max() < 1e-4
    step = onnx.load(tmp_path / "system1_step.onnx", load_external_data=False)
    assert [i.name for i in step.graph.input] == ["noise", "bucket", "context_mask", "key_0", "value_0"]
    # An open text is not padded: the context is as long as the views and the text's own tokens.
    tokens = len("pus") + 1 + 4
    assert runtime.encode(observation(2, 0)).feed["context"].shape[1] == tokens
    (tmp_path / "system1.onnx.data").write_bytes(b"")
    with pytest.raises(DataError, match=r"system1\.onnx\.data' is changed"):
        PolicyRuntime.load(str(tmp_path))


def test_a_graph_that_differs_is_not_exported(checkpoint, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export_module, "to_onnx", lambda g: onnx.load(Path(exported.out, f"{g.name}.onnx")))
    (tmp_path / "policy.json").write_text("stale")
    with pytest.raises(PyramidError, match=r"differ from PyTorch \(system.*parity.json has the numbers"):
        export(checkpoint, out=str(tmp_path), embodiment="arm", observations=2, max_error=1e-12)
    assert capsys.readouterr() == ("", "export: system2.onnx\nexport: system1.onnx\n")  # said before the long work
    assert not (tmp_path / "policy.json").exists()
    with pytest.raises(ConfigError, match=r"holds no policy.json"):
        PolicyRuntime.load(str(tmp_path))


def test_usage_errors_come_before_work(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="name one of arm, human_latent"):
        export(checkpoint, out=str(tmp_path))
    with pytest.raises(ConfigError, match=r"'amr'.*did you mean 'arm'"):
        export(checkpoint, out=str(tmp_path), embodiment="amr")
    with pytest.raises(ConfigError, match="dynamic takes batch, text or none, got none, text"):
        export(checkpoint, out=str(tmp_path), embodiment="arm", dynamic=("none", "text"))
    with pytest.raises(ConfigError, match="observations >= 1"):
        export(checkpoint, out=str(tmp_path), embodiment="arm", observations=0)
    plan = export(checkpoint, out=str(tmp_path / "new"), embodiment="arm", dry_run=True)
    assert "nothing written" in repr(plan)
    assert not (tmp_path / "new").exists()


def test_the_runtime_needs_neither_torch_nor_transformers(exported):
    code = (
        "import sys, numpy; from vla.deploy.runtime import PolicyRuntime; from vla.deploy.bench import bench;"
        "r = PolicyRuntime.load(sys.argv[1], threads=1);"
        "r.act({'images': numpy.zeros((1, 16, 16, 3), 'uint8'), 'text': 'go', 'state': [0., 0., 0.]});"
        "bench(sys.argv[1], runs=1, warmup=0);"
        "print([m for m in ('torch', 'transformers', 'lightning', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, exported.out], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_runtime_refuses_changed_files_and_bad_observations(exported, tmp_path):
    runtime = PolicyRuntime.load(exported.out, threads=1)
    assert "arm: 4 x 2 actions at 10 Hz" in repr(runtime)
    with pytest.raises(DataError, match="resize_images"):
        runtime.act({**observation(0), "images": np.zeros((1, 20, 20, 3), np.uint8)})
    with pytest.raises(DataError, match="no state"):
        runtime.act(observation(0, 0))
    with pytest.raises(DataError, match=r"not finite in dimensions \[0\]"):
        runtime.act({**observation(0), "state": [np.nan, 0.0, 0.0]})
    for name in FILES:
        (tmp_path / name).write_bytes(Path(exported.out, name).read_bytes())
    data = bytearray((tmp_path / "system1.onnx").read_bytes())
    data[-1] ^= 1
    (tmp_path / "system1.onnx").write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"system1\.onnx' is changed"):
        PolicyRuntime.load(str(tmp_path))
    (tmp_path / "system1.onnx").unlink()
    with pytest.raises(DataError, match=r"system1\.onnx' is missing"):
        PolicyRuntime.load(str(tmp_path))
    with pytest.raises(ConfigError, match="has no FooExecutionProvider"):
        PolicyRuntime.load(exported.out, providers=("FooExecutionProvider",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "has the format 'other/1'"),
        ({"opset": "x"}, "damaged"),
        ({"graphs": {}}, "damaged"),
        (
            {"graphs": {n: {"file": "../x", "bytes": 1, "sha256": ""} for n in ("system1", "system2")}},
            "plain file name",
        ),
        ({"embodiment": {"name": "arm"}}, "damaged"),
    ],
)
def test_a_damaged_description_is_refused(exported, tmp_path, change, message):
    spec = json.loads(Path(exported.out, "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**spec, **change}))
    with pytest.raises(DataError, match=message):
        PolicyRuntime.load(str(tmp_path))


def test_bench_times_the_checkpoint_in_turn(checkpoint, exported):
    result = bench(exported.out, checkpoint=checkpoint, runs=3, warmup=1, threads=1)
    assert set(result.p50_ms) == {"system1", "system2", "end_to_end", "pytorch"}
    assert 0 < result.p50_ms["pytorch"] <= result.p99_ms["pytorch"]
    assert result.max_difference < 1e-4
    for wrong in ({"compiled": True}, {"checkpoint": checkpoint}):
        with pytest.raises(ConfigError, match="so that both get as many"):
            bench(exported.out, **wrong)


def test_bench_times_each_graph_and_the_whole(exported):
    result = bench(exported.out, runs=20, warmup=2, threads=1)
    assert set(result.p50_ms) == set(result.p99_ms) == {"system1", "system2", "end_to_end"}
    assert all(0 < result.p50_ms[name] <= result.p99_ms[name] for name in result.p50_ms)
    assert result.p99_ms["end_to_end"] > result.p50_ms["system1"]
    assert (result.provider, result.threads, result.runs) == ("CPUExecutionProvider", 1, 20)
    assert dataclasses.asdict(result)["provider"]
    with pytest.raises(ConfigError, match="runs >= 1"):
        bench(exported.out, runs=0)
