"""The whole way in an environment that has no torch: observation, server, physical action, against PyTorch."""

import dataclasses
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from tiny_deploy import Server
from tiny_policy import TINY, make_bodies

from vla.deploy.client import PolicyClient
from vla.deploy.export import export
from vla.policy import Policy, build_policy

ROOT = Path(__file__).parents[2]
NEEDED = ("numpy", "onnxruntime", "tokenizers", "pillow", "pyzmq", "msgpack")
SMALL = dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, layers=2, sample_steps=2))


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment with what a robot needs and nothing else."""
    folder = tmp_path_factory.mktemp("robot")
    venv.create(folder, with_pip=True)
    found = str(folder / "bin" / "python")
    command = [found, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    done = subprocess.run([*command, *NEEDED], capture_output=True, text=True, check=False, timeout=280)
    if done.returncode:
        pytest.skip(f"pip cannot install here: {done.stderr.strip().splitlines()[-1:]}")
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_without_torch_answers_as_the_checkpoint_does(python, tmp_path, monkeypatch):
    build_policy(SMALL, make_bodies(), seed=3).save_pretrained(str(tmp_path / "checkpoint"))
    policy = Policy.from_pretrained(str(tmp_path / "checkpoint"))
    export(str(tmp_path / "checkpoint"), out=str(tmp_path / "deploy"), embodiment="arm", observations=5)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    heavy = ("torch", "transformers", "onnx", "jsonargparse")
    absent = f"import importlib.util as u; print([m for m in {heavy} if u.find_spec(m)])"
    assert subprocess.check_output([python, "-c", absent], text=True).strip() == "[]"
    server = Server(tmp_path / "deploy", python=python)
    draw = np.random.default_rng(1)
    with server, PolicyClient(port=server.port, timeout_s=30) as client:
        for seed in range(8):
            images = draw.integers(0, 256, (1, 1, 16, 16, 3), dtype=np.uint8)
            state, text = draw.normal(size=3).astype(np.float32), "push the cup"[: seed + 1]
            said = {
                "video": {"camera_0": images},
                "state": {"state": state[None, None]},
                "language": {"task": [[text]]},
            }
            action, _ = client.act(said, options={"seed": seed})
            observation = {"images": images[0], "text": text, "state": state}
            want = policy.act(observation, embodiment="arm", seed=seed)
            assert np.abs(action["action"][0] - want).max() < 1e-4
    assert sys.executable != python
