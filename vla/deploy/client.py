"""A small client of the policy server for a robot: numpy, msgpack and pyzmq, every wait bounded.

It speaks the newer dialect (GR00T N1.6 on); what the words mean is `vla.deploy.dialects`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from pyramid.errors import DataError, MissingDependencyError, PyramidError, UnreachableError
from vla.deploy.protocol import MAX_MESSAGE_BYTES, pack, unpack

__all__ = ["PolicyClient", "PolicyServerError"]


class PolicyServerError(PyramidError):
    """The server answered, and what it answered is an error."""


class PolicyClient:
    """Asks a policy server; use as a context manager, from one thread.

    Args:
        host: where the server is.
        port: its TCP port.
        timeout_s: longest wait for any one answer, seconds, > 0.
        token: what the server was told to expect; None sends none.
        max_bytes: largest answer that is read.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 5555,
        *,
        timeout_s: float = 5.0,
        token: str | None = None,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        try:
            import zmq
        except ImportError as error:
            raise MissingDependencyError("the client needs pyzmq: pip install 'latent-pyramid[serve]'") from error
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self.address, self.timeout_s = f"tcp://{host}:{port}", timeout_s
        self._zmq, self._token, self._max_bytes = zmq, token, max_bytes
        self._context = zmq.Context()
        self._socket: Any = None

    def ping(self) -> dict[str, Any]:
        """Returns the server's greeting.

        Raises:
            UnreachableError: no answer within `timeout_s`.
            PolicyServerError: the server refuses.
        """
        return dict(self.ask("ping"))

    def act(
        self, observation: Mapping[str, Any], *, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Returns the next actions.

        Args:
            observation: ``video`` {camera: uint8 [B, T, H, W, 3] RGB}, ``state`` {key: float32 [B, T, D] in physical
                units}, ``language`` {key: [[str]]}; T is 1, of states as many as `modality_config` has
                ``delta_indices`` (steps after the present, oldest first; `pyramid.actions.StateHistory` keeps them).
            options: ``seed`` int decides the noise that the sample starts from.

        Returns:
            Actions {key: float32 [B, N, D], physical units}, and what the server says about them (its timing).

        Raises:
            UnreachableError: no answer within `timeout_s`.
            PolicyServerError: the server refuses the observation; it says why.
        """
        data = {"observation": dict(observation), "options": dict(options) if options is not None else None}
        reply = self.ask("get_action", data)
        if not isinstance(reply, list) or len(reply) != 2 or not all(isinstance(part, dict) for part in reply):
            raise DataError(f"'{self.address}' answered get_action with something else than actions and a note")
        return reply[0], reply[1]

    def reset(self) -> None:
        """Tells the server that a new episode begins."""
        self.ask("reset", {"options": None})

    def modality_config(self) -> dict[str, Any]:
        """Returns what the server takes and gives: names of cameras, states, actions and the language key."""
        return {name: config.as_json for name, config in self.ask("get_modality_config").items()}

    def ask(self, endpoint: str, data: Mapping[str, Any] | None = None) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            UnreachableError: no answer within `timeout_s`; the next call starts with a fresh connection.
            PolicyServerError: the server answered with an error.
        """
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if self._token is not None:
            request["api_token"] = self._token
        reply = unpack(self._exchange(pack(request)), max_bytes=self._max_bytes)
        if isinstance(reply, dict) and "error" in reply:
            raise PolicyServerError(f"'{self.address}' refuses {endpoint}: {reply['error']}")
        return reply

    def close(self) -> None:
        """Closes the connection at once; what was not sent is dropped."""
        self._drop()
        self._context.destroy(linger=0)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, message: bytes) -> bytes:
        socket = self._connect()
        try:
            socket.send(message)
            return bytes(socket.recv())
        except self._zmq.Again as error:
            # A REQ socket that got no answer can never send again.
            self._drop()
            raise UnreachableError(
                f"'{self.address}' gave no answer within {self.timeout_s:g} s; is the server up, and the port right?"
            ) from error
        except BaseException:
            self._drop()
            raise

    def _connect(self) -> Any:
        if self._socket is None:
            zmq, wait = self._zmq, max(1, int(self.timeout_s * 1000))
            self._socket = self._context.socket(zmq.REQ)
            options = {zmq.RCVTIMEO: wait, zmq.SNDTIMEO: wait, zmq.LINGER: 0, zmq.MAXMSGSIZE: self._max_bytes}
            for name, value in options.items():
                self._socket.setsockopt(name, value)
            self._socket.connect(self.address)
        return self._socket

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
