"""Files of kept features: nothing stale or damaged is read, and they are whole whenever whoever writes them dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import drawing
import feature_folder
import pyarrow as pa
import pytest
import torch
from feature_folder import (
    DRAWN,
    Calls,
    alike,
    all_kept,
    batches,
    config,
    filled,
    kept_files,
    none_kept,
    opened,
    trained,
    write_mixture,
)
from safetensors import safe_open

from pyramid import files, parquet
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA
from pyramid.shards.verify import verify
from vla.features.fill import FeatureFill

pytestmark = pytest.mark.usefixtures("own_cache")

OTHERS: dict[str, dict[str, Any]] = {
    "weights": {"trainer.seed": 1},
    "picture size": {"policy.backbone.image_size_px": 16},
    "layer": {"policy.backbone.tap_layer": 1},
    "length of texts": {"policy.backbone.max_text_tokens": 5},
    "precision": {"trainer.precision": "bf16-mixed"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_features_of_something_else_are_not_read(what: str, tmp_path: Path, calls: Calls) -> None:
    mixture = write_mixture(tmp_path)
    _, first = filled(mixture, config())
    assert calls.taken() == DRAWN
    stream, other = opened(mixture, config(**OTHERS[what]))
    assert first.maker.layout.maker != other.maker.layout.maker
    assert none_kept(stream)
    # Not even under the other's name.
    shutil.copytree(first.where, other.where)
    (Path(other.where) / "features.json").unlink()
    again, other = opened(mixture, config(**OTHERS[what]))
    assert none_kept(again)
    other.fill(other.plan())
    assert calls.taken() == DRAWN
    assert all_kept(again := opened(mixture, config(**OTHERS[what]))[0])


def test_another_text_or_another_clip_is_worked_out_again(tmp_path: Path, calls: Calls) -> None:
    mixture, index = write_mixture(tmp_path), str(tmp_path / "arm" / INDEX_FILE)
    filled(mixture, config())
    calls.taken()
    rows = parquet.read(index).to_pylist()
    changed = [{**row, "text": "something else"} if row["key"] == drawing.key_of(1) else row for row in rows]
    parquet.write(index, pa.Table.from_pylist(changed, schema=INDEX_SCHEMA), parquet.metadata(index))
    stream, features = opened(mixture, config())
    for group in batches(stream):
        assert [n > 0 for n in group.context_length.tolist()] == [key != drawing.key_of(1) for key in group.key]
    features.fill(features.plan())
    assert calls.taken() == 8
    # Packed again: clip 0 now shows what clip 20 did, under the old key's shard.
    write_again(tmp_path)
    stream, features = opened(mixture, config())
    assert none_kept(stream)
    assert "features/" in verify(str(tmp_path / "arm")).notes[0]
    features.fill(features.plan())
    assert calls.taken() == DRAWN
    assert verify(str(tmp_path / "arm")).notes == []


def write_again(folder: Path) -> None:
    for path in folder.glob("arm/clips-*.tar"):
        path.unlink()
    drawing.write_shards(folder / "arm", feature_folder.FRAMES, n_val=1, first_clip=20)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(path: Path, header: Any, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def changed_header(**changes: Any) -> Any:
    def change(path: Path) -> None:
        header, body = header_of(path)
        header[drawing.key_of(0)] = {**header[drawing.key_of(0)], **changes}
        with_header(path, header, body)

    return change


def renamed(path: Path) -> None:
    """The rows of clip 0 under the name of clip 1, and the other way round."""
    header, body = header_of(path)
    names = {drawing.key_of(0): drawing.key_of(1), drawing.key_of(1): drawing.key_of(0)}
    with_header(path, {names.get(name, name): entry for name, entry in header.items()}, body)


def bits(path: Path) -> None:
    """One bit of every row changed."""
    header, body = header_of(path)
    data = bytearray(body)
    for name, entry in header.items():
        if name.startswith("drawn-"):
            start, end = entry["data_offsets"]
            for at in range(start, end, (end - start) // entry["shape"][0]):
                data[at] ^= 1
    with_header(path, header, bytes(data))


def unlike(path: Path) -> None:
    header, body = header_of(path)
    header["__metadata__"]["maker"] = "0" * 64
    with_header(path, header, body)


DAMAGE: dict[str, Any] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a header without end": lambda path: path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:]),
    "no JSON": lambda path: with_header(path, b"{" * 64, b""),
    "deep JSON": lambda path: with_header(path, b"[" * 100_000, b""),
    "a list": lambda path: with_header(path, [1, 2], b""),
    "a number too long": lambda path: with_header(path, b'{"a": ' + b"9" * 5000 + b"}", b""),
    "no metadata": lambda path: with_header(path, {n: e for n, e in header_of(path)[0].items() if n[0] != "_"}, b""),
    "another shape": changed_header(shape=[9, 27, 16]),
    "a shape of lies": changed_header(shape=[2**40, 27, 32]),
    "negative": changed_header(data_offsets=[-4, 100]),
    "another type": changed_header(dtype="F64"),
    "an object": changed_header(dtype={"a": 1}),
    "many dimensions": changed_header(shape=[1] * 64),
    "another maker": unlike,
    "names exchanged": renamed,
    "a pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch hurt'\ntR."),
    "other bits": bits,
}


def test_a_damaged_file_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stream, features = filled(write_mixture(tmp_path), config())
    path, in_file = kept_files(tmp_path / "arm")[0], {drawing.key_of(0), drawing.key_of(1)}
    whole = path.read_bytes()
    for what, damage in DAMAGE.items():
        damage(path)
        assert path.read_bytes() != whole, what
        features = FeatureFill(stream, features.maker)
        stream.kept = features.kept
        for group in batches(stream):
            for key, length in zip(group.key, group.context_length.tolist(), strict=True):
                assert (length > 0) == (key not in in_file), what
        assert not Path("hurt").exists()
        if what != "other bits":  # Only reading every byte would tell.
            features.fill(features.plan())
            assert path.read_bytes() == whole, what
        path.write_bytes(whole)


def test_files_may_be_deleted_while_they_are_read(tmp_path: Path) -> None:
    stream, _ = filled(write_mixture(tmp_path), config())
    assert all_kept(stream)
    shutil.rmtree(tmp_path / "arm" / "features")
    assert none_kept(stream)
    assert all(group.images.any() for group in batches(stream))


def test_files_are_ordinary_and_say_where_they_come_from(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    stream, features = filled(mixture, config())
    about = files.read_json(f"{features.where}/features.json")
    assert Path(features.where).parent == tmp_path / "arm" / "features"
    assert about["maker"] == features.maker.layout.maker
    assert about["maker"].startswith(Path(features.where).name)
    assert about["tool"] == "latent-pyramid"
    assert about["config"]["backbone"]["kind"] == "llava"
    found = {}
    for path in kept_files(tmp_path / "arm"):
        with safe_open(path, "pt") as opened_file:
            found |= {key: opened_file.get_tensor(key) for key in opened_file.keys() if key[0] != "_"}  # noqa: SIM118
    group = stream.batch(0)[0]
    for i, key in enumerate(group.key):
        frame = round(float(group.state[i, 0])) % 100
        assert torch.equal(found[key][frame], group.context[i, : group.context_length[i]])
    assert verify(str(tmp_path / "arm")).bad == []
    assert verify(str(tmp_path / "arm"), deep=True).notes == []


def test_a_clip_that_cannot_be_decoded_is_left_to_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyramid.errors import DataError
    from pyramid.shards import reader

    whole, bad = reader.decode_mp4, drawing.sample_members(1, 8)["mp4"]

    def decode(video: bytes, *args: Any) -> Any:
        if video == bad:
            raise DataError("clip 1 is broken")
        return whole(video, *args)

    monkeypatch.setattr(reader, "decode_mp4", decode)
    mixture = write_mixture(tmp_path, max_bad_share=0.9)
    plain = trained(mixture, tmp_path / "plain", config(**{"policy.backbone.cache_features": False}))
    assert alike(plain, trained(mixture, tmp_path / "kept", config()))
    stream, features = opened(mixture, config())
    assert features.plan().frames == 0
    assert any(any(group.replaced) for group in batches(stream))
    assert all(drawing.key_of(1) not in group.key for group in batches(stream))


def test_killed_while_filling_it_goes_on_where_it_stopped(tmp_path: Path, calls: Calls) -> None:
    mixture = write_mixture(tmp_path)
    child = start(tmp_path, 0.3)
    wait_for(lambda: kept_files(tmp_path / "arm"), child)
    wait_for(lambda: list(tmp_path.glob("arm/features/*/.tmp-*")), child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (left,) = tmp_path.glob("arm/features/*/.tmp-*")
    (done,) = kept_files(tmp_path / "arm")
    before = done.read_bytes()
    _, features = opened(mixture, config())
    missing = features.plan().frames
    assert 0 < missing < DRAWN
    os.utime(left, (0, 0))
    features.fill(features.plan())
    assert calls.taken() == missing
    assert done.read_bytes() == before
    assert not left.exists()
    as_from_one_run(tmp_path, mixture)


@pytest.mark.slow
def test_two_may_fill_at_once(tmp_path: Path) -> None:
    mixture = write_mixture(tmp_path)
    children = [start(tmp_path, 0.05), start(tmp_path, 0.05)]
    assert [child.wait(120) for child in children] == [0, 0]
    assert not list(tmp_path.glob("arm/features/*/.tmp-*"))
    as_from_one_run(tmp_path, mixture)


def start(folder: Path, delay_s: float) -> subprocess.Popen[bytes]:
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, feature_folder.__file__, str(folder), str(delay_s)]
    return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)


def wait_for(condition: Any, child: subprocess.Popen[bytes]) -> None:
    for _ in range(2400):
        if condition():
            return
        assert child.poll() is None, "it ended before"
        time.sleep(0.05)
    raise AssertionError("nothing happened")


def as_from_one_run(folder: Path, mixture: str) -> None:
    found = {path.name: path.read_bytes() for path in kept_files(folder / "arm")}
    shutil.rmtree(folder / "arm" / "features")
    filled(mixture, config())
    assert found == {path.name: path.read_bytes() for path in kept_files(folder / "arm")}


def test_where_shards_cannot_be_written_the_users_cache_has_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: Calls
) -> None:
    mixture = write_mixture(tmp_path)
    (tmp_path / "arm" / "features").write_text("in the way")
    trained(mixture, tmp_path / "first", config())
    assert capsys.readouterr().err.count("not kept in") == 1
    assert len(kept_files(tmp_path / "cache")) == 2
    assert calls.taken() == DRAWN
    stream, _ = opened(mixture, config())
    assert all_kept(stream)
    assert calls.taken() == 0


def test_where_nothing_can_be_written_training_goes_on_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = write_mixture(tmp_path)
    plain = trained(mixture, tmp_path / "plain", config(**{"policy.backbone.cache_features": False}))
    (tmp_path / "arm" / "features").write_text("in the way")
    (tmp_path / "cache" / "latent-pyramid" / "features").write_text("in the way")
    assert alike(plain, trained(mixture, tmp_path / "kept", config()))
    said = capsys.readouterr().err
    assert said.count("not kept in") == 2
    assert said.count("there is no other place to keep them") == 1


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyramid.shards import features as module

    mixture = write_mixture(tmp_path)
    whole = module.zlib.crc32

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.zlib, "crc32", full)
    filled(mixture, config())
    assert not kept_files(tmp_path)
    assert not list(tmp_path.rglob(".tmp-*"))
    monkeypatch.setattr(module.zlib, "crc32", whole)
