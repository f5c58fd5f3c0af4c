"""Labelling: decoding alone, the models alone, the engine with each executor, and the loop that others write."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import pyarrow as pa
import torch

from idm.bodies import describe_embodiments
from idm.config import IDMConfig
from idm.data import Demonstration, fit_normalizers
from idm.model import InverseDynamicsModel
from lam.config import LAMConfig
from lam.facts import ModelFacts
from lam.model import build_model
from lam.run import pair_context, run_pairs
from pyramid import label, parquet
from pyramid.config import resolve, to_dict
from pyramid.labels.clips import DecodedOnce
from pyramid.labels.protocol import Labeler, load_labeler
from pyramid.nn.checkpoint import save_model
from pyramid.rng import rng
from pyramid.shards.layout import INDEX_FILE, INDEX_SCHEMA, META, TIMES, VIDEO, dump_array
from pyramid.shards.reader import Sample, ShardSet
from pyramid.shards.writer import write_shard
from pyramid.table import format_table
from pyramid.video.encode import encode_mp4

RATE_HZ = 10.0
EMBODIMENT = "arm"


@dataclass(frozen=True)
class Cost:
    """What some work took."""

    cpu_s: float
    wall_s: float

    def less(self, other: Cost) -> Cost:
        """Without what the other took, such as starting up."""
        return Cost(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)


class Meter:
    """CPU time and memory of this process and all that descend from it, seen every tenth of a second."""

    def __init__(self, root: int | None = None) -> None:
        self._root, self._cpu, self.peak_mib = psutil.Process(root), dict[tuple[int, float], float](), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _look(self) -> None:
        held = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                times, held = process.cpu_times(), held + process.memory_info().rss
                self._cpu[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        self.peak_mib = max(self.peak_mib, held / 2**20)

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self._look()
            except psutil.Error:
                return

    def __enter__(self) -> Meter:
        self._look()
        self._before, self._start = sum(self._cpu.values()), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._root.is_running():
            self._look()
        self.cost = Cost(sum(self._cpu.values()) - self._before, time.monotonic() - self._start)


def made_shards(folder: Path, n_shards: int, per_shard: int, size_px: int) -> str:
    """Writes shards of moving texture: clips of 2 to 8 seconds at 10 Hz."""
    index = []
    for number in range(n_shards):
        samples, facts = [], {}
        for clip in range(number * per_shard, (number + 1) * per_shard):
            random = rng(0, "clip", clip)
            n_frames = int(random.integers(20, 81))
            small = random.integers(0, 255, (size_px // 8 + 16, size_px // 8 + 16, 3), dtype=np.uint8)
            texture = small.repeat(8, 0).repeat(8, 1)
            views = [(i % 100, 2 * i % 120) for i in range(n_frames)]
            frames = np.stack([texture[y : y + size_px, x : x + size_px] for y, x in views])
            key = f"bench-{clip:012x}-0000"
            known = {"clip_id": f"bench/{clip}", "split": "train", "embodiment": EMBODIMENT, "rate_hz": RATE_HZ}
            members = {
                META: json.dumps({**known, "scores": {"cuts": []}}).encode(),
                VIDEO: encode_mp4(frames, RATE_HZ),
                TIMES: dump_array(np.arange(n_frames) / RATE_HZ),
            }
            samples.append((key, members))
            facts[key] = {
                **known,
                "corpus": "bench",
                "tier": "base",
                "text": "",
                "frames": n_frames,
                "duration_s": n_frames / RATE_HZ,
                "height_px": size_px,
                "width_px": size_px,
                "state_dim": 0,
                "action_dim": 0,
                "cuts": [],
            }
        rows = write_shard(str(folder / f"clips-{number:06d}.tar"), samples)
        index += [{**facts[row["key"]], **row} for row in rows]
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(index, schema=INDEX_SCHEMA), {})
    return str(folder)


def made_models(folder: Path, embodiments: Sequence[str], rate_hz: float) -> dict[str, str]:
    """Writes models of the presets' sizes; weights do not matter for the time they take."""
    torch.manual_seed(0)
    lam = resolve(LAMConfig, "lam/tiny")
    save_model(
        str(folder / "lam"),
        kind="lam",
        config=to_dict(lam),
        module=build_model(lam, ModelFacts()),
        provenance={},
        extra={"facts": to_dict(ModelFacts())},
    )
    idm = resolve(IDMConfig, "idm/tiny", **{"windows.rate_hz": rate_hz})
    actions = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    shown = [Demonstration(0, name, list(range(9)), actions, None, []) for name in embodiments]
    known = describe_embodiments(shown, fit_normalizers(shown), {})
    save_model(
        str(folder / "idm"),
        kind="idm",
        config=to_dict(idm),
        module=InverseDynamicsModel(idm, dict.fromkeys(known, (7, 0))),
        provenance={},
        extra={"embodiments": known},
    )
    return {name: str(folder / name) for name in ("lam", "idm")}


