"""Pictures, videos and shard folders whose pixels and numbers say which frame of which clip they are.

A decoded picture can be read back, so that decoding, seeking, packing and labelling can be proven exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pyramid import files, parquet
from pyramid.shards.layout import ACTION, INDEX_FILE, INDEX_SCHEMA, META, STATE, TIMES, VIDEO, dump_array
from pyramid.shards.writer import write_shard
from pyramid.video.encode import encode_mp4

CELLS = 4
DARK, BRIGHT = 40, 215


def picture(number: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Draws the 16 bits of a number as a grid of 4 x 4 dark and bright fields; uint8 [H, W, 3]."""
    bits = (number >> np.arange(CELLS * CELLS)) & 1
    fields = np.where(bits.reshape(CELLS, CELLS), BRIGHT, DARK).astype(np.uint8)
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    return np.repeat(fields[rows][:, columns][..., None], 3, axis=2)


def pictures(numbers: Sequence[int], height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Draws several numbers; uint8 [T, H, W, 3]."""
    return np.stack([picture(n, height, width) for n in numbers])


def read_picture(pixels: NDArray[np.uint8]) -> int:
    """Reads the number that `picture` drew, from the middles of the fields."""
    height, width = pixels.shape[:2]
    middles = (np.arange(CELLS) * 2 + 1) / (2 * CELLS)
    values = pixels[np.ix_((middles * height).astype(int), (middles * width).astype(int))].mean(-1)
    return int((values.ravel() > (DARK + BRIGHT) / 2) @ (1 << np.arange(CELLS * CELLS)))


def read_pictures(pixels: NDArray[np.uint8]) -> list[int]:
    """Reads the number of every frame of uint8 [T, H, W, 3]."""
    return [read_picture(frame) for frame in pixels]


def write_video(
    path: Path,
    numbers: Sequence[int],
    *,
    rate: Fraction | int = 30,
    ticks: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    size: tuple[int, int] = (64, 64),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Encodes a video of numbers; ``ticks`` are presentation times in ``time_base`` (the rate's, if not given)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", **(options or {})}
        base = time_base or 1 / Fraction(rate)
        stream.codec_context.time_base = base
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = place if ticks is None else ticks[place], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Writes an MP4 with sound and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16_000)
        for place in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16_000, place * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_episode(path: Path, n_rows: int, *, first: int = 0) -> Path:
    """Writes states and actions as a LeRobot v2 file names them; row t holds ``first + t``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.arange(first, first + n_rows, dtype=np.float32)
    table = pa.table(
        {"observation.state": np.stack([rows, -rows], 1).tolist(), "action": np.stack([rows] * 3, 1).tolist()}
    )
    parquet.write(path, table)
    return path


def key_of(clip: int, corpus: str = "drawn") -> str:
    """Returns the key of a clip of `write_shards`."""
    return f"{corpus}-{clip:012x}-0000"


def number_of(clip: int, frame: int) -> int:
    """Returns the number drawn on a frame of a clip of `write_shards`: clip and frame can be told from it."""
    return clip * 100 + frame


def sample_members(clip: int, n_frames: int, *, rate_hz: float = 10.0, actions: bool = True, split: str = "train"):
    """Returns the members of a sample: state [T, 1] and action [T, 2] hold the number drawn on the frame."""
    numbers = [number_of(clip, t) for t in range(n_frames)]
    values = np.asarray(numbers, np.float32)[:, None]
    meta = {"clip_id": f"drawn/{clip}", "rate_hz": rate_hz, "split": split, "embodiment": "arm", "scores": {"cuts": []}}
    members = {
        META: json.dumps(meta).encode(),
        VIDEO: encode_mp4(pictures(numbers, 32, 32), rate_hz, gop=4),
        TIMES: dump_array(np.arange(n_frames) / rate_hz),
    }
    return members | ({STATE: dump_array(values), ACTION: dump_array(np.hstack([values, -values]))} if actions else {})


def write_shards(
    folder: Path,
    frames: Sequence[int],
    *,
    per_shard: int = 2,
    rate_hz: float = 10.0,
    actions: bool = True,
    n_val: int = 0,
    embodiment: str = "arm",
    first_clip: int = 0,
) -> str:
    """Writes a shard folder with one clip for each number of frames; the last ``n_val`` clips are held out."""
    rows = []
    for number, start in enumerate(range(0, len(frames), per_shard)):
        clips = range(start, min(start + per_shard, len(frames)))
        facts = {}
        samples = []
        for place in clips:
            clip, split = first_clip + place, "val" if place >= len(frames) - n_val else "train"
            samples.append(
                (key_of(clip), sample_members(clip, frames[place], rate_hz=rate_hz, actions=actions, split=split))
            )
            facts[key_of(clip)] = {
                "clip_id": f"drawn/{clip}",
                "corpus": "drawn",
                "tier": "top",
                "embodiment": embodiment,
                "split": split,
                "text": f"show {clip}",
                "frames": frames[place],
                "rate_hz": rate_hz,
                "duration_s": frames[place] / rate_hz,
                "height_px": 32,
                "width_px": 32,
                "state_dim": 1 if actions else 0,
                "action_dim": 2 if actions else 0,
                "cuts": [],
            }
        written = write_shard(str(folder / f"clips-{number:06d}.tar"), samples)
        rows += [{**facts[row["key"]], **row} for row in written]
    parquet.write(folder / INDEX_FILE, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})
    return str(folder)


def tree(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file below a folder by relative name, temporaries included."""
    return {str(p.relative_to(folder)): files.sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def lasting(found: dict[str, str]) -> dict[str, str]:
    """Returns what of a `tree` two runs must have in common: all but logs, which tell the time."""
    return {name: sha for name, sha in found.items() if "/_events" not in f"/{name}"}
