"""The whole way in an environment that has no torch: observation, server, physical action, against PyTorch."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from family_policies import declared_body, family_policy
from tiny_deploy import Server
from tiny_policy import make_bodies

from vla.deploy.client import PolicyClient
from vla.deploy.export import export
from vla.policy import Policy

ROOT = Path(__file__).parents[2]
NEEDED = ("numpy", "onnxruntime", "tokenizers", "pillow", "pyzmq", "msgpack")


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
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "smolvlm"])
def test_a_server_without_torch_answers_as_the_checkpoint_does(python, tmp_path, monkeypatch, kind):
    """With the family's chat, cross-attention to text and images in turn, and actions relative to the state."""
    bodies = {**make_bodies(), "hand": declared_body()}
    family_policy(kind, tmp_path, bodies).save_pretrained(str(tmp_path / "checkpoint"))
    policy = Policy.from_pretrained(str(tmp_path / "checkpoint"))
    done = export(str(tmp_path / "checkpoint"), out=str(tmp_path / "deploy"), embodiment="hand")
    assert done.observations == 100
    assert max(done.max_abs_error.values()) < 1e-4
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    heavy = ("torch", "transformers", "onnx", "jsonargparse")
    absent = f"import importlib.util as u; print([m for m in {heavy} if u.find_spec(m)])"
    assert subprocess.check_output([python, "-c", absent], text=True).strip() == "[]"
    server = Server(tmp_path / "deploy", python=python)
    draw, actions = np.random.default_rng(1), []
    with server, PolicyClient(port=server.port, timeout_s=30) as client:
        for seed in range(8):
            images = draw.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
            state, text = draw.normal(size=9).astype(np.float32), "push the cup"[: seed + 1]
            said = {
                "video": {"head": images[None, :1], "wrist_camera": images[None, 1:]},
                "state": {"wrist": state[None, None, :2], "eef": state[None, None, 2:]},
                "language": {"task": [[text]]},
            }
            parts, _ = client.act(said, options={"seed": seed})
            observation = {"images": images, "text": text, "state": state}
            want = policy.act(observation, embodiment="hand", seed=seed)
            actions.append(np.concatenate([parts[name][0] for name in ("eef", "wrist", "grip")], axis=-1))
            assert actions[-1].shape == want.shape == (4, 9)
            assert np.abs(actions[-1] - want).max() < 1e-4
    assert np.abs(actions[0] - actions[1]).max() > 0.1
    assert sys.executable != python
