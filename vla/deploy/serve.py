"""The verb `serve`: a deploy folder answers the clients of GR00T over ZeroMQ, without torch.

The server itself is `vla.deploy.server`; what robots call their cameras and joints is `vla.deploy.dialects`'.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyramid import files
from pyramid.errors import ConfigError
from pyramid.progress import say
from vla.deploy.dialects import default_interface, read_interface
from vla.deploy.metrics import Metrics, start_http
from vla.deploy.runtime import PolicyRuntime, choose_providers
from vla.deploy.server import PolicyServer, ServerOptions

__all__ = ["TOKEN_VARIABLE", "ServeResult", "serve"]

TOKEN_VARIABLE = "PYRAMID_TOKEN"  # noqa: S105 - a name, not a token
_LEAST_TOKEN = 16


@dataclass(frozen=True)
class ServeResult:
    """What a server has done until it was told to stop."""

    folder: str
    """The deploy folder."""
    address: str
    """Where it listened."""
    requests: dict[str, int]
    """Outcome -> requests; and `deadline_misses`."""
    seconds: float
    """How long it served."""

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(self.requests.items()))
        return f"served {self.folder} on {self.address} for {self.seconds:.0f} s: {counts}"


def serve(
    folder: str,
    *,
    host: str = "127.0.0.1",
    port: int = 5555,
    http: bool = True,
    http_port: int = 5556,
    token_file: str | None = None,
    modality: str | None = None,
    resize: bool = False,
    dialect: str = "n1_6",
    provider: str = "auto",
    threads: int = 0,
    max_message_mib: int = 32,
    max_waiting: int = 8,
    timeout_s: float = 5.0,
    deadline_ms: float = 100.0,
    seed: int = 0,
) -> ServeResult:
    """Serves an exported policy to GR00T's clients and ours until SIGTERM or Ctrl-C.

    Requests are msgpack over a ZeroMQ REQ socket, in the words of GR00T N1.5 or of N1.6 and N1.7; no request can stop
    the server. `/healthz` and `/metrics` (Prometheus) are on the HTTP port of the same address, without a token.

    Args:
        folder: what `export` wrote.
        host: address to bind to; any but loopback needs a token.
        port: TCP port of the policy; 0 takes a free one.
        http: serve `/healthz` and `/metrics`.
        http_port: TCP port for them; 0 takes a free one.
        token_file: file with the token that requests must bring; without it the variable PYRAMID_TOKEN, if set.
        modality: GR00T modality.json with the robot's names of things; None: those of the embodiment's declaration, or
            else camera_0 on, state, action.
        resize: scale views of another size instead of refusing them; the aspect ratio is not kept.
        dialect: how `get_modality_config` answers, n1_5 or n1_6; requests for actions are understood in both.
        provider: where graphs run: cpu, cuda, tensorrt, or auto for the fastest that is there.
        threads: threads within an operator; 0 leaves ONNX Runtime's own choice.
        max_message_mib: largest request that is read, MiB, 1 to 1024.
        max_waiting: requests for actions that may wait, >= 1.
        timeout_s: a request that waited longer is refused, seconds, > 0.
        deadline_ms: answers that take longer are counted as missed deadlines, > 0.
        seed: decides the noise of requests that bring no seed.

    Raises:
        ConfigError: an option out of range, an address that cannot be had, or no policy in the folder.
        DataError: the folder's files are not those that were exported.
    """
    if dialect not in ("n1_5", "n1_6"):
        raise ConfigError(f"dialect must be n1_5 or n1_6, got '{dialect}'")
    if not 1 <= max_message_mib <= 1024 or max_waiting < 1 or not timeout_s > 0 or not deadline_ms > 0:
        raise ConfigError(
            "serve needs max_message_mib in 1..1024, max_waiting >= 1, timeout_s > 0 and deadline_ms > 0, got "
            f"{max_message_mib}, {max_waiting}, {timeout_s} and {deadline_ms}"
        )
    token = _token(token_file, host)
    options = ServerOptions(
        host=_address(host),
        port=port,
        token=token,
        max_bytes=max_message_mib * 2**20,
        max_waiting=max_waiting,
        timeout_s=timeout_s,
        deadline_s=deadline_ms / 1e3,
        dialect=dialect,  # type: ignore[arg-type]
        seed=seed,
    )
    runtime = PolicyRuntime.load(folder, threads=threads, providers=choose_providers(provider))
    names = default_interface(runtime.spec, resize=resize)
    interface = read_interface(modality, runtime.spec, resize=resize) if modality else names
    metrics, stop, start = Metrics(), threading.Event(), time.monotonic()
    server = PolicyServer(runtime, interface, options, metrics)
    web = start_http(metrics, options.host, http_port) if http else None
    runtime.act(runtime.blank())  # the first call pays for ONNX Runtime's planning
    about = f"; http://{options.host}:{web.server_address[1]}/healthz and /metrics" if web else ""
    say(f"serve: {runtime!r} on {server.address}, {'with' if token else 'without'} a token{about}")
    with _until_told(stop):
        server.run(stop)
    if web:
        web.shutdown()
        web.server_close()
    return ServeResult(folder, server.address, metrics.totals(), time.monotonic() - start)


def _address(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else "0.0.0.0" if host == "*" else host  # noqa: S104


def _token(token_file: str | None, host: str) -> str | None:
    """Reads the token, and insists on one where others than this machine can ask."""
    text = files.read_text(token_file, max_bytes=4096) if token_file else os.environ.get(TOKEN_VARIABLE, "")
    token = text.strip()
    if token and len(token) < _LEAST_TOKEN:
        raise ConfigError(f"the token has {len(token)} characters, at least {_LEAST_TOKEN} are needed")
    if token_file and not token:
        raise ConfigError(f"'{token_file}' holds no token")
    try:
        loopback = ipaddress.ip_address(_address(host)).is_loopback
    except ValueError as error:
        raise ConfigError(f"host must be an IP address, 'localhost' or '*', got '{host}'") from error
    if not token and not loopback:
        raise ConfigError(
            f"'{host}' can be reached from other machines: give a token (--token-file or {TOKEN_VARIABLE})"
        )
    return token or None


@contextlib.contextmanager
def _until_told(stop: threading.Event) -> Iterator[None]:
    """Has SIGTERM and SIGINT set `stop`; elsewhere than in the main thread only the caller can stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
