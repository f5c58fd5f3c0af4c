"""Labelling: the truth for any number of workers and any batch, one bad clip costs itself only, stops cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing
import killing
import pytest

from pyramid import files, parquet
from pyramid.errors import ConfigError, DataError
from pyramid.labels.engine import label
from pyramid.labels.protocol import Labeler, labeler_names, load_labeler
from pyramid.labels.table import LabelRun
from pyramid.shards.reader import ShardSet

FRAMES = [5, 3, 8, 4, 6, 2]
Model = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", FRAMES)


def truth(shards: str) -> dict[str, list[list[float]]]:
    """What must be said of each clip: of every frame its time, its place and the number drawn on it."""
    rows = ShardSet.open(shards).rows
    return {
        row["key"]: [[t / 10, t, drawing.number_of(clip, t)] for t in range(row["frames"])]
        for clip, row in enumerate(rows)
    }


def said(out: str, shards: str) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    opened = ShardSet.open(shards)
    run = LabelRun.open(out, opened)
    for shard in opened.shards:
        for row in run.table(shard).to_pylist():
            found.setdefault(row["key"], []).append([row["t_s"], row["frame"], row["action"][0]])
    return found


def test_the_stranger_is_installed() -> None:
    assert {"truth", "lam", "idm"} <= set(labeler_names())


@pytest.mark.parametrize("options", [{}, {"batch_clips": 1}, {"batch_clips": 3}, {"workers": 3, "batch_clips": 2}])
def test_the_truth_comes_back_in_the_same_bytes(shards: str, model: Model, tmp_path: Path, options: dict) -> None:
    path = model()
    out = str(tmp_path / "out")
    result = label(shards, labeler="truth", model=path, out=out, **options)
    assert (result.clips, result.rows, result.shards, result.quarantined) == (6, sum(FRAMES), 3, {})
    assert said(out, shards) == truth(shards)
    label(shards, labeler="truth", model=path, out=str(tmp_path / "plain"), config={"batch_clips": 8})
    assert drawing.lasting(drawing.tree(tmp_path / "out")) == drawing.lasting(drawing.tree(tmp_path / "plain"))


def test_tables_say_where_they_come_from(shards: str, model: Model) -> None:
    result = label(shards, labeler="truth", model=model())
    assert result.out == files.join(shards, "labels", "truth")
    opened = ShardSet.open(shards)
    for shard in opened.shards:
        metadata = parquet.metadata(files.join(result.out, shard.replace(".tar", ".parquet")))
        assert metadata["index_digest"] == opened.shard_digest(shard)
        assert metadata["labeler_digest"] == files.digest({})
        assert metadata["config"] == {"unit": "number", "rate_hz": 10.0}
        assert metadata["tool"] == "latent-pyramid"


def test_labelling_leaves_the_shards_alone(shards: str, model: Model) -> None:
    before = drawing.tree(Path(shards))
    label(shards, labeler="truth", model=model())
    assert before.items() <= drawing.tree(Path(shards)).items()


FAULTS = {
    "SkipItemError": ("no_pairs", "nothing to compare"),
    "DataError": ("label_error", "broken"),
    "ValueError": ("label_error", "ValueError"),
    "RuntimeError": ("label_error", "RuntimeError"),
    "KeyError": ("label_error", "KeyError"),
    "ZeroDivisionError": ("label_error", "ZeroDivisionError"),
    "SystemExit": ("label_error", "SystemExit"),
    "nan": ("bad_labels", "'action' holds NaN"),
    "null": ("bad_labels", "'n' holds NaN, infinity or nothing"),
    "wrong key": ("bad_labels", "another clip's key"),
    "wrong order": ("bad_labels", "not in order of time"),
    "past the end": ("bad_labels", "of a clip with 8 frames"),
    "wrong type": ("bad_labels", "of other types"),
    "more columns": ("bad_labels", "extra"),
    "too many": ("bad_labels", "2 tables for 1 clips"),
    "too few": ("bad_labels", "0 tables for 1 clips"),
    "none": ("label_error", "NoneType"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("batch_clips", [1, 8])
def test_a_clip_that_cannot_be_labelled_is_named_and_the_others_are(
    shards: str, model: Model, tmp_path: Path, fault: str, batch_clips: int
) -> None:
    bad = drawing.key_of(2)
    out = str(tmp_path / "out")
    path = model(faults={bad: fault})
    result = label(shards, labeler="truth", model=path, out=out, batch_clips=batch_clips)
    reason, detail = FAULTS[fault]
    assert result.quarantined == {reason: 1}
    assert result.items[0].item == bad
    assert detail in result.items[0].detail
    assert said(out, shards) == {key: rows for key, rows in truth(shards).items() if key != bad}
    again = label(shards, labeler="truth", model=path, out=out)
    assert (again.skipped_done, again.quarantined) == (3, {reason: 1})


def test_a_clip_without_labels_is_no_fault(shards: str, model: Model, tmp_path: Path) -> None:
    result = label(
        shards, labeler="truth", model=model(faults={drawing.key_of(0): "no rows"}), out=str(tmp_path / "out")
    )
    assert result.quarantined == {}
    assert drawing.key_of(0) not in said(str(tmp_path / "out"), shards)


def test_when_no_clip_can_be_labelled_the_run_failed(shards: str, model: Model, tmp_path: Path) -> None:
    faults = {drawing.key_of(i): "ValueError" for i in range(6)}
    with pytest.raises(DataError, match="none of the clips could be labelled"):
        label(shards, labeler="truth", model=model(faults=faults), out=str(tmp_path / "out"))


def test_a_sample_that_cannot_be_read_is_set_aside(shards: str, model: Model, tmp_path: Path) -> None:
    row = ShardSet.open(shards).rows[3]
    path = Path(shards, row["shard"])
    data = bytearray(path.read_bytes())
    data[row["offset"] + 600] ^= 1
    path.write_bytes(data)
    result = label(shards, labeler="truth", model=model(), out=str(tmp_path / "out"))
    assert result.quarantined == {"bad_sample": 1}
    assert result.items[0].item == row["key"]
    assert set(said(str(tmp_path / "out"), shards)) == set(truth(shards)) - {row["key"]}


def test_another_model_labels_again_even_under_the_same_name(shards: str, model: Model, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    label(shards, labeler="truth", model=model(), out=out)
    assert label(shards, labeler="truth", model=model(), out=out).skipped_done == 3
    changed = label(shards, labeler="truth", model=model(offset=1000), out=out)
    assert changed.skipped_done == 0
    expected = {key: [[t, f, n + 1000] for t, f, n in rows] for key, rows in truth(shards).items()}
    assert said(out, shards) == expected


def test_other_shards_are_labelled_again_and_only_those(shards: str, model: Model, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    path = model()
    label(shards, labeler="truth", model=path, out=out)
    drawing.write_shards(Path(shards), [*FRAMES[:4], 9, 2])
    with pytest.raises(DataError, match="label again"):
        LabelRun.open(out, ShardSet.open(shards))
    assert label(shards, labeler="truth", model=path, out=out).skipped_done == 2
    assert said(out, shards) == truth(shards)


@pytest.mark.parametrize("mode", ["kill", pytest.param("error", marks=pytest.mark.slow)])
def test_stopped_at_any_file_and_run_again_it_ends_the_same(
    shards: str, model: Model, tmp_path: Path, mode: str
) -> None:
    path = model(faults={drawing.key_of(2): "nan"})
    job = {"shards": shards, "labeler": "truth", "model": path, "limit": 2}
    label(out=str(tmp_path / "whole"), **job)
    reference = drawing.lasting(drawing.tree(tmp_path / "whole"))
    points = killing.stop_everywhere("pyramid.labels.engine:label", out=tmp_path / "out", mode=mode, **job)
    assert len(points) == 2 * len(reference) == 8
    for point in points:
        assert drawing.lasting(point["resumed"]) == reference
        stopped = drawing.lasting(point["stopped"])
        final = {name: sha for name, sha in stopped.items() if files.TEMPORARY_PREFIX not in name}
        assert final.items() <= reference.items()
        if mode == "error":
            assert final == stopped


def test_a_dry_run_writes_nothing(shards: str, model: Model, tmp_path: Path) -> None:
    result = label(shards, labeler="truth", model=model(), out=str(tmp_path / "out"), dry_run=True)
    assert (result.clips, result.shards, result.rows, result.out) == (6, 3, 0, "")
    assert not (tmp_path / "out").exists()


def test_limit_labels_the_first_shards(shards: str, model: Model, tmp_path: Path) -> None:
    result = label(shards, labeler="truth", model=model(), out=str(tmp_path / "out"), limit=1)
    assert (result.shards, result.clips) == (1, 2)
    with pytest.raises(DataError, match=r"no labels for clips-000001\.tar"):
        LabelRun.open(str(tmp_path / "out"), ShardSet.open(shards))


def test_wrong_calls_are_refused(shards: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no labeler 'truht'; did you mean 'truth'"):
        label(shards, labeler="truht", model=model())
    with pytest.raises(ConfigError, match="batch_clips must be at least 1"):
        label(shards, labeler="truth", model=model(), batch_clips=0)
    with pytest.raises(DataError, match=r"needs? a column 'gap_s'"):
        label(shards, labeler="truth", model=model(without="gap_s"), out=str(tmp_path / "out"))
    with pytest.raises(DataError, match="no shards"):
        label(str(tmp_path), labeler="truth", model=model())
    assert not (tmp_path / "out").exists()


def test_tables_of_two_models_are_no_run(shards: str, model: Model, tmp_path: Path) -> None:
    for name, offset in (("a", 0), ("b", 1)):
        label(shards, labeler="truth", model=model(f"{name}.json", offset=offset), out=str(tmp_path / name))
    (tmp_path / "a" / "clips-000001.parquet").write_bytes((tmp_path / "b" / "clips-000001.parquet").read_bytes())
    with pytest.raises(DataError, match="two models"):
        LabelRun.open(str(tmp_path / "a"), ShardSet.open(shards))


def test_the_labeler_keeps_the_protocol(model: Model) -> None:
    assert isinstance(load_labeler("truth", model()), Labeler)


def test_labels_on_s3(shards: str, model: Model, s3: str, tmp_path: Path) -> None:
    for path in Path(shards).iterdir():
        files.write_bytes(f"{s3}/to-label/{path.name}", path.read_bytes())
    label(f"{s3}/to-label", labeler="truth", model=model(), workers=2)
    label(shards, labeler="truth", model=model(), out=str(tmp_path / "here"))
    for name in ("clips-000000.parquet", "clips-000002.parquet"):
        assert files.sha256_file(f"{s3}/to-label/labels/truth/{name}") == files.sha256_file(tmp_path / "here" / name)