def plain_loop(labeler: Any, samples: Sequence[Sample], out: Path) -> None:
    """What labelling scripts do: clip after clip, decode, one batch of its pairs, a file of its own."""
    config, model = labeler.config, labeler.model
    for sample in samples:
        clip = labeler.prepare(sample)
        context = pair_context(config, [pair.gap_s for pair in clip.pairs], [""] * len(clip.pairs))
        with torch.inference_mode():
            first, second = clip.first / 255.0, clip.second / 255.0
            a, b = model.look(first), model.look(second)
            tokens = model.tokens(a, b, context)
            predicted, _ = model.predict(a, tokens.quantized.z, context, tokens.background)
            error = (predicted - (model.target(b) - model.target(a))).square().flatten(1).mean(1)
        np.savez(out / f"{sample.key}.npz", latent=tokens.quantized.latent, codes=tokens.quantized.codes, error=error)


def in_memory(labelers: Sequence[Labeler], samples: Sequence[Sample]) -> list[list[Any]]:
    """Returns what each labeler's network is fed; each clip is decoded once for all, as the best loop would."""
    ready: list[list[Any]] = [[] for _ in labelers]
    for sample in samples:
        once = DecodedOnce(**vars(sample)) if len(labelers) > 1 else sample
        for labeler, clips in zip(labelers, ready, strict=True):
            clips.append(labeler.prepare(once))  # type: ignore[attr-defined]
    return ready


def models_only(labelers: Sequence[Any], ready: Sequence[Sequence[Any]]) -> None:
    """The networks over frames in memory, in full passes; LAM without even its tables."""
    for labeler, clips in zip(labelers, ready, strict=True):
        if labeler.name == "lam":
            first, second = (torch.cat([clip[place] for clip in clips]) for place in (3, 4))
            gaps = [pair.gap_s for clip in clips for pair in clip.pairs]
            run_pairs(labeler.model, first, second, context=pair_context(labeler.config, gaps, [""] * len(gaps)))
        else:
            labeler.label(clips)


def measured(work: Callable[[], Any]) -> Cost:
    with Meter() as meter:
        work()
    return meter.cost


@dataclass(frozen=True)
class Setting:
    """One way to run the engine."""

    name: str
    options: dict[str, Any]


SETTINGS = (
    Setting("engine, local, in this process", {}),
    Setting("engine, local, 2 workers", {"workers": 2}),
    Setting("engine, local, 1 model process, 1 decode process", {"decoders": 1}),
    Setting("engine, ray, 2 actors", {"executor": "ray", "workers": 2}),
)


def engine(folder: str, models: dict[str, str], out: Path, n_shards: int, options: dict[str, Any]) -> Cost:
    """What the shards beyond the first two cost: starting processes and loading models weighs on neither side."""
    job = {"labeler": list(models), "model": list(models.values()), **options}
    few = measured(lambda: label(folder, **job, out=str(out / "few"), limit=2))
    whole = measured(lambda: label(folder, **job, out=str(out / "whole"), limit=n_shards + 2))
    return whole.less(few)


