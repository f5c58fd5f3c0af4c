"""Rows of numbers kept for the frames of clips, in a folder beside the shards: one safetensors file for each shard.

A file is written in one go and read row by row; whatever in it is not what its reader expects counts as not there, and
any file may be deleted at any time. What the numbers mean, and who makes them, is left to whoever does.
"""

from __future__ import annotations

import array
import json
import math
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyramid import files
from pyramid.errors import DataError, UnsafeInputError
from pyramid.shards.reader import ShardSet

__all__ = [
    "FOLDER",
    "ClipRows",
    "FeatureFile",
    "RowLayout",
    "clip_digest",
    "file_of",
    "notes_on",
    "write_features",
]

FOLDER = "features"
"""Folder beside the shards; in it one folder for each maker of rows, named by the first digits of its digest."""
DIGITS = 16
MAX_HEADER_BYTES = 32 * 2**20
_MAKER, _CLIP, _KNOWN, _SUMS = "maker", "clip:", "_known", "_crc32"
_DIMENSIONS = 3
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "U32": 4}


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """What the rows of a maker are."""

    maker: str
    """Digest of everything besides the clips that decides the numbers, 64 hex digits."""
    dtype: str
    """``F32``, ``F16`` or ``BF16``, as safetensors calls them."""
    width: int
    """Numbers of a token."""

    @property
    def token_bytes(self) -> int:
        """Bytes of a token."""
        return self.width * _BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class ClipRows:
    """The rows of one clip: a row for each of its frames."""

    key: str
    """Key of its sample."""
    of: str
    """`clip_digest` of the clip; rows of another are not read."""
    frames: int
    """Its frames, T."""
    tokens: int
    """Tokens of a row, L."""


def clip_digest(sha256: str, text: str) -> str:
    """Returns the digest of what is seen and said in a clip: its bytes in the shard, its text in the index."""
    return files.digest([sha256, text])


def file_of(shard: str) -> str:
    """Returns the name of the file of a shard: the same number."""
    return shard.removesuffix(".tar") + ".safetensors"


def write_features(
    path: str, layout: RowLayout, clips: Sequence[ClipRows], rows: Iterable[bytes | None], about: Mapping[str, Any]
) -> None:
    """Writes the rows of clips, [T, L, C] under the key of each; the name appears when all is written.

    Args:
        path: the file.
        layout: what the rows are.
        clips: the clips in their order.
        rows: of each clip the row of each frame, in order; None where there is none.
        about: provenance, plain data.

    Raises:
        OutputError: it cannot be written there.
        DataError: a row of another size than its clip says.
    """
    header, total = _header(layout, clips, about)
    sizes = [clip.tokens * layout.token_bytes for clip in clips for _ in range(clip.frames)]
    known, sums = bytearray(total), array.array("I", bytes(4 * total))
    with files.atomic_write(path) as out:
        out.write(header)
        for i, (size, row) in enumerate(zip(sizes, rows, strict=True)):
            if row is not None and len(row) != size:
                raise DataError(f"'{path}': row {i} has {len(row)} bytes, {size} are needed")
            known[i], sums[i] = row is not None, zlib.crc32(row or b"")
            out.write(bytes(size) if row is None else row)
        out.write(bytes(known))
        out.write(_little(sums).tobytes())


