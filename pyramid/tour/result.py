"""What the demo gives: the results of its verbs, and the words that it ends with."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyramid.corpora.scan import ScanResult
from pyramid.jobs import Quarantined
from pyramid.labels.engine import LabelResult
from pyramid.progress import format_seconds
from pyramid.shards.pack import PackResult


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo did; each part is the result of the verb of that name."""

    scan: dict[str, Any]
    """All corpora together."""
    pack: dict[str, Any]
    """All shard folders together."""
    label: dict[str, Any]
    """All label runs together."""
    evaluate_lam: dict[str, Any]
    """The latent-action model on held-out clips."""
    evaluate_idm: dict[str, Any]
    """The inverse dynamics model on held-out episodes."""
    mix_simulate: dict[str, Any]
    """The mixture's proof."""
    export: dict[str, Any]
    """The ONNX graphs and their parity."""
    bench: dict[str, Any]
    """Their latency on this machine."""
    action: list[list[float]]
    """The exported policy's answer to one observation, [H, D], physical units."""
    seconds: float
    """Wall time of this run."""
    out: str
    """Where everything lies."""
    items: list[Quarantined] = field(default_factory=list)
    """Videos and clips that were set aside, with reasons."""

    def __repr__(self) -> str:
        lines = [
            f"done in {format_seconds(self.seconds)}; everything lies in {self.out}/:",
            *(f"  {place.ljust(22)} {what}" for place, what in _PLACES),
            "go on with:",
            *(f"  {command.format(out=self.out, bin=_bin(), pyramid=_bin() + 'pyramid')}" for command in _NEXT),
        ]
        return "\n".join(lines)


_PLACES = (
    ("data/", "the input: hand-look videos, generated-look clips, robot episodes (LeRobot v2.1)"),
    ("clips/*.parquet", "clip manifests"),
    ("shards/*/", "webdataset tars, shards.parquet, label tables in labels/"),
    ("models/lam, idm, vla", "config.json and model.safetensors; logs/ for TensorBoard"),
    ("mixture.yaml", "the data pyramid, to be edited"),
    ("deploy/", "system2.onnx, system1.onnx, policy.json"),
    ("demo.json", "every number printed here"),
)
_NEXT = (
    "{pyramid} demo --videos YOUR_VIDEOS --out demo-mine",
    "{pyramid} mix show {out}/mixture.yaml",
    "{pyramid} train vla {out}/mixture.yaml --out {out}/models/vla-longer --trainer.max-steps=1000",
    "{pyramid} bench {out}/deploy",
    "{bin}tensorboard --logdir {out}/models",
)


def _bin() -> str:
    """Returns what to type before a command's name: nothing if it is found without, else the environment's folder."""
    folder = Path(sys.executable).parent
    if shutil.which("pyramid"):
        return ""
    return f"{folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}/"


def together(
    found: Mapping[str, ScanResult | PackResult | LabelResult], numbers: tuple[str, ...], counts: tuple[str, ...]
) -> dict[str, Any]:
    """Adds results of one verb up, and keeps each under ``parts``."""
    parts = {name: vars(result) for name, result in found.items()}
    total: dict[str, Any] = {key: sum(part[key] for part in parts.values()) for key in numbers}
    for key in counts:
        total[key] = {}
        for part in parts.values():
            for reason, n in part[key].items():
                total[key][reason] = total[key].get(reason, 0) + n
    if total.get("frames_per_s"):
        total["frames_per_s"] = round(
            sum(p["frames_per_s"] * p["seconds"] for p in parts.values()) / total["seconds"], 1
        )
    return {**total, "parts": {name: {k: v for k, v in part.items() if k != "items"} for name, part in parts.items()}}
