"""What a source holds: filters, several folders, label confidence, bad samples, shards that go away, remote shards."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mixture_data import label_tables

from pyramid import files, parquet
from pyramid.config import dump_yaml
from pyramid.errors import ConfigError, DataError, PyramidError
from pyramid.mixture.batch import MixtureStream, open_mixture
from pyramid.mixture.loader import MixtureLoader
from pyramid.mixture.verbs import mix_show, mix_what_if
from pyramid.shards.cache import ShardCache, cache_folder
from pyramid.shards.layout import INDEX_FILE, STATE, dump_array


def one_source(tmp_path: Path, source: dict[str, Any], **options: Any) -> MixtureStream:
    tiers = {"top": {"weight": 1, "sources": {"x": source}}}
    (tmp_path / "one.yaml").write_text(dump_yaml({"tiers": tiers, "horizon": 3, **options}))
    return open_mixture(str(tmp_path / "one.yaml"), batch_size=4, image_size=16)


def drawn_numbers(stream: MixtureStream, epochs: int = 1) -> list[int]:
    """The number on the picture of every sample of an epoch, in the order in which they come."""
    n = len(stream.sources[0]) * epochs
    batches = [stream.batch_of(stream.draw(first, min(4, n - first))) for first in range(0, n, 4)]
    return [drawing.read_picture(image[0].numpy()) for batch in batches for group in batch for image in group.images]


def edit_index(folder: str, **columns: Any) -> None:
    index = parquet.read(f"{folder}/{INDEX_FILE}")
    for name, values in columns.items():
        place = index.schema.get_field_index(name)
        index = index.set_column(place, index.schema.field(name), pa.array(values, index.schema.field(name).type))
    parquet.write(f"{folder}/{INDEX_FILE}", index, {})


@pytest.fixture
def arm(tmp_path: Path) -> str:
    folder = drawing.write_shards(tmp_path / "arm", [3, 2, 4, 3])
    edit_index(
        folder,
        text=["pick the cup", "", "  ", "place the cup"],
        static_share=[0.1, 0.9, None, 0.2],
        camera_px=[0.0, 1.0, 5.0, 0.5],
        notes=[[], ["blurred"], None, ["dark", "blurred"]],
        embodiment=["arm", "arm", "arm", "hand"],
        split=["train", "train", "train", "extra"],
    )
    return folder


@pytest.mark.parametrize(
    ("condition", "clips"),
    [
        ({}, [0, 1, 2]),
        ({"has_text": True}, [0]),
        ({"text": "p(ick|our)"}, [0]),
        ({"max_static_share": 0.5}, [0]),
        ({"max_camera_px": 1.0}, [0, 1]),
        ({"without_notes": ["blurred"]}, [0, 2]),
        ({"split": "extra"}, [3]),
        ({"embodiment": "arm", "max_camera_px": 0.5}, [0]),
    ],
)
def test_filters_leave_the_clips_that_they_say(arm: str, tmp_path: Path, condition: dict, clips: list[int]) -> None:
    stream = one_source(tmp_path, {"shards": arm, "use": "action", "filter": condition})
    frames = [3, 2, 4, 3]
    assert sorted(drawn_numbers(stream)) == [drawing.number_of(c, t) for c in clips for t in range(frames[c])]
    assert stream.sources[0].n_frames == sum(frames[c] for c in clips)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"split": "none"}, "of split 'none' in .*; it has extra, train"),
        ({"embodiment": "leg"}, "of embodiment 'leg' in .*; it has arm, hand"),
        ({"text": "pour"}, "whose text holds 'pour'"),
        ({"max_camera_px": 0.1, "max_static_share": 0.05}, "with static_share up to 0.05"),
        ({"has_text": True, "without_notes": ["blurred"], "text": "place"}, "place"),
    ],
)
def test_a_filter_that_leaves_nothing_is_named(arm: str, tmp_path: Path, condition: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"source 'x': no clip .*{message}"):
        one_source(tmp_path, {"shards": arm, "use": "action", "filter": condition})


def with_confidence(folder: str, use: str) -> str:
    """Labels with a confidence that falls from frame to frame."""
    run = label_tables(folder, use=use)
    for name in files.listdir(run):
        table, metadata = parquet.read(f"{run}/{name}"), parquet.metadata(f"{run}/{name}")
        frame = table["frame"].to_numpy()
        table = table.append_column("recon_gain", pa.array(1.0 - 0.25 * frame, pa.float32()))
        std = [[0.1, 0.1 * t] for t in frame.tolist()]
        table = table.append_column("action_std", pa.array(std, pa.list_(pa.float32())))
        table = table.append_column("n_votes", pa.array(8 - frame, pa.uint8()))
        flags = table.schema.get_field_index("flags")
        values = pa.array(frame % 2, table.schema.field("flags").type)
        table = table.set_column(flags, table.schema.field("flags"), values)
        parquet.write(f"{run}/{name}", table, metadata)
    return run


@pytest.mark.parametrize(
    ("use", "condition", "frames"),
    [
        ("latent", {"min_recon_gain": 0.6}, [0, 1]),
        ("latent", {"without_flags": 1}, [0, 2]),
        ("pseudo", {"max_action_std": 0.21}, [0, 1, 2]),
        ("pseudo", {"min_votes": 7}, [0, 1]),
        ("pseudo", {"without_flags": 1}, [0, 2]),
    ],
)
def test_labels_without_confidence_are_not_drawn(tmp_path: Path, use: str, condition: dict, frames: list[int]) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [5, 5, 5], actions=False)
    run = with_confidence(videos, use)
    stream = one_source(tmp_path, {"shards": videos, "use": use, "labels": run, "filter": condition})
    assert sorted(drawn_numbers(stream)) == [drawing.number_of(c, t) for c in range(3) for t in frames]
    if use == "pseudo":
        [group] = stream.batch_of(stream.draw(0, len(stream.sources[0])))
        for action, mask, image in zip(group.action, group.mask, group.images, strict=True):
            number = drawing.read_picture(image[0].numpy())
            left = [t for t in range(number % 100, number % 100 + 3)]
            assert mask[:, 0].tolist() == [t in frames and t < 4 for t in left]
            assert action[:, 0].tolist() == [number + i if mask[i, 0] else 0.0 for i in range(3)]


def test_confidence_that_leaves_no_label_or_has_no_column_is_named(tmp_path: Path) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [5, 5], actions=False)
    run = with_confidence(videos, "latent")
    source = {"shards": videos, "use": "latent", "labels": run, "filter": {"min_recon_gain": 2.0}}
    with pytest.raises(DataError, match=r"source 'x': its filter \(min_recon_gain: 2\) leaves none of the 8 labels"):
        one_source(tmp_path, source)
    plain = label_tables(videos, use="latent")
    with pytest.raises(DataError, match=r"source 'x': .* has no column 'recon_gain'"):
        one_source(tmp_path, {**source, "labels": plain})


def test_a_source_may_have_several_folders(tmp_path: Path) -> None:
    folders = [
        drawing.write_shards(tmp_path / name, [3, 4], actions=False, first_clip=c) for name, c in (("a", 0), ("b", 5))
    ]
    runs = [label_tables(folder, use="pseudo") for folder in folders]
    stream = one_source(tmp_path, {"shards": folders, "use": "pseudo", "labels": runs})
    expected = [drawing.number_of(c, t) for c, n in ((0, 3), (1, 4), (5, 3), (6, 4)) for t in range(n - 1)]
    assert sorted(drawn_numbers(stream)) == expected
    [group] = stream.batch_of(stream.draw(0, 10))
    for number, action, label, key in zip(drawn_numbers(stream), group.action, group.label, group.key, strict=True):
        assert action[0, 0] == number
        assert label == runs[number >= 500]
        assert key == drawing.key_of(number // 100)
    with pytest.raises(DataError, match="label again"):
        one_source(tmp_path, {"shards": folders, "use": "pseudo", "labels": runs[::-1]})


def test_what_was_read_once_is_read_from_the_cache(tmp_path: Path) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [4, 4], actions=False)
    source = {"shards": videos, "use": "pseudo", "labels": label_tables(videos, use="pseudo")}
    first = one_source(tmp_path, source)
    values = first.statistics["arm_pseudo"]["action"].center
    kept = {p: p.read_bytes() for p in cache_folder().rglob("*") if p.is_file()}
    assert {p.parent.name for p in kept} == {"labels", "statistics"}
    # Tables that changed are not taken from it.
    again = one_source(tmp_path, source)
    assert np.array_equal(again.statistics["arm_pseudo"]["action"].center, values)
    other = with_confidence(videos, "pseudo")
    narrowed = one_source(tmp_path, {**source, "labels": other, "filter": {"min_votes": 7}})
    assert len(narrowed.sources[0]) == 4
    assert not np.array_equal(narrowed.statistics["arm_pseudo"]["action"].center, values)
    assert all(path.read_bytes() == data for path, data in kept.items())


def break_sample(folder: str, number: int) -> None:
    """Turns bytes of a sample over, without a change of the shard's size."""
    row = parquet.read(f"{folder}/{INDEX_FILE}").to_pylist()[number]
    path = Path(folder, row["shard"])
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 255
    path.write_bytes(data)


