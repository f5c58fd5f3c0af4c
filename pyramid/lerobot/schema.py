"""The layout of LeRobot v2.x: names of files and columns, and the documents `info.json` and `modality.json` as values.

Reading and writing files is left to `read`, `write` and `stats` beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pyramid.errors import DataError, UnsafeInputError

VERSION = "v2.1"
"""The version that is written an episode at a time, with GR00T's documents."""
V3 = "v3.0"
"""The version whose files hold many episodes each."""
READ_VERSIONS = ("v2.0", "v2.1")
"""The versions with a file per episode that are read."""
CHUNK_SIZE = 1000
"""Episodes per folder."""
INFO, MODALITY, EPISODES, TASKS, EPISODES_STATS, STATS = (
    "info.json",
    "modality.json",
    "episodes.jsonl",
    "tasks.jsonl",
    "episodes_stats.jsonl",
    "stats.json",
)
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
STATE_KEY = "observation.state"
ACTION_KEY = "action"
IMAGE_PREFIX = "observation.images."
TASK_ANNOTATION = "human.task_description"
V3_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V3_EPISODES_PATH = "episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_TASKS = "tasks.parquet"
_FIELD = re.compile(r"\{(episode_chunk|episode_index|chunk_index|file_index|video_key)(?::0?(\d{1,2})d)?\}")


