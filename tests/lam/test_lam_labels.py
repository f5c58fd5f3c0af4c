"""Label tables of the latent-action model: what they hold is decided by the clips, not by how the work was cut.

The engine's own tests do the same with a labeler that is no network; here it is the real one, whose passes are batched.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import drawing
import killing
import numpy as np
import pyarrow as pa
import pytest
import sprites
import torch

from lam.pairs import label_pairs
from lam.train import train_lam
from pyramid import parquet
from pyramid.labels.engine import label
from pyramid.shards.layout import table_name
from pyramid.shards.reader import ShardSet

N_CLIPS = 8


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Eight clips of different lengths, in a shard each."""
    folder = tmp_path_factory.mktemp("eight")
    samples = [sprites.make_sample(i, n_frames=20 + 3 * i, rate_hz=(30.0, 60.0)[i % 2]) for i in range(N_CLIPS)]
    return sprites.write_shards(folder, samples, per_shard=1), samples


def labelled(shards, model, out, **options):
    label(shards, labeler="lam", model=model, out=str(out), **options)
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def rows_of(shards, folder):
    """The rows of all tables in the order of the shards, and the keys in that order."""
    names = [table_name(shard) for shard in ShardSet.open(shards).shards]
    return pa.concat_tables([parquet.read(folder / name) for name in names]).combine_chunks()


def test_tables_hold_every_pair_in_the_order_of_clips_and_time(clips, model_dir, tmp_path):
    shards, samples = clips
    labelled(shards, model_dir, tmp_path)
    found = rows_of(shards, tmp_path)
    # The pairs as they follow from the times alone.
    wanted = [(s.key, pair.first) for s in samples for pair in label_pairs(s.times_s, 0.1, None)]
    assert list(zip(found["key"].to_pylist(), found["frame"].to_pylist(), strict=True)) == wanted
    assert len(wanted) > 100


@pytest.mark.parametrize("batch_clips", [1, 3])
def test_the_number_of_clips_at_a_time_changes_no_byte(clips, model_dir, tmp_path, batch_clips):
    _, samples = clips
    together = sprites.write_shards(tmp_path, samples)
    one = labelled(together, model_dir, tmp_path / "a", batch_clips=batch_clips)
    assert one == labelled(together, model_dir, tmp_path / "b", batch_clips=N_CLIPS)
    assert len(one) == 1


def test_the_number_of_shards_changes_no_row(clips, model_dir, tmp_path):
    shards, samples = clips
    labelled(shards, model_dir, tmp_path / "eight")
    tables = [rows_of(shards, tmp_path / "eight")]
    for per_shard in (3, N_CLIPS):
        folder = tmp_path / str(per_shard)
        folder.mkdir()
        cut = sprites.write_shards(folder, samples, per_shard=per_shard)
        labelled(cut, model_dir, folder / "labels")
        tables.append(rows_of(cut, folder / "labels"))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


@pytest.mark.parametrize(
    ("workers", "limit"),
    [(2, 3), pytest.param(8, None, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],  # each worker imports torch
)
def test_several_workers_write_what_one_does(clips, model_dir, tmp_path, workers, limit):
    shards, _ = clips
    one = labelled(shards, model_dir, tmp_path / "one", workers=1, limit=limit)
    assert one == labelled(shards, model_dir, tmp_path / "several", workers=workers, limit=limit)
    assert len(one) == (limit or N_CLIPS)


KILLED = """
import json, sys
task = json.loads(sys.argv[1])
sys.path[:] = task["path"]
import killing
from pyramid.labels.engine import label
killing.stop_at(task["point"])
label(**task["job"])
"""


def test_killed_and_run_again_the_tables_are_those_of_one_run(clips, model_dir, tmp_path):
    shards, _ = clips
    job = {"shards": shards, "labeler": "lam", "model": model_dir, "limit": 2, "out": str(tmp_path / "out")}
    labelled(shards, model_dir, tmp_path / "whole", limit=2)
    task = json.dumps({"path": [str(Path(killing.__file__).parent), *sys.path], "point": 5, "job": job})
    done = subprocess.run([sys.executable, "-c", KILLED, task], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    stopped = drawing.tree(tmp_path / "out")
    assert len(tables(stopped)) == 1
    labelled(shards, model_dir, tmp_path / "out", limit=2)
    assert tables(drawing.tree(tmp_path / "out")) == tables(drawing.tree(tmp_path / "whole"))
    assert len(tables(drawing.tree(tmp_path / "out"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_anywhere_and_run_again_the_tables_are_those_of_one_run(clips, model_dir, tmp_path):
    shards, _ = clips
    job = {"shards": shards, "labeler": "lam", "model": model_dir, "limit": 2}
    labelled(shards, model_dir, tmp_path / "whole", limit=2)
    found = killing.stop_everywhere("pyramid.labels.engine:label", out=tmp_path / "out", **job)
    assert len(found) >= 8  # tables and receipts of two shards, begun and renamed
    for point in found:
        assert point["stopped"] != point["resumed"]
        assert tables(point["resumed"]) == tables(drawing.tree(tmp_path / "whole"))


def tables(tree):
    return {name: digest for name, digest in tree.items() if name.endswith(".parquet")}


def test_a_run_that_is_gone_on_with_keeps_its_tables_and_ends_the_same(clips, model_dir, tmp_path):
    shards, _ = clips
    whole = labelled(shards, model_dir, tmp_path / "whole", limit=3)
    first = labelled(shards, model_dir, tmp_path / "parts", limit=1)
    stamp = (tmp_path / "parts" / next(iter(first))).stat().st_mtime_ns
    again = labelled(shards, model_dir, tmp_path / "parts", limit=3)
    assert again == whole
    assert (tmp_path / "parts" / next(iter(first))).stat().st_mtime_ns == stamp  # it was kept, not made again


@pytest.mark.parametrize("kind", ["vq_ema", "none"])
def test_a_transformer_labels_alike_whatever_is_labelled_with_it(clips, tmp_path, kind):
    from lam_variants import SMALL, TRANSFORMER

    from lam.label import load

    shards, samples = clips
    options = {**SMALL, **TRANSFORMER, "trainer.max_steps": 1, "trainer.batch_size": 24, "quantizer.kind": kind}
    train_lam(shards, out=str(tmp_path), **options)
    labeler = load(str(tmp_path))
    torch.manual_seed(0)
    together = labeler.label(samples)
    for sample, table in zip(samples, together, strict=True):
        assert labeler.label([sample])[0].equals(table)
    assert np.unique(np.stack(together[0]["latent"].to_numpy()), axis=0).shape[0] > 1
