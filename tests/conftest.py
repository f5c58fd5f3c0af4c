"""Fixtures for all tests. Its place also puts this folder on the path, where `drawing` and `killing` lie."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)  # Before xdist reads the groups.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps what a file, or the whole way with its demo, makes once in one process when there are several."""
    for item in items:
        end_to_end = item.path.parent.name == "e2e"
        if item.get_closest_marker("xdist_group") is None:  # Else a file says with which others it goes.
            item.add_marker(pytest.mark.xdist_group("e2e" if end_to_end else item.path.stem))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an empty bucket on a local S3 server."""
    moto = pytest.importorskip("moto.server")
    import s3fs

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("pyramid-tests")
    yield "s3://pyramid-tests"
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.stop()


# A shell that starts the tests in the background has them ignore Ctrl-C, and every child would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
