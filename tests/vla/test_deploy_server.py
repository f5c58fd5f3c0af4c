"""The policy server as a process of its own, asked by the bytes of its clients; and overload, in this process."""

import contextlib
import io
import shutil
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import msgpack
import numpy as np
import pytest
import zmq
from tiny_deploy import ACTIONS, STEPS, TEXT, Server, expected_action, make_deploy

from pyramid.errors import ConfigError, DataError, UnreachableError
from vla.deploy import metrics as metrics_module
from vla.deploy.client import PolicyClient, PolicyServerError
from vla.deploy.dialects import default_interface
from vla.deploy.metrics import Metrics, start_http
from vla.deploy.protocol import unpack
from vla.deploy.serve import serve
from vla.deploy.server import PolicyServer, ServerOptions
from vla.deploy.spec import read_spec
from vla.observation import initial_noise
from vla.text import byte_tokenizer, encode_texts

TOKEN = "a token of thirty-two letters ok"
STATE = np.float32([1.5, 2.0, 3.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_deploy(tmp_path_factory.mktemp("deploy") / "x")


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder, "--max-message-mib", "1") as running:
        yield running


@contextlib.contextmanager
def raw_socket(port, kind=zmq.REQ, timeout_s=5.0):
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(timeout_s * 1000))
        socket.connect(f"tcp://127.0.0.1:{port}")
        yield socket


