"""Plays an exported policy with NumPy, ONNX Runtime and tokenizers: what runs on a robot, without torch.

It asks for one observation at a time; serving it over a network is left to others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyramid import files
from pyramid.actions import StateHistory
from pyramid.errors import ConfigError, DataError, nearest
from pyramid.types import Embodiment
from vla.deploy.execution import Inpainting
from vla.deploy.spec import SYSTEM_1, SYSTEM_1_CONTEXT, SYSTEM_1_STEP, SYSTEM_2, DeploySpec, read_spec
from vla.observation import Observation, initial_noise, padded_to, present_state, read_observation
from vla.text import encode_texts, tokenizer_from_json

__all__ = ["PROVIDERS", "Encoded", "PolicyRuntime", "choose_providers", "open_session"]

logger = logging.getLogger(__name__)

_MAX_TOKENIZER_BYTES = 64 * 2**20


PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Short names of ONNX Runtime's execution providers, the fastest first."""
TIME_BUCKETS = 1000
"""Buckets of the flow time, as `pyramid.nn.flow` cuts it."""


@dataclass(frozen=True)
class Encoded:
    """What of an observation does not change while actions are sampled, nor with the state."""

    feed: dict[str, NDArray[Any]]
    """``context`` float32 [1, L, C] and ``context_mask`` bool [1, L]."""
    key_values: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Keys and values of each cross-attention block, where the single-step graphs are there."""


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
        # The exporter drops inputs that a graph does not use, such as the mask of a context that is never masked.
        self._inputs = {name: {i.name for i in session.get_inputs()} for name, session in sessions.items()}

    @classmethod
    def load(cls, folder: str, *, threads: int = 0, providers: Sequence[str] = (PROVIDERS["cpu"],)) -> PolicyRuntime:
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
        return cls.open(read_spec(folder), folder, threads=threads, providers=providers)

    @classmethod
    def open(
        cls, spec: DeploySpec, folder: str, *, threads: int = 0, providers: Sequence[str] = (PROVIDERS["cpu"],)
    ) -> PolicyRuntime:
        """Opens the files of a deploy folder that is known to be whole; see `load`."""
        path = files.join(folder, spec.tokenizer.file)
        tokenizer = tokenizer_from_json(files.read_text(path, max_bytes=_MAX_TOKENIZER_BYTES), path)
        sessions = {
            name: open_session(
                files.join(folder, record.file), threads=threads, providers=providers, precision=spec.precision
            )
            for name, record in spec.graphs.items()
        }
        for name, session in sessions.items():
            if session.get_providers()[0] != providers[0]:
                logger.warning("%s runs on %s, not on %s", name, session.get_providers()[0], providers[0])
        return cls(spec, tokenizer, sessions)

    @property
    def embodiment(self) -> Embodiment:
        """Whose actions `act` returns."""
        return self.spec.embodiment

    @property
    def provider(self) -> str:
        """The execution provider that runs the graphs."""
        return str(self._sessions[SYSTEM_1].get_providers()[0])

    @property
    def single_step(self) -> bool:
        """Whether the graphs of single denoising steps are there, which real-time chunking needs."""
        return SYSTEM_1_STEP in self._sessions

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        """Returns the next actions.

        Args:
            observation: ``images`` uint8 [V, H, W, 3] RGB, ``text`` str, ``state`` float32 [S] in physical units;
                of an embodiment with a history [H, S], as `history` keeps them.
            seed: decides the noise that the sample starts from.

        Returns:
            float32 [N, D], physical units, one row per step of ``1 / rate_hz`` seconds.

        Raises:
            DataError: the observation does not fit what policy.json declares.
        """
        seen = self.check(observation)
        return self._sample(self._encode(seen), seen.state, seed)

    def blank(self) -> dict[str, Any]:
        """Returns an observation to warm up with: black views, no text, a state in the middle of the data."""
        spec, body = self.spec, self.embodiment
        shape = (spec.n_views, spec.image_size_px, spec.image_size_px, 3)
        found: dict[str, Any] = {"images": np.zeros(shape, np.uint8), "text": ""}
        if spec.state is not None:
            middle = spec.state.center
            state = middle if body.codec is None else body.codec.decode_state(middle)
            found["state"] = np.broadcast_to(state, body.state_shape)
        return found

    def check(self, observation: Mapping[str, Any]) -> Observation:
        """Returns an observation's arrays.

        Raises:
            DataError: the observation does not fit what policy.json declares.
        """
        spec, body = self.spec, self.embodiment
        return read_observation(
            observation,
            n_views=spec.n_views,
            size_px=spec.image_size_px,
            state_dim=body.state_dim,
            state_history=body.state_history,
        )

    def history(self) -> StateHistory:
        """Returns what keeps the states of the robot in a control loop, for the observations of `act`."""
        return self.embodiment.history()

    def encode(self, observation: Mapping[str, Any]) -> Encoded:
        """Runs what depends on views and text alone: System 2, and the keys and values of System 1's cross-attention.

        Raises:
            DataError: the observation does not fit what policy.json declares.
        """
        encoded = self._encode(self.check(observation))
        if not self.single_step:
            return encoded
        return Encoded(encoded.feed, self._named(SYSTEM_1_CONTEXT, encoded.feed))

    def chunk(
        self, encoded: Encoded, state: Any = None, *, seed: int = 0, tie: Inpainting | None = None
    ) -> NDArray[np.float32]:
        """Runs System 1 on a context that `encode` made, perhaps of an older observation than the state's.

        Args:
            encoded: what `encode` returned.
            state: float32 [S], or with a history [H, S], physical units; None for an embodiment without one.
            seed: decides the noise that the sample starts from.
            tie: the old chunk that the new one is to continue; needs the single-step graphs.

        Returns:
            float32 [N, D], physical units.

        Raises:
            DataError: a state of another shape.
        """
        values = np.zeros(0, np.float32) if state is None else np.asarray(state, np.float32)
        if values.shape != self.embodiment.state_shape:
            raise DataError(f"the state must be float {list(self.embodiment.state_shape)}, got {list(values.shape)}")
        if not encoded.key_values:
            if tie is not None:
                raise ConfigError("this folder has no single-step graphs: export with --single-step")
            return self._sample(encoded, values, seed)
        return self._denoise(encoded, values, seed, tie)

    def _encode(self, seen: Observation) -> Encoded:
        ids, mask = encode_texts(self._tokenizer, [seen.text], self.spec.max_text_tokens)
        if "text" in self.spec.dynamic:
            length = max(int(mask.sum()), 1)
            ids, mask = ids[:, :length], mask[:, :length]
        return Encoded(self._named(SYSTEM_2, {"images": seen.images[None], "text_ids": ids, "text_mask": mask}))

    def _sample(self, encoded: Encoded, state: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
        sizes = self.embodiment.network
        noise = initial_noise(seed, sizes.horizon, sizes.action_dim)
        feed = {**encoded.feed, "noise": noise[None], **self._state(state)}
        return self._decoded(self._run(SYSTEM_1, feed)[0][0], state)

    def _decoded(self, sampled: NDArray[np.float32], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps what the network gave to physical units; what is padding is left out."""
        body, action = self.embodiment, self.spec.action
        kept = sampled[: body.horizon, : action.width]
        return body.decode_action(action.denormalize(kept), present_state(state))

    def _denoise(
        self, encoded: Encoded, state: NDArray[np.float32], seed: int, tie: Inpainting | None
    ) -> NDArray[np.float32]:
        """Takes the Euler steps one by one, so that each can be tied to the chunk before."""
        sizes, steps = self.embodiment.network, self.spec.sample_steps
        x = initial_noise(seed, sizes.horizon, sizes.action_dim)
        free, line, kept = np.ones((sizes.horizon, 1), np.float32), np.zeros_like(x), x[:0]
        if tie is not None:
            planned = tie.planned(self.embodiment, self.spec.action, present_state(state))
            planned, free = padded_to(planned, sizes.action_dim), tie.free(sizes.horizon)
            start, kept = x.copy(), planned[: tie.frozen]
            start[: len(planned)] = planned
            if tie.rule == "line":
                line = (1 - free) * (start - x)
            else:
                x = start
        fixed = {**encoded.key_values, "context_mask": encoded.feed["context_mask"], **self._state(state)}
        spent = 0.0
        for step in range(steps):
            bucket = np.array([step * TIME_BUCKETS // steps], np.int64)
            velocity = self._run(SYSTEM_1_STEP, {"noise": x[None], "bucket": bucket, **fixed})[0][0]
            x = x + (free * velocity + line) / steps
            spent += self.seconds[SYSTEM_1_STEP]
        self.seconds[SYSTEM_1_STEP] = spent
        x[: len(kept)] = kept
        return self._decoded(x, state)

    def _state(self, state: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        if self.spec.state is None:
            return {}
        known = self.spec.state.normalize(self.embodiment.encode_state(state))
        return {"state": padded_to(known, self.embodiment.network.state_dim)[None]}

    def _named(self, name: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [output.name for output in self._sessions[name].get_outputs()]
        return dict(zip(names, self._run(name, feed), strict=True))

    def run_graph(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs one graph on raw inputs, for tests and timing."""
        return self._run(name, feed)

    def _run(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        start = time.perf_counter()
        session, taken = self._sessions[name], self._inputs[name]
        outputs = session.run(None, {key: value for key, value in feed.items() if key in taken})
        self.seconds[name] = time.perf_counter() - start
        return list(outputs)

    def __repr__(self) -> str:
        e = self.embodiment
        return f"PolicyRuntime({e.name}: {e.horizon} x {e.action_dim} actions at {e.rate_hz:g} Hz, {self.provider})"


def choose_providers(name: str) -> list[str]:
    """Returns execution providers by short name, each followed by what it falls back on; `auto` takes what is there.

    Raises:
        ConfigError: no such name, or this ONNX Runtime does not have it.
    """
    order, have = list(PROVIDERS), onnxruntime.get_available_providers()
    if name == "auto":
        return [PROVIDERS[short] for short in order if PROVIDERS[short] in have]
    if name not in PROVIDERS:
        raise ConfigError(f"provider must be auto, {', '.join(order)}, got '{name}'{nearest(name, [*order, 'auto'])}")
    if PROVIDERS[name] not in have:
        raise ConfigError(f"ONNX Runtime has no {PROVIDERS[name]} here; it has {', '.join(have)}")
    return [PROVIDERS[short] for short in order[order.index(name) :] if PROVIDERS[short] in have]


def open_session(
    path: str, *, threads: int = 0, providers: Sequence[str] = (PROVIDERS["cpu"],), precision: str = "fp32"
) -> onnxruntime.InferenceSession:
    """Opens one graph.

    Raises:
        DataError: ONNX Runtime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if precision == "fp8":
        # ONNX Runtime would fuse fp8 products into an operator that it has for integers alone.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise DataError(f"ONNX Runtime cannot open '{path}': {error}") from error
