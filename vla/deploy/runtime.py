"""Plays an exported policy with NumPy, ONNX Runtime and tokenizers: what runs on a robot, without torch.

It asks for one observation at a time; serving it over a network is left to others.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyramid import files
from pyramid.errors import ConfigError, DataError
from pyramid.types import Embodiment
from vla.deploy.spec import SYSTEM_1, SYSTEM_2, DeploySpec, read_spec
from vla.observation import initial_noise, read_observation
from vla.text import encode_texts, tokenizer_from_json

__all__ = ["PolicyRuntime"]

_MAX_TOKENIZER_BYTES = 64 * 2**20


class PolicyRuntime:
    """An exported policy, ready to act. Make one with `PolicyRuntime.load`."""

    def __init__(
        self, spec: DeploySpec, tokenizer: Tokenizer, sessions: Mapping[str, onnxruntime.InferenceSession]
    ) -> None:
        self.spec = spec
        self.seconds: dict[str, float] = {}
        """Wall time of each graph in the last `act`."""
        self._tokenizer = tokenizer
        self._sessions = dict(sessions)

    @classmethod
    def load(
        cls, folder: str, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> PolicyRuntime:
        """Opens a deploy folder after checking every file's digest.

        Args:
            folder: what `export` wrote; local.
            threads: threads within an operator; 0 leaves ONNX Runtime's own choice.
            providers: ONNX Runtime execution providers, the preferred one first.

        Raises:
            ConfigError: no policy in the folder, or a provider that this ONNX Runtime does not have.
            DataError: a file is missing, changed or damaged.
        """
        missing = [p for p in providers if p not in onnxruntime.get_available_providers()]
        if missing:
            have = ", ".join(onnxruntime.get_available_providers())
            raise ConfigError(f"ONNX Runtime has no {', '.join(missing)} here; it has {have}")
        spec = read_spec(folder)
        path = files.join(folder, spec.tokenizer.file)
        tokenizer = tokenizer_from_json(files.read_text(path, max_bytes=_MAX_TOKENIZER_BYTES), path)
        sessions = {
            name: _session(files.join(folder, record.file), threads, providers) for name, record in spec.graphs.items()
        }
        return cls(spec, tokenizer, sessions)

    @property
    def embodiment(self) -> Embodiment:
        """Whose actions `act` returns."""
        return self.spec.embodiment

    @property
    def provider(self) -> str:
        """The execution provider that runs the graphs."""
        return str(self._sessions[SYSTEM_1].get_providers()[0])

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        """Returns the next actions.

        Args:
            observation: ``images`` uint8 [V, H, W, 3] RGB, ``text`` str, ``state`` float32 [S] in physical units.
            seed: decides the noise that the sample starts from.

        Returns:
            float32 [N, D], physical units, one row per step of ``1 / rate_hz`` seconds.

        Raises:
            DataError: the observation does not fit what policy.json declares.
        """
        spec, body = self.spec, self.spec.embodiment
        seen = read_observation(observation, n_views=spec.n_views, size_px=spec.image_size_px, state_dim=body.state_dim)
        ids, mask = encode_texts(self._tokenizer, [seen.text], spec.max_text_tokens)
        context, context_mask = self._run(SYSTEM_2, {"images": seen.images[None], "text_ids": ids, "text_mask": mask})
        feed = {"context": context, "context_mask": context_mask}
        feed["noise"] = initial_noise(seed, body.horizon, body.network.action_dim)[None]
        if spec.state is not None:
            feed["state"] = spec.state.normalize(body.encode_state(seen.state))[None]
        return body.decode_action(spec.action.denormalize(self._run(SYSTEM_1, feed)[0][0]), seen.state)

    def run_graph(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs one graph on raw inputs, for tests and timing."""
        return self._run(name, feed)

    def _run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        start = time.perf_counter()
        outputs = self._sessions[name].run(None, dict(feed))
        self.seconds[name] = time.perf_counter() - start
        return list(outputs)

    def __repr__(self) -> str:
        e = self.embodiment
        return f"PolicyRuntime({e.name}: {e.horizon} x {e.action_dim} actions at {e.rate_hz:g} Hz, {self.provider})"


def _session(path: str, threads: int, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise DataError(f"ONNX Runtime cannot open '{path}': {error}") from error