def test_a_bad_sample_is_replaced_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [4] * 6)
    good = one_source(tmp_path, {"shards": folder, "use": "action"}, max_bad_share=0.5)
    whole = good.batch_of(good.draw(0, 24))[0]
    break_sample(folder, 2)
    streams = [one_source(tmp_path, {"shards": folder, "use": "action"}, max_bad_share=0.5) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "pyramid.mixture"):
        found = streams[0].batch_of(streams[0].draw(0, 24))[0]
    assert drawing.key_of(2) not in found.key
    assert found.replaced == tuple(key == drawing.key_of(2) for key in whole.key)
    for one, other, replaced in zip(found.key, whole.key, found.replaced, strict=True):
        assert replaced or one == other
    assert sum(found.replaced) == 4
    assert streams[0].bad["x"] >= 4
    assert drawing.key_of(2) in caplog.text
    # In any order the same sample stands in.
    late = [streams[1].batch_of(streams[1].draw(g, 1))[0].key[0] for g in reversed(range(24))][::-1]
    assert tuple(late) == found.key


def test_more_bad_samples_than_allowed_stop_the_run(tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [4] * 6)
    break_sample(folder, 2)
    stream = one_source(tmp_path, {"shards": folder, "use": "action"}, max_bad_share=0.02)
    with pytest.raises(DataError, match=r"3 of \d+ samples cannot be read, more than max_bad_share: 0.02 allows"):
        stream.batch_of(stream.draw(0, 24))


