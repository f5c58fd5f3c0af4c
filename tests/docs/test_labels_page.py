"""Every block of docs/labels.md is run: DuckDB and pandas agree on planted tables, the labeler is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_models

from pyramid import files, parquet
from pyramid.labels.engine import label
from pyramid.shards.layout import INDEX_FILE, META, TIMES, VIDEO, dump_array
from pyramid.shards.writer import write_shard
from pyramid.video.encode import encode_mp4

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/labels.md").read_text()
SECTIONS = dict(re.findall(r"^###? (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUERIES = [name for name in SECTIONS if name not in ("Joining by `key`", "A labeler of your own")]
FRAMES = [12, 9, 7, 20, 11, 8, 10, 4]
CORPORA = ["human", "human", "human", "robot", "robot", "dream", "dream", "dream"]
STATIC, GOOD, SHORT = {0, 1, 5}, {3, 6}, 7


def block(section: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)
    return str(found)


def planted(table: pa.Table) -> pa.Table:
    """Makes some clips static in their first four pairs, and some well predicted: random weights give neither."""
    clips = [int(key.split("-")[1], 16) for key in table["key"].to_pylist()]
    frames = table["frame"].to_pylist()
    gain = [0.5 if clip in GOOD else -0.1 - clip / 100 for clip in clips]
    static = [int(clip in STATIC and frame < 4) for clip, frame in zip(clips, frames, strict=True)]
    columns = {"recon_gain": pa.array(gain, pa.float32()), "flags": pa.array(static, pa.uint16())}
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict], list[dict]]]:
    """What DuckDB and pandas answer to each question of the page, in a folder as the page has it."""
    folder = tmp_path_factory.mktemp("page")
    shards = drawing.write_shards(folder / "shards", FRAMES, per_shard=3)
    index = pq.read_table(Path(shards, INDEX_FILE))
    place = index.schema.get_field_index("corpus")
    parquet.write(Path(shards, INDEX_FILE), index.set_column(place, "corpus", pa.array(CORPORA)), {})
    models = [random_models.lam_model(folder / "lam"), random_models.idm_model(folder / "idm")]
    label(shards, labeler=["lam", "idm"], model=models)
    for path in sorted(Path(shards, "labels", "lam").glob("*.parquet")):
        metadata = parquet.metadata(path)
        parquet.write(path, planted(pq.read_table(path)), metadata)
    lines = ["import duckdb", *block("Joining by `key`", "python").splitlines()]
    lines += [f"duckdb.sql({block('Joining by `key`', 'sql')!r})", "_rows = lambda t: t.to_json(orient='records')"]
    for name in QUERIES:
        lines += [
            block(name, "python"),
            "print(_rows(found))",
            f"print(_rows(duckdb.sql({block(name, 'sql')!r}).df()))",
        ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(QUERIES, zip(said[1::2], said[::2], strict=True), strict=True))


@pytest.mark.parametrize("name", QUERIES)
def test_duckdb_and_pandas_give_the_same_answer(name: str, answers: dict[str, tuple[list[dict], list[dict]]]) -> None:
    sql, pandas = answers[name]
    assert len(sql) == len(pandas) > 0
    for a, b in zip(sql, pandas, strict=True):
        assert list(a) == list(b)
        assert all(a[k] == (b[k] if isinstance(b[k], str) else pytest.approx(b[k], rel=1e-5)) for k in a), (a, b)


def hours(clips: list[int]) -> float:
    return sum(FRAMES[clip] for clip in clips) / 10 / 3600


def test_answers_are_what_was_planted(answers: dict[str, tuple[list[dict], list[dict]]]) -> None:
    said = {name: sql for name, (sql, _) in answers.items()}
    own = {corpus: [i for i, name in enumerate(CORPORA) if name == corpus] for corpus in CORPORA}
    assert {row["corpus"]: (row["clips"], row["hours"]) for row in said["Hours by source"]} == {
        corpus: (len(clips), pytest.approx(hours(clips))) for corpus, clips in own.items()
    }
    pairs = {corpus: [FRAMES[clip] - 2 for clip in clips] for corpus, clips in own.items()}
    static = {corpus: 4 * len(STATIC & set(clips)) / sum(pairs[corpus]) for corpus, clips in own.items()}
    assert {row["corpus"]: row["static_pairs"] for row in said["Static share per corpus"]} == pytest.approx(static)
    negative = [clip for clip in range(len(FRAMES)) if clip not in GOOD][::-1]
    assert [row["key"] for row in said["Clips whose gain is negative"]] == [drawing.key_of(clip) for clip in negative]
    assert [row["clips"] for row in said["Clips without pseudo-actions"]] == [1]
    doubts = [row["doubt"] for row in said["Low-confidence clips"]]
    assert doubts == sorted(doubts, reverse=True)
    assert drawing.key_of(SHORT) not in {row["key"] for row in said["Low-confidence clips"]}
    rare = [row["share"] for row in said["Rare codes"]]
    assert rare == sorted(rare)
    assert all(0 < share <= 1 for share in rare)


def texture_shards(folder: Path, shifts: list[tuple[int, int]]) -> str:
    """Clips of 6 frames in which the view moves by (down, right) pixels a frame."""
    shards = drawing.write_shards(folder, [6] * len(shifts), per_shard=2)
    rows: list[dict[str, Any]] = pq.read_table(folder / INDEX_FILE).to_pylist()
    texture = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    for shard in sorted({row["shard"] for row in rows}):
        samples = []
        for row in (row for row in rows if row["shard"] == shard):
            down, right = shifts[int(row["clip_id"].split("/")[1])]
            # The picture moves against the view.
            views = [(200 - down * t, 200 - right * t) for t in range(6)]
            frames = np.stack([texture[y : y + 64, x : x + 64] for y, x in views])
            members = {
                META: json.dumps({"clip_id": row["clip_id"], "rate_hz": 10.0, "scores": {}}).encode(),
                VIDEO: encode_mp4(frames, 10.0),
                TIMES: dump_array(np.arange(6) / 10),
            }
            samples.append((row["key"], members))
        files.remove(folder / shard)
        written = {row["key"]: row for row in write_shard(str(folder / shard), samples)}
        rows = [{**row, **written.get(row["key"], {})} for row in rows]
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(rows, schema=pq.read_schema(folder / INDEX_FILE)), {})
    return shards


def test_the_labeler_of_the_page_is_installed_and_finds_the_motion(tmp_path: Path) -> None:
    package, site = tmp_path / "camera-labeler", tmp_path / "site"
    package.mkdir()
    code = block("A labeler of your own", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (package / "camera.py").write_text(code)
    (package / "pyproject.toml").write_text(block("A labeler of your own", "toml"))
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([sys.executable, "-m", *install, str(package)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shifts = [(0, 3), (2, 0), (-4, -1), (0, 0)]
    texture_shards(tmp_path / "shards", shifts)
    command = re.search(r"^pyramid (label shards --labeler camera.*)$", PAGE, re.MULTILINE)
    assert command is not None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    words = [*command[1].split(), "--decoders", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pyramid.cli", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 5 * len(shifts)
    found = pa.concat_tables(
        pq.read_table(path) for path in sorted((tmp_path / "shards/labels/camera").glob("*.parquet"))
    )
    moves = list(zip(found["down_px"].to_pylist(), found["right_px"].to_pylist(), strict=True))
    assert moves == [shift for shift in shifts for _ in range(5)]
