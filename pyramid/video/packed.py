"""Frames out of packed clips, by index.

They are MP4s of this toolkit, or of a data set that was converted: B-frames and any spacing of key frames are read
right, too. Source videos and presentation times are left to `pyramid.video.decode`.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pyramid.errors import DataError


def decode_mp4(data: bytes, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Decodes frames of a packed clip by index; uint8 [n, H, W, 3] RGB, in the order of ``indices`` (all if None).

    Decoding begins at the key frame before each; a clip with short GOPs costs little for few frames.

    Raises:
        DataError: the clip is damaged, or has no such frame.
    """
    try:
        with av.open(io.BytesIO(data)) as container:
            return _frames(container, _stream(container), indices)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DataError(f"a packed clip of {len(data)} bytes does not decode: {_said(error)}") from error


def count_mp4(data: bytes) -> int:
    """Decodes all frames of a packed clip, one at a time, and returns their number.

    Raises:
        DataError: the clip is damaged.
    """
    try:
        with av.open(io.BytesIO(data)) as container:
            return sum(1 for _ in container.decode(_stream(container)))
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise DataError(f"a packed clip of {len(data)} bytes does not decode: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n", maxsplit=1)[0]


def _stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise IndexError("it has no pictures")
    stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
    return stream


def _frames(container: Any, stream: Any, indices: Sequence[int] | None) -> NDArray[np.uint8]:
    times, keys = _places(container, stream)
    wanted = range(len(times)) if indices is None else [int(i) for i in indices]
    for i in wanted:
        if not 0 <= i < len(times):
            raise IndexError(f"there is no frame {i}, only 0 to {len(times) - 1}")
    places: dict[int, list[int]] = {}
    for place, i in enumerate(wanted):
        places.setdefault(i, []).append(place)
    to_rgb, found = (
        VideoReformatter(),
        np.zeros((0, stream.codec_context.height, stream.codec_context.width, 3), np.uint8),
    )
    for i, frame in _decoded(container, stream, sorted(places), times, keys):
        # Each frame goes to its place while it is warm, not all at the end.
        picture = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if not len(found):
            found = np.empty((len(wanted), *picture.shape), np.uint8)
        for place in places[i]:
            found[place] = picture
    return found


def _places(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Returns the times of all frames in the order they are shown, and which of them are key frames."""
    entries = list(stream.index_entries)
    plain = not stream.codec_context.has_b_frames and len(entries) == stream.frames > 0
    # The container's own index holds decoding times; without B-frames they are the times shown, if they begin alike.
    if plain and entries[0].timestamp == stream.start_time:
        return [e.timestamp for e in entries], [i for i, e in enumerate(entries) if e.is_keyframe]
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.pts is not None and not p.is_discard]
    container.seek(0, stream=stream)
    packets.sort()
    return [time for time, _ in packets], [i for i, (_, is_key) in enumerate(packets) if is_key]


def _decoded(
    container: Any, stream: Any, wanted: Sequence[int], times: Sequence[int], keys: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Yields the wanted frames with their numbers; goes on from where it is unless a later key frame is nearer."""
    frames, at = container.decode(stream), -1
    for i in wanted:
        key = keys[bisect.bisect_right(keys, i) - 1] if keys and keys[0] <= i else 0
        if key > at + 1:
            container.seek(times[key], stream=stream)
            frames, at = container.decode(stream), key - 1
        for frame in frames:
            at = len(times) if frame.pts is None else bisect.bisect_left(times, frame.pts)
            if at >= i:
                break
        if at != i or frame.pts != times[i]:
            raise IndexError(f"frame {i} is missing")
        yield i, frame
