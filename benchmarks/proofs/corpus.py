"""The data of a task, made once: demonstrations in disjoint subsets, videos of the robot, videos of a hand.

The robot's videos exist twice: as they are, without actions or states, and as a reference with both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proofs.config import ProofConfig

from pyramid import files, pack, scan
from pyramid.corpora.manifest import read_manifest, write_manifest
from pyramid.rng import seed_of
from pyramid.sim import SimConfig, make_dataset
from pyramid.sim.tasks import instruction

BODY = "sawyer"


@dataclass(frozen=True)
class Corpus:
    """Shard folders of a task."""

    demos: tuple[str, ...]
    """One for each subset."""
    videos: str
    """The robot's videos, pictures alone."""
    true: str
    """The same with states and actions."""
    hand: str
    """Hand videos, pictures alone."""


def corpus_of(out: str, config: ProofConfig) -> Corpus:
    """Returns where the data of a task lie."""
    demos = (f"demos-{subset}" for subset in range(max(config.subsets, config.hand_subsets)))
    shards = {name: files.join(out, "shards", name) for name in ("videos", "true", "hand")}
    return Corpus(demos=tuple(files.join(out, "shards", name) for name in demos), **shards)


PARTS = ("demos", "videos", "hand")
"""What is drawn apart from each other."""


def draw_part(out: str, task: str, config: ProofConfig, part: str) -> None:
    """Runs the expert and draws a part's episodes; what is there is kept. Not the same part in two processes."""
    counts = {"demos": len(corpus_of(out, config).demos) * config.n_demos, "videos": config.n_videos}
    drawn = {name: getattr(config, name) for name in ("size_px", "fovy_deg", "look_at", "oversample")}
    numbers = {"n_hand": config.n_hand, "n_robot": 0} if part == "hand" else {"n_hand": 0, "n_robot": counts[part]}
    seed = seed_of(config.seed, "proof", part) >> 2
    make_dataset(files.join(out, part), SimConfig(tasks=(task,), n_generated=0, **drawn, **numbers, seed=seed))


def pack_corpus(out: str, task: str, config: ProofConfig, parts: Sequence[str] = PARTS) -> None:
    """Packs the parts that `draw_part` drew; what is packed is kept."""
    corpus = corpus_of(out, config)
    roots = {"true": files.join(out, "videos", "robot"), "videos": _bare_videos(out, task)}
    hand = {"hand": files.join(out, "hand", "hand")} if "hand" in parts else {}
    for name, root in {**roots, **hand}.items():
        manifest = files.join(out, "clips", f"{name}.parquet")
        told = {} if name == "hand" else {"embodiment": BODY}
        scan("lerobot" if name == "true" else "folder", root, out=manifest, val_share=0.0, **told)
        pack(manifest, out=getattr(corpus, name), size_px=config.size_px)
    _subsets(out, corpus, config)


def _bare_videos(out: str, task: str) -> str:
    """Copies the videos of episodes to a folder where nothing else of them lies."""
    folder = Path(out, "videos-bare")
    folder.mkdir(exist_ok=True)
    names = []
    for video in sorted(Path(out, "videos", "robot", "videos").rglob("*.mp4")):
        names.append(video.name)
        if not (folder / video.name).exists():
            files.write_bytes(str(folder / video.name), video.read_bytes())
    lines = [json.dumps({"file": name, "text": instruction(task)}) for name in names]
    files.write_text(str(folder / "captions.jsonl"), "\n".join(lines) + "\n")
    return str(folder)


def _subsets(out: str, corpus: Corpus, config: ProofConfig) -> None:
    manifest = files.join(out, "clips", "demos.parquet")
    scan("lerobot", files.join(out, "demos", "robot"), out=manifest, val_share=0.0, embodiment=BODY)
    clips = sorted(read_manifest(manifest), key=lambda clip: clip.clip_id)
    for subset, shards in enumerate(corpus.demos):
        own = files.join(out, "clips", f"demos-{subset}.parquet")
        write_manifest(own, clips[subset * config.n_demos : (subset + 1) * config.n_demos], {"subset": subset})
        pack(own, out=shards, size_px=config.size_px)
