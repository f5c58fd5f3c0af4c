"""A proxy on loopback in front of an S3 server: it counts the requests and, when told, gets in their way."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FAULTS = ("500", "503", "timeout", "refused", "lost", "reset", "short", "slow")
"""Answers 500 or 503; no answer; closed before or after the server was asked; body broken off with a reset, or with a
plain end; body in dribbles."""
SILENCE_S = 3.0


@dataclass
class Rule:
    """What goes wrong with the next ``times`` requests that match."""

    fault: str
    times: int
    matches: Callable[[str, str], bool]


@dataclass
class Proxy:
    """What the proxy saw, and what it is to do."""

    host: str
    port: int
    url: str = ""
    latency_s: float = 0.0
    seen: list[tuple[str, str]] = field(default_factory=list)
    """Kind and path of each request."""
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of answers by kind."""
    rules: list[Rule] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, fault: str, times: int = 1, *, kind: str = "", path: str = "") -> None:
        """Lets the next ``times`` requests of a kind, to paths that hold ``path``, go wrong."""
        assert fault in FAULTS
        self.rules.append(Rule(fault, times, lambda k, p: kind in ("", k) and path in p))

    @property
    def counts(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(kind for kind, _ in self.seen)

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Counts the requests of a block."""
        before, found = len(self.seen), Counter[str]()
        yield found
        found.update(kind for kind, _ in self.seen[before:])

    def verdict(self, kind: str, path: str) -> str:
        """Notes a request and says what goes wrong with it."""
        with self.lock:
            self.seen.append((kind, path))
            for rule in self.rules:
                if rule.times > 0 and rule.matches(kind, path):
                    rule.times -= 1
                    return rule.fault
        return ""


def kind_of(method: str, path: str) -> str:
    """Names a request as S3 does: GET, HEAD, LIST, PUT, DELETE, CREATE, PART, COMPLETE, ABORT, UPLOADS."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "uploads" in query:
        return {"POST": "CREATE", "GET": "UPLOADS"}[method]
    if "uploadId" in query:
        return {"PUT": "PART", "POST": "COMPLETE", "DELETE": "ABORT"}[method]
    if method == "GET" and "/" not in parts.path.strip("/"):
        return "LIST"
    return method


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = kind_of(self.command, self.path)
        fault = proxy.verdict(kind, self.path)
        time.sleep(proxy.latency_s)
        if fault in ("500", "503"):
            code = {"500": "InternalError", "503": "SlowDown"}[fault]
            error = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
            return self._answer(int(fault), [("Content-Type", "application/xml")], error)
        if fault in ("timeout", "refused"):
            time.sleep(SILENCE_S if fault == "timeout" else 0)
            return self._drop()
        upstream = http.client.HTTPConnection(proxy.host, proxy.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
        # The address that was signed goes on as it is.
        upstream.request(self.command, self.path, body, headers)
        found = upstream.getresponse()
        data = found.read()
        upstream.close()
        proxy.sent[kind] += len(data)
        if fault == "lost":
            return self._drop()
        hop = ("transfer-encoding", "connection", "content-length")
        kept = [(k, v) for k, v in found.getheaders() if k.lower() not in hop]
        length = found.getheader("Content-Length") if self.command == "HEAD" else None
        return self._answer(found.status, kept, data, fault=fault, length=length)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, fault: str = "", length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if fault == "slow":
            for start in range(0, len(data), max(len(data) // 8, 1)):
                self.wfile.write(data[start : start + max(len(data) // 8, 1)])
                time.sleep(0.2)
        elif fault in ("reset", "short"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(0.05)
            self._drop(reset=fault == "reset")
        else:
            self.wfile.write(data)

    def _drop(self, *, reset: bool = False) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
        self.connection.close()

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        return


@contextlib.contextmanager
def proxied(host: str, port: int) -> Iterator[Proxy]:
    """Runs a proxy in front of a server; it ends with the block, or with the process."""
    proxy = Proxy(host, port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.proxy = proxy  # type: ignore[attr-defined]
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
