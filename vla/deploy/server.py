"""The policy server: one thread reads requests and sends answers, one asks the policy; no message ends either.

What requests mean is `vla.deploy.dialects`', bytes are `vla.deploy.protocol`'s, options `vla.deploy.serve`'s.
"""

from __future__ import annotations

import hmac
import logging
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyramid.errors import ConfigError, MissingDependencyError, PyramidError
from vla.deploy.dialects import Dialect, Interface, answer, modality_config, parse
from vla.deploy.metrics import Metrics
from vla.deploy.protocol import MAX_MESSAGE_BYTES, pack, unpack

__all__ = ["Acting", "PolicyServer", "ServerOptions"]

logger = logging.getLogger(__name__)

ENDPOINTS = ("ping", "get_action", "reset", "get_modality_config")
_POLL_MS = 100
_BURST = 32
"""Messages read before answers are looked after."""
_GRACE_S = 5.0
"""How long a stopping server still answers what it has taken in."""
_HELD_MESSAGES = 4
"""Messages that are kept for one peer, each way."""


class Acting(Protocol):
    """What the server needs of a policy; `vla.deploy.runtime.PolicyRuntime` is one."""

    seconds: dict[str, float]
    """Wall time of each graph in the last `act`."""

    def act(self, observation: Mapping[str, Any], *, seed: int = 0) -> NDArray[np.float32]:
        """Returns float32 [N, D], physical units."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens and what it refuses."""

    host: str = "127.0.0.1"
    """Address to bind to."""
    port: int = 5555
    """TCP port; 0 takes a free one."""
    token: str | None = None
    """What every request must bring as `api_token`; None asks for none."""
    max_bytes: int = MAX_MESSAGE_BYTES
    """Largest request that is read; a peer that sends more than twice as much is cut off."""
    max_waiting: int = 8
    """Requests for actions that may wait; more are refused at once."""
    timeout_s: float = 5.0
    """A request that waited longer is refused instead of answered: its client has given up, seconds."""
    deadline_s: float = 0.1
    """Answers that take longer are counted as missed deadlines, seconds."""
    dialect: Dialect = "n1_6"
    """In which dialect `get_modality_config` answers; other requests say it themselves."""
    seed: int = 0
    """Decides the noise of requests that bring no seed: the same observation gets the same answer."""


@dataclass(frozen=True)
class _Job:
    peer: bytes
    data: Any
    arrived: float