def test_bad_samples_of_all_workers_are_judged_together(tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [4] * 6)
    break_sample(folder, 2)
    source = {"shards": folder, "use": "action"}
    alone = [one_source(tmp_path, source, max_bad_share=0.5) for _ in range(2)]
    for worker, stream in enumerate(alone):
        for step in range(worker, 6, 2):
            stream.batch(step)
    bad = [stream.bad["x"] for stream in alone]
    assert min(bad) > 0
    # More than either worker finds, and one less than they find together: at least 100 samples are judged by.
    both = one_source(tmp_path, source, max_bad_share=(sum(bad) - 1) / 100)
    with pytest.raises(DataError, match=rf"^{sum(bad)} of \d+ samples cannot be read"):
        list(MixtureLoader(both, batch_size=4, workers=2, steps=6))


@pytest.mark.parametrize(
    ("scores", "clips"),
    [
        ({"min": {"motion": 0.2}}, [1, 2]),
        ({"max": {"flicker": 0.5}}, [0, 2]),
        ({"min": {"motion": 0.2}, "max": {"flicker": 0.5}}, [2]),
        ({"verdict": "keep"}, [0, 1]),
    ],
)
@pytest.mark.parametrize("by", ["item", "key", "clip_id"])
def test_clips_are_filtered_by_their_scores(tmp_path: Path, scores: dict, clips: list[int], by: str) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [2, 3, 4, 5])
    index = parquet.read(f"{folder}/{INDEX_FILE}")
    names = index["clip_id" if by == "clip_id" else "key"].to_pylist()[:3]
    table = {by: names, "motion": [0.1, 0.2, 0.3], "flicker": [0.1, 0.9, 0.5], "verdict": ["keep", "keep", "drop"]}
    parquet.write(str(tmp_path / "scores.parquet"), pa.table(table))
    source = {"shards": folder, "use": "action", "filter": {"scores": {"path": "scores.parquet", **scores}}}
    found = drawn_numbers(one_source(tmp_path, source))
    # The clip without a score is left out, too.
    assert sorted({number // 100 for number in found}) == clips
    source["filter"]["scores"] = {"path": "scores.parquet", "min": {"motoin": 1.0}}
    with pytest.raises(DataError, match=r"source 'x': '.*scores.parquet' has no column 'motoin'; it has .*motion"):
        one_source(tmp_path, source)
    source["filter"]["scores"] = {"path": "scores.parquet", "min": {"motion": 9.0}}
    with pytest.raises(DataError, match=r"source 'x': no clip that 'scores.parquet' speaks for"):
        one_source(tmp_path, source)


def test_a_label_table_that_was_written_again_with_as_many_bytes_is_noticed(tmp_path: Path) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [4, 4], actions=False)
    source = {"shards": videos, "use": "pseudo", "labels": label_tables(videos, use="pseudo")}
    path, found = Path(source["labels"], "clips-000000.parquet"), []
    table = parquet.read(str(path))
    place = table.schema.get_field_index("action")
    for more in (0, 1000):
        values = pa.array([[a + more, b] for a, b in table["action"].to_pylist()], table.schema.field(place).type)
        written = table.set_column(place, table.schema.field(place), values)
        pq.write_table(written, path, compression="none", use_dictionary=False, write_statistics=False)
        stream = one_source(tmp_path, source)
        found.append((path.stat().st_size, stream.digest, stream.statistics["arm_pseudo"]["action"].center[0]))
    (size, digest, center), (size_then, digest_then, center_then) = found
    assert size == size_then
    assert digest != digest_then
    assert center_then == pytest.approx(center + 1000, rel=1e-2)


def test_a_copy_of_a_label_run_is_the_same_run(tmp_path: Path) -> None:
    videos = drawing.write_shards(tmp_path / "videos", [4, 4], actions=False)
    run = label_tables(videos, use="pseudo")
    source = {"shards": videos, "use": "pseudo", "labels": run}
    digest = one_source(tmp_path, source).sources[0].digest
    for path in Path(run).iterdir():
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    assert one_source(tmp_path, source).sources[0].digest == digest


def test_statistics_of_relative_actions_are_those_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, members = drawing.write_shards(tmp_path / "plain", [5, 2]), drawing.sample_members
    states = {n: np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32) for n in (5, 2)}
    monkeypatch.setattr(
        drawing, "sample_members", lambda c, n, **o: {**members(c, n, **o), STATE: dump_array(states[n])}
    )
    folder = drawing.write_shards(tmp_path / "arm", [5, 2])
    edit_index(folder, state_dim=[2, 2])
    one_source(tmp_path, {"shards": folder, "use": "action"})
    shown = mix_show(str(tmp_path / "one.yaml"), relative=True).statistics
    assert [(row["kind"], row["dimension"]) for row in shown] == [(f"action_{h}", d) for h in range(3) for d in (0, 1)]
    for row in shown:
        h, d = int(row["kind"][-1]), row["dimension"]
        rows = []
        for clip, n in enumerate((5, 2)):
            actions = [(-1) ** d * drawing.number_of(clip, t) for t in range(n)]
            # The actions are [number, -number]; no chunk goes on past its clip.
            rows += [actions[t + h] - float(states[n][t, d]) for t in range(n - h)]
        assert (row["min"], row["max"]) == pytest.approx((min(rows), max(rows)), rel=1e-5)
        assert (row["mean"], row["std"]) == pytest.approx((np.mean(rows), np.std(rows)), rel=1e-5)
    one_source(tmp_path, {"shards": plain, "use": "action"})
    with pytest.raises(ConfigError, match="relative actions need states of the same dimensions"):
        mix_show(str(tmp_path / "one.yaml"), relative=True)


