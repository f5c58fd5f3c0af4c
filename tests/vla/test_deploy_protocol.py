"""Messages as bytes, and both dialects as values; no sockets."""

import contextlib
import io
import json

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_deploy import make_deploy

from pyramid.errors import ConfigError, DataError, UnsafeInputError
from vla.deploy.dialects import answer, default_interface, modality_config, parse, read_interface
from vla.deploy.protocol import array_from_npy, array_to_npy, pack, unpack
from vla.deploy.spec import read_spec

SHAPES = [(), (3,), (1, 2), (2, 0, 3), (1, 2, 3, 4)]


def numpys_own(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@pytest.fixture(scope="module")
def interface(tmp_path_factory):
    return default_interface(read_spec(str(make_deploy(tmp_path_factory.mktemp("deploy")))))


@pytest.mark.parametrize("dtype", ["u1", "?", "f2", "f4", "f8", "i4", "i8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_are_those_of_numpys_own_files(dtype, shape):
    array = np.arange(np.prod(shape), dtype="f8").reshape(shape).astype(dtype)
    assert array_to_npy(array) == numpys_own(array)
    for written in (array, array.copy(order="F")):
        back = array_from_npy(numpys_own(written))
        assert (back.dtype, back.shape) == (array.dtype, shape)
        assert np.array_equal(back, array)
    message = {"a": [array, "x", 1, None, 2.5, True]}
    assert np.array_equal(unpack(pack(message))["a"][0], array)
    assert unpack(pack(message))["a"][1:] == message["a"][1:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (numpys_own(np.zeros(2, "u2")), "type '<u2', which is not read"),
        (numpys_own(np.zeros(2, "c8")), "type '<c8', which is not read"),
        (numpys_own(np.zeros(2, ">f4")), "type '>f4', which is not read"),
        (numpys_own(np.array(["text"])), "type '<U4', which is not read"),
        (numpys_own(np.zeros(2, "M8[s]")), "not a .npy file"),
        (numpys_own(np.zeros(2, [("a", "f4")])), "not a .npy file"),
        (numpys_own(np.zeros(4, "f4")).replace(b"(4,)", b"(5,)"), r"claims the shape \[5\] of float32"),
        (numpys_own(np.zeros(4, "f4"))[:-1], "its 15 bytes do not"),
        (numpys_own(np.zeros(4, "f4")) + b"x", "its 17 bytes do not"),
        (numpys_own(np.zeros((4, 10), "f4")).replace(b"(4, 10), }", b"(99999999,"), "not a .npy file"),
        (numpys_own(np.zeros((1,) * 7)), "at most 6 dimensions"),
        (numpys_own(np.zeros(4, "f4")).replace(b"'<f4'", b"'|O8'"), "type '|O8', which is not read"),
        (b"\x93NUMPY\x01\x00" + b"\xff\xff" + b"(" * 65535, "not a .npy file"),
        (b"PK\x03\x04" + bytes(100), "not a .npy file"),
        (b"", "not a .npy file"),
    ],
)
def test_arrays_that_claim_or_hold_something_else_are_refused(data, message):
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        array_from_npy(data)


def test_an_array_that_claims_eighty_gigabytes_allocates_nothing():
    claim = numpys_own(np.zeros((1, 10), "f8")).replace(b"(1, 10), }        ", b"(10, 999999999), }")
    assert b"999999999" in claim
    with pytest.raises(UnsafeInputError, match="claims the shape"):
        array_from_npy(claim)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb({"a": 1}) + b"\x00", "not msgpack"),
        (msgpack.packb({"a": "x" * 99})[:-1], "not msgpack"),
        (msgpack.packb({1: 2}), "not msgpack"),
        (msgpack.packb("x" * 70_000), "not msgpack"),
        (msgpack.packb(list(range(5000))), "not msgpack"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "not msgpack"),
        (msgpack.packb(msgpack.Timestamp(1, 1)), "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\x91" * 20 + b"\xc0", "nested more than 8"),
        (b"\x91" * 100_000 + b"\xc0", "not msgpack|nested"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": "text"}), "no 'as_npy' with bytes"),
        (bytes(2001), "has 2,001 bytes, at most 2,000"),
    ],
)
def test_messages_beyond_the_limits_are_refused(message, error):
    with pytest.raises(DataError, match=error):
        unpack(message, max_bytes=2000 if len(message) == 2001 else 2**20)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for read in (unpack, array_from_npy, lambda b: array_from_npy(b"\x93NUMPY\x01\x00" + b)):
        with contextlib.suppress(DataError):
            read(data)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(UnsafeInputError, match="type object cannot be sent"):
        pack({"a": np.array([object()])})
    with pytest.raises(TypeError, match="cannot hold a set"):
        pack({1, 2})


def flat(batch=None, **changes):
    """An observation in the words of N1.5."""
    lead = () if batch is None else (batch,)
    found = {
        "video.camera_0": np.full((*lead, 1, 8, 8, 3), 10, np.uint8),
        "video.camera_1": np.full((*lead, 1, 8, 8, 3), 20, np.uint8),
        "state.state": np.broadcast_to(np.float64([1, 2, 3]), (*lead, 1, 3)),
        "annotation.human.task_description": ["go"],
    }
    found.update({key.replace("__", "."): value for key, value in changes.items()})
    return {key: value for key, value in found.items() if value is not None}


def nested(**changes):
    """An observation in the words of N1.6 and N1.7."""
    found = {
        "video": {f"camera_{k}": np.full((1, 1, 8, 8, 3), 10 * k + 10, np.uint8) for k in range(2)},
        "state": {"state": np.float32([[[1, 2, 3]]])},
        "language": {"task": [["go"]]},
    }
    return {"observation": {**found, **changes}, "options": None}


