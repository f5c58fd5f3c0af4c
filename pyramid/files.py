"""The only door to the file system: local paths and fsspec URLs (s3://), atomic writes, bounded reads.

What the bytes mean is left to the rooms above. Writing anywhere else than through `atomic_write` is a defect.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyramid.errors import DataError, OutputError, UnsafeInputError

if TYPE_CHECKING:
    pass

Location = str | Path
MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON document that is read whole."""
MAX_READ_BYTES = 4 * 2**30
"""Largest file that is read whole unless the caller says otherwise."""
TEMPORARY_PREFIX = ".tmp-"
_REMOTE = ("s3",)


def is_remote(path: Location) -> bool:
    """Tells whether ``path`` is a URL; any scheme but those in the closed list is refused."""
    scheme, mark, _ = str(path).partition("://")
    if not mark:
        return False
    if scheme not in _REMOTE:
        raise UnsafeInputError(f"'{path}': scheme '{scheme}' is not read here; use a local path or s3://bucket/key")
    return True


def filesystem(path: Location) -> Any:
    """Returns the fsspec file system that serves a remote ``path``."""
    import fsspec

    # Without a cache of listings: other processes write, too.
    return fsspec.filesystem(str(path).split("://")[0], use_listings_cache=False)


def join(path: Location, *parts: str) -> str:
    """Joins path parts, for local paths and URLs alike."""
    return "/".join([str(path).rstrip("/"), *parts]) if is_remote(path) else str(Path(path, *parts))


def exists(path: Location) -> bool:
    """Tells whether a file or folder is there."""
    return bool(filesystem(path).exists(str(path))) if is_remote(path) else Path(path).exists()


def is_dir(path: Location) -> bool:
    """Tells whether ``path`` is a folder."""
    return bool(filesystem(path).isdir(str(path))) if is_remote(path) else Path(path).is_dir()


def size_bytes(path: Location) -> int:
    """Returns a file's size."""
    try:
        return int(filesystem(path).size(str(path)) if is_remote(path) else os.stat(path).st_size)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def listdir(path: Location) -> list[str]:
    """Returns the names in a folder, sorted, without temporaries; an absent folder is empty."""
    if is_remote(path):
        fs = filesystem(path)
        names = [str(p).rsplit("/", 1)[-1] for p in fs.ls(str(path), detail=False)] if fs.isdir(str(path)) else []
    else:
        names = os.listdir(path) if Path(path).is_dir() else []
    return sorted(name for name in names if name and not name.startswith(TEMPORARY_PREFIX))


def walk_files(root: Location) -> Iterator[str]:
    """Yields every regular file below ``root``, sorted; hidden ones are left out, links to folders not followed."""
    if is_remote(root):
        yield from sorted(f"s3://{p}" for p in filesystem(root).find(str(root)))
        return
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield str(Path(folder, name))


def make_dirs(path: Location) -> str:
    """Makes a folder and its parents; returns it. Refuses, by name, a place that cannot be written."""
    if is_remote(path):
        return str(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder '{path}': {error.strerror}; choose another --out") from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write to '{path}': permission denied; choose another --out")
    return str(path)


def remove(path: Location) -> None:
    """Removes a file if it is there."""
    if is_remote(path):
        if exists(path):
            filesystem(path).rm_file(str(path))
    else:
        Path(path).unlink(missing_ok=True)


def remove_temporaries(folder: Location) -> int:
    """Removes what a killed writer left in ``folder``; returns how many. Only for the folder's one owner."""
    if is_remote(folder) or not Path(folder).is_dir():
        return 0
    left = [p for p in Path(folder).iterdir() if p.name.startswith(TEMPORARY_PREFIX) and p.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


@contextlib.contextmanager
def atomic_write(path: Location) -> Iterator[IO[bytes]]:
    """Opens ``path`` for binary writing; the name appears only when all is written and on disk.

    Local: temporary name in the same folder, flush, fsync, rename. Remote: the upload is completed at the end only.
    An exception inside the block leaves nothing behind.

    Raises:
        OutputError: the disk is full, the folder is missing or read-only, the upload failed.
    """
    writer = _write_remote if is_remote(path) else _write_local
    with writer(str(path)) as stream:
        yield stream


@contextlib.contextmanager
def _write_local(path: str) -> Iterator[IO[bytes]]:
    folder = os.path.dirname(path) or "."
    temporary = None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=folder)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(folder)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: str) -> None:
    # The rename itself must survive a power cut.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _write_remote(path: str) -> Iterator[IO[bytes]]:
    # s3fs completes an upload when a `with` block raises; with autocommit off it does so only when told.
    stream = filesystem(path).open(path, "wb", autocommit=False)
    try:
        yield stream
        stream.close()
        stream.commit()
    except OSError as error:
        _abandon(stream)
        raise OutputError(f"cannot write '{path}': {error}") from error
    except BaseException:
        _abandon(stream)
        raise


def _abandon(stream: Any) -> None:
    stream.discard()
    # Else its destructor would begin another upload.
    stream.closed = True


@contextlib.contextmanager
def open_read(path: Location) -> Iterator[IO[bytes]]:
    """Opens a file for binary reading, seekable."""
    try:
        # A remote file that is not there may be noticed by the first read only.
        with filesystem(path).open(str(path), "rb") if is_remote(path) else Path(path).open("rb") as stream:
            yield stream
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def read_bytes(path: Location, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """Reads a whole file, refusing one that is larger than ``max_bytes``."""
    # Asking a stream for more than there is would set that much memory aside.
    size = size_bytes(path)
    with open_read(path) as stream:
        data = stream.read(min(size, max_bytes) + 1)
    if size > max_bytes or len(data) > max_bytes:
        raise UnsafeInputError(f"'{path}' is larger than the {max_bytes} bytes that may be read here")
    return data


def read_range(path: Location, offset: int, size: int) -> bytes:
    """Reads ``size`` bytes at ``offset``; a shorter file is an error."""
    if offset < 0 or not 0 <= size <= MAX_READ_BYTES:
        raise UnsafeInputError(f"'{path}': {size} bytes at byte {offset} are not read")
    with open_read(path) as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise DataError(f"'{path}' ends at byte {offset + len(data)}, expected {offset + size}: the file is truncated")
    return data


def read_text(path: Location, *, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Reads a UTF-8 text file."""
    try:
        return read_bytes(path, max_bytes=max_bytes).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start})") from error


def read_json(path: Location, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON document."""
    try:
        return json.loads(read_text(path, max_bytes=max_bytes))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON: {error}") from error


def write_bytes(path: Location, data: bytes) -> None:
    """Writes a whole file atomically."""
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: Location, text: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Location, obj: Any) -> None:
    """Writes plain data or a dataclass as indented JSON, atomically."""
    plain = asdict(obj) if is_dataclass(obj) and not isinstance(obj, type) else obj
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical_json(obj: Any) -> str:
    """Returns the one JSON text that equal data have: sorted keys, no spaces."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(obj: Any) -> str:
    """Returns the sha256 of plain data, independent of the order of keys."""
    return sha256_bytes(canonical_json(obj).encode())


def sha256_bytes(data: bytes) -> str:
    """Returns the sha256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Location) -> str:
    """Returns the sha256 of a file, read in pieces."""
    total = hashlib.sha256()
    with open_read(path) as stream:
        while piece := stream.read(2**20):
            total.update(piece)
    return total.hexdigest()
