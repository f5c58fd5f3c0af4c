"""S3: requests with bounded retries, listings with sizes, ranges that are whole or an error.

Writing is left to `pyramid.uploads`; which paths are remote, and what a failure means, to `pyramid.files`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyramid.errors import UnreachableError

ATTEMPTS = 5
"""Tries of one request, or of one body, unless AWS_MAX_ATTEMPTS says otherwise."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Longest silence of a server; a slow body may take as long as it likes."""
BLOCK_BYTES = 8 * 2**20
"""What a stream reads at a time, at least."""
PIECE_BYTES = 64 * 2**20
"""Longest range of one request; what is read again when it breaks."""


@dataclass(frozen=True)
class Entry:
    """One name in a folder."""

    size: int
    """Bytes; 0 for a folder."""
    tag: str = ""
    """The store's tag of the content (ETag); empty for folders and local files."""


def filesystem() -> Any:
    """Returns the fsspec file system for S3, with the retries and timeouts of this file."""
    import fsspec

    retries = {"mode": os.environ.get("AWS_RETRY_MODE", "standard"), "total_max_attempts": _attempts()}
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
    # Without a cache of listings: other processes write, too.
    fs = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs={"retries": retries, **timeouts})
    fs.retries = 1  # Else s3fs repeats what botocore has repeated already.
    return fs


def _attempts() -> int:
    return int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS))


def split(url: str) -> tuple[str, str]:
    """Returns bucket and key of a URL."""
    bucket, _, key = url.partition("://")[2].partition("/")
    return bucket, key


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    """Turns a store that does not answer into one error that names URL and cause; an answered no stays an OSError."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (OSError, ClientError, BotoCoreError) as error:
        if isinstance(error, OSError) and not _is_outage(error):
            raise
        raise UnreachableError(f"'{url}': no usable answer after {_attempts()} tries: {_cause(error)}") from error


def _is_outage(error: OSError) -> bool:
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status == 429 or (status >= 500 and status != 501) or isinstance(error, ConnectionError | TimeoutError)


def _answer(error: BaseException) -> dict[str, Any]:
    return getattr(error.__cause__, "response", None) or {}


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


def call(url: str, method: str, **options: Any) -> Any:
    """Sends a request to the store that holds ``url``, again and again as long as botocore deems it of use.

    Raises:
        OSError: the store said no; FileNotFoundError where there is no such object or bucket.
        UnreachableError: it said nothing, or that something is wrong with itself.
    """
    with _named(url):
        return filesystem().call_s3(method, Bucket=split(url)[0], **options)


def head(url: str) -> Entry:
    """Asks for an object's size and tag.

    Raises:
        FileNotFoundError: there is none.
    """
    answer = call(url, "head_object", Key=split(url)[1])
    return Entry(int(answer["ContentLength"]), answer["ETag"])


def is_dir(url: str) -> bool:
    """Tells whether there is an object below ``url``, or a bucket of that name."""
    bucket, key = split(url.rstrip("/"))
    try:
        found = call(url, "list_objects_v2", Prefix=key and f"{key}/", MaxKeys=1)
    except FileNotFoundError:
        return False
    return bool(found.get("Contents")) or (bool(bucket) and not key)


def exists(url: str) -> bool:
    """Tells whether there is an object or a folder."""
    try:
        return bool(split(url)[1]) and bool(head(url))
    except FileNotFoundError:
        return is_dir(url)


def pages(url: str, method: str, markers: dict[str, str], **options: Any) -> Iterator[dict[str, Any]]:
    """Yields the pages of a listing; ``markers`` maps a request's option to the answer's key that continues it."""
    more: dict[str, Any] = {}
    while True:
        page = call(url, method, **options, **more)
        yield page
        if not page.get("IsTruncated"):
            return
        more = {option: page[key] for option, key in markers.items()}


def _objects(folder: str, **options: Any) -> Iterator[tuple[str, Entry]]:
    """Yields what lies below a folder by relative name."""
    key = split(folder.rstrip("/"))[1]
    prefix = f"{key}/" if key else ""
    markers = {"ContinuationToken": "NextContinuationToken"}
    for page in pages(folder, "list_objects_v2", markers, Prefix=prefix, **options):
        found = {o["Key"].removeprefix(prefix): Entry(o["Size"], o["ETag"]) for o in page.get("Contents", ())}
        inner = {p["Prefix"].removeprefix(prefix).rstrip("/"): Entry(0) for p in page.get("CommonPrefixes", ())}
        # Objects that end with a slash are folders that some tools make.
        yield from ((name, entry) for name, entry in {**inner, **found}.items() if name and not name.endswith("/"))


def entries(folder: str) -> dict[str, Entry]:
    """Returns what lies directly in a folder: one request per thousand names, none per name."""
    try:
        return dict(_objects(folder, Delimiter="/"))
    except FileNotFoundError:  # No such bucket.
        return {}


def walk(root: str) -> list[str]:
    """Returns the URLs of all objects below a folder, sorted; hidden ones are left out."""
    names = sorted(name for name, _ in _objects(root) if "/." not in f"/{name}")
    return [f"{root.rstrip('/')}/{name}" for name in names]


def remove(url: str) -> None:
    """Deletes an object if it is there."""
    with contextlib.suppress(FileNotFoundError):
        call(url, "delete_object", Key=split(url)[1])


def move(source: str, target: str) -> None:
    """Copies an object inside the store and deletes the source once the copy is whole; can be repeated at any point."""
    size = head(source).size
    with _named(target):
        filesystem().cp_file(source, target)
    if head(target).size != size:
        raise OSError(errno.EIO, f"the copy '{target}' is not whole; '{source}' is still there")
    remove(source)


@dataclass(frozen=True)
class Piece:
    """The answer to a ranged read."""

    data: bytes
    total: int
    """Size of the whole object."""
    tag: str


def read_piece(url: str, first: int, size: int) -> Piece:
    """Reads up to ``size`` bytes at ``first``: fewer only where the object ends, for a broken body is read again."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from fsspec.asyn import sync

    for attempt in range(_attempts()):
        try:
            answer = call(url, "get_object", Key=split(url)[1], Range=f"bytes={first}-{first + size - 1}")
        except OSError as error:
            if _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                return Piece(b"", 0, "")
            raise
        place, _, total = answer.get("ContentRange", "").removeprefix("bytes ").partition("/")
        if place.partition("-")[0] != str(first) or not total.isdigit():
            answer["Body"].close()
            raise OSError(errno.ENOSYS, "the store does not answer with the range that was asked for")
        try:
            data = sync(filesystem().loop, _read_body, answer["Body"])
        except (OSError, ClientError, BotoCoreError) as error:
            cause = _cause(error)
        else:
            if len(data) == min(size, int(total) - first):
                return Piece(data, int(total), answer["ETag"])
            cause = f"{len(data)} bytes came"
        if attempt + 1 < _attempts():
            time.sleep(min(0.1 * 2**attempt, 5.0))
    raise UnreachableError(f"'{url}': bytes {first} to {first + size} broke off {_attempts()} times: {cause}")


