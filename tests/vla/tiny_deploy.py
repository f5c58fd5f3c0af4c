"""A deploy folder made by hand: graphs of a few nodes whose answers a test can compute itself; no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pyramid import files
from pyramid.normalize import Normalizer
from pyramid.types import Embodiment
from vla.deploy.protocol import array_to_npy
from vla.deploy.spec import SYSTEM_1, SYSTEM_1_CONTEXT, SYSTEM_1_STEP, SYSTEM_2, DeploySpec, FileRecord
from vla.text import byte_tokenizer, tokenizer_to_json

SIZE_PX, VIEWS, STATE, STEPS, ACTIONS, TEXT = 8, 2, 3, 4, 2, 12
CENTER, SCALE = np.float32([10.0, -4.0]), np.float32([3.0, 0.5])


def make_deploy(folder: Path, *, single_step: bool = False, rate_hz: float = 10.0) -> Path:
    """Writes a policy whose normalised action is .1 noise + mean pixel / 255 + mean normalised state + text / 1000.

    A single denoising step goes all the way to that action without its noise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = _value("images", TensorProto.UINT8, ["batch", VIEWS, SIZE_PX, SIZE_PX, 3])
    ids, mask = (
        _value("text_ids", TensorProto.INT64, ["batch", TEXT]),
        _value("text_mask", TensorProto.BOOL, ["batch", TEXT]),
    )
    context, seen = (
        _value("context", TensorProto.FLOAT, ["batch", 1, 1]),
        _value("context_mask", TensorProto.BOOL, ["batch", 1]),
    )
    system2 = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "image_axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["level"]),
        helper.make_node("Cast", ["text_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "last"], ["sum"], keepdims=0),
        helper.make_node("Div", ["sum", "thousand"], ["told"]),
        helper.make_node("Add", ["level", "told"], ["flat"]),
        helper.make_node("Reshape", ["flat", "one_token"], ["context"]),
        helper.make_node("Slice", ["text_mask", "zero", "one", "last"], ["context_mask"]),
    ]
    constants = {
        "image_axes": np.int64([1, 2, 3, 4]), "last": np.int64([1]), "zero": np.int64([0]), "one": np.int64([1]),
        "white": np.float32(255), "thousand": np.float32(1000), "one_token": np.int64([-1, 1, 1]),
    }  # fmt: skip
    _save(folder / "system2.onnx", system2, [images, ids, mask], [context, seen], constants)
    noise, state = (
        _value("noise", TensorProto.FLOAT, ["batch", STEPS, ACTIONS]),
        _value("state", TensorProto.FLOAT, ["batch", STATE]),
    )
    system1 = [
        helper.make_node("ReduceMean", ["state", "last"], ["pose"], keepdims=1),
        helper.make_node("Reshape", ["pose", "one_token"], ["pose3"]),
        helper.make_node("Add", ["pose3", "context"], ["target"]),
        helper.make_node("Mul", ["noise", "tenth"], ["small"]),
        helper.make_node("Add", ["small", "target"], ["action"]),
    ]
    out = _value("action", TensorProto.FLOAT, ["batch", STEPS, ACTIONS])
    constants = {"last": np.int64([1]), "one_token": np.int64([-1, 1, 1]), "tenth": np.float32(0.1)}
    _save(folder / "system1.onnx", system1, [context, seen, noise, state], [out], constants)
    graphs = [SYSTEM_1, SYSTEM_2]
    if single_step:
        graphs += [SYSTEM_1_CONTEXT, SYSTEM_1_STEP]
        _save_single_step(folder, context, seen, noise, state)
    (folder / "tokenizer.json").write_text(tokenizer_to_json(byte_tokenizer()))
    body = Embodiment(name="arm", state_dim=STATE, action_dim=ACTIONS, horizon=STEPS, rate_hz=rate_hz)
    spec = DeploySpec(
        embodiment=body,
        n_views=VIEWS,
        image_size_px=SIZE_PX,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
        max_text_tokens=TEXT,
        sample_steps=1,
        state=Normalizer("mean_std", np.float32([1.0, 2.0, 0.5]), np.float32([0.5, 2.0, 1.0])),
        action=Normalizer("min_max", CENTER, SCALE),
        graphs={name: _record(folder, f"{name}.onnx") for name in graphs},
        tokenizer=_record(folder, "tokenizer.json"),
        opset=18,
        other_files={},
        provenance={},
    )
    files.write_json(str(folder / "policy.json"), spec.to_dict())
    return folder


def _save_single_step(folder: Path, context: Any, seen: Any, noise: Any, state: Any) -> None:
    key, value = (_value(name, TensorProto.FLOAT, ["batch", 1, 1]) for name in ("key_0", "value_0"))
    copies = [helper.make_node("Identity", ["context"], [name]) for name in ("key_0", "value_0")]
    _save(folder / "system1_context.onnx", copies, [context, seen], [key, value], {})
    bucket = _value("bucket", TensorProto.INT64, ["batch"])
    step = [
        helper.make_node("ReduceMean", ["state", "last"], ["pose"], keepdims=1),
        helper.make_node("Reshape", ["pose", "one_token"], ["pose3"]),
        helper.make_node("Mean", ["key_0", "value_0"], ["told"]),
        helper.make_node("Add", ["pose3", "told"], ["target"]),
        helper.make_node("Sub", ["target", "noise"], ["velocity"]),
    ]
    out = _value("velocity", TensorProto.FLOAT, ["batch", STEPS, ACTIONS])
    constants = {"last": np.int64([1]), "one_token": np.int64([-1, 1, 1])}
    _save(folder / "system1_step.onnx", step, [noise, bucket, seen, state, key, value], [out], constants)


def expected_action(level: float, state: np.ndarray, noise: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The closed form of what the folder answers, physical units; ``level``: mean pixel, 0 to 255."""
    pose = ((state - [1.0, 2.0, 0.5]) / [0.5, 2.0, 1.0]).mean()
    return (0.1 * noise + level / 255 + pose + ids.sum() / 1000) * SCALE + CENTER


def _value(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, np.ndarray]
) -> None:
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _record(folder: Path, name: str) -> FileRecord:
    return FileRecord(name, (folder / name).stat().st_size, files.sha256_file(str(folder / name)))


class Server:
    """The verb `serve` in a process of its own, on free ports; use as a context manager.

    Args:
        folder: what is served.
        options: of the command.
        python: another interpreter calls the function, since the command needs more than a robot has.
        token: in the environment.
    """

    def __init__(self, folder: Path, *options: str, python: str | None = None, token: str | None = None) -> None:
        free = ["--port", "0", "--http-port", "0", "--threads", "1"]
        command = [sys.executable, "-m", "pyramid.cli", "serve", str(folder), *free]
        if python:
            call = "serve(sys.argv[1], port=0, http_port=0, threads=1)"
            command = [python, "-c", f"import sys; from vla.deploy.serve import serve; {call}", str(folder)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("PYRAMID_TOKEN", None)
        if token:
            environment["PYRAMID_TOKEN"] = token
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, env=environment)
        self.log: list[str] = []
        self.port = self.http_port = 0
        for line in self.process.stderr:
            self.log.append(line)
            if "tcp://" in line:
                self.port = int(line.split("tcp://")[1].split(",")[0].split(":")[1])
                self.http_port = int(line.split("http://")[1].split("/")[0].split(":")[1])
                break
        else:
            raise AssertionError("".join(self.log))
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)


def npy_map(array: np.ndarray) -> dict[str, Any]:
    """An array as it stands in a message, for tests that write messages by hand."""
    return {"__ndarray_class__": True, "as_npy": array_to_npy(array)}
