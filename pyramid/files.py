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
from typing import IO, Any

from pyramid import remote, uploads
from pyramid.errors import DataError, OutputError, UnreachableError, UnsafeInputError
from pyramid.remote import Entry

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


def join(path: Location, *parts: str) -> str:
    """Joins path parts, for local paths and URLs alike."""
    return "/".join([str(path).rstrip("/"), *parts]) if is_remote(path) else str(Path(path, *parts))


def exists(path: Location) -> bool:
    """Tells whether a file or folder is there."""
    return remote.exists(str(path)) if is_remote(path) else Path(path).exists()


def is_dir(path: Location) -> bool:
    """Tells whether ``path`` is a folder."""
    return remote.is_dir(str(path)) if is_remote(path) else Path(path).is_dir()


def size_bytes(path: Location) -> int:
    """Returns a file's size."""
    try:
        return remote.head(str(path)).size if is_remote(path) else os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def entries(path: Location) -> dict[str, Entry]:
    """Returns what lies in a folder by name, sorted, without temporaries; an absent folder is empty.

    Sizes come with the listing: of a thousand remote files at the cost of one request.
    """
    if is_remote(path):
        found = remote.entries(str(path))
    elif Path(path).is_dir():
        with os.scandir(path) as listed:
            found = {entry.name: Entry(entry.stat().st_size if entry.is_file() else 0) for entry in listed}
    else:
        found = {}
    return {name: found[name] for name in sorted(found) if not name.startswith(TEMPORARY_PREFIX)}


def listdir(path: Location) -> list[str]:
    """Returns the names in a folder, sorted, without temporaries; an absent folder is empty."""
    return list(entries(path))


def walk_files(root: Location) -> Iterator[str]:
    """Yields every regular file below ``root``, sorted; hidden ones are left out, links to folders not followed."""
    if is_remote(root):
        yield from remote.walk(str(root))
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
    """Removes a file if it is there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        if is_remote(path):
            remote.remove(str(path))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
    except (OSError, UnreachableError) as error:
        raise OutputError(f"cannot remove '{path}': {error}") from error


def move(source: Location, target: Location) -> None:
    """Moves a file inside one file system or one store; stopped anywhere, it can be done again."""
    try:
        if is_remote(source):
            remote.move(str(source), str(target))
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    except (OSError, UnreachableError) as error:
        raise OutputError(f"cannot move '{source}' to '{target}': {error}") from error


def remove_temporaries(folder: Location) -> int:
    """Removes what a killed writer left in ``folder``; returns how many. Only for the folder's one owner.

    Local: temporary files. Remote: uploads that were never completed, and are paid for until somebody withdraws them.
    """
    if is_remote(folder):
        return uploads.clear_uploads(str(folder))
    if not Path(folder).is_dir():
        return 0
    # Names first: there may be a million.
    left = [Path(folder, name) for name in os.listdir(folder) if name.startswith(TEMPORARY_PREFIX)]
    left = [path for path in left if path.is_file()]
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
            with contextlib.suppress(OSError):  # Else it would hide what went wrong.
                os.remove(temporary)


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
    upload = uploads.Upload(path)
    try:
        yield upload  # type: ignore[misc]
        upload.publish()
    except (OSError, UnreachableError) as error:
        upload.abandon()
        raise OutputError(f"cannot write '{path}': {error}") from error
    except BaseException:
        upload.abandon()
        raise


@contextlib.contextmanager
def open_read(path: Location) -> Iterator[IO[bytes]]:
    """Opens a file for binary reading, seekable.

    Raises:
        DataError: the file is not there, or was replaced while it was read.
        UnreachableError: its store does not answer.
    """
    try:
        with remote.open_read(str(path)) if is_remote(path) else Path(path).open("rb") as stream:
            yield stream
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def read_bytes(path: Location, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """Reads a whole file, refusing one that is larger than ``max_bytes``."""
    data, size = _read(path, 0, max_bytes + 1)
    if size > max_bytes or len(data) > max_bytes:
        raise UnsafeInputError(f"'{path}' is larger than the {max_bytes} bytes that may be read here")
    return data


def _read(path: Location, offset: int, size: int) -> tuple[bytes, int]:
    """Reads up to ``size`` bytes; returns them and the file's size."""
    try:
        if is_remote(path):
            return remote.read_up_to(str(path), offset, size)
        with Path(path).open("rb") as stream:
            whole = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
            # Asking a stream for more than there is would set that much memory aside.
            return stream.read(min(size, max(whole - offset, 0) + 1)), whole
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def read_range(path: Location, offset: int, size: int) -> bytes:
    """Reads ``size`` bytes at ``offset``; a shorter file is an error."""
    if offset < 0 or not 0 <= size <= MAX_READ_BYTES:
        raise UnsafeInputError(f"'{path}': {size} bytes at byte {offset} are not read")
    data, _ = _read(path, offset, size)
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


def append_text(path: Location, text: str) -> None:
    """Adds UTF-8 text to the end of a local file, for logs: nothing that is read again to decide anything.

    What does not fit on the disk is left out whole, so that every line can be read.

    Raises:
        OutputError: the disk is full, the folder is missing or read-only.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # Without a buffer, which would be written once more when the stream is closed.
        with os.fdopen(handle, "ab", buffering=0) as stream:
            before, data = os.fstat(handle).st_size, text.encode()
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:
                stream.truncate(before)
                raise
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from error


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