def published_array(array):
    """An array as GR00T's public clients pack it: a whole .npy file by NumPy."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def views(level=100, n=2, lead=()):
    return {f"camera_{k}": np.full((*lead, 1, 8, 8, 3), level, np.uint8) for k in range(n)}


def n1_5_request(**changes):
    data = {f"video.{name}": published_array(view) for name, view in views().items()}
    data["state.state"] = published_array(STATE[None].astype(np.float64))
    data["annotation.human.task_description"] = ["go"]
    return {"endpoint": "get_action", "data": {**data, **changes}}


def n1_6_request(seed=None):
    observation = {
        "video": {name: published_array(view) for name, view in views(lead=(1,)).items()},
        "state": {"state": published_array(STATE[None, None])},
        "language": {"task": [["go"]]},
    }
    options = None if seed is None else {"seed": seed}
    return {"endpoint": "get_action", "data": {"observation": observation, "options": options}}


def wanted(seed=0):
    ids, _ = encode_texts(byte_tokenizer(), ["go"], TEXT)
    return expected_action(100, STATE, initial_noise(seed, STEPS, ACTIONS), ids)


def exchange(port, data):
    with raw_socket(port) as socket:
        socket.send(data)
        return socket.recv()


def open_reply(data):
    """Reads a reply as the public clients do: msgpack and NumPy alone."""

    def hook(item):
        return np.load(io.BytesIO(item["as_npy"]), allow_pickle=False) if "__ndarray_class__" in item else item

    return msgpack.unpackb(data, object_hook=hook)


def ask(client, **changes):
    found = {"video": views(lead=(1,)), "state": {"state": STATE[None, None]}, "language": {"task": [["go"]]}}
    return client.act({**found, **changes}, options={"seed": 0})


def test_bytes_of_both_dialects_are_answered(server):
    assert exchange(server.port, b"\x81\xa8endpoint\xa4ping")[:1] == b"\x82"
    reply = open_reply(exchange(server.port, msgpack.packb(n1_5_request())))
    assert list(reply) == ["action.action"]
    assert reply["action.action"].shape == (STEPS, ACTIONS)
    assert np.abs(reply["action.action"] - wanted()).max() < 1e-5
    reply = open_reply(exchange(server.port, msgpack.packb(n1_6_request(seed=7))))
    assert isinstance(reply, list)
    assert (reply[0]["action"].shape, reply[0]["action"].dtype) == ((1, STEPS, ACTIONS), np.float32)
    assert np.abs(reply[0]["action"][0] - wanted(7)).max() < 1e-5
    assert reply[1]["server_timing"]["total_ms"] > 0


def test_modality_config_in_the_words_of_each_version(server, folder):
    def config(port):
        return msgpack.unpackb(exchange(port, msgpack.packb({"endpoint": "get_modality_config"})))["video"]

    keys = {"delta_indices": [0], "modality_keys": ["camera_0", "camera_1"]}
    assert config(server.port) == {"__ModalityConfig_class__": True, "as_json": keys}
    with Server(folder, "--dialect", "n1_5") as old:
        text = '{"delta_indices": [0], "modality_keys": ["video.camera_0", "video.camera_1"]}'
        assert config(old.port) == {"__ModalityConfig_class__": True, "as_json": text}


def test_our_client_asks_and_is_told_what_is_wrong(server):
    with PolicyClient(port=server.port) as client:
        assert client.ping()["status"] == "ok"
        client.reset()
        assert set(client.modality_config()) == {"video", "state", "action", "language"}
        action, _ = ask(client)
        assert np.abs(action["action"][0] - wanted()).max() < 1e-5
        nan = np.float32([[[1, np.nan, 1]]])
        wrong = {
            "lacks the camera 'camera_1'": {"video": views(n=1, lead=(1,))},
            "has 16 x 8 px, the policy takes 8 x 8": {
                "video": {**views(lead=(1,)), "camera_0": np.zeros((1, 1, 16, 8, 3), np.uint8)}
            },
            r"must be uint8.*got float64": {"video": {k: v / 255 for k, v in views(lead=(1,)).items()}},
            r"not finite in dimensions \[1\]": {"state": {"state": nan}},
            "unknown language key 'tsak'": {"language": {"tsak": [["go"]]}},
        }
        for message, change in wrong.items():
            with pytest.raises(PolicyServerError, match=message):
                ask(client, **change)
        for endpoint, message in {"kill": "no request can stop", "get_axtion": "no endpoint 'get_axtion'"}.items():
            with pytest.raises(PolicyServerError, match=message):
                client.ask(endpoint)
        assert np.array_equal(ask(client)[0]["action"], action["action"])


def test_oversized_truncated_and_shapeless_messages_are_answered(server):
    good = msgpack.packb(n1_5_request())
    for data, message in (
        (good + bytes(2**20 - len(good) + 1), "has 1,048,577 bytes, at most 1,048,576"),
        (good[: len(good) // 2], "not msgpack"),
        (msgpack.packb([1, 2]), "a request is a map"),
        (msgpack.packb({"endpoint": ["get_action"]}), "no endpoint"),
        (msgpack.packb({"endpoint": "get_action"}), "needs a map with an observation"),
        (b"", "not msgpack"),
    ):
        reply = msgpack.unpackb(exchange(server.port, data))
        assert list(reply) == ["error"]
        assert message in reply["error"]
        assert "Traceback" not in reply["error"]
        assert ".py" not in reply["error"]
    with raw_socket(server.port, timeout_s=0.5) as socket:
        socket.send(bytes(3 * 2**20))  # far too large: cut off, which costs nobody else anything
        with pytest.raises(zmq.Again):
            socket.recv()
    with raw_socket(server.port, zmq.DEALER) as socket:
        socket.send_multipart([b"not", b"a", b"request", b""])
        assert b"one message of a REQ socket" in socket.recv_multipart()[-1]
    assert b"ok" in exchange(server.port, msgpack.packb({"endpoint": "ping"}))


def test_a_wrong_token_is_refused_and_the_right_one_is_not_shown(folder):
    with Server(folder, token=TOKEN) as server:
        for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1]):
            with PolicyClient(port=server.port, token=token) as client:
                with pytest.raises(PolicyServerError, match="'api_token' is missing or wrong"):
                    client.ping()
                with pytest.raises(PolicyServerError, match="'api_token' is missing or wrong"):
                    client.ask("kill")
        request = msgpack.packb({"endpoint": "ping", "api_token": 5})
        assert b"api_token" in exchange(server.port, request)
        with PolicyClient(port=server.port, token=TOKEN) as client:
            assert ask(client)[0]["action"].shape == (1, STEPS, ACTIONS)
        assert TOKEN not in "".join(server.log)


def web(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        return reply.status, reply.read().decode()


def test_health_metrics_and_a_stop_that_answers_what_it_took_in(folder):
    with Server(folder, "--deadline-ms", "0.001") as server, PolicyClient(port=server.port) as client:
        client.ping()
        assert web(server.http_port, "/healthz") == (200, "ok\n")
        for _ in range(3):
            ask(client)
        with pytest.raises(PolicyServerError):
            client.ask("nothing")
        status, text = web(server.http_port, "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert status == 200
        assert lines['pyramid_policy_requests_total{endpoint="get_action",outcome="ok"}'] == "3"
        assert lines['pyramid_policy_requests_total{endpoint="unknown",outcome="refused"}'] == "1"
        assert lines['pyramid_policy_latency_seconds_bucket{le="+Inf"}'] == "3"
        assert lines["pyramid_policy_latency_seconds_count"] == "3"
        assert lines["pyramid_policy_deadline_misses_total"] == "3"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            web(server.http_port, "/etc/passwd")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert "3 deadline_misses, 4 ok, 1 refused" in server.process.stdout.read()


def test_a_client_of_a_dead_server_gets_an_error_in_time(folder):
    with Server(folder) as server, PolicyClient(port=server.port, timeout_s=0.5) as client:
        assert client.ping()
        server.process.send_signal(signal.SIGSTOP)  # alive for TCP, dead for its clients
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(UnreachableError, match=r"no answer within 0.5 s"):
                client.ping()
            assert time.monotonic() - start < 2
        server.process.send_signal(signal.SIGCONT)
        client.timeout_s = 10
        assert client.ping()  # a fresh connection; no answer to an older question
        server.process.kill()
        server.process.wait()
        client.timeout_s = 0.3
        client._drop()
        with pytest.raises(UnreachableError):
            client.ping()


def test_a_folder_that_changed_or_an_open_address_is_refused(folder, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    with (changed / "system1.onnx").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(DataError, match=r"system1\.onnx' is changed since the export"):
        serve(str(changed), port=0)
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        serve(str(folder), host="*")
    with pytest.raises(ConfigError, match="must be an IP address"):
        serve(str(folder), host="example.org")
    short = tmp_path / "token"
    short.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16 are needed"):
        serve(str(folder), token_file=str(short))
    with pytest.raises(ConfigError, match="max_waiting >= 1"):
        serve(str(folder), max_waiting=0)
    with pytest.raises(ConfigError, match="dialect must be"):
        serve(str(folder), dialect="n2")
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(str(folder), port=port)


def mutate(message, draw):
    """Flips, cuts, repeats or splices bytes of a good message."""
    data = bytearray(message)
    for _ in range(int(draw.integers(1, 6))):
        at, kind = int(draw.integers(0, max(len(data), 1))), draw.integers(0, 5)
        size = int(draw.integers(1, 40))
        if kind == 0 and data:
            data[at] ^= 1 << int(draw.integers(0, 8))
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = draw.bytes(size)
        elif kind == 3:
            data[at:at] = data[at : at + size] * int(draw.integers(1, 4))
        else:
            data[at : at + 4] = bytes([draw.choice([0xC1, 0xDD, 0xDF, 0xC6, 0xC9, 0xFF])]) + draw.bytes(3)
    return bytes(data)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_messages_harm_nobody(folder, count):
    """Every one is answered, memory stands still, and another client gets its right answers meanwhile."""
    draw = np.random.default_rng(5)
    good = [msgpack.packb(n1_5_request()), msgpack.packb(n1_6_request(1)), msgpack.packb({"endpoint": "ping"})]
    answers = {"error": 0, "fine": 0}
    with Server(folder) as server, PolicyClient(port=server.port) as other, raw_socket(server.port) as socket:
        for index in range(count):
            socket.send(mutate(good[index % 3], draw))
            data = socket.recv()
            reply = unpack(data)
            failed = isinstance(reply, dict) and "error" in reply
            answers["error" if failed else "fine"] += 1
            assert not failed or "Traceback" not in reply["error"]
            assert not failed or "internal error" not in reply["error"], "".join(server.log)
            if index == count // 3:
                before = server.memory_bytes
            if index % 50 == 0:
                assert np.abs(ask(other)[0]["action"][0] - wanted()).max() < 1e-5
        assert server.memory_bytes - before < 8 * 2**20
        assert server.process.poll() is None
        assert not any("internal error" in line for line in server.log)
    assert answers["error"] > count / 4
    assert answers["fine"] > 0


class GatedPolicy:
    """Answers when it is let: what a slow machine looks like, without waiting for one."""

    def __init__(self):
        self.seconds = {}
        self.gate = threading.Event()
        self.asked = 0

    def act(self, observation, *, seed=0):
        self.asked += 1
        assert self.gate.wait(20)
        if observation["text"] == "break":
            raise RuntimeError("a secret of the inside")
        return np.full((STEPS, ACTIONS), np.nan if observation["text"] == "nan" else seed, np.float32)


@pytest.fixture
def gated(folder):
    policy, stop, metrics = GatedPolicy(), threading.Event(), Metrics()
    interface = default_interface(read_spec(str(folder)))
    server = PolicyServer(policy, interface, ServerOptions(port=0, max_waiting=2, timeout_s=0.5), metrics)
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    yield policy, int(server.address.rsplit(":", 1)[1]), metrics, stop
    policy.gate.set()
    stop.set()
    thread.join(15)
    assert not thread.is_alive()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_overload_is_refused_at_once_and_the_others_are_answered(gated):
    policy, port, metrics, _ = gated
    request = msgpack.packb(n1_6_request(3))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(raw_socket(port)) for _ in range(3)]
        sockets[0].send(request)
        until(lambda: policy.asked == 1)
        sockets[1].send(request)
        time.sleep(0.2)
        sockets[2].send(request)
        assert b"busy: 2 requests wait already" in sockets[2].recv()
        assert b"ok" in exchange(port, msgpack.packb({"endpoint": "ping"}))
        time.sleep(0.5)
        policy.gate.set()
        assert unpack(sockets[0].recv())[0]["action"][0, 0, 0] == 3
        assert b"longer than the 0.5 s allowed" in sockets[1].recv()  # its client may have given up: never computed
        assert policy.asked == 1
        sockets[1].send(request)
        assert unpack(sockets[1].recv())[0]["action"][0, 0, 0] == 3
    assert metrics.totals() == {"ok": 3, "busy": 2, "deadline_misses": 1}


def test_one_peer_cannot_fill_the_queue_and_one_that_does_not_read_costs_nothing(gated):
    policy, port, _, _ = gated
    request = msgpack.packb(n1_6_request(3))
    with raw_socket(port, zmq.DEALER) as greedy:
        for _ in range(4):
            greedy.send_multipart([b"", request])
        replies = [greedy.recv_multipart()[-1] for _ in range(3)]
        assert all(b"send one at a time" in reply for reply in replies)
        policy.gate.set()
        assert unpack(greedy.recv_multipart()[-1])[0]["action"][0, 0, 0] == 3
        greedy.setsockopt(zmq.SNDTIMEO, 500)
        with contextlib.suppress(zmq.Again):
            for _ in range(3000):
                greedy.send_multipart([b"", msgpack.packb({"endpoint": "ping"})])
        assert unpack(exchange(port, request))[0]["action"][0, 0, 0] == 3


def test_peers_that_drip_bytes_hold_up_nobody(server):
    """Half a greeting on the policy's port, half a request on the other one, a byte at a time."""
    with contextlib.ExitStack() as stack, PolicyClient(port=server.port, timeout_s=5) as client:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5)) for _ in range(40)]
        half = [stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), 5)) for _ in range(4)]
        before = server.memory_bytes
        for byte in (b"\xff\x00\x00", b"GET"):
            for peer in slow if byte[0] == 0xFF else half:
                peer.sendall(byte)
            assert np.abs(ask(client)[0]["action"][0] - wanted()).max() < 1e-5
            assert web(server.http_port, "/healthz") == (200, "ok\n")
        assert server.memory_bytes - before < 8 * 2**20
    assert server.process.poll() is None