class PolicyServer:
    """Binds at once; `run` serves until it is told to stop.

    Args:
        policy: who is asked; only from one thread.
        interface: names of cameras, states and actions.
        options: address and limits.
        metrics: where requests are counted.

    Raises:
        ConfigError: the address cannot be had.
    """

    def __init__(self, policy: Acting, interface: Interface, options: ServerOptions, metrics: Metrics) -> None:
        try:
            import zmq
        except ImportError as error:
            raise MissingDependencyError("the server needs pyzmq: pip install 'latent-pyramid[serve]'") from error
        self._zmq, self._policy, self._interface = zmq, policy, interface
        self.options, self.metrics = options, metrics
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._waiting: Counter[bytes] = Counter()
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        limits = {zmq.MAXMSGSIZE: 2 * options.max_bytes, zmq.RCVHWM: _HELD_MESSAGES, zmq.SNDHWM: _HELD_MESSAGES}
        for name, value in {**limits, zmq.LINGER: 0, zmq.TCP_KEEPALIVE: 1}.items():
            self._router.setsockopt(name, value)
        try:
            self._router.bind(f"tcp://{options.host}:{options.port or '*'}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"cannot listen on {options.host}:{options.port}: {error}") from error
        self.address: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where it listens, ``tcp://host:port``."""
        self._done = self._context.socket(zmq.PULL)
        self._done.bind("inproc://done")

    def run(self, stop: threading.Event) -> None:
        """Serves until `stop` is set, then answers what waits and closes; call it once."""
        worker = threading.Thread(target=self._work, name="policy", daemon=True)
        worker.start()
        self.metrics.ready = True
        try:
            while not stop.is_set():
                self._turn(reading=True)
            self.metrics.ready = False
            end = time.monotonic() + _GRACE_S
            while self._waiting and time.monotonic() < end:
                self._turn(reading=False)
        finally:
            self.metrics.ready = False
            self._jobs.put(None)
            worker.join(_GRACE_S)
            self._router.close(linger=1000)
            self._context.destroy(linger=1000)

    def _turn(self, *, reading: bool) -> None:
        """Waits for something to happen, sends finished answers and reads a few requests."""
        poller = self._zmq.Poller()
        for socket in (self._done, self._router)[: 1 + reading]:
            poller.register(socket, self._zmq.POLLIN)
        events = dict(poller.poll(_POLL_MS))
        if self._done in events:
            for peer, body in self._burst(self._done):
                self._waiting[peer] -= 1
                self._waiting += Counter()  # forgets peers for whom nothing waits
                self._send(peer, body)
        if self._router in events:
            for frames in self._burst(self._router):
                self._receive(frames)

    def _burst(self, socket: Any) -> list[list[bytes]]:
        found: list[list[bytes]] = []
        while len(found) < _BURST:
            try:
                found.append(socket.recv_multipart(self._zmq.NOBLOCK))
            except self._zmq.Again:
                break
        return found

    def _send(self, peer: bytes, body: bytes) -> None:
        try:
            self._router.send_multipart([peer, b"", body], self._zmq.NOBLOCK)
        except self._zmq.ZMQError as error:  # a peer that left or does not read costs its own answer alone
            logger.debug("an answer was dropped: %s", error)

    def _receive(self, frames: list[bytes]) -> None:
        """Answers a request, or has it wait for the policy."""
        peer, arrived = frames[0], time.monotonic()
        endpoint = "unknown"
        try:
            if len(frames) != 3 or frames[1]:
                raise PyramidError("a request is one message of a REQ socket")
            request = unpack(frames[2], max_bytes=self.options.max_bytes)
            endpoint = self._admit(request)
            if endpoint == "get_action":
                self._enqueue(_Job(peer, request.get("data"), arrived))
                return
            reply = self._answer_at_once(endpoint)
        except Exception as error:
            self._send(peer, self._refusal(endpoint, error))
            return
        self.metrics.count(endpoint, "ok")
        self._send(peer, pack(reply))

    def _admit(self, request: Any) -> str:
        """Checks token and endpoint of a request, in this order; returns the endpoint."""
        if not isinstance(request, dict):
            raise PyramidError(f"a request is a map with an 'endpoint', got {type(request).__name__}")
        if self.options.token is not None:
            given = request.get("api_token")
            given = given.encode() if isinstance(given, str) else b""
            if not hmac.compare_digest(given, self.options.token.encode()):
                raise PyramidError("the 'api_token' is missing or wrong")
        endpoint = request.get("endpoint", "get_action")
        if endpoint == "kill":
            raise PyramidError("no request can stop this server; send its process SIGTERM")
        if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
            raise PyramidError(f"there is no endpoint {str(endpoint)[:40]!r}; known: {', '.join(ENDPOINTS)}")
        return endpoint

    def _answer_at_once(self, endpoint: str) -> Any:
        if endpoint == "ping":
            return {"status": "ok", "message": "the policy server is running"}
        if endpoint == "reset":
            return {}  # a policy keeps nothing between observations
        return modality_config(self._interface, self.options.dialect)

    def _enqueue(self, job: _Job) -> None:
        """Refuses what would wait too long, so that a flood by one peer costs the others nothing."""
        if job.peer in self._waiting:
            raise _BusyError("your last request is still being answered; send one at a time")
        if len(self._waiting) >= self.options.max_waiting:
            raise _BusyError(f"the server is busy: {len(self._waiting)} requests wait already; ask again later")
        self._waiting[job.peer] += 1
        self._jobs.put(job)

    def _work(self) -> None:
        """Asks the policy for one job after the other, in a thread of its own."""
        done = self._context.socket(self._zmq.PUSH)
        done.connect("inproc://done")
        while (job := self._jobs.get()) is not None:
            try:
                body = self._act(job)
            except Exception as error:
                body = self._refusal("get_action", error)
            done.send_multipart([job.peer, body])
        done.close(linger=1000)

    def _act(self, job: _Job) -> bytes:
        waited = time.monotonic() - job.arrived
        if waited > self.options.timeout_s:
            raise _BusyError(f"the request waited {waited:.1f} s, longer than the {self.options.timeout_s:g} s allowed")
        query = parse(job.data, self._interface)
        seed = self.options.seed if query.seed is None else query.seed
        actions, spent = [], dict[str, float]()
        for row, observation in enumerate(query.observations):
            actions.append(self._policy.act(observation, seed=seed + row))
            for name, seconds in self._policy.seconds.items():
                spent[f"{name}_ms"] = spent.get(f"{name}_ms", 0.0) + 1e3 * seconds
        if not all(np.isfinite(action).all() for action in actions):
            raise PyramidError("the policy answered with numbers that are not finite; nothing is sent to the robot")
        seconds = time.monotonic() - job.arrived
        note = {"server_timing": {**spent, "waited_ms": 1e3 * waited, "total_ms": 1e3 * seconds}}
        body = pack(answer(query, actions, self._interface, note))
        self.metrics.latency(seconds, deadline_s=self.options.deadline_s)
        self.metrics.count("get_action", "ok")
        return body

    def _refusal(self, endpoint: str, error: Exception) -> bytes:
        """Counts an error and puts it in words: ours as they are, others by a number that only the log explains."""
        if isinstance(error, PyramidError):
            self.metrics.count(endpoint, "busy" if isinstance(error, _BusyError) else "refused")
            return pack({"error": str(error)})
        number = secrets.token_hex(4)
        logger.error("internal error %s at %s", number, endpoint, exc_info=error)
        self.metrics.count(endpoint, "failed")
        return pack({"error": f"internal error {number}; the server's log has more under this number"})


class _BusyError(PyramidError):
    """There is more to do than can be done in time."""