def test_actions_that_are_no_numbers_are_bad_samples(tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [4] * 3)
    stream = one_source(tmp_path, {"shards": folder, "use": "action"}, max_bad_share=0.5)
    source = stream.sources[0]
    sample = source.sample(1)
    assert sample.action is not None
    broken = sample.action.copy()
    broken[2, 0] = np.nan
    object.__setattr__(sample, "action", broken)
    # Chunks of three that begin at frames 0, 1 and 2 of four hold it, the last does not.
    for step, bad in ((0, True), (2, True), (3, False)):
        if bad:
            with pytest.raises(DataError, match="not finite"):
                source.read(1, step)
        else:
            assert source.read(1, step)[0].action[0, 0] == drawing.number_of(1, 3)
    [first] = stream.batch_of(stream.draw(0, 12))  # Decoded for it.
    [again] = stream.batch_of(stream.draw(0, 12))  # Found in memory.
    assert sum(first.replaced) == 3
    assert (first.replaced, first.key) == (again.replaced, again.key)
    assert torch.isfinite(first.action).all()
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.action, again.action)


@pytest.mark.parametrize(("change", "message"), [("gone", "vanished"), ("other", "changed")])
def test_a_shard_that_goes_away_or_changes_is_named(tmp_path: Path, change: str, message: str) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [3] * 4)
    source = {"shards": folder, "use": "action"}
    stream = one_source(tmp_path, source, cache_mb=0)
    shard = Path(folder, "clips-000001.tar")
    data = shard.read_bytes()
    shard.unlink()
    if change == "other":
        shard.write_bytes(data[:512])
    with pytest.raises(DataError, match=f"source 'x': the shard '.*clips-000001.tar' {message} during the run"):
        drawn_numbers(stream)
    with pytest.raises(DataError, match=r"source 'x': the shard '.*clips-000001.tar' (is not there|has 512 bytes)"):
        one_source(tmp_path, source)


