"""The way from videos to batches on a store: the same bytes as on a disk, by the functions and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pytest
import torch
from stores import Store

from pyramid import files
from pyramid.cli import main
from pyramid.config import dump_yaml
from pyramid.corpora.scan import scan
from pyramid.errors import ExitCode
from pyramid.labels.engine import label
from pyramid.lerobot.read import open_v2, read_episode
from pyramid.mixture.batch import open_mixture
from pyramid.shards.pack import pack
from pyramid.shards.reader import ShardSet
from pyramid.shards.verify import QUARANTINE, verify

OPTIONS = {"size_px": 32, "frames_per_shard": 80}
LABELERS = Path(__file__).parents[1] / "pyramid" / "labels"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Five videos of 12 frames."""
    for i in range(5):
        drawing.write_video(tmp_path / "videos" / f"v{i}.mp4", range(100 * i, 100 * i + 12), rate=10)
    return tmp_path / "videos"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Installs the labeler that reads the truth off the pictures; returns its model file."""
    info = tmp_path / "site" / "truth-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: truth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyramid.labelers]\ntruth = truth:load\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.syspath_prepend(str(LABELERS))
    (tmp_path / "model.json").write_text("{}")
    return str(tmp_path / "model.json")


def copy(source: Path, url: str) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            files.write_bytes(f"{url}/{path.relative_to(source)}", path.read_bytes())


def go_all_the_way(videos: str, out: str, model: str, *, workers: int = 1) -> list[Any]:
    """Goes from videos to batches; returns the first batches."""
    manifest = scan("folder", videos, out=files.join(out, "clips.parquet"), val_share=0.0).out
    packed = files.join(out, "packed")
    assert pack(manifest, out=packed, config=OPTIONS, workers=workers).clips == 5
    assert label(packed, labeler="truth", model=model).clips == 5
    assert verify(packed).exit_code == ExitCode.DONE
    source = {"shards": packed, "use": "pseudo", "labels": files.join(packed, "labels", "truth")}
    spec = {"tiers": {"base": {"weight": 1.0, "sources": {"all": source}}}, "horizon": 3, "seed": 3}
    files.write_text(files.join(out, "mix.yaml"), dump_yaml(spec))
    stream = open_mixture(files.join(out, "mix.yaml"), batch_size=4, image_size=32)
    return [stream.batch(step) for step in range(3)]


def test_from_videos_to_batches(store: Store, videos: Path, model: str, tmp_path: Path) -> None:
    copy(videos, f"{store.url}/videos")
    here = go_all_the_way(str(videos), str(tmp_path / "out"), model)
    there = go_all_the_way(f"{store.url}/videos", f"{store.url}/out", model, workers=2)
    on_disk = drawing.lasting(drawing.tree(tmp_path / "out" / "packed"))
    assert len([name for name in on_disk if name.endswith(".tar")]) == 3
    found = {n: files.sha256_bytes(data) for n, data in store.content("out/packed").items()}
    assert drawing.lasting(found) == on_disk
    assert store.uploads() == []
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            for name in ("images", "state", "action", "mask", "weight", "position"):
                assert torch.equal(getattr(a, name), getattr(b, name))
            assert (a.key, a.source, a.text) == (b.key, b.source, b.text)


def test_faults_on_the_way_change_nothing(store: Store, videos: Path, model: str, tmp_path: Path) -> None:
    copy(videos, f"{store.url}/videos")
    go_all_the_way(str(videos), str(tmp_path / "out"), model)
    for kind in ("GET", "PUT", "LIST"):
        for fault in ("500", "refused", "lost"):
            store.proxy.fail(fault, 1, kind=kind, path="pack" if kind != "GET" else "")
    store.proxy.fail("reset", 2, kind="GET", path="v3.mp4")
    store.proxy.fail("short", 2, kind="GET", path="clips-000001.tar")
    go_all_the_way(f"{store.url}/videos", f"{store.url}/out", model)
    assert not [rule for rule in store.proxy.rules if rule.times]
    found = {n: files.sha256_bytes(data) for n, data in store.content("out/packed").items()}
    assert drawing.lasting(found) == drawing.lasting(drawing.tree(tmp_path / "out" / "packed"))


def test_bad_shards_and_tables_are_set_aside(store: Store, tmp_path: Path) -> None:
    folder = Path(drawing.write_shards(tmp_path / "shards", [3, 3, 3, 3, 3, 3]))
    good, bad = (folder / f"clips-00000{i}.tar" for i in range(2))
    broken = bytearray(bad.read_bytes())
    broken[700] ^= 1
    bad.write_bytes(broken)
    (folder / "_receipts").mkdir()
    for path in (good, bad):
        (folder / "_receipts" / f"{path.stem}.json").write_text("{}")
    (folder / "labels" / "run").mkdir(parents=True)
    (folder / "labels" / "run" / "clips-000002.parquet").write_bytes(b"none")
    copy(folder, f"{store.url}/shards")
    there = f"{store.url}/shards"
    assert verify(there).exit_code == ExitCode.FAILED
    # Stopped after the copy was made: the next time does it again.
    files.write_bytes(f"{there}/{QUARANTINE}/{bad.name}", b"half")
    result = verify(there, quarantine=True)
    assert [b["path"].removeprefix(there) for b in result.bad] == [f"/{bad.name}", "/labels/run/clips-000002.parquet"]
    assert result.exit_code == ExitCode.QUARANTINED
    verify(str(folder), quarantine=True)
    assert {n: files.sha256_bytes(data) for n, data in store.content("shards").items()} == drawing.tree(folder)
    assert files.read_bytes(f"{there}/{QUARANTINE}/{bad.name}") == bytes(broken)
    assert ShardSet.open(there).shards == [good.name, "clips-000002.tar"]
    assert verify(there, quarantine=True).bad == []


def test_a_lerobot_data_set(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "arm"
    for i in range(2):
        drawing.write_episode(root / "data" / "chunk-000" / f"episode_{i:06d}.parquet", 10 + i, first=100 * i)
        video = root / "videos" / "chunk-000" / "observation.images.front" / f"episode_{i:06d}.mp4"
        drawing.write_video(video, range(100 * i, 100 * i + 10 + i), rate=10)
    features = {"observation.images.front": {"dtype": "video"}}
    info = {"codebase_version": "v2.1", "fps": 10, "robot_type": "arm", "features": features}
    rows = [{"episode_index": i, "length": 10 + i, "tasks": [f"task {i}"]} for i in range(2)]
    (root / "meta").mkdir()
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    copy(root, f"{store.url}/arm")
    found = open_v2(f"{store.url}/arm")
    assert [(e.index, e.length, e.task) for e in found.episodes] == [(0, 10, "task 0"), (1, 11, "task 1")]
    assert found.notes == ()
    for episode in found.episodes:
        arrays = read_episode(found, episode)
        assert np.array_equal(arrays.state[:, 0], 100 * episode.index + np.arange(episode.length))
    for where, out in ((f"{store.url}/arm", f"{store.url}/out"), (str(root), str(tmp_path / "out"))):
        manifest = scan("lerobot", where, out=files.join(out, "clips.parquet")).out
        assert pack(manifest, out=files.join(out, "packed"), config=OPTIONS).clips == 2
    there = {n: files.sha256_bytes(data) for n, data in store.content("out/packed").items()}
    assert there == drawing.tree(tmp_path / "out" / "packed")


def test_the_command(store: Store, videos: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    copy(videos, f"{store.url}/videos")
    out = f"{store.url}/out"

    def run(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert run("scan", "folder", f"{store.url}/videos", "--out", f"{out}/clips.parquet")["clips"] == 5
    call = ["pack", f"{out}/clips.parquet", "--out", f"{out}/packed", "--frames_per_shard", "80", "--size_px", "32"]
    assert run(*call)["shards"] == 3
    assert run(*call)["skipped_done"] == 3
    assert run("label", f"{out}/packed", "--labeler", "truth", "--model", model)["rows"] == 60
    assert run("verify", f"{out}/packed")["bad"] == []
    jobs = run("status", out)["jobs"]
    assert [(job["folder"], job["units"]) for job in jobs] == [(f"{out}/packed", 3), (f"{out}/packed/labels/truth", 3)]
    store.proxy.fail("500", 1000)
    assert main(["verify", f"{out}/packed"]) == ExitCode.FAILED
    message = capsys.readouterr().err
    assert f"{out}/packed/shards.parquet" in message
    assert "Traceback" not in message