async def _read_body(body: Any) -> bytes:
    try:
        return bytes(await body.read())
    finally:
        body.close()


def read_up_to(url: str, first: int, size: int) -> tuple[bytes, int]:
    """Reads up to ``size`` bytes at ``first``; returns them and the size of the whole object."""
    got, total, tag = bytearray(), 0, ""
    while len(got) < size:
        piece = read_piece(url, first + len(got), min(size - len(got), PIECE_BYTES))
        if got and piece.tag != tag:
            raise OSError(errno.ESTALE, "it was replaced while it was read")
        got += piece.data
        total, tag = piece.total, piece.tag
        if first + len(got) >= total:
            break
    return bytes(got), total


class _Stream(io.RawIOBase):
    """A seekable object; every read is a range of the object that was there when it was opened."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, 0
        self.entry = head(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.entry.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, f"seek to byte {start + offset}")
        self.place = start + offset
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = min(len(view), self.entry.size - self.place, PIECE_BYTES)
        if size <= 0:
            return 0
        piece = read_piece(self.url, self.place, size)
        if piece.tag != self.entry.tag or len(piece.data) != size:
            raise OSError(errno.ESTALE, f"'{self.url}' was replaced while it was read")
        view[:size] = piece.data
        self.place += size
        return size


def open_read(url: str) -> io.BufferedReader:
    """Opens an object for reading, seekable."""
    return io.BufferedReader(_Stream(url), BLOCK_BYTES)
