"""A real S3 server for tests: OpenStack Swift with its S3 API, from the package index, in an environment of its own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

VERSION = "2.38.3"
KINDS = ("account", "container", "object")
KEY, SECRET = "test:tester", "testing"
PIPELINE = ("s3api", "tempauth", "copy", "slo", "dlo", "symlink", "versioned_writes")
OPTIONS = {
    "s3api": "location = us-east-1\nmin_segment_size = 5242880\n",
    "tempauth": "user_test_tester = testing .admin\n",
    "versioned_writes": "allow_object_versioning = true\n",
}


class NotHereError(Exception):
    """Swift cannot run on this machine; says why."""


def environment() -> Path:
    """Returns the environment that Swift is installed in; makes it once, outside of the project."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent-pyramid-tests"
    name = f"swift-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (cache / name / "ready").exists():
                _install(cache / name)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHereError(f"Swift cannot be installed into {cache}: {error}") from error
    return cache / name


def _install(where: Path) -> None:
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(where)],
        [str(where / "bin" / "python"), "-m", "pip", "install", "--quiet", f"swift=={VERSION}", "setuptools<81"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotHereError(f"Swift cannot be installed: {last}")
    (where / "ready").touch()


def _check_attributes(folder: Path) -> None:
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift", b"1")
    except (AttributeError, OSError) as error:
        raise NotHereError(f"Swift needs user xattrs, which {folder} does not have: {error}") from error


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _configure(root: Path, programs: Path, ports: dict[str, int]) -> None:
    etc = root / "etc"
    etc.mkdir()
    (root / "srv" / "d1").mkdir(parents=True)
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = default\ndefault = yes\n"
    )
    for kind in KINDS:
        ring = [str(programs / "swift-ring-builder"), str(etc / f"{kind}.builder")]
        for words in (
            ["create", "6", "1", "0"],
            ["add", f"r1z1-127.0.0.1:{ports[kind]}/d1", "1"],
            ["rebalance"],
        ):
            subprocess.run([*ring, *words], check=True, capture_output=True)
        (etc / f"{kind}.conf").write_text(
            f"{_default(ports[kind], etc)}devices = {root / 'srv'}\nmount_check = false\ndisable_fallocate = true\n"
            f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        )
    filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n{OPTIONS.get(name, '')}" for name in PIPELINE)
    (etc / "proxy.conf").write_text(
        f"{_default(ports['proxy'], etc)}[pipeline:main]\npipeline = {' '.join(PIPELINE)} proxy-server\n"
        f"[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n{filters}"
    )


def _default(port: int, etc: Path) -> str:
    user = getpass.getuser()
    return f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = {user}\nswift_dir = {etc}\n"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: nothing is left when the tests are killed.


@contextlib.contextmanager
def running(root: Path) -> Iterator[tuple[str, int]]:
    """Runs Swift in an empty folder and yields host and port.

    Raises:
        NotHereError: it cannot be installed or does not start; with the reason.
    """
    _check_attributes(root)
    programs = environment() / "bin"
    ports = dict(zip((*KINDS, "proxy"), _free_ports(4), strict=True))
    _configure(root, programs, ports)
    with contextlib.ExitStack() as stack:
        for kind in ports:
            log = stack.enter_context((root / f"{kind}.log").open("wb"))
            command = [str(programs / f"swift-{kind}-server"), str(root / "etc" / f"{kind}.conf")]
            server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)  # noqa: PLW1509
            stack.callback(_stop, server)
        _wait(ports, root)
        yield "127.0.0.1", ports["proxy"]


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait(ports: dict[str, int], root: Path) -> None:
    end = time.monotonic() + 30
    for kind, port in ports.items():
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if time.monotonic() > end:
                raise NotHereError(f"Swift's {kind} server does not start: {(root / f'{kind}.log').read_text()[-300:]}")
            time.sleep(0.1)