def _header(layout: RowLayout, clips: Sequence[ClipRows], about: Mapping[str, Any]) -> tuple[bytes, int]:
    told = {_MAKER: layout.maker, "about": files.canonical_json(about), **{_CLIP + c.key: c.of for c in clips}}
    found: dict[str, Any] = {"__metadata__": told}
    total, end = sum(clip.frames for clip in clips), 0
    tensors = [(c.key, layout.dtype, [c.frames, c.tokens, layout.width]) for c in clips]
    for name, dtype, shape in [*tensors, (_KNOWN, "U8", [total]), (_SUMS, "U32", [total])]:
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(found, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, total


class FeatureFile:
    """A file of rows, opened: its header was read and holds together; rows are read and checked one by one.

    Attributes:
        maker: digest of what made the rows.
        clips: the clips in it by key, and what a row of each is: dtype and width.
    """

    def __init__(self, path: str, header: Mapping[str, Any], start: int, size: int) -> None:
        self.path = path
        told = header.get("__metadata__", {})
        self.maker = str(told.get(_MAKER))
        self.clips: dict[str, tuple[ClipRows, str, int]] = {}
        self._places: dict[str, tuple[int, int]] = {}
        spans, end, first = {}, 0, 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            shape, dtype, span = entry["shape"], entry["dtype"], entry["data_offsets"]
            numbers = [*shape, *span]
            if len(shape) > _DIMENSIONS or any(type(n) is not int or n < 0 for n in numbers) or span[0] != end:
                raise ValueError(f"'{name}' lies at {span}")
            end = span[1]
            if math.prod(shape) * _BYTES[dtype] != end - span[0]:
                raise ValueError(f"'{name}' of {shape} {dtype} takes {end - span[0]} bytes")
            if name in (_KNOWN, _SUMS):
                spans[name] = start + span[0], end - span[0]
                continue
            frames, tokens, width = shape
            of = str(told.get(_CLIP + name))
            self.clips[name] = ClipRows(key=name, of=of, frames=frames, tokens=tokens), dtype, width
            self._places[name] = start + span[0], first
            first += frames
        if start + end != size or [spans[n][1] for n in (_KNOWN, _SUMS)] != [first, 4 * first]:
            raise ValueError(f"{size - start} bytes of data, {end} are announced")
        self._known = files.read_range(path, *spans[_KNOWN])
        self._sums = _little(array.array("I", files.read_range(path, *spans[_SUMS])))

    @classmethod
    def open(cls, path: str) -> FeatureFile:
        """Opens a file.

        Raises:
            DataError: it is not there, was cut, or is no such file.
        """
        size = files.size_bytes(path)
        length = int.from_bytes(files.read_range(path, 0, 8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise UnsafeInputError(f"'{path}': a header of {length} bytes in a file of {size} is not read")
        try:
            return cls(path, json.loads(files.read_range(path, 8, length)), 8 + length, size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"'{path}' holds no features of a shard: {error}") from error

    def holds(self, clip: ClipRows, layout: RowLayout) -> bool:
        """Tells whether the rows of this very clip, made by this very maker, are in it."""
        found = self.clips.get(clip.key)
        return self.maker == layout.maker and found == (clip, layout.dtype, layout.width)

    def row(self, clip: ClipRows, frame: int) -> bytes | None:
        """Returns the row of a frame of a clip that the file holds; None where there is none.

        Raises:
            DataError: the file is gone, was cut, or its bytes are not those that were written.
        """
        own, dtype, width = self.clips[clip.key]
        (start, first), size = self._places[clip.key], own.tokens * width * _BYTES[dtype]
        if not 0 <= frame < own.frames or not self._known[first + frame]:
            return None
        data = files.read_range(self.path, start + frame * size, size)
        if zlib.crc32(data) != self._sums[first + frame]:
            raise DataError(
                f"'{self.path}': the features of {clip.key}, frame {frame}, are not those that were written"
            )
        return data


def notes_on(found: ShardSet) -> Iterator[str]:
    """Yields, for each folder of features, what of it nobody will read: of other shards, or damaged."""
    root, known = files.join(found.folder, FOLDER), None
    for name in files.listdir(root):
        folder, useless, there = files.join(root, name), [], 0
        for file in files.listdir(folder):
            if file.endswith(".safetensors"):
                known = known or {row["key"]: clip_digest(row["sha256"], row["text"] or "") for row in found.rows}
                there += 1
                useless += [] if _useful(files.join(folder, file), known) else [file]
        if useless:
            yield (
                f"{FOLDER}/{name}: {len(useless)} of {there} files are damaged or of other clips, the first is "
                f"{useless[0]}; nothing reads them, and they may be deleted"
            )


def _useful(path: str, known: Mapping[str, str]) -> bool:
    try:
        clips = FeatureFile.open(path).clips.values()
    except DataError:
        return False
    return any(known.get(clip.key) == clip.of for clip, _, _ in clips)


def _little(numbers: array.array[int]) -> array.array[int]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
