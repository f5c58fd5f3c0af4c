"""The stores that these tests run on: moto always, Swift where it can be installed; each behind a faulty proxy."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import faulty
import pytest
import s3fs
import swift
from stores import Store

from pyramid import remote

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[tuple[str, int]]:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def swift_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    running = swift.running(tmp_path_factory.mktemp("swift"))
    try:
        place = running.__enter__()
    except swift.NotHereError as error:
        pytest.skip(str(error))
    yield place
    running.__exit__(None, None, None)


@pytest.fixture(params=["moto", pytest.param("swift", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket of a store; requests are tried three times, and a silent server is given up after a second."""
    host, port = request.getfixturevalue(f"{request.param}_server")
    with faulty.proxied(host, port) as proxy:
        key, secret = (swift.KEY, swift.SECRET) if request.param == "swift" else ("nobody", "nothing")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        s3fs.S3FileSystem.clear_instance_cache()
        url = f"s3://pyramid-{request.param}-{next(_NUMBERS)}"
        remote.filesystem().mkdir(url)
        proxy.seen.clear()
        yield Store(request.param, url, proxy)
        s3fs.S3FileSystem.clear_instance_cache()
