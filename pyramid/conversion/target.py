"""What both LeRobot versions need to be told of the episodes that are written: numbers, features, splits, statistics.

How files are laid out is left to `target_v21` and `target_v3`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pyramid import files, parquet
from pyramid.conversion.origin import Origin
from pyramid.errors import DataError
from pyramid.jobs import Quarantined
from pyramid.lerobot import schema, stats
from pyramid.lerobot.columns import numbers
from pyramid.lerobot.schema import ACTION_KEY, STATE_KEY, Layout

_NUMBERS = {"float": "float32", "double": "float64", "halffloat": "float16", "bool": "bool"}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One episode with its place in the new data set."""

    number: int
    """Its number."""
    first_index: int
    """Frames of all episodes before it."""
    task: dict[str, Any]
    """What `episode` needs to read it."""
    facts: dict[str, Any]
    """What `examine_episode` said of it."""

    @property
    def length(self) -> int:
        """Rows of it."""
        return int(self.facts["n_rows"])

    @property
    def identity(self) -> list[Any]:
        """What decides what is written of it."""
        return [self.number, self.first_index, self.task["content"], self.task["fps"]]


def arrange(
    origin: Origin, tasks: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]]
) -> tuple[list[Planned], list[Quarantined]]:
    """Numbers the episodes that can be used from 0 without gaps; those unlike the first are set aside."""
    planned: list[Planned] = []
    aside: list[Quarantined] = []
    first_index = 0
    for task, found in zip(tasks, facts, strict=True):
        if not found:
            continue
        reason = _misfit(origin, task, found, planned[0].facts if planned else found)
        if reason:
            aside.append(Quarantined(item=task["name"], reason=reason[0], detail=f"{task['name']}: {reason[1]}"))
            continue
        planned.append(Planned(number=len(planned), first_index=first_index, task=dict(task), facts=dict(found)))
        first_index += found["n_rows"]
    return planned, aside


def _misfit(
    origin: Origin, task: Mapping[str, Any], found: Mapping[str, Any], first: Mapping[str, Any]
) -> tuple[str, str] | None:
    if sorted(found["columns"]) != sorted(first["columns"]) or found["dims"] != first["dims"]:
        odd = [c for c in found["columns"] if c not in first["columns"]] or found["dims"]
        return "other_columns", f"its columns are not those of the first episode: {odd}"
    unknown = [index for index in found["task_indices"] if index not in origin.tasks]
    if unknown:
        return "unknown_task", f"task_index {unknown[0]} is none of the {len(origin.tasks)} tasks that are listed"
    for key, video in found["videos"].items():
        size = [video["height_px"], video["width_px"]]
        wanted = [first["videos"][key]["height_px"], first["videos"][key]["width_px"]]
        if size != wanted:
            return "other_shape", f"camera '{key}' is {size[1]}x{size[0]}, in the first episode {wanted[1]}x{wanted[0]}"
    return None


def info_document(
    version: str, origin: Origin, planned: Sequence[Planned], features: Mapping[str, Any], splits: Mapping[str, str]
) -> dict[str, Any]:
    """Returns what `info.json` of both versions has in common."""
    fps = int(origin.fps) if float(origin.fps).is_integer() else origin.fps
    return {
        "codebase_version": version,
        "robot_type": origin.robot_type,
        "total_episodes": len(planned),
        "total_frames": sum(item.length for item in planned),
        "total_tasks": len(origin.tasks),
        "chunks_size": schema.CHUNK_SIZE,
        "fps": fps,
        "splits": dict(splits),
        "features": dict(features),
    }


def splits_of(planned: Sequence[Planned]) -> dict[str, str]:
    """Returns the stretches of episodes by split, as the source has them; all are ``train`` when it has none."""
    names = [item.task["split"] for item in planned]
    if not any(names):
        return {"train": f"0:{len(planned)}"}
    known = dict.fromkeys(name for name in names if name)
    edges = {name: (names.index(name), len(names) - names[::-1].index(name)) for name in known}
    return {name: f"{start}:{end}" for name, (start, end) in edges.items()}


def features_of(origin: Origin, planned: Sequence[Planned]) -> dict[str, Any]:
    """Returns the features that the files bear out: the source's own description of them, or what the columns show."""
    first = planned[0].facts
    kinds = {name: kind for name, kind in first["columns"]} | dict.fromkeys(("episode_index", "index"), "int64")
    known = {name: value for name, value in origin.features.items() if name in kinds or name in origin.cameras}
    for key in origin.cameras:
        known.setdefault(key, _video_feature(first["videos"][key], origin.fps))
    for name, kind in kinds.items():
        known.setdefault(name, _feature(kind, first["dims"].get(name, 1)))
    return known


def _feature(kind: str, dim: int) -> dict[str, Any]:
    element = kind[kind.index("<") + 1 : kind.rindex(">")].rpartition(": ")[2] if "<" in kind else kind
    element = element.partition("[")[0].removesuffix(" not null")
    return {"dtype": _NUMBERS.get(element, element), "shape": [dim], "names": None}


def _video_feature(facts: Mapping[str, Any], fps: float) -> dict[str, Any]:
    return {
        "dtype": "video",
        "shape": [facts["height_px"], facts["width_px"], 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.fps": int(fps) if float(fps).is_integer() else fps,
            "video.height": facts["height_px"],
            "video.width": facts["width_px"],
            "video.channels": 3,
            "video.codec": facts["codec"],
            "video.pix_fmt": facts["pix_fmt"],
            "video.is_depth_map": False,
            "has_audio": False,
        },
    }


def write_modality(out: str, origin: Origin, features: Mapping[str, Any]) -> None:
    """Writes GR00T's `modality.json`: the source's own, or one that names the whole vectors."""
    document = origin.modality
    if not document and STATE_KEY in features and ACTION_KEY in features:
        short = tuple(key.removeprefix(schema.IMAGE_PREFIX) for key in origin.cameras)
        try:
            layout = Layout(
                fps=origin.fps,
                robot_type=origin.robot_type,
                state_names=tuple(str(i) for i in range(features[STATE_KEY]["shape"][0])),
                action_names=tuple(str(i) for i in range(features[ACTION_KEY]["shape"][0])),
                cameras=short,
                height_px=0,
                width_px=0,
            )
        except ValueError:
            return  # Vectors without numbers, or cameras with names of another house, have no such document.
        document = schema.modality_document(layout)
    if document:
        files.write_json(files.join(out, "meta", schema.MODALITY), document)


def pooled_statistics(paths: Sequence[str], name: str) -> dict[str, list[Any]]:
    """Returns the exact statistics of one column over files, holding that column only."""
    parts = [values for path in paths if (values := numbers(parquet.read(path, [name])[name])) is not None]
    return stats.full_statistics(np.concatenate(parts)) if parts else {}


def tasks_of(origin: Origin, item: Planned) -> list[str]:
    """Returns the tasks of an episode as the metadata lists them."""
    return list(item.task["tasks"]) or [origin.tasks[index] for index in item.facts["task_indices"]]


def refuse_empty(aside: Sequence[Quarantined], src: str) -> NoReturn:
    """Refuses a data set of which nothing is left, with the first reasons."""
    details = "; ".join(item.detail for item in aside[:3])
    raise DataError(f"'{src}' holds no episode that can be converted: {details or 'it lists none'}")