def test_clips_are_decoded_once_and_in_bounded_memory(tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [6] * 40, per_shard=1)
    source = {"shards": folder, "use": "action"}
    one = one_source(tmp_path, source, shuffle_frames=24)
    expected = drawn_numbers(one, epochs=2)
    # Only the clips at the ends of an epoch are decoded twice.
    assert 1.0 <= one.decoded_per_used <= 1.2
    assert one.sources[0].cache.frames == 2 * (24 + 6)
    # Without memory the frames are the same, and more are decoded for them.
    none = one_source(tmp_path, source, shuffle_frames=24, cache_mb=0)
    assert drawn_numbers(none, epochs=2) == expected
    assert none.decoded_per_used > 2
    assert none.sources[0].cache.frames == 0


def test_workers_share_what_is_decoded(tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [12] * 24, per_shard=4)
    decoded = []
    for workers in (1, 3):
        stream = one_source(tmp_path, {"shards": folder, "use": "action"}, shuffle_frames=96)
        loader = MixtureLoader(stream, batch_size=4, workers=workers, steps=72)
        numbers = [
            drawing.read_picture(image[0].numpy()) for batch in loader for group in batch for image in group.images
        ]
        assert sorted(numbers) == [drawing.number_of(c, t) for c in range(24) for t in range(12)]
        decoded.append(stream.decoded_per_used)
    assert decoded[0] < 1.5
    # Each for itself, three workers would decode nearly every clip three times. None decodes what another is decoding,
    # but one that lags behind may need what is no longer held.
    assert decoded[1] < 1.7


def test_remote_shards_come_through_a_bounded_copy(s3: str, tmp_path: Path) -> None:
    folder = drawing.write_shards(tmp_path / "arm", [4] * 8, per_shard=1)
    for path in Path(folder).iterdir():
        files.write_bytes(f"{s3}/mixture/{path.name}", path.read_bytes())
    here = one_source(tmp_path, {"shards": folder, "use": "action"}, window_shards=2)
    source = {"shards": f"{s3}/mixture", "use": "action"}
    plain = one_source(tmp_path, source, window_shards=2)
    cached = one_source(tmp_path, source, window_shards=2, shard_cache_mb=1)
    assert drawn_numbers(plain) == drawn_numbers(cached) == drawn_numbers(here)
    copies = sorted((cache_folder() / "shards").glob("*.tar"))
    assert {files.sha256_file(path) for path in copies} == {path.stem for path in copies}
    assert len(copies) == 8