def test_a_web_peer_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(metrics_module._Server, "longest_s", 0.4)
    metrics = Metrics()
    metrics.ready = True
    found = start_http(metrics, "127.0.0.1", 0)
    try:
        peer = socket.create_connection(found.server_address, 10)
        with peer, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            until(lambda: peer.sendall(b"G"), 20)  # which is never true
        assert web(found.server_address[1], "/healthz") == (200, "ok\n")
    finally:
        found.shutdown()
        found.server_close()


def test_what_fails_inside_stays_inside(gated):
    policy, port, metrics, _ = gated
    policy.gate.set()
    with PolicyClient(port=port) as client:
        with pytest.raises(PolicyServerError, match=r"internal error [0-9a-f]{8}; the server's log") as caught:
            ask(client, language={"task": [["break"]]})
        assert "secret" not in str(caught.value)
        with pytest.raises(PolicyServerError, match="numbers that are not finite"):
            ask(client, language={"task": [["nan"]]})
        assert ask(client)[0]["action"].shape == (1, STEPS, ACTIONS)
    assert metrics.totals()["failed"] == 1


def test_a_stopping_server_answers_what_it_took_in(gated):
    policy, port, _, stop = gated
    with raw_socket(port) as socket:
        socket.send(msgpack.packb(n1_6_request(4)))
        until(lambda: policy.asked == 1)
        stop.set()
        time.sleep(0.3)
        policy.gate.set()
        assert unpack(socket.recv())[0]["action"][0, 0, 0] == 4


def test_the_client_needs_numpy_msgpack_and_pyzmq_alone(server):
    import subprocess
    import sys

    code = (
        "import sys; from vla.deploy.client import PolicyClient; c = PolicyClient(port=int(sys.argv[1])); c.ping();"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'tokenizers', 'PIL', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(server.port)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
