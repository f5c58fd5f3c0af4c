"""What the tests of this folder get: a bucket, what lies in it, and the proxy in front of it."""

from __future__ import annotations

from dataclasses import dataclass

import faulty

from pyramid import remote


@dataclass(frozen=True)
class Store:
    """An empty bucket behind a proxy."""

    kind: str
    url: str
    proxy: faulty.Proxy

    @property
    def bucket(self) -> str:
        return remote.split(self.url)[0]

    def uploads(self) -> list[str]:
        """Returns the keys of uploads that were begun and not ended."""
        found = remote.filesystem().call_s3("list_multipart_uploads", Bucket=self.bucket)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    def content(self, folder: str = "") -> dict[str, bytes]:
        """Returns every object below a folder by relative name."""
        root = f"{self.url}/{folder}".rstrip("/")
        return {url.removeprefix(f"{root}/"): remote.read_up_to(url, 0, 2**30)[0] for url in remote.walk(root)}