def test_both_dialects_say_the_same(interface):
    for data, dialect in ((flat(), "n1_5"), (flat(1), "n1_5"), (nested(), "n1_6")):
        query = parse(data, interface)
        (seen,) = query.observations
        assert query.dialect == dialect
        assert [view.mean() for view in seen["images"]] == [10, 20]
        assert (seen["images"].shape, seen["text"]) == ((2, 8, 8, 3), "go")
        assert seen["state"].tolist() == [1, 2, 3]
    action = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert answer(parse(flat(), interface), [action], interface, {})["action.action"].shape == (4, 2)
    assert answer(parse(flat(1), interface), [action], interface, {})["action.action"].shape == (1, 4, 2)
    reply = answer(parse(nested(), interface), [action], interface, {"note": 1})
    assert reply[0]["action"].shape == (1, 4, 2)
    assert reply[1] == {"note": 1}


def test_a_batch_is_taken_apart_in_order(interface):
    data = flat(2, video__camera_0=np.stack([np.full((1, 8, 8, 3), v, np.uint8) for v in (1, 2)]))
    assert [seen["images"][0].max() for seen in parse(data, interface).observations] == [1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flat(video__camera_0=None), "lacks the camera 'camera_0'; it has 'camera_1'"),
        (flat(video__camera_2=np.zeros((1, 8, 8, 3), np.uint8)), "unknown camera 'camera_2'; did you mean"),
        (flat(video__camera_0=np.zeros((1, 9, 8, 3), np.uint8)), "'camera_0' has 9 x 8 px, the policy takes 8 x 8"),
        (flat(video__camera_0=np.zeros((1, 8, 8, 3), np.float32)), r"must be uint8 \[1, H, W, 3\].*got float32"),
        (flat(video__camera_0=np.zeros((2, 8, 8, 3), np.uint8)), r"got uint8 \[2, 8, 8, 3\]"),
        (flat(video__camera_0=np.zeros((1, 8, 0, 3), np.uint8)), r"got uint8 \[1, 8, 0, 3\]"),
        (flat(video__camera_0=[1]), "got list"),
        (flat(state__state=np.float32([[1, np.nan, np.inf]])), r"state 'state' is not finite in dimensions \[1, 2\]"),
        (flat(state__state=np.float64([[1, 1e300, 1]])), r"state 'state' is not finite in dimensions \[1\]"),
        (flat(state__state=[[1, [2]], 3]), "got list"),
        (nested(video=np.zeros(3)), "video must be a map of names, got float64"),
        (nested(language={"task": np.zeros(3)}), "one text for each of 1"),
        (flat(state__state=np.zeros((1, 2))), r"must be float \[1, 3\].*got float64 \[1, 2\]"),
        (flat(state__state=np.zeros((1, 3), bool)), "got bool"),
        (flat(annotation__other=["go"]), "unknown language key 'annotation.other'"),
        (flat(task="go"), "give it once"),
        (flat(annotation__human__task_description=["a", "b"]), "one text for each of 1"),
        (flat(annotation__human__task_description=[[1]]), "one text for each of 1"),
        (flat(depth="x"), "unknown key 'depth'"),
        (flat(9), "same B of 1 to 8"),
        (nested(audio={}), "unknown parts 'audio'"),
        (nested(video=[1]), "video must be a map"),
        ({"observation": 3}, "must be a map of video"),
        ({**nested(), "more": 1}, "not 'more'"),
        ({**nested(), "options": {"seed": -1}}, "'seed' must be"),
        ({**nested(), "options": {"steps": 1}}, "may hold a 'seed'"),
        (None, "needs a map"),
    ],
)
def test_what_does_not_fit_is_named(interface, data, message):
    with pytest.raises(DataError, match=message):
        parse(data, interface)


def test_names_come_from_modality_json_and_views_are_scaled_on_demand(tmp_path):
    spec = read_spec(str(make_deploy(tmp_path / "deploy")))
    document = {
        "state": {"arm": {"start": 1, "end": 3}, "gripper": {"start": 0, "end": 1}},
        "action": {"arm": {"start": 0, "end": 1}, "gripper": {"start": 1, "end": 2}},
        "video": {"front": {"original_key": "x"}, "wrist": {}},
        "annotation": {"human.what": {}},
    }
    path = tmp_path / "modality.json"
    path.write_text(json.dumps(document))
    names = read_interface(str(path), spec, resize=True)
    data = {
        "video.wrist": np.full((1, 31, 17, 3), 7, np.uint8),
        "video.front": np.full((1, 8, 8, 3), 5, np.uint8),
        "state.gripper": np.float32([[9]]),
        "state.arm": np.float32([[1, 2]]),
        "annotation.human.what": "go",
    }
    query = parse(data, names)
    assert query.observations[0]["state"].tolist() == [9, 1, 2]
    assert [np.unique(view).tolist() for view in query.observations[0]["images"]] == [[5], [7]]
    reply = answer(query, [np.float32([[1, 2]] * 4)], names, {})
    assert {key: value[0].tolist() for key, value in reply.items()} == {"action.arm": [1], "action.gripper": [2]}
    old = json.loads(modality_config(names, "n1_5")["video"].as_json)
    assert old == {"delta_indices": [0], "modality_keys": ["video.front", "video.wrist"]}
    assert modality_config(names, "n1_6")["action"].as_json == {
        "delta_indices": [0, 1, 2, 3],
        "modality_keys": ["arm", "gripper"],
    }
    for change, message in (
        ({"video": {"front": {}}}, "names 1 cameras, the policy takes 2"),
        ({"action": {"arm": {"start": 0, "end": 1}}}, "must cover the policy's 2 dimensions once"),
        ({"state": 3}, "is no modality.json"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(ConfigError, match=message):
            read_interface(str(path), spec)
