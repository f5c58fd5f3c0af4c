"""What is to be converted: the episodes of a LeRobot data set or the clips of a shard folder, seen alike.

Looking into each of them is left to `episode`, writing to `target`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pyramid import files
from pyramid.conversion.labels import LabelColumn, label_columns
from pyramid.corpora.source import fingerprint
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.lerobot import schema
from pyramid.lerobot.extra import split_of
from pyramid.lerobot.read import LeRobotDataset, LeRobotEpisode
from pyramid.lerobot.read_v3 import open_dataset
from pyramid.shards.layout import INDEX_FILE
from pyramid.shards.reader import ShardSet

_SAME_RATE = 1e-3
MAIN_CAMERA = "main"
"""Name of the one camera of a shard folder, unless another one is asked for."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a source holds, whatever its format."""

    fps: float
    """Frames and rows per second of every episode."""
    robot_type: str
    """Whose body it is."""
    cameras: tuple[str, ...]
    """Camera keys that every episode has."""
    tasks: dict[int, str]
    """Instruction by ``task_index``."""
    features: dict[str, Any]
    """Features as the source's own `info.json` describes them; empty for shards."""
    modality: dict[str, Any]
    """GR00T's `modality.json`; empty when there is none."""
    episodes: tuple[dict[str, Any], ...]
    """What `episode` needs to read each one: plain data that crosses to another process."""
    refused: tuple[Quarantined, ...]
    """Episodes and clips that are set aside."""
    labels: tuple[LabelColumn, ...] = ()
    """Columns that come out of label tables."""


def kind_of(src: str) -> str:
    """Returns ``lerobot`` or ``shards``, by the file that marks a folder as the one or the other."""
    if files.exists(files.join(src, "meta", schema.INFO)):
        return "lerobot"
    if files.exists(files.join(src, INDEX_FILE)):
        return "shards"
    raise DataError(
        f"'{src}' is neither a LeRobot data set (meta/{schema.INFO}) nor a shard folder ({INDEX_FILE}); name one"
    )


def open_lerobot(src: str) -> Origin:
    """Opens a LeRobot data set of any version that is read."""
    dataset = open_dataset(src)
    refused, episodes = list(dataset.refused), []
    tasks = dataset.tasks or dict(enumerate(dict.fromkeys(episode.task for episode in dataset.episodes)))
    print_of = lru_cache(maxsize=None)(fingerprint)  # Episodes share files.
    numbers = {task: index for index, task in tasks.items()}
    for episode in dataset.episodes:
        missing = [key for key in dataset.cameras if key not in episode.videos]
        if missing:
            detail = f"{episode.data}: episode {episode.index} has no video of camera {', '.join(missing)}"
            refused.append(Quarantined(item=episode.data, reason="no_video", detail=detail))
            continue
        episodes.append(_of_lerobot(dataset, episode, numbers.get(episode.task, 0), print_of))
    return Origin(
        fps=dataset.fps,
        robot_type=dataset.robot_type,
        cameras=dataset.cameras,
        tasks=tasks,
        features={str(k): v for k, v in dataset.info.get("features", {}).items() if isinstance(v, dict)},
        modality=dataset.modality,
        episodes=tuple(episodes),
        refused=tuple(refused),
    )


def _of_lerobot(
    dataset: LeRobotDataset, episode: LeRobotEpisode, task_index: int, print_of: Callable[[str], str]
) -> dict[str, Any]:
    content: list[Any] = [print_of(episode.data), episode.rows]
    content += [[key, print_of(path), episode.stretches.get(key)] for key, path in _videos(episode)]
    return {
        "kind": "lerobot",
        "name": f"{dataset.root} episode {episode.index}",
        "content": files.digest(content),
        "data": episode.data,
        "rows": list(episode.rows) if episode.rows else None,
        "length": episode.length,
        "fps": dataset.fps,
        "videos": {key: [path, *episode.stretches.get(key, (None, None))] for key, path in _videos(episode)},
        "tasks": list(episode.tasks),
        "task_index": task_index,
        "known_tasks": len(dataset.tasks),
        "extra": episode.extra,
        "split": split_of(dataset.info.get("splits"), episode.index),
    }


def _videos(episode: LeRobotEpisode) -> list[tuple[str, str]]:
    return sorted(episode.videos.items())


def open_shards(src: str, *, camera: str, labels: str, rate_hz: float | None = None) -> Origin:
    """Opens a shard folder; clips of another rate or size than most frames have are set aside.

    Args:
        src: the shard folder.
        camera: short name that its one view gets.
        labels: label runs whose columns come along, see `label_columns`.
        rate_hz: look at clips of this rate only.
    """
    shards = ShardSet.open(src)
    columns = label_columns(shards, labels)
    rows = [i for i, row in enumerate(shards.rows) if rate_hz is None or abs(row["rate_hz"] / rate_hz - 1) < _SAME_RATE]
    shapes: Counter[tuple[Any, ...]] = Counter()
    for i in rows:
        shapes[_shape(shards.rows[i])] += shards.rows[i]["frames"]
    if not shapes:
        raise DataError(f"'{src}' holds no clip" + ("" if rate_hz is None else f" of {rate_hz:g} Hz"))
    common = shapes.most_common(1)[0][0]
    kept = sorted((i for i in rows if _shape(shards.rows[i]) == common), key=lambda i: _held(shards, i))
    odd = [shards.rows[i] for i in rows if _shape(shards.rows[i]) != common]
    refused = [Quarantined(item=r["key"], reason="other_shape", detail=_difference(r, common)) for r in odd]
    tasks = list(dict.fromkeys(shards.rows[i]["text"] or "" for i in kept))
    key = schema.IMAGE_PREFIX + (camera or MAIN_CAMERA)
    bodies = Counter(shards.rows[i]["embodiment"] for i in kept)
    return Origin(
        fps=common[0],
        robot_type=bodies.most_common(1)[0][0],
        cameras=(key,),
        tasks=dict(enumerate(tasks)),
        features={},
        modality={},
        episodes=tuple(_of_shards(shards, i, key, tasks, columns) for i in kept),
        refused=tuple(refused),
        labels=columns,
    )


def _shape(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["rate_hz"], row["height_px"], row["width_px"], row["state_dim"] or 0, row["action_dim"] or 0)


def _held(shards: ShardSet, i: int) -> bool:
    return bool(shards.rows[i]["split"] == "val")


def _difference(row: dict[str, Any], common: tuple[Any, ...]) -> str:
    names = ("rate_hz", "height_px", "width_px", "state_dim", "action_dim")
    pairs = zip(names, _shape(row), common, strict=True)
    found = ", ".join(f"{name} {own} (most have {most})" for name, own, most in pairs if own != most)
    return f"clip {row['key']}: {found}; a LeRobot data set has one of each"


def _of_shards(
    shards: ShardSet, i: int, key: str, tasks: list[str], columns: tuple[LabelColumn, ...]
) -> dict[str, Any]:
    row = shards.rows[i]
    text = row["text"] or ""
    return {
        "kind": "shards",
        "name": f"{shards.folder} clip {row['key']}",
        "content": files.digest([row["sha256"], row["rate_hz"], text, [vars(column) for column in columns]]),
        "folder": shards.folder,
        "row": i,
        "camera": key,
        "length": row["frames"],
        "fps": row["rate_hz"],
        "labels": [vars(column) for column in columns],
        "tasks": [text],
        "task_index": tasks.index(text),
        "known_tasks": len(tasks),
        "split": row["split"],
        "extra": {name: row[name] or "" for name in ("key", "clip_id", "tier", "embodiment", "split")},
    }