def fill_path(template: str, *, index: int, chunk_size: int = CHUNK_SIZE, video_key: str = "") -> str:
    """Returns the path, inside the data set, of one episode's file.

    Templates come from files that strangers wrote: only the three known fields are filled in, nothing else of Python's
    format language, and a result that leaves the data set's folder is refused.

    Raises:
        UnsafeInputError: another field, or a path out of the folder.
    """
    return _filled(template, {"episode_chunk": index // chunk_size, "episode_index": index, "video_key": video_key})


def fill_file_path(template: str, *, chunk: int, file: int, video_key: str = "") -> str:
    """Returns the path, inside a v3.0 data set, of one file of many episodes; as careful as `fill_path`."""
    return _filled(template, {"chunk_index": chunk, "file_index": file, "video_key": video_key})


def _filled(template: str, values: dict[str, int | str]) -> str:
    def filled(match: re.Match[str]) -> str:
        # A field of the other version stays as it is, and is refused below.
        return str(values[match[1]]).zfill(int(match[2] or 0)) if match[1] in values else match[0]

    path = _FIELD.sub(filled, template)
    if "{" in path or "}" in path:
        raise UnsafeInputError(f"path template '{template}' holds a field that is not filled in here: {path}")
    if path.startswith(("/", "\\")) or ":" in path or "\0" in path or ".." in re.split(r"[/\\]", path):
        raise UnsafeInputError(f"path template '{template}' leads out of the data set: {path}")
    return path


@dataclass(frozen=True, kw_only=True)
class ModalityGroup:
    """A named stretch of the state or action vector, as GR00T's `modality.json` declares it."""

    start: int
    """First dimension."""
    end: int
    """One past the last dimension."""
    absolute: bool = True
    """False for differences: they are padded with zeros, not with the last value, past an episode's end."""

    def __post_init__(self) -> None:
        """Refuses an empty stretch."""
        if not 0 <= self.start < self.end:
            raise ValueError(f"a modality group spans start < end, got {self.start}..{self.end}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every episode of a data set has: rate, vectors and cameras."""

    fps: float
    """Frames and rows per second."""
    robot_type: str
    """Whose body it is, such as ``so100``."""
    state_names: tuple[str, ...]
    """One name per state dimension."""
    action_names: tuple[str, ...]
    """One name per action dimension."""
    cameras: tuple[str, ...]
    """Short camera names; ``front`` becomes the feature ``observation.images.front``."""
    height_px: int
    """Rows of every camera's pictures; even."""
    width_px: int
    """Columns of every camera's pictures; even."""
    state_groups: tuple[tuple[str, ModalityGroup], ...] = ()
    """Named stretches of the state; empty: one group ``state`` of all."""
    action_groups: tuple[tuple[str, ModalityGroup], ...] = ()
    """Named stretches of the action; empty: one group ``action`` of all."""

    def __post_init__(self) -> None:
        """Refuses layouts that no reader could make sense of."""
        if not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if not self.state_names or not self.action_names:
            raise ValueError("state_names and action_names need at least one name each")
        for camera in self.cameras:
            if not re.fullmatch(r"[a-z0-9_]+", camera):
                raise ValueError(f"camera '{camera}': use a-z, 0-9 and _")
        for groups, size in ((self.state_groups, len(self.state_names)), (self.action_groups, len(self.action_names))):
            for name, group in groups:
                if group.end > size:
                    raise ValueError(f"modality group '{name}' ends at {group.end}, the vector has {size} dimensions")

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras' feature names, in order."""
        return tuple(IMAGE_PREFIX + camera for camera in self.cameras)


def info_document(layout: Layout, *, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """Returns the content of `meta/info.json`."""
    fps = int(layout.fps) if float(layout.fps).is_integer() else layout.fps
    return {
        "codebase_version": VERSION,
        "robot_type": layout.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "total_videos": episodes * len(layout.cameras),
        "total_chunks": -(-episodes // CHUNK_SIZE),
        "chunks_size": CHUNK_SIZE,
        "fps": fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": _features(layout, fps),
    }


def _features(layout: Layout, fps: float) -> dict[str, Any]:
    vectors = {
        STATE_KEY: {"dtype": "float32", "shape": [len(layout.state_names)], "names": list(layout.state_names)},
        ACTION_KEY: {"dtype": "float32", "shape": [len(layout.action_names)], "names": list(layout.action_names)},
    }
    counters = ("frame_index", "episode_index", "index", "task_index")
    scalars = {"timestamp": "float32", **dict.fromkeys(counters, "int64")}
    return (
        vectors
        | {key: _video_feature(layout, fps) for key in layout.image_keys}
        | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in scalars.items()}
    )


def _video_feature(layout: Layout, fps: float) -> dict[str, Any]:
    return {
        "dtype": "video",
        "shape": [layout.height_px, layout.width_px, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.fps": fps,
            "video.height": layout.height_px,
            "video.width": layout.width_px,
            "video.channels": 3,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "has_audio": False,
        },
    }


def modality_document(layout: Layout) -> dict[str, Any]:
    """Returns the content of GR00T's `meta/modality.json`."""
    return {
        "state": _groups(layout.state_groups, "state", len(layout.state_names)),
        "action": _groups(layout.action_groups, "action", len(layout.action_names)),
        "video": {camera: {"original_key": IMAGE_PREFIX + camera} for camera in layout.cameras},
        "annotation": {TASK_ANNOTATION: {"original_key": "task_index"}},
    }


def _groups(groups: tuple[tuple[str, ModalityGroup], ...], whole: str, size: int) -> dict[str, Any]:
    named = groups or ((whole, ModalityGroup(start=0, end=size)),)
    return {
        name: {"start": group.start, "end": group.end, **({} if group.absolute else {"absolute": False})}
        for name, group in named
    }


def check_version(version: object, where: str) -> str:
    """Returns a version that is read here, or says which are.

    Raises:
        DataError: v3.0, or anything else.
    """
    if version in READ_VERSIONS:
        return str(version)
    if isinstance(version, str) and version.startswith("v3"):
        raise DataError(
            f"{where}: a LeRobot {version} data set (many episodes per file) is not read here, "
            f"{' and '.join(READ_VERSIONS)} are; use open_dataset, or 'pyramid convert --to lerobot-v2.1'"
        )
    raise DataError(f"{where}: codebase_version {version!r} is not read here, {' and '.join(READ_VERSIONS)} are")