def test_copies_stay_within_their_bound_and_may_be_lost(tmp_path: Path) -> None:
    shards = []
    for number in range(5):
        path = tmp_path / f"clips-{number:06d}.tar"
        path.write_bytes(np.random.default_rng(number).bytes(400_000))
        shards.append((str(path), files.sha256_file(path), 400_000))
    cache = ShardCache(1, tmp_path / "copies")
    cache.ahead(shards[:1])
    for url, sha256, size in shards * 2:
        assert cache.read(url, sha256, size, 1000, 50) == Path(url).read_bytes()[1000:1050]
        held = list((tmp_path / "copies").glob("*.tar"))
        assert 0 < sum(p.stat().st_size for p in held) <= 2**20
    for path in (tmp_path / "copies").iterdir():
        path.unlink()
    left, fresh = tmp_path / "copies" / ".tmp-killed", tmp_path / "copies" / ".tmp-at-work"
    for path in (left, fresh):
        path.touch()
    os.utime(left, (0, 0))
    url, sha256, size = shards[0]
    assert cache.read(url, sha256, size, 0, 9) == Path(url).read_bytes()[:9]
    assert (left.exists(), fresh.exists()) == (False, True)
    small = ShardCache(0, tmp_path / "none")
    assert small.read(url, sha256, size, 0, 9) == Path(url).read_bytes()[:9]
    assert not (tmp_path / "none").exists()
    Path(shards[1][0]).unlink()
    with pytest.raises(PyramidError):
        ShardCache(1, tmp_path / "fresh").read(*shards[1], 0, 9)


def test_the_unit_is_converted_in_sight(spec: dict, tmp_path: Path) -> None:
    changed = {**copy.deepcopy(spec), "unit": "hours"}
    (tmp_path / "hours.yaml").write_text(dump_yaml(changed))
    shown = mix_show(str(tmp_path / "hours.yaml"), statistics=True)
    # A sample spans three steps at 10 Hz, three at 5 Hz, one gap of 0.2 s.
    seconds = {"arm": 0.3, "dreams": 0.6, "human": 0.2}
    hours = {s["source"]: s["share"] * seconds[s["source"]] for s in shown.sources}
    total = sum(hours.values())
    assert {n: h / total for n, h in hours.items()} == pytest.approx(
        {"arm": 0.5, "dreams": 0.2, "human": 0.3}, abs=1e-4
    )
    assert {s["source"]: s["unit_share"] for s in shown.sources} == {"human": 0.3, "dreams": 0.2, "arm": 0.5}
    assert "of hours" in repr(shown)
    assert "0.5 x 1" in repr(shown)
    row = next(s for s in shown.statistics if (s["embodiment"], s["kind"]) == ("arm", "state"))
    numbers = [drawing.number_of(c, t) for c, n in enumerate([5, 3, 4]) for t in range(n)]
    assert (row["min"], row["max"], row["mean"]) == (min(numbers), max(numbers), pytest.approx(np.mean(numbers)))
    tried = mix_what_if(str(tmp_path / "hours.yaml"), unit="samples", weights=["top=0", "dreams=3"], draws=100)
    found = {s["source"]: s for s in tried.sources}
    assert (found["arm"]["share"], found["arm"]["exhausted"]) == (0, None)
    assert found["arm"]["share_before"] == pytest.approx(
        next(s["share"] for s in shown.sources if s["source"] == "arm")
    )
    assert (found["human"]["share"], found["dreams"]["share"]) == (0.6, 0.4)
    assert found["dreams"]["epochs"] == 40 / 8
    # The eighth sample of dreams, 2 in 5 of all, is the 19th or 20th.
    assert found["dreams"]["exhausted"] in (18, 19, 20)
    assert "never" in repr(tried)