def compare(folder: str, models: dict[str, str], runs: int, device: str, only: str) -> None:
    """One table: each work against the sum and the larger of decoding and models alone."""
    opened = ShardSet.open(folder)
    n_shards = len(opened.shards) - 2
    numbers = [i for shard in opened.shards[2:] for i in opened.of_shard(shard)]
    samples = [opened.read(i) for i in numbers]
    labelers = [load_labeler(name, path, device) for name, path in models.items()]
    ready = in_memory(labelers, samples)
    models_only(labelers, [clips[:8] for clips in ready])
    found: dict[str, list[Cost]] = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as place:
            decode = measured(lambda: in_memory(labelers, samples))
            network = measured(lambda: models_only(labelers, ready))
            found.setdefault("decode only", []).append(decode)
            found.setdefault("models only", []).append(network)
            if list(models) == ["lam"]:
                loop = measured(lambda place=place: plain_loop(labelers[0], samples, Path(place)))  # type: ignore[misc]
                found.setdefault("plain loop over clips", []).append(loop)
            for number, setting in enumerate(SETTINGS):
                if only in setting.name:
                    options = {**setting.options, "device": device}
                    cost = engine(folder, models, Path(place, str(number)), n_shards, options)
                    found.setdefault(setting.name, []).append(cost)
    frames = sum(map(len, samples))
    ideal = [a.cpu_s + b.cpu_s for a, b in zip(found["decode only"], found["models only"], strict=True)]
    slower = [max(a.wall_s, b.wall_s) for a, b in zip(found["decode only"], found["models only"], strict=True)]
    rows = [
        [
            name,
            round(frames / statistics.median(cost.cpu_s for cost in costs)),
            round(frames / statistics.median(cost.wall_s for cost in costs)),
            f"{statistics.median(i / c.cpu_s for i, c in zip(ideal, costs, strict=True)):.2f}",
            f"{statistics.median(s / c.wall_s for s, c in zip(slower, costs, strict=True)):.2f}",
        ]
        for name, costs in found.items()
    ]
    print(f"\n{' + '.join(models)} on {device}, {len(samples)} clips, {frames} frames, {n_shards} shards")
    print(format_table(["what", "frames / CPU-s", "frames / s", "(a + b) / c, CPU", "max(a, b) / c, wall"], rows))


def one_pass(folder: str, models: dict[str, str], runs: int) -> None:
    """Two labelers in one pass against a run for each, in this process."""
    n_shards, pairs = len(ShardSet.open(folder).shards) - 2, []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as place:
            together = engine(folder, models, Path(place, "both"), n_shards, {})
            alone = [engine(folder, {name: path}, Path(place, name), n_shards, {}) for name, path in models.items()]
            pairs.append((together.cpu_s, sum(cost.cpu_s for cost in alone)))
    share = statistics.median(together / alone for together, alone in pairs)
    print(f"\n{' + '.join(models)} in one pass: {share:.2f} of the CPU time of a run for each")


def memory(folder: str, models: dict[str, str]) -> None:
    """Peak memory of the command and its workers, over few shards and over all."""
    n_shards, rows = len(ShardSet.open(folder).shards), []
    for limit in (max(2, n_shards // 8), n_shards):
        with tempfile.TemporaryDirectory() as place:
            words = ["label", folder, "--labeler", *models, "--model", *models.values(), "--out", place]
            words += ["--limit", str(limit), "--workers", "2"]
            command = [sys.executable, "-m", "pyramid.cli", *words]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with Meter(process.pid) as meter:
                process.wait()
            rows.append([limit, round(meter.peak_mib)])
    print()
    print(format_table(["shards", "peak MiB, command and 2 workers"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="shard folders; without any, one is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=14, help="shards to make; the first two are for starting up")
    parser.add_argument("--per-shard", type=int, default=10, help="clips in each")
    parser.add_argument("--size", type=int, default=224, help="height and width of the clips, pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="settings of the engine with this in their name")
    parser.add_argument("--parts", nargs="*", default=["lam", "both", "pass", "memory"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folders = arguments.folders or [made_shards(Path(place), arguments.shards, arguments.per_shard, arguments.size)]
        for number, folder in enumerate(folders):
            rows = ShardSet.open(folder).rows
            models = made_models(
                Path(place, f"models-{number}"),
                sorted({row["embodiment"] for row in rows}),
                statistics.median(row["rate_hz"] for row in rows),
            )
            parts = {
                "lam": lambda f=folder, m=models: compare(
                    f, {"lam": m["lam"]}, arguments.runs, arguments.device, arguments.only
                ),
                "both": lambda f=folder, m=models: compare(f, m, arguments.runs, arguments.device, arguments.only),
                "pass": lambda f=folder, m=models: one_pass(f, m, arguments.runs),
                "memory": lambda f=folder, m=models: memory(f, m),
            }
            for part in arguments.parts:
                parts[part]()


if __name__ == "__main__":
    main()
