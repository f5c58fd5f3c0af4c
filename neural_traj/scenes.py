"""First frames for a video world model to go on from: of robot episodes, packed or LeRobot, and of pictures.

What is asked for in them is left to `instructions`, writing requests to `prompts`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyramid import files
from pyramid.corpora.naming import parse_dreamgen_name
from pyramid.corpora.source import fingerprint, relative
from pyramid.errors import DataError, SkipItemError
from pyramid.lerobot import open_dataset
from pyramid.lerobot.schema import INFO
from pyramid.shards.layout import INDEX_FILE
from pyramid.shards.reader import ShardSet
from pyramid.video.apart import decode_apart
from pyramid.video.decode import DecodeRequest

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PICTURE_BYTES, MAX_PIXELS = 64 * 2**20, 64_000_000


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Where one first frame is; plain data that crosses to another process."""

    item: str
    """Unique name in its source: a sample's key, ``episode 7``, a picture's relative path."""
    text: str
    """What is done there, as far as is known."""
    embodiment: str
    """Whose body is seen; empty when unknown."""
    content: str
    """Digest of what the picture is made from."""
    place: Mapping[str, Any]
    """How to read it, for `first_frame`."""


def list_scenes(source: str, camera: str = "") -> list[Scene]:
    """Lists the first frames of a shard folder, a LeRobot data set, or a folder of pictures.

    Args:
        source: the folder.
        camera: camera key of a LeRobot data set, or its last part; empty takes the first.

    Raises:
        DataError: nothing there to begin a video with.
    """
    if not files.is_dir(source):
        raise DataError(f"'{source}' is no folder; name shards, a LeRobot data set, or a folder of pictures")
    if files.exists(files.join(source, INDEX_FILE)):
        return _of_shards(ShardSet.open(source))
    if files.exists(files.join(source, "meta", INFO)):
        return _of_lerobot(source, camera)
    paths = [path for path in files.walk_files(source) if path.lower().endswith(PICTURES)]
    if not paths:
        raise DataError(
            f"'{source}' holds neither shards, nor a LeRobot data set, nor pictures ({', '.join(PICTURES)})"
        )
    return [_of_picture(path, relative(path, source)) for path in paths]


def _of_shards(shards: ShardSet) -> list[Scene]:
    return [
        Scene(
            item=row["key"],
            text=row["text"] or "",
            embodiment=row["embodiment"] or "",
            content=row["sha256"],
            place={"kind": "shards", "folder": shards.folder, "row": i},
        )
        for i, row in enumerate(shards.rows)
    ]


def _of_lerobot(source: str, camera: str) -> list[Scene]:
    dataset = open_dataset(source)
    keys = [key for key in dataset.cameras if not camera or key == camera or key.rpartition(".")[2] == camera]
    if not keys:
        raise DataError(f"'{source}' has no camera '{camera}'; it has {', '.join(dataset.cameras) or 'none'}")
    print_of = lru_cache(maxsize=None)(fingerprint)
    return [
        Scene(
            item=f"episode {episode.index}",
            text=episode.task,
            embodiment=dataset.robot_type,
            content=f"{print_of(episode.videos[keys[0]])} {episode.stretches.get(keys[0])}",
            place={
                "kind": "video",
                "path": episode.videos[keys[0]],
                "start_s": episode.stretches.get(keys[0], (0.0, 0.0))[0],
                "step_s": 1 / dataset.fps,
            },
        )
        for episode in dataset.episodes
        if keys[0] in episode.videos
    ]


def _of_picture(path: str, name: str) -> Scene:
    stem = path.rpartition("/")[2].rpartition(".")[0]
    parsed = parse_dreamgen_name(stem)
    place = {"kind": "picture", "path": path}
    return Scene(
        item=name, text=parsed[1] if parsed else "", embodiment="", content=files.sha256_file(path), place=place
    )


def first_frame(place: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Reads the picture of a scene, uint8 [H, W, 3], RGB.

    Raises:
        SkipItemError: ``bad_picture``, ``bad_sample``, or why a video does not decode.
    """
    if place["kind"] == "shards":
        try:
            return np.asarray(ShardSet.open(place["folder"]).read(place["row"]).frames([0])[0])
        except SkipItemError:
            raise
        except DataError as error:
            raise SkipItemError("bad_sample", str(error)) from error
    if place["kind"] == "video":
        start = place["start_s"]
        request = DecodeRequest(start_s=max(start - place["step_s"] / 4, 0), end_s=start + place["step_s"] / 2)
        return np.asarray(decode_apart(place["path"], request).pixels[0])
    return read_picture(place["path"])


def read_picture(path: str) -> NDArray[np.uint8]:
    """Reads a picture file, uint8 [H, W, 3], RGB; large ones are refused before they are decoded.

    Raises:
        SkipItemError: ``bad_picture``.
    """
    try:
        data = files.read_bytes(path, max_bytes=MAX_PICTURE_BYTES)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}x{picture.height} pixels are too many")
            return np.asarray(picture.convert("RGB"))
    except (DataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SkipItemError("bad_picture", f"'{path}' is no picture that can be read: {error}") from error


def write_png(path: str, pixels: NDArray[np.uint8]) -> None:
    """Writes uint8 [H, W, 3], RGB, as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    files.write_bytes(path, stream.getvalue())
