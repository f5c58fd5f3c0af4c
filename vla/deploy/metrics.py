"""What a policy server counts, and the small HTTP side on which it tells: ``/healthz`` and ``/metrics``.

The text is Prometheus' exposition format 0.0.4. Answering requests for actions is `vla.deploy.server`'s.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyramid.errors import ConfigError

__all__ = ["BUCKETS_S", "Metrics", "start_http"]

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the latency histogram, seconds."""
_PREFIX = "pyramid_policy"
_MAX_CONNECTIONS = 16


class Metrics:
    """Counters and a latency histogram that several threads may use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._misses = 0
        self.ready = False
        """Whether the server answers."""

    def count(self, endpoint: str, outcome: str) -> None:
        """Counts a request; ``outcome`` is ``ok`` or the kind of error. Both come from closed lists."""
        with self._lock:
            self._requests[endpoint, outcome] += 1

    def latency(self, seconds: float, *, deadline_s: float) -> None:
        """Counts an answered request for actions, from its arrival on."""
        with self._lock:
            self._buckets[next((i for i, end in enumerate(BUCKETS_S) if seconds <= end), len(BUCKETS_S))] += 1
            self._sum_s += seconds
            self._misses += seconds > deadline_s

    def totals(self) -> dict[str, int]:
        """Returns the number of requests by outcome, and of missed deadlines under ``deadline_misses``."""
        with self._lock:
            found: Counter[str] = Counter()
            for (_, outcome), n in self._requests.items():
                found[outcome] += n
            return {**found, "deadline_misses": self._misses}

    def text(self) -> str:
        """Returns everything in Prometheus' text format."""
        with self._lock:
            name = f"{_PREFIX}_requests_total"
            lines = [f"# TYPE {name} counter"]
            for (endpoint, outcome), n in sorted(self._requests.items()):
                lines.append(f'{name}{{endpoint="{endpoint}",outcome="{outcome}"}} {n}')
            name, total = f"{_PREFIX}_latency_seconds", 0
            lines.append(f"# TYPE {name} histogram")
            for end, n in zip((*BUCKETS_S, "+Inf"), self._buckets, strict=True):
                total += n
                lines.append(f'{name}_bucket{{le="{end}"}} {total}')
            lines += [f"{name}_sum {self._sum_s:.6f}", f"{name}_count {total}"]
            name = f"{_PREFIX}_deadline_misses_total"
            lines += [f"# TYPE {name} counter", f"{name} {self._misses}"]
        return "\n".join(lines) + "\n"


class _Server(ThreadingHTTPServer):
    longest_s = 10.0
    """A connection is cut off after this, whatever it does."""
    daemon_threads = True
    request_queue_size = _MAX_CONNECTIONS
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], metrics: Metrics) -> None:
        self.metrics = metrics
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The handler's own timeout starts again with every byte, so a peer that drips could stay for ever.
        end = threading.Timer(self.longest_s, _hang_up, (request,))
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a peer that leaves early is not worth a traceback."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was over already
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    timeout = 5.0
    server: _Server
    server_version, sys_version = "latent-pyramid", ""

    def do_GET(self) -> None:
        """Answers the two paths."""
        metrics = self.server.metrics
        if self.path == "/healthz":
            self._answer(200 if metrics.ready else 503, "ok\n" if metrics.ready else "not ready\n", "text/plain")
        elif self.path == "/metrics":
            self._answer(200, metrics.text(), "text/plain; version=0.0.4")
        else:
            self._answer(404, "only /healthz and /metrics are here\n", "text/plain")

    def _answer(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps requests out of the log."""


def start_http(metrics: Metrics, host: str, port: int) -> ThreadingHTTPServer:
    """Starts the HTTP side in threads of its own; port 0 takes a free one. Stop it with its ``shutdown``.

    Raises:
        ConfigError: the port cannot be had.
    """
    try:
        server = _Server((host, port), metrics)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port} for /healthz and /metrics: {error}") from error
    threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True).start()
    return server
