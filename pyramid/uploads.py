"""Uploads to S3: an object appears whole when it is published, or not at all; what a killed writer left is withdrawn.

Requests and their retries are left to `pyramid.remote`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from typing import Any

from pyramid.errors import UnreachableError
from pyramid.remote import Entry, call, head, pages, split

PART_BYTES = 16 * 2**20
"""Size of an upload's parts; a smaller object is one request."""


class Upload(io.RawIOBase):
    """Takes bytes and holds back at most a part; nothing bears the name before `publish`."""

    def __init__(self, url: str) -> None:
        self.url, self.key = url, split(url)[1]
        self._held, self._total = bytearray(), 0
        self._id = ""
        self._tags: list[str] = []

    def writable(self) -> bool:
        """Says yes."""
        return True

    def tell(self) -> int:
        """Returns how many bytes were written."""
        return self._total

    def write(self, data: Any) -> int:
        """Takes all of ``data``, and sends what fills a part."""
        size = memoryview(data).nbytes
        self._held += data
        self._total += size
        while len(self._held) >= PART_BYTES:
            self._send(bytes(memoryview(self._held)[:PART_BYTES]))
            del self._held[:PART_BYTES]
        return size

    def _send(self, part: bytes) -> None:
        if not self._id:
            self._id = str(call(self.url, "create_multipart_upload", Key=self.key)["UploadId"])
        here = {"Key": self.key, "UploadId": self._id, "PartNumber": len(self._tags) + 1}
        self._tags.append(call(self.url, "upload_part", Body=part, **here)["ETag"])

    def publish(self) -> None:
        """Gives the object its name."""
        if not self._id:
            call(self.url, "put_object", Key=self.key, Body=bytes(self._held))
            return
        if self._held:
            self._send(bytes(self._held))
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, start=1)]
        upload, self._id = self._id, ""
        try:
            whole = {"MultipartUpload": {"Parts": parts}}
            call(self.url, "complete_multipart_upload", Key=self.key, UploadId=upload, **whole)
        except FileNotFoundError:
            # An answer that was lost: the upload is done and its number gone when botocore asks again.
            if head(self.url) != Entry(self._total, self._whole_tag()):
                raise
        except BaseException:
            self._id = upload
            raise

    def _whole_tag(self) -> str:
        digests = b"".join(bytes.fromhex(tag.strip('"')) for tag in self._tags)
        return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._tags)}"'

    def abandon(self) -> None:
        """Withdraws what was sent. If the store cannot be told, `clear_uploads` does it at the next run."""
        self._held.clear()
        if self._id:
            with contextlib.suppress(OSError, UnreachableError):
                call(self.url, "abort_multipart_upload", Key=self.key, UploadId=self._id)
            self._id = ""


def clear_uploads(folder: str) -> int:
    """Withdraws the unfinished uploads of objects directly in ``folder``; returns how many.

    A store that does not show them, or a user that may not see them, has them cleared by a rule of the bucket.
    """
    prefix = split(folder.rstrip("/"))[1]
    prefix = f"{prefix}/" if prefix else ""
    markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
    left = []
    try:
        for page in pages(folder, "list_multipart_uploads", markers, Prefix=prefix):
            inside = [u for u in page.get("Uploads", ()) if u["Key"].startswith(prefix)]
            left += [u for u in inside if "/" not in u["Key"].removeprefix(prefix)]
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.ENOSYS:
            return 0
        raise
    for upload in left:
        with contextlib.suppress(FileNotFoundError):
            call(folder, "abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
    return len(left)
